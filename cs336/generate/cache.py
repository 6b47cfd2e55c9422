"""Keys and values of past positions in memory taken once, not copied at every step."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from cs336.model.attention import KVCache


@dataclass
class Columns:
    """Where all layers' caches write and how far they are read; one for all layers.

    Attributes:
        capacity: columns that there will ever be.
        places: columns that the next pass fills, in order.
        num_visible: columns that attention sees: the filled ones, or all of them where shapes must
            not change (the mask then hides the empty ones).
    """

    capacity: int
    places: Tensor
    num_visible: int


class PreallocatedCache(KVCache):
    """One layer's keys and values, written in place into arrays of full length."""

    def __init__(self, columns: Columns):
        super().__init__()
        self.columns = columns

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write new positions; returns all visible keys and values, as views."""
        if self.keys is None or self.values is None:
            # Zeros, not what lay there: hidden columns have weight zero, but zero times NaN is NaN.
            self.keys, self.values = (
                new.new_zeros(*new.shape[:-2], self.columns.capacity, new.shape[-1]) for new in (keys, values)
            )
        for stored, new in ((self.keys, keys), (self.values, values)):
            stored.index_copy_(-2, self.columns.places, new)
        visible = self.columns.num_visible
        return self.keys[..., :visible, :], self.values[..., :visible, :]

    def keep(self, rows: Tensor) -> None:
        """Forget all sequences but these."""
        if self.keys is not None and self.values is not None:
            self.keys, self.values = self.keys[rows], self.values[rows]
