"""Common Crawl: the path list of a snapshot, a choice of its files, and each of them fetched and checked.

A snapshot's WARC files (about 90,000 of 1 GB) hold raw pages, its WET files the text that Common
Crawl extracted, as `conversion` records. Path lists and files: https://commoncrawl.org/get-started
"""

from __future__ import annotations

import contextlib
import gzip
import random
import re
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cs336.crawl.source import CrawlStats, Shard
from cs336.download import download, downloads_folder, move_file, remote_file
from cs336.files import UserError, name_full_disk, read_json, sha256_of_file, write_json
from cs336.progress import Progress, silent

BASE_URL = "https://data.commoncrawl.org"
_NUM_HEAD_REQUESTS = 4  # at once, when sizes are asked for: few, because the host bans eager clients
_PIECE_BYTES = 1 << 16
_HEADER_BYTES = 1 << 14  # of a record, looked at for its type


@dataclass(frozen=True, kw_only=True)
class CommonCrawl:
    """Some files of one snapshot.

    Attributes:
        snapshot: such as "CC-MAIN-2025-18".
        num_files: how many of the snapshot's files.
        files_per_shard: neighbours of the list that make one shard, so that thousands of files are no more partitions
            than Dagster bears; a shard is called after its first file, and the last may have fewer.
        kind: "warc" for pages, "wet" for Common Crawl's own text.
        seed: of the sample; files of one segment were crawled in the same days, so the first ones
            of the list would be alike.
        first_file: takes consecutive files from this index on (0 is the first) instead of a sample.
        base_url: the host, or a mirror of it.
        manifest: a JSON file written by `write_manifest`: its files are taken, whatever the
            network's list says, and must have its checksums.
    """

    snapshot: str
    num_files: int
    files_per_shard: int = 1
    kind: Literal["warc", "wet"] = "warc"
    seed: int = 0
    first_file: int | None = None
    base_url: str = BASE_URL
    manifest: str = ""

    def __post_init__(self) -> None:
        if self.num_files < 1:
            raise ValueError(f"num_files is {self.num_files}; take at least 1")
        if self.files_per_shard < 1:
            raise ValueError(f"files_per_shard is {self.files_per_shard}; a shard takes at least 1")
        if self.kind not in ("warc", "wet"):
            raise ValueError(f"kind is {self.kind!r}; choose 'warc' or 'wet'")
        if self.first_file is not None and self.first_file < 0:
            raise ValueError(f"first_file is {self.first_file}; indices start at 0")

    def identity(self) -> Any:
        """The settings; with a manifest, what it pins, wherever the manifest lies."""
        choice: dict[str, Any] = {"source": "common-crawl", "snapshot": self.snapshot, "kind": self.kind}
        choice["files_per_shard"] = self.files_per_shard
        if self.manifest:
            # No ETag: it may change from mirror to mirror while the bytes do not.
            pins = [{key: item[key] for key in ("path", "bytes", "sha256")} for item in self._pinned_items()]
            return {**choice, "files": pins}
        settings = {"num_files": self.num_files, "seed": self.seed, "first_file": self.first_file}
        return {**choice, **settings, "base_url": self.base_url.rstrip("/")}

    def shard_identity(self) -> Any:
        """Nothing more: the items pin the files."""
        return {"source": "common-crawl"}

    def plan(self, *, progress: Progress = silent) -> list[Shard]:
        """Choose the files, and ask for their sizes and ETags.

        Returns:
            shards in the order of the snapshot's list; an item for each file: path, bytes, etag, and
            sha256 where a manifest gives it.

        Raises:
            UserError: no such snapshot, it has too few files, the network fails, or the manifest is
                missing or of another snapshot.
        """
        if self.manifest:
            return self._shards(self._pinned_items())
        paths = self._chosen(self._listed_paths(progress))
        with ThreadPoolExecutor(_NUM_HEAD_REQUESTS) as pool:
            answers = pool.map(lambda path: remote_file(self._url(path)), paths)
            sizes = list(progress(answers, total=len(paths), unit="files", label="sizes"))
        return self._shards(
            [
                {"path": path, "bytes": size.num_bytes, "etag": size.etag}
                for path, size in zip(paths, sizes, strict=True)
            ]
        )

    def fetch(self, shard: Shard, folder: Path, *, num_workers: int = 1, progress: Progress = silent) -> CrawlStats:
        """Download each file of the shard as `<name>.warc.gz` and read it once to see that it is whole.

        What arrived of a download that was killed stays in the download folder, where the next run
        goes on with it. Files that lie in `folder` already, from an earlier try at this shard, are
        read once too, and fetched again only if they are damaged or not the planned ones.

        Raises:
            UserError: the network fails, a file is not the planned one, or it is damaged.
        """
        start = time.monotonic()
        stats = CrawlStats()
        for item in shard.items:
            target = _fetched(folder, item)
            stats.num_records += _records_if_whole(target, item) or self._fetch_file(item, target, progress)
            stats.num_fetches["file"] += 1
            stats.num_bytes += target.stat().st_size
        stats.fetch_seconds = time.monotonic() - start
        return stats

    def _fetch_file(self, item: dict[str, Any], target: Path, progress: Progress) -> Counter[str]:
        arriving = downloads_folder() / "common-crawl" / self.snapshot / Path(item["path"]).name
        with name_full_disk(target):
            download(
                self._url(item["path"]),
                arriving,
                sha256=item.get("sha256"),
                num_bytes=item["bytes"],
                # A manifest is replayed from any mirror: checksums travel, ETags do not.
                etag=None if item.get("sha256") else item["etag"],
                progress=progress,
            )
            try:
                num_records = count_records(arriving)
            except UserError:
                arriving.unlink()
                raise
            target.parent.mkdir(parents=True, exist_ok=True)
            move_file(arriving, target)
        return num_records

    def _url(self, path: str) -> str:
        return f"{self.base_url.rstrip('/')}/{path}"

    def _listed_paths(self, progress: Progress) -> list[str]:
        url = self._url(f"crawl-data/{self.snapshot}/{self.kind}.paths.gz")
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "paths.gz"
            download(url, file, progress=progress)
            try:
                return gzip.decompress(file.read_bytes()).decode("utf-8").split()
            except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
                raise UserError(f"{url}: not a gzipped list of paths ({error}); check the snapshot's name") from None

    def _chosen(self, paths: list[str]) -> list[str]:
        if self.first_file is not None:
            chosen = paths[self.first_file : self.first_file + self.num_files]
        else:
            indices = random.Random(self.seed).sample(range(len(paths)), min(self.num_files, len(paths)))
            chosen = [paths[index] for index in sorted(indices)]
        if len(chosen) < self.num_files:
            raise UserError(
                f"{self.snapshot}: asked for {self.num_files} {self.kind} files, the list of {len(paths):,} gives"
                f" {len(chosen)}; lower num_files or first_file"
            )
        return chosen

    def _shards(self, items: list[dict[str, Any]]) -> list[Shard]:
        groups = [items[start : start + self.files_per_shard] for start in range(0, len(items), self.files_per_shard)]
        return [Shard(_file_name(group[0]["path"]), tuple(group)) for group in groups]

    def _pinned_items(self) -> list[dict[str, Any]]:
        path = Path(self.manifest).expanduser()
        content = read_json(path)
        try:
            pins = (content["snapshot"], content["kind"])
            items = [{key: file[key] for key in ("path", "bytes", "etag", "sha256")} for file in content["files"]]
        except (KeyError, TypeError):
            raise UserError(f"{path}: not a manifest of Common Crawl files; write one with write_manifest") from None
        if pins != (self.snapshot, self.kind):
            raise UserError(f"{path}: pins {pins[1]} files of {pins[0]}, not {self.kind} files of {self.snapshot}")
        if len(items) < self.num_files:
            raise UserError(f"{path}: pins {len(items)} files, num_files asks for {self.num_files}; lower it")
        return items[: self.num_files]


def pin_shard(shard: Shard, folder: Path) -> Shard:
    """The shard with the SHA-256 of its fetched files in `folder`, for `write_manifest`."""
    items = []
    for item in shard.items:
        file = _fetched(folder, item)
        if not file.exists():
            raise UserError(f"{file}: not found; fetch the shard before pinning it")
        items.append({**item, "bytes": file.stat().st_size, "sha256": sha256_of_file(file)})
    return Shard(shard.name, tuple(items))


def write_manifest(path: Path, source: CommonCrawl, shards: Iterable[Shard]) -> None:
    """Write what was taken as JSON, to be committed and replayed with `manifest=`.

    Args:
        shards: from `pin_shard`, in the order of the plan.

    Raises:
        ValueError: a shard has no checksum.
    """
    files = [item for shard in shards for item in shard.items]
    for file in files:
        if not file.get("sha256"):
            raise ValueError(f"{file['path']} has no sha256; pass what pin_shard returns")
    pins = {"snapshot": source.snapshot, "kind": source.kind, "base_url": source.base_url.rstrip("/")}
    write_json(path, {**pins, "files": files})


def count_records(path: Path) -> Counter[str]:
    """Records of a gzipped WARC file by type, from one pass that inflates every member.

    Raises:
        UserError: the file ends inside a gzip member, a member is damaged, or does not hold a record.
    """
    counts: Counter[str] = Counter()
    with open(path, "rb") as file:
        compressed = file.read(_PIECE_BYTES)
        while compressed:
            start = file.tell() - len(compressed)
            inflater = zlib.decompressobj(31)  # 31: gzip framing and checksum
            header = b""
            while not inflater.eof:
                if not compressed:
                    raise UserError(f"{path}: truncated: it ends inside the gzip member at byte {start:,}; run again")
                try:
                    data = inflater.decompress(compressed)
                except zlib.error as error:
                    raise UserError(f"{path}: damaged gzip member at byte {start:,} ({error}); run again") from None
                header += data[: _HEADER_BYTES - len(header)]
                compressed = inflater.unused_data or file.read(_PIECE_BYTES)
            kind = re.search(rb"^WARC-Type:\s*([\w-]+)", header, re.IGNORECASE | re.MULTILINE)
            if not header.startswith(b"WARC/") or kind is None:
                raise UserError(f"{path}: the gzip member at byte {start:,} holds no WARC record; check the address")
            counts[kind[1].decode().lower()] += 1
    if not counts:
        raise UserError(f"{path}: empty; check the address")
    return counts


def _records_if_whole(path: Path, item: dict[str, Any]) -> Counter[str] | None:
    """Records by type of a planned file that is there; None where it is not, or not the planned one."""
    if not path.exists() or item["bytes"] not in (None, path.stat().st_size):
        return None
    if item.get("sha256") not in (None, sha256_of_file(path)):
        return None
    with contextlib.suppress(UserError):
        return count_records(path)  # each gzip member has a checksum
    return None


def _fetched(folder: Path, item: dict[str, Any]) -> Path:
    return folder / f"{_file_name(item['path'])}.warc.gz"


def _file_name(path: str) -> str:
    """`.../CC-MAIN-...-00000.warc.wet.gz` -> `CC-MAIN-...-00000`."""
    return re.sub(r"(\.warc)?(\.wet)?\.gz$", "", Path(path).name)
