"""Which 64-bit hashes occur more than once, in fixed memory: what outgrows it goes to disk, cut into ranges.

A hash counts up to two: more copies than two are let go whenever memory is full, so that a line that a third of a crawl
consists of takes no room.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

_NUM_RANGES = 256  # files on disk, by the upper 8 bits
_RANGE_SHIFT = np.uint64(56)
_BYTES_A_HASH = 32  # the hash, its sorted copy, and what sorting and comparing need
_LEAST_HELD = 50  # hashes in memory, however little is allowed: less would cost a file's opening for each
_BYTES_A_QUERY = 64  # its place in sorted order and in the table, too; half of the memory is the table's


class RepeatedHashes:
    """Counts hashes up to two.

    Args:
        folder: exists and is empty; for what memory does not hold.
        memory_bytes: to be used, about; a few MB more for files.
    """

    def __init__(self, folder: Path, memory_bytes: int) -> None:
        self._folder = folder
        self._capacity = max(_LEAST_HELD, memory_bytes // _BYTES_A_HASH)
        self._arrays: list[NDArray[np.uint64]] = []
        self._num_held = 0
        self._on_disk = False

    def add(self, hashes: NDArray[np.uint64]) -> None:
        """Count these, too."""
        for start in range(0, len(hashes), self._capacity):
            part = hashes[start : start + self._capacity]
            if self._num_held + len(part) > self._capacity:
                self._make_room()
            self._arrays.append(part)
            self._num_held += len(part)

    def repeated(self) -> Iterator[NDArray[np.uint64]]:
        """Distinct hashes that were added twice or more, ascending: an array for each range of values."""
        if not self._on_disk:
            held, self._arrays, self._num_held = joined(self._arrays), [], 0
            held.sort()
            yield np.unique(held[1:][held[1:] == held[:-1]])
            return
        self._spill(at_most_two(joined(self._arrays)))
        for number in range(_NUM_RANGES):
            yield from self._repeated_of_range(self._file(number))

    def _make_room(self) -> None:
        """Let go of more copies than two; if that leaves less than half of the memory, put all on disk."""
        held = at_most_two(joined(self._arrays))
        self._arrays, self._num_held = [held], len(held)
        if 2 * len(held) > self._capacity:
            self._spill(held)
            self._arrays, self._num_held = [], 0

    def _spill(self, hashes: NDArray[np.uint64]) -> None:
        """Append sorted hashes to the files of their ranges."""
        self._on_disk = True
        bounds = np.arange(1, _NUM_RANGES, dtype=np.uint64) << _RANGE_SHIFT
        for number, part in enumerate(np.split(hashes, np.searchsorted(hashes, bounds))):
            if len(part):
                with open(self._file(number), "ab") as file:
                    part.tofile(file)

    def _repeated_of_range(self, path: Path) -> Iterator[NDArray[np.uint64]]:
        """A range in parts that fit in memory, should it be larger: each part is one reading of the file."""
        if not path.exists():
            return
        num_parts = -(-2 * (path.stat().st_size // 8) // self._capacity)
        # Between the least and the greatest: what is counted may itself be a range, and fill only a piece of this one.
        stored = np.memmap(path, np.uint64, "r")
        first, last = int(stored.min()), int(stored.max())
        bounds = [first + part * (last + 1 - first) // num_parts for part in range(num_parts + 1)]
        for part in range(num_parts):
            found = []
            with open(path, "rb") as file:
                for hashes in _blocks(file, max(1, self._capacity // 4)):
                    is_here = (hashes >= np.uint64(bounds[part])) & (hashes <= np.uint64(bounds[part + 1] - 1))
                    found.append(hashes[is_here])
            held = joined(found)
            held.sort()
            yield np.unique(held[1:][held[1:] == held[:-1]])
        path.unlink()

    def _file(self, number: int) -> Path:
        return self._folder / f"{number:03}.u64"


class SortedHashes:
    """Sorted distinct hashes in files, in memory if they take at most half of what may be used.

    Args:
        paths: little-endian 64-bit numbers, ascending over all files, nothing else.
        memory_bytes: to be used, about.
    """

    def __init__(self, paths: Sequence[Path], memory_bytes: int) -> None:
        self._paths = paths
        self._block = max(1, memory_bytes // 2 // 8)
        self.queries_at_once = max(1, memory_bytes // 2 // _BYTES_A_QUERY)
        self._size = sum(path.stat().st_size for path in paths) // 8
        self._table = joined([np.fromfile(path, np.uint64) for path in paths]) if self._size <= self._block else None

    def __len__(self) -> int:
        return self._size

    def contain(self, hashes: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Whether each hash is among them. Give as many at a time as there are, up to `queries_at_once`: a table that
        is not in memory is read once for each call."""
        if self._table is not None:
            return _contains(self._table, hashes)
        found = np.zeros(len(hashes), bool)
        order = np.argsort(hashes)
        ordered = hashes[order]
        for path in self._paths:
            with open(path, "rb") as file:
                for table in _blocks(file, self._block):
                    first, last = np.searchsorted(ordered, table[0]), np.searchsorted(ordered, table[-1], side="right")
                    found[order[first:last]] = _contains(table, ordered[first:last])
        return found


def write_sorted(path: Path, arrays: Iterator[NDArray[np.uint64]]) -> int:
    """Write arrays of ascending hashes one after the other, as `SortedHashes` reads them; returns how many."""
    with open(path, "wb") as file:
        return sum(_write(file, hashes) for hashes in arrays)


def _write(file: IO[bytes], hashes: NDArray[np.uint64]) -> int:
    hashes.tofile(file)
    return len(hashes)


def _contains(table: NDArray[np.uint64], hashes: NDArray[np.uint64]) -> NDArray[np.bool_]:
    if not len(table):
        return np.zeros(len(hashes), bool)
    return table[np.minimum(np.searchsorted(table, hashes), len(table) - 1)] == hashes


def at_most_two(hashes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Sorted, without the third and further copies."""
    hashes.sort()
    kept = np.ones(len(hashes), bool)
    kept[2:] = hashes[2:] != hashes[:-2]
    return hashes[kept]


def joined(arrays: Sequence[NDArray[np.uint64]]) -> NDArray[np.uint64]:
    """One array of all of them; of none an empty one."""
    return np.concatenate([np.zeros(0, np.uint64), *arrays])


def _blocks(file: IO[bytes], size: int) -> Iterator[NDArray[np.uint64]]:
    while len(block := np.fromfile(file, np.uint64, size)):
        yield block
