"""What shards pass to each other, so that no step of deduplication needs the whole crawl.

A global step has as many parts as there are shards, each for one range of 64-bit hashes of equal width. Every shard
writes its hashes in ascending order, so that a part reads its own range of each shard's file, and no more: what a part
holds is about what one shard has. Documents are numbered over the whole crawl, in the order of the shards.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from cs336.dedup.repeated import at_most_two, joined
from cs336.documents import Document, write_table
from cs336.files import replacing

HASHES_FILE = "hashes.npy"
KEYS_FILE, NUMBERS_FILE = "keys.npy", "numbers.npy"
PAIRS_FILE, MIRRORED_FILE, STARTS_FILE = "pairs.npy", "mirrored.npy", "starts.npy"
SETS_FILE, ENDS_FILE, CANDIDATES_FILE = "sets.npy", "ends.npy", "candidates.parquet"
_ORIGIN = {
    "document": pl.UInt32,
    "shard": pl.String,
    "row": pl.UInt32,
    "id": pl.String,
    "url": pl.String,
    "key": pl.String,
}
_HIGH, _LOW = np.uint64(32), np.uint64(0xFFFFFFFF)


def own_range(ascending: NDArray[np.uint64], part: int, num_parts: int) -> slice:
    """Where the hashes of a part lie among sorted ones; the parts together have each hash once."""
    bounds = [np.uint64(min((number << 64) // num_parts, (1 << 64) - 1)) for number in (part, part + 1)]
    start, end = np.searchsorted(ascending, bounds).tolist()
    return slice(start, len(ascending) if part + 1 == num_parts else end)


# ---- lines ------------------------------------------------------------------------------------------


def write_hashes(folder: Path, hashes: NDArray[np.uint64]) -> int:
    """Write a shard's line hashes, sorted, at most two of each: more copies tell no more. Returns how many."""
    kept = at_most_two(hashes)
    _save(folder / HASHES_FILE, kept)
    return len(kept)


def hashes_of_range(folder: Path, part: int, num_parts: int) -> NDArray[np.uint64]:
    """Those of a shard's line hashes that lie in a part's range."""
    hashes = np.load(folder / HASHES_FILE, mmap_mode="r")
    return np.array(hashes[own_range(hashes, part, num_parts)])


# ---- bands ------------------------------------------------------------------------------------------


def write_bands(folder: Path, bands: NDArray[np.uint64]) -> None:
    """Write a shard's band keys, each band in ascending order, and whose each key is.

    Args:
        bands: (num_bands, documents), as `signature_bands` gives them.
    """
    order = np.argsort(bands, axis=1, kind="stable")
    _save(folder / KEYS_FILE, np.take_along_axis(bands, order, axis=1))
    _save(folder / NUMBERS_FILE, order.astype(np.uint32))


def bands_of_range(
    folders: Sequence[Path], part: int, num_parts: int
) -> tuple[list[NDArray[np.uint64]], list[NDArray[np.uint64]], NDArray[np.uint64]]:
    """The keys of all shards that lie in a part's range, and the documents that have them.

    Returns:
        of each band its keys; of each band the numbers of their documents, ascending where keys are equal; and the
        number of each shard's first document, followed by that of all documents.
    """
    keys: list[list[NDArray[np.uint64]]] = []
    documents: list[list[NDArray[np.uint64]]] = []
    starts = [0]
    for folder in folders:  # one file open at a time: there may be thousands
        of_shard, numbers = (np.load(folder / name, mmap_mode="r") for name in (KEYS_FILE, NUMBERS_FILE))
        keys, documents = keys or [[] for _ in of_shard], documents or [[] for _ in of_shard]
        for band, ascending in enumerate(of_shard):
            own = own_range(ascending, part, num_parts)
            keys[band].append(np.array(ascending[own]))
            documents[band].append(numbers[band][own] + np.uint64(starts[-1]))
        starts.append(starts[-1] + of_shard.shape[1])
    return [joined(each) for each in keys], [joined(each) for each in documents], np.array(starts, np.uint64)


# ---- pairs: of documents i < j, as one number with i above 32 bits and j below ----------------------


def write_pairs(folder: Path, pairs: NDArray[np.int64], starts: NDArray[np.uint64]) -> None:
    """Write a part's candidates, sorted by the first of both documents and, mirrored, by the second."""
    _save(folder / PAIRS_FILE, np.sort(_codes(pairs)))
    _save(folder / MIRRORED_FILE, np.sort(_codes(pairs[:, ::-1])))
    _save(folder / STARTS_FILE, starts)


def pairs_of_shard(folders: Sequence[Path], shard: int) -> NDArray[np.int64]:
    """Candidates of all ranges whose first document is of a shard; sorted, each once: (pairs, 2)."""
    return _pairs(np.unique(_of_shard(folders, PAIRS_FILE, shard)))


def candidates_of_shard(folders: Sequence[Path], shard: int) -> NDArray[np.int64]:
    """Numbers of a shard's documents that are in a pair, ascending."""
    codes = [_of_shard(folders, name, shard) for name in (PAIRS_FILE, MIRRORED_FILE)]
    return np.unique(joined(codes) >> _HIGH).astype(np.int64)


def read_starts(folders: Sequence[Path]) -> NDArray[np.int64]:
    """Number of each shard's first document, followed by that of all documents."""
    return np.load(folders[0] / STARTS_FILE).astype(np.int64)


def _of_shard(folders: Sequence[Path], name: str, shard: int) -> NDArray[np.uint64]:
    bounds = read_starts(folders)[shard : shard + 2].astype(np.uint64) << _HIGH
    found = []
    for folder in folders:
        codes = np.load(folder / name, mmap_mode="r")
        start, end = np.searchsorted(codes, bounds).tolist()
        found.append(np.array(codes[start:end]))
    return joined(found)


# ---- shingles ---------------------------------------------------------------------------------------


def write_sets(
    folder: Path,
    numbers: NDArray[np.int64],
    documents: Sequence[Document],
    sets: NDArray[np.uint64],
    ends: NDArray[np.int64],
    *,
    shard: str,
    start: int,
) -> None:
    """Write the sets of a shard's candidates, one after the other, where each ends, and what each document is.

    Args:
        numbers, documents: the candidates, ascending.
        sets, ends: as `shingle_sets` gives them.
        start: number of the shard's first document.
    """
    _save(folder / SETS_FILE, sets)
    _save(folder / ENDS_FILE, ends)
    rows = [
        (int(number), shard, int(number) - start, each.id, each.url, f"{each.warc} {each.offset} {each.id}")
        for number, each in zip(numbers, documents, strict=True)
    ]
    write_table(folder / CANDIDATES_FILE, pl.DataFrame(rows, schema=_ORIGIN, orient="row"))


class StoredSets:
    """Sets of shingles in the files of all shards; only those that are asked for are read.

    Args:
        folders: of all shards, in order, as `write_sets` fills them.
        starts: as `read_starts` gives them.
    """

    def __init__(self, folders: Sequence[Path], starts: NDArray[np.int64]) -> None:
        self._folders, self._starts = folders, starts

    def num_bytes(self, documents: NDArray[np.int64]) -> NDArray[np.int64]:
        """Size of each document's set. Documents are given ascending."""
        found = [np.zeros(0, np.int64)]
        for folder, own in self._by_shard(documents):
            begins, ends = _places(folder, own)
            found.append(8 * (ends - begins))
        return np.concatenate(found)

    def read(self, documents: NDArray[np.int64]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        """Their sets, one after the other, and where each ends."""
        found = []
        for folder, own in self._by_shard(documents):
            sets = np.load(folder / SETS_FILE, mmap_mode="r")
            found += [np.array(sets[begin:end]) for begin, end in zip(*_places(folder, own), strict=True)]
        return joined(found), np.cumsum([len(each) for each in found], dtype=np.int64)

    def origins(self, documents: NDArray[np.int64]) -> pl.DataFrame:
        """Number, shard, row in it, id, address, and the key that draws the survivor, of each document."""
        tables = [
            pl.scan_parquet(folder / CANDIDATES_FILE).filter(pl.col("document").is_in(own.astype(np.uint32))).collect()
            for folder, own in self._by_shard(documents)
        ]
        return pl.concat([pl.DataFrame(schema=_ORIGIN), *tables])

    def _by_shard(self, documents: NDArray[np.int64]) -> list[tuple[Path, NDArray[np.int64]]]:
        parts = np.split(documents, np.searchsorted(documents, self._starts[1:-1]))
        return [(folder, own) for folder, own in zip(self._folders, parts, strict=True) if len(own)]


def _places(folder: Path, documents: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    known = pl.scan_parquet(folder / CANDIDATES_FILE).select("document").collect()["document"].to_numpy()
    ends = np.load(folder / ENDS_FILE)
    places = np.searchsorted(known, documents)
    return np.concatenate([[0], ends])[places], ends[places]


# ---- duplicates -------------------------------------------------------------------------------------


def write_duplicates(folder: Path, pairs: NDArray[np.int64], origins: pl.DataFrame) -> None:
    """Write confirmed pairs and what their documents are."""
    _save(folder / PAIRS_FILE, _codes(pairs))
    write_table(folder / CANDIDATES_FILE, origins)


def read_duplicates(folders: Sequence[Path]) -> tuple[NDArray[np.int64], pl.DataFrame]:
    """Confirmed pairs of all shards, each document by its row in the table; and that table, in the documents' order."""
    tables = [pl.read_parquet(folder / CANDIDATES_FILE) for folder in folders]
    origins = pl.concat([pl.DataFrame(schema=_ORIGIN), *tables]).unique("document").sort("document")
    pairs = _pairs(joined([np.load(folder / PAIRS_FILE) for folder in folders]))
    return np.searchsorted(origins["document"].to_numpy(), pairs), origins


def _codes(pairs: NDArray[np.int64]) -> NDArray[np.uint64]:
    left, right = pairs.astype(np.uint64).T
    return (left << _HIGH) | right


def _pairs(codes: NDArray[np.uint64]) -> NDArray[np.int64]:
    return np.stack([codes >> _HIGH, codes & _LOW], axis=1).astype(np.int64)


def _save(path: Path, array: NDArray) -> None:
    with replacing(path) as file:
        np.save(file, array)
