"""Hashed word n-grams: 64-bit, the same on every machine and in every run.

A word's hash mixes its bytes; a span's hash is a polynomial of its words' hashes modulo 2^64, so that all spans of a
text come out of one cumulative sum, whatever their length. This is the plain version, for reading, for small work
and for tests; what takes time has compiled twins, in `overlap` and in `dedup.compiled`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_BASE = 0x9E3779B97F4A7C15  # odd, so it has an inverse modulo 2^64; 2^64 over the golden ratio
_INVERSE = pow(_BASE, -1, 1 << 64)
_MASK = (1 << 64) - 1
_MAX_CACHED_WORDS = 1_000_000  # about 130 MB


def word_hashes(words: Sequence[str]) -> NDArray[np.uint64]:
    """One 64-bit hash a word."""
    if len(_cache) > _MAX_CACHED_WORDS:
        _cache.clear()
    return np.fromiter(map(_cache.__getitem__, words), dtype=np.uint64, count=len(words))


def hash_bytes(data: bytes) -> int:
    """64-bit hash of a word's UTF-8 or of a line: each 8 bytes are mixed in, then the length is added.

    Bytes of one length up to 8 never collide, since each step is one to one. Not for adversaries: whoever
    wants two texts of one hash can make them.
    """
    value = 0
    for start in range(0, len(data), 8):
        value ^= int.from_bytes(data[start : start + 8], "little")  # and then as mix64 does
        value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
        value = (value ^ (value >> 27)) * 0x94D049BB133111EB & _MASK
        value ^= value >> 31
    return value + len(data) * _BASE & _MASK


def ngram_hashes(hashes: NDArray[np.uint64], n: int) -> NDArray[np.uint64]:
    """Hash of every run of n words, in order; empty for fewer than n words.

    Raises:
        ValueError: n below 1.
    """
    if n < 1:
        raise ValueError(f"n-grams need n of at least 1, got {n}")
    starts = np.arange(max(0, len(hashes) - n + 1))
    return span_hashes(hashes, starts, starts + n)


def span_hashes(hashes: NDArray[np.uint64], starts: NDArray[np.int64], ends: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Hash of the words in each half-open span; equal words in equal order hash equally wherever they stand."""
    powers, inverses = _powers(len(hashes) + 1)
    sums = np.zeros(len(hashes) + 1, dtype=np.uint64)
    np.cumsum(hashes * powers[: len(hashes)], out=sums[1:])
    return mix64((sums[ends] - sums[starts]) * inverses[starts] + (ends - starts).astype(np.uint64))


def mix64(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Spread every bit over all of them (the finalizer of SplitMix64, Steele et al. 2014); one to one."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


class _WordHashes(dict[str, int]):
    def __missing__(self, word: str) -> int:
        value = self[word] = hash_bytes(word.encode("utf-8", "surrogatepass"))
        return value


_cache = _WordHashes()
_tables: list[NDArray[np.uint64]] = []


def _powers(count: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """The first powers of the base and of its inverse, at least `count` of each, kept between calls."""
    if not _tables or len(_tables[0]) < count:
        size = max(4096, 1 << (count - 1).bit_length())
        _tables[:] = [_geometric(_BASE, size), _geometric(_INVERSE, size)]
    return _tables[0], _tables[1]


def _geometric(base: int, count: int) -> NDArray[np.uint64]:
    factors = np.full(count, base, dtype=np.uint64)
    factors[0] = 1
    return np.cumprod(factors, dtype=np.uint64)
