"""Several ways in as one crawl, such as pages and ready texts."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cs336.crawl.source import CrawlStats, Shard, Source
from cs336.progress import Progress, silent


@dataclass(frozen=True, kw_only=True)
class Several:
    """The shards of each source, one source after the other.

    Attributes:
        sources: of any kind; their shards have different names.
    """

    sources: tuple[Source, ...]

    def __post_init__(self) -> None:
        if len(self.sources) < 2:
            raise ValueError(f"several sources are at least two, got {len(self.sources)}; give the one alone")

    def identity(self) -> Any:
        """What each source says, in order."""
        return {"source": "several", "sources": [each.identity() for each in self.sources]}

    def shard_identity(self) -> Any:
        """Nothing more: the items say which source they are of."""
        return {"source": "several"}

    def plan(self, *, progress: Progress = silent) -> list[Shard]:
        """All shards; the first item of each names its source.

        Raises:
            ValueError: two sources have a shard of the same name.
            UserError: as the sources'.
        """
        shards = [
            Shard(shard.name, ({"number": number, "identity": source.shard_identity()}, *shard.items))
            for number, source in enumerate(self.sources)
            for shard in source.plan(progress=progress)
        ]
        twice = [name for name, count in Counter(shard.name for shard in shards).items() if count > 1]
        if twice:
            raise ValueError(f"two sources have a shard {twice[0]!r}; rename a file, or raise name_parts of texts")
        return shards

    def fetch(self, shard: Shard, folder: Path, *, num_workers: int = 1, progress: Progress = silent) -> CrawlStats:
        """As the shard's own source does.

        Raises:
            UserError: as the source's.
        """
        first, *items = shard.items
        source = self.sources[first["number"]]
        return source.fetch(Shard(shard.name, tuple(items)), folder, num_workers=num_workers, progress=progress)
