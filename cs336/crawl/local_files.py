"""Files that somebody has already: WARC or ARC files, and plain texts, as shards of a crawl."""

from __future__ import annotations

import contextlib
import glob
import gzip
import json
import os
import re
import time
import uuid
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256 as sha256_of
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from cs336 import catalog
from cs336.crawl.source import CrawlStats, Shard
from cs336.crawl.warc import write_record
from cs336.download import cached_sha256, copy_file, download, downloads_folder, move_file, remote_file
from cs336.files import UserError, name_full_disk, replacing, sync_folder
from cs336.progress import Progress, silent

# A longer document is most likely a file without separators; extraction would refuse it anyway.
MAX_DOCUMENT_BYTES = 100 * 2**20
_PIECE_BYTES = 1 << 20
_DATA_FOLDER = "$CS336_DATA/"
_CATALOG = "catalog:"


@dataclass(frozen=True, kw_only=True)
class WarcFiles:
    """WARC or ARC files, gzipped or not, taken as they are; one file is one shard.

    Damage inside a file is found, counted and skipped where records are read.

    Attributes:
        paths: files, patterns such as `crawl/**/*.warc.gz`, or http(s) addresses.
    """

    paths: tuple[str, ...]

    def __post_init__(self) -> None:
        _check_paths(self.paths)

    def identity(self) -> Any:
        """Name, size and checksum of each file, or its address; never a folder."""
        return {"source": "warc-files", "files": _identities(_inputs(self.paths, _warc_name))}

    def shard_identity(self) -> Any:
        """Nothing more: the items pin the file."""
        return {"source": "warc-files"}

    def plan(self, *, progress: Progress = silent) -> list[Shard]:
        """One shard per file, by name.

        Raises:
            UserError: two files would have the same shard name, a pattern matches nothing, or an address cannot be
                read.
        """
        inputs = _inputs(self.paths, _warc_name)
        watched = progress(inputs.items(), total=len(inputs), unit="files", label="checksums")
        return [Shard(name, (_item(place),)) for name, place in watched]

    def fetch(self, shard: Shard, folder: Path, *, num_workers: int = 1, progress: Progress = silent) -> CrawlStats:
        """Link, copy or download the shard's file into `folder`, as `<name>.warc.gz` or `<name>.warc`.

        Raises:
            UserError: the file has gone or changed since the plan; the network fails; the disk is full.
        """
        start = time.monotonic()
        folder.mkdir(parents=True, exist_ok=True)
        item = shard.items[0]
        if "url" in item:
            # Kept apart by address, so that a killed download goes on in the next run.
            key = sha256_of(item["url"].encode()).hexdigest()[:16]
            arriving = downloads_folder() / "warc-files" / key / item["name"]
            download(item["url"], arriving, num_bytes=item["bytes"], etag=item["etag"], progress=progress)
            target = folder / _stored_name(shard.name, arriving)
            with name_full_disk(target):
                move_file(arriving, target)
        else:
            place = _unchanged(shard, _inputs(self.paths, _warc_name))
            target = folder / _stored_name(shard.name, place)
            with name_full_disk(target):
                _link_or_copy(place, target)
        stats = CrawlStats(num_bytes=target.stat().st_size, fetch_seconds=time.monotonic() - start)
        stats.num_fetches["file"] += 1
        return stats


@dataclass(frozen=True, kw_only=True)
class TextFiles:
    """Texts that need no extraction: each becomes a `conversion` record, as in Common Crawl's WET files.

    Attributes:
        paths: files or patterns. `.jsonl` and `.jsonl.gz`: one JSON object a line; everything else:
            plain UTF-8 text, gzipped or not. `$CS336_DATA/...` lies below the data folder, and
            `catalog:NAME` stands for the files of a catalogue entry, wherever they were found.
        text_field: of JSON objects, the field with the text; a field `url` becomes the address.
        separator: stands between the documents of a plain text.
        name_parts: how many last parts of a path name a shard and its documents; 2 tells
            `books/train.jsonl` from `news/train.jsonl`.
    """

    paths: tuple[str, ...]
    text_field: str = "text"
    separator: str = "<|endoftext|>"
    name_parts: int = 1

    def __post_init__(self) -> None:
        _check_paths(self.paths)
        for path in self.paths:
            if _is_url(path):
                raise ValueError(f"{path}: text files are read from disk; download it first")
            if path.startswith(_CATALOG):
                catalog.entry(path.removeprefix(_CATALOG))
        if not self.separator:
            raise ValueError("separator is empty; give the string that stands between documents")
        if self.name_parts < 1:
            raise ValueError(f"name_parts is {self.name_parts}; a shard's name takes at least the file's own")

    def identity(self) -> Any:
        """Name, size and checksum of each file, and how documents are read from it."""
        return self.shard_identity() | {"files": _identities(self._inputs())}

    def shard_identity(self) -> Any:
        """How documents are read from the files that the items pin."""
        settings = {"text_field": self.text_field, "separator": self.separator, "name_parts": self.name_parts}
        return {"source": "text-files"} | settings

    def plan(self, *, progress: Progress = silent) -> list[Shard]:
        """One shard per file, by name.

        Raises:
            UserError: two files would have the same shard name, or a pattern matches nothing.
        """
        inputs = self._inputs()
        watched = progress(inputs.items(), total=len(inputs), unit="files", label="checksums")
        return [Shard(name, (_item(place),)) for name, place in watched]

    def fetch(self, shard: Shard, folder: Path, *, num_workers: int = 1, progress: Progress = silent) -> CrawlStats:
        """Write `<name>.warc.gz`: a `warcinfo` record, then one `conversion` record per document.

        What is no document (bad JSON, no text, not UTF-8, empty, too long, the rest of a damaged gzip
        file) is counted in the result's `num_fetches` by its reason.

        Raises:
            UserError: the file has gone or changed since the plan; the disk is full.
        """
        start = time.monotonic()
        place = _unchanged(shard, self._inputs())
        name = "/".join(place.parts[-self.name_parts :])
        stats = CrawlStats()
        stats.num_fetches["file"] += 1
        target = folder / f"{shard.name}.warc.gz"
        with replacing(target) as file:
            info = f"software: cs336\r\nformat: WARC File Format 1.0\r\nisPartOf: {name}\r\n"
            write_record(
                file,
                "warcinfo",
                url=None,
                content_type="application/warc-fields",
                block=info.encode(),
                record_id=_record_id(f"text://{quote(name)}"),
            )
            stats.num_records["warcinfo"] += 1
            for number, found in enumerate(progress(self._documents(place), unit="documents", label=shard.name)):
                if isinstance(found, str):
                    stats.num_fetches[found] += 1
                    continue
                address = f"text://{quote(name)}/{number}"
                url, text = found
                write_record(
                    file,
                    "conversion",
                    url=url or address,
                    content_type="text/plain",
                    block=text.encode(),
                    record_id=_record_id(address),
                )
                stats.num_records["conversion"] += 1
        stats.num_bytes = target.stat().st_size
        stats.fetch_seconds = time.monotonic() - start
        return stats

    def texts(self) -> Iterator[tuple[str, str]]:
        """Address and text of every document of all files, for who needs no records.

        Raises:
            UserError: a pattern matches nothing.
        """
        for place in map(Path, self._inputs().values()):
            name = quote("/".join(place.parts[-self.name_parts :]))
            for number, found in enumerate(self._documents(place)):
                if not isinstance(found, str):
                    yield found[0] or f"text://{name}/{number}", found[1]

    def _inputs(self) -> dict[str, str | Path]:
        return _inputs(self.paths, _text_name, self.name_parts)

    def _documents(self, path: Path) -> Iterator[tuple[str, str] | str]:
        """(address or "", text) of every document, or the reason why it is none."""
        is_json = path.name.removesuffix(".gz").endswith(".jsonl")
        separator = b"\n" if is_json else self.separator.encode()
        with open(path, "rb") as raw:
            is_gzip = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            file: Any = gzip.GzipFile(fileobj=raw) if is_gzip else raw
            is_blank = False
            for piece in split_stream(file, separator, max_bytes=MAX_DOCUMENT_BYTES):
                if is_blank:
                    yield "empty document"  # but a line break after the last separator is none
                    is_blank = False
                if isinstance(piece, str):
                    yield piece
                    continue
                try:
                    text = piece.decode("utf-8")
                except UnicodeDecodeError:
                    yield "not UTF-8"
                    continue
                if is_json and text.strip():
                    yield self._from_json(text)
                elif not is_json:
                    text = text.strip("\r\n")  # the line breaks around a separator belong to it
                    is_blank = not text.strip()
                    if not is_blank:
                        yield "", text

    def _from_json(self, line: str) -> tuple[str, str] | str:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):  # an integer of thousands of digits is a bare ValueError
            return "not valid JSON"
        if not isinstance(row, dict) or not isinstance(row.get(self.text_field), str):
            return "no text field"
        text, url = row[self.text_field], row.get("url")
        if not text.strip():
            return "empty document"
        try:
            text.encode()
        except UnicodeEncodeError:  # JSON can spell half a surrogate pair
            return "not UTF-8"
        is_address = isinstance(url, str) and url.isprintable() and " " not in url
        return (str(url) if is_address else ""), text


def split_stream(file: Any, separator: bytes, *, max_bytes: int) -> Iterator[bytes | str]:
    """The pieces between separators, the last one only if it is not empty; memory stays bounded.

    Args:
        file: a buffered binary file, or `gzip.GzipFile`.

    Yields:
        each piece; or, in its place, the reason why it is lost: it is longer than `max_bytes`, or
        the (gzipped) file is damaged and ends there.
    """
    rest = b""
    too_long = damaged = False
    while True:
        data, damaged = _read_piece(file)
        searched_from = max(0, len(rest) - len(separator) + 1)
        position, rest = 0, rest + data
        while (found := rest.find(separator, max(position, searched_from))) >= 0:
            yield "document too long" if too_long or found - position > max_bytes else rest[position:found]
            too_long = False
            position = found + len(separator)
        rest = rest[position:]
        if len(rest) > max_bytes:  # keep only what may be the start of a separator
            too_long, rest = True, rest[-len(separator) :]
        if damaged or not data:
            break
    if damaged:
        yield "damaged gzip file"
    elif too_long:
        yield "document too long"
    elif rest:
        yield rest


def _read_piece(file: Any) -> tuple[bytes, bool]:
    """About 1 MiB, less only at the end; and whether the file is damaged after it."""
    parts: list[bytes] = []
    num_bytes = 0
    while num_bytes < _PIECE_BYTES:
        try:
            part = file.read1(_PIECE_BYTES - num_bytes)  # unlike `read`, keeps what comes before the damage
        except (EOFError, zlib.error, gzip.BadGzipFile):
            return b"".join(parts), True
        if not part:
            break
        parts.append(part)
        num_bytes += len(part)
    return b"".join(parts), False


# ---- which files -------------------------------------------------------------------------------


def _check_paths(paths: Any) -> None:
    if isinstance(paths, str) or not paths:
        raise ValueError(f"paths is {paths!r}; give a list of at least one file, pattern or address")


def _inputs(paths: tuple[str, ...], name_of: Any, name_parts: int = 1) -> dict[str, str | Path]:
    """Address or local path by shard name, in the order of the names."""
    inputs: dict[str, str | Path] = {}
    for pattern in paths:
        for place in [pattern] if _is_url(pattern) else _matches(pattern):
            if isinstance(place, str):
                name = name_of(unquote(Path(urlsplit(place).path).name))
            else:
                name = name_of("-".join(place.parts[-name_parts:]))
            if inputs.setdefault(name, place) != place:
                raise UserError(f"{inputs[name]} and {place} would both be shard {name!r}; rename one of them")
    return dict(sorted(inputs.items()))


def _matches(pattern: str) -> list[Path]:
    if pattern.startswith(_CATALOG):
        return catalog.require_files(pattern.removeprefix(_CATALOG))
    if pattern.startswith(_DATA_FOLDER) and not os.environ.get("CS336_DATA"):
        raise UserError(f"{pattern}: CS336_DATA is not set; set it to the folder that holds the file")
    expanded = os.path.expanduser(pattern.replace(_DATA_FOLDER, os.environ.get("CS336_DATA", "") + "/", 1))
    # A file whose own name holds brackets is no pattern.
    found = [expanded] if os.path.lexists(expanded) else glob.glob(expanded, recursive=True)
    files = sorted(Path(os.path.abspath(path)) for path in found if Path(path).is_file())
    if not files:
        hint = f"; it is a folder, say {pattern.rstrip('/')}/*" if Path(expanded).is_dir() else ""
        looked = f" (looked for {os.path.abspath(expanded)})" if os.path.abspath(expanded) != pattern else ""
        raise UserError(f"{pattern}: matches no file{looked}{hint or '; correct source.paths of the preset'}")
    return files


def _is_url(path: str) -> bool:
    return path.startswith(("http://", "https://"))


def _warc_name(file_name: str) -> str:
    """`a.warc.gz` and `a.warc` -> `a`; other kinds keep theirs: `a.arc.gz` -> `a.arc`."""
    return _clean(file_name.removesuffix(".gz").removesuffix(".warc"))


def _text_name(file_name: str) -> str:
    return _clean(file_name.removesuffix(".gz").removesuffix(".jsonl").removesuffix(".txt"))


def _clean(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "_", name).lstrip(".") or "file"


def _item(place: str | Path) -> dict[str, Any]:
    """What pins one input."""
    if isinstance(place, str):
        size = remote_file(place)
        name = unquote(Path(urlsplit(place).path).name)
        return {"name": name, "url": place, "bytes": size.num_bytes, "etag": size.etag}
    return {"name": place.name, "bytes": place.stat().st_size, "sha256": cached_sha256(place)}


def _identities(inputs: dict[str, str | Path]) -> list[Any]:
    """As `_item`, but without the network."""
    return [{"url": place} if isinstance(place, str) else _item(place) for place in inputs.values()]


def _unchanged(shard: Shard, inputs: dict[str, str | Path]) -> Path:
    """The local file of a planned shard."""
    place, item = inputs.get(shard.name), shard.items[0]
    if not isinstance(place, Path):
        raise UserError(f"{item['name']}: planned, but no longer among the source's paths; plan the crawl again")
    if _item(place) != item:
        raise UserError(f"{place}: has changed since the crawl was planned; plan the crawl again")
    return place


# ---- putting them in place ---------------------------------------------------------------------


def _stored_name(name: str, file: Path) -> str:
    with open(file, "rb") as opened:
        return f"{name}.warc.gz" if opened.read(2) == b"\x1f\x8b" else f"{name}.warc"


def _link_or_copy(source: Path, target: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        target.unlink()
    try:
        os.link(source.resolve(), target)  # of a symbolic link, what it points to
        sync_folder(target.parent)
    except OSError:  # another disk, or a file system without links
        copy_file(source, target)


def _record_id(address: str) -> str:
    return f"<urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, address)}>"
