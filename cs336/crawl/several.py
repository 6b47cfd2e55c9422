"""Several ways in as one crawl, such as pages and ready texts."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cs336.crawl.source import CrawlStats, Shard, Source
from cs336.files import UserError
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
        """All shards; each item says of which source it is.

        Raises:
            UserError: two sources have a shard of the same name; and as the sources'.
        """
        shards = [
            Shard(shard.name, tuple({"source": number, "settings": settings, "item": item} for item in shard.items))
            for number, source in enumerate(self.sources)
            for settings in [_settings_hash(source)]
            for shard in source.plan(progress=progress)
        ]
        twice = [name for name, count in Counter(shard.name for shard in shards).items() if count > 1]
        if twice:
            raise UserError(f"two sources have a shard {twice[0]!r}; rename a file, or raise name_parts of texts")
        return shards

    def fetch(self, shard: Shard, folder: Path, *, num_workers: int = 1, progress: Progress = silent) -> CrawlStats:
        """As the shard's own source does.

        Raises:
            UserError: that source is no longer the one it was planned of; and as the source's.
        """
        number, settings = shard.items[0]["source"], shard.items[0]["settings"]
        if number >= len(self.sources) or _settings_hash(self.sources[number]) != settings:
            raise UserError(f"{shard.name}: the sources have changed since it was planned; plan the crawl again")
        own = Shard(shard.name, tuple(item["item"] for item in shard.items))
        return self.sources[number].fetch(own, folder, num_workers=num_workers, progress=progress)


def _settings_hash(source: Source) -> str:
    """Of what decides a shard's bytes beyond its items: other settings are another item."""
    return hashlib.sha256(json.dumps(source.shard_identity(), sort_keys=True).encode()).hexdigest()[:16]
