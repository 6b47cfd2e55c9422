"""Crawls to measure on: real pages as Common Crawl stores them (WARC), and their text (WET).

With the environment variable CS336_DATA, the pages of `web/pages` (each as often as its origin held it, in a
fixed random order); without it, made-up pages. A crawl larger than that holds the same files again and again:
extraction and filters remember nothing, so this is as good as new pages.
"""

from __future__ import annotations

import gzip
import html
import json
import random
import tarfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.corpus import generated_text, sha256_of
from cs336.crawl.warc import read_records, write_record
from cs336.extract.shard import ExtractConfig, extract_shard
from cs336.files import UserError, replacing

NUM_FILES = 8
MAX_PAGE_BYTES = 2_000_000
WARM_UP_PAGES = 5
_HTTP = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: %d\r\n\r\n"
# Common Crawl writes it, and datatrove would otherwise guess the type from the bytes.
_HTML = {"WARC-Identified-Payload-Type": "text/html"}


@dataclass(frozen=True, kw_only=True)
class Crawl:
    """Files with as many pages each, but for the rest.

    Attributes:
        files: a larger crawl names them several times.
        warm_up: a file of a few of the pages.
        num_pages, num_bytes: of HTML (or of text, in WET files), in all files as often as they are named.
        name: where the pages come from.
        sha256: of the files, joined.
    """

    files: list[Path]
    warm_up: Path
    num_pages: int
    num_bytes: int
    name: str
    sha256: str

    def description(self) -> dict[str, object]:
        """For the rows of results."""
        return {"name": self.name, "pages": self.num_pages, "bytes": self.num_bytes, "sha256": self.sha256}


def crawl(cache: Path, data: Path | None, num_pages: int, *, wet: bool = False) -> Crawl:
    """A crawl of a number of pages, written into `cache` unless it is there.

    Raises:
        UserError: `data` has no pages.
    """
    name = "real pages" if data else "made-up pages"
    available = _num_real_pages(data) if data else 1_000
    written = min(num_pages, available)
    folder = cache / f"{name.replace(' ', '-')}-{written}"
    if not (folder / "warm-up.warc.gz").exists():
        pages = list(_real_pages(data) if data else _made_up_pages(written))[:written]
        for number in range(NUM_FILES):
            _write_warc(folder / f"{number:02}.warc.gz", pages[number::NUM_FILES])
        _write_warc(folder / "warm-up.warc.gz", pages[:WARM_UP_PAGES])  # the last: what is there is whole
    paths = [folder / f"{number:02}.warc.gz" for number in range(NUM_FILES)]
    if wet:
        paths = [_wet_of(path) for path in paths]
    sizes = [_size_of(path) for path in paths]
    again = max(1, round(num_pages / written))
    return Crawl(
        files=paths * again,
        warm_up=_wet_of(folder / "warm-up.warc.gz") if wet else folder / "warm-up.warc.gz",
        num_pages=sum(pages for pages, _ in sizes) * again,
        num_bytes=sum(size for _, size in sizes) * again,
        name=f"{name}, text" if wet else name,
        sha256=sha256_of(paths[0]),
    )


def _num_real_pages(data: Path) -> int:
    return sum(1 + len(row.get("also") or ()) for row in _index(data).values() if row["bytes"] <= MAX_PAGE_BYTES)


def _index(data: Path) -> dict[str, dict]:
    path = data / "web" / "pages" / "dev_index.jsonl.gz"
    if not path.exists():
        raise UserError(f"{path}: not found; leave CS336_DATA unset to measure on made-up pages")
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return {row["name"]: row for row in map(json.loads, lines)}


def _real_pages(data: Path) -> list[tuple[str, bytes]]:
    index = _index(data)
    pages: list[tuple[str, bytes]] = []
    with tarfile.open(data / "web" / "pages" / "dev.tar.xz") as archive:
        for member in archive:
            name = member.name.removeprefix("./").removeprefix("dev/")
            file = archive.extractfile(member) if name in index and member.size <= MAX_PAGE_BYTES else None
            if file is not None:
                url = index[name].get("url") or f"https://pages.test/{name}"
                pages += [(url, file.read())] * (1 + len(index[name].get("also") or ()))
    random.Random(0).shuffle(pages)
    return pages


def _made_up_pages(num_pages: int) -> Iterator[tuple[str, bytes]]:
    text = generated_text(6_000 * num_pages).replace("<|endoftext|>", " ")
    menu = "".join(f"<li><a href='/{number}'>Menu item {number}</a></li>" for number in range(60))
    for number in range(num_pages):
        paragraphs = text[6_000 * number : 6_000 * (number + 1)].split("\n")
        body = "".join(f"<p>{html.escape(paragraph)}</p>" for paragraph in paragraphs)
        page = f"<html><body><nav><ul>{menu}</ul></nav><main>{body}</main></body></html>"
        yield f"https://pages.test/{number}", page.encode()


def _write_warc(path: Path, pages: list[tuple[str, bytes]]) -> None:
    with replacing(path) as file:
        for number, (url, page) in enumerate(pages):
            identity = f"<urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, f'{path.name} {number} {url}')}>"
            write_record(
                file,
                "response",
                url=url,
                content_type="application/http; msgtype=response",
                block=_HTTP % len(page) + page,
                record_id=identity,
                extra=_HTML,
            )


def _wet_of(path: Path) -> Path:
    """The extracted text of a WARC file as `conversion` records, as in Common Crawl's WET files."""
    wet = path.with_name(path.name.replace(".warc.gz", ".warc.wet.gz"))
    if not wet.exists():
        documents, _ = extract_shard(path, ExtractConfig())
        with replacing(wet) as file:
            for document in documents:
                block = document.text.encode()
                write_record(
                    file,
                    "conversion",
                    url=document.url,
                    content_type="text/plain",
                    block=block,
                    record_id=document.id,
                    extra={"WARC-Identified-Payload-Type": "text/plain"},
                )
    return wet


def _size_of(path: Path) -> tuple[int, int]:
    """Records with content, and bytes of that content."""
    sizes = [len(getattr(record, "payload", b"")) for record in read_records(path)]
    return len(sizes), sum(sizes)
