"""The parts of an asset as the functions made from it get them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import overload

from cs336.store import Store


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
