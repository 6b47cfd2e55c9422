"""The contract of every way in: a plan of shards, then one WARC file a shard.

A source is a frozen dataclass, part of a preset. Whatever it reads (a loopback site, files on disk,
Common Crawl), what leaves it is a WARC file; texts that need no extraction travel as `conversion`
records, as in Common Crawl's WET files.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from cs336.progress import Progress, silent


@dataclass(frozen=True)
class Shard:
    """One unit of crawling, and one partition of the graph.

    Attributes:
        name: letters, digits, `.`, `_` and `-`; unique in its plan. The WARC file is called
            `<name>.warc.gz` (`<name>.warc` when its source is not compressed).
        items: what pins the shard's content, as JSON values: page addresses, or a file's name,
            size and SHA-256. No path of this machine, no time.
    """

    name: str
    items: tuple[Any, ...]


@dataclass
class CrawlStats:
    """What fetching one shard did.

    Attributes:
        num_records: WARC records written, by type.
        num_fetches: requests by outcome: an HTTP status as text, "robots.txt" for pages not asked
            for, or an error's name; files taken whole count as "file".
        num_bytes: bytes of the WARC file.
        fetch_seconds: wall time.
    """

    num_records: Counter[str] = field(default_factory=Counter)
    num_fetches: Counter[str] = field(default_factory=Counter)
    num_bytes: int = 0
    fetch_seconds: float = 0.0


class Source(Protocol):
    """A way in. Implementations are frozen dataclasses with only JSON-like fields."""

    def identity(self) -> Any:
        """All that decides the crawl besides code, as JSON: settings, package versions, checksums.

        Never an absolute path, a number of workers or a time; cheap enough to call at every run.
        """
        ...

    def shard_identity(self) -> Any:
        """The part of it that decides a shard's bytes beyond the shard's own items.

        A crawl that grows by more files must not fetch again what it has.
        """
        ...

    def plan(self, *, progress: Progress = silent) -> list[Shard]:
        """Find what there is, and split it into shards, in a fixed order."""
        ...

    def fetch(self, shard: Shard, folder: Path, *, num_workers: int = 1, progress: Progress = silent) -> CrawlStats:
        """Write the shard's WARC file into `folder`, which may hold whole files of an earlier try at this shard."""
        ...
