"""Hashes that occur twice, against counting, in memory and on disk."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from cs336.dedup.repeated import RepeatedHashes, SortedHashes, write_sorted


def arrays_of(seed: int) -> list[np.ndarray]:
    """Hashes, some of them in one array twice, some in many, one of them very often; and some that lie close."""
    generator = np.random.default_rng(seed)
    pool = generator.integers(0, 1 << 64, 3_000, dtype=np.uint64)
    pool[:20] = np.arange(20, dtype=np.uint64)
    pool[20:40] = np.uint64(2**64 - 1) - np.arange(20, dtype=np.uint64)
    often = np.full(500, pool[50])
    return [np.concatenate([generator.choice(pool, generator.integers(0, 400)), often]) for _ in range(9)]


@pytest.mark.parametrize("memory_bytes", [1 << 20, 32 * 600, 32 * 50, 1])
def test_what_is_repeated_does_not_depend_on_memory(tmp_path: Path, memory_bytes: int):
    arrays = arrays_of(0)
    counts = RepeatedHashes(tmp_path, memory_bytes)
    for array in arrays:
        counts.add(array)
    expected = sorted(value for value, count in Counter(np.concatenate(arrays).tolist()).items() if count > 1)
    found = list(counts.repeated())
    assert np.concatenate(found).tolist() == expected
    assert (len(found) > 1) == (memory_bytes < 1 << 20)
    assert not list(tmp_path.iterdir())  # what was on disk is gone


def test_hashes_of_a_narrow_range_are_cut_evenly_too(tmp_path: Path):
    counts = RepeatedHashes(tmp_path, 32 * 200)  # room for 200
    hashes = np.random.default_rng(0).integers(1 << 40, 1 << 41, 3_000, dtype=np.uint64)
    for _ in range(2):
        counts.add(hashes)
    found = list(counts.repeated())
    assert np.concatenate(found).tolist() == sorted(set(hashes.tolist()))
    assert max(map(len, found)) <= 200


def test_a_hash_that_comes_again_and_again_takes_no_room(tmp_path: Path):
    counts = RepeatedHashes(tmp_path, 32 * 1_000)
    for _ in range(50):
        counts.add(np.full(900, 7, np.uint64))
    assert not list(tmp_path.iterdir())
    assert np.concatenate(list(counts.repeated())).tolist() == [7]


def test_nothing_added_is_nothing_repeated(tmp_path: Path):
    assert write_sorted(tmp_path / "table", RepeatedHashes(tmp_path, 1).repeated()) == 0
    assert SortedHashes([tmp_path / "table"], 1).contain(np.array([1, 2], np.uint64)).tolist() == [False, False]


@pytest.mark.parametrize("memory_bytes", [1 << 20, 16 * 10, 1])
def test_a_table_finds_its_own_wherever_it_is(tmp_path: Path, memory_bytes: int):
    values = np.unique(np.concatenate(arrays_of(1)))
    assert write_sorted(tmp_path / "table", iter(np.split(values[::2], [10, 500]))) == len(values[::2])
    table = SortedHashes([tmp_path / "table"], memory_bytes)
    asked = np.random.default_rng(2).permutation(np.concatenate([values, values]))
    assert np.array_equal(table.contain(asked), np.isin(asked, values[::2]))
    assert len(table) == len(values[::2])
