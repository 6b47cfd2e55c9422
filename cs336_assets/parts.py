"""The parts of an asset as the functions made from it get them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

from cs336.files import UserError, read_json
from cs336.store import Store

PLAN_ASSET = "crawl_plan"
PLAN_FILE = "plan.json"


def shard_names(store: Store) -> list[str]:
    """Shards of the preset's crawl, in order.

    Raises:
        UserError: the crawl is not planned yet.
    """
    return [shard["name"] for shard in planned_shards(store)]


def planned_shards(store: Store) -> list[dict[str, Any]]:
    """Name and items of each shard, as the plan has them.

    Raises:
        UserError: the crawl is not planned yet.
    """
    if store.manifest(PLAN_ASSET) is None:
        raise UserError(
            f"{store.path(PLAN_ASSET)}: not there yet; `cs336 run --preset {store.preset}` makes text and base model"
        )
    return read_json(store.local(PLAN_ASSET) / PLAN_FILE)["shards"]


class Parts(Sequence[Path]):
    """Folders of an asset's parts, in order; each is fetched from the shared storage only when it is asked for.

    So who looks at some parts, or at none, has only these on its machine.
    """

    def __init__(self, store: Store, asset: str, names: Sequence[str]) -> None:
        self._store, self._asset, self._names = store, asset, names
        self._here: dict[str, Path] = {}

    def __len__(self) -> int:
        return len(self._names)

    @overload
    def __getitem__(self, place: int) -> Path: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[Path]: ...
    def __getitem__(self, place: int | slice) -> Path | Sequence[Path]:
        if isinstance(place, slice):
            return Parts(self._store, self._asset, self._names[place])
        name = self._names[place]
        if name not in self._here:
            self._here[name] = self._store.local(self._asset, name)
        return self._here[name]
