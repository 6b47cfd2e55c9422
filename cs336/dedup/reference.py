"""Normalization, hashes, shingles, signatures and similarity, plainly: what the kernels in `compiled` compute.

Slow; for reading, and for the tests.
"""

from __future__ import annotations

import unicodedata

import numpy as np
import regex
from numpy.typing import NDArray

from cs336.filters.ngrams import mix64, ngram_hashes, word_hashes

EMPTY = np.uint32(0xFFFFFFFF)  # every entry of the signature of a text without words

_MODULUS = 1 << 64
_DROPPED = regex.compile(r"[\p{M}\p{P}\p{S}]+")


def normalize(text: str) -> str:
    """For comparison only: lower case, decomposed (NFD), no combining marks, no punctuation, single spaces.

    Punctuation are Unicode's categories P and S; it leaves no gap ("don't" is "dont").
    """
    return " ".join(without_marks(text.lower()).split())


def without_marks(text: str) -> str:
    """The text decomposed (NFD), without combining marks and punctuation; white space as it was."""
    return _DROPPED.sub("", unicodedata.normalize("NFD", text))


def shingle_hashes(text: str, n: int) -> NDArray[np.uint64]:
    """Hash of each word n-gram of the normalized text, in order, with repeats.

    Fewer than n words make one shingle; no word makes none.
    """
    words = normalize(text).split()
    hashes = word_hashes(words)
    return ngram_hashes(hashes, min(n, len(hashes))) if len(hashes) else hashes


def hash_functions(num_hashes: int, seed: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Odd multipliers and offsets: function i sends a shingle x to the upper half of a_i x + b_i modulo 2^64.

    Source: multiply-add-shift, Dietzfelbinger 1996.
    """
    generator = np.random.Generator(np.random.PCG64(seed))
    numbers = generator.integers(0, 1 << 64, size=(2, num_hashes), dtype=np.uint64)
    return numbers[0] | np.uint64(1), numbers[1]


def signature(text: str, n: int, num_hashes: int, seed: int) -> NDArray[np.uint32]:
    """Minimum of each hash function over the text's shingles: (num_hashes,)."""
    shingles = shingle_hashes(text, n)
    if not len(shingles):
        return np.full(num_hashes, EMPTY, dtype=np.uint32)
    multipliers, offsets = hash_functions(num_hashes, seed)
    hashed = (multipliers[:, None] * shingles + offsets[:, None]) >> np.uint64(32)
    return np.minimum(hashed.min(axis=1), EMPTY - 1).astype(np.uint32)  # EMPTY stays for empty texts


def band_key(rows: NDArray[np.uint32]) -> int:
    """64-bit key of one band of a signature. Should two bands collide, their texts only become candidates.

    A text without words has all ones.
    """
    if rows[0] == EMPTY:
        return _MODULUS - 1
    key = np.zeros(1, np.uint64)
    for row in rows:
        key = mix64(key + np.uint64(row))
    return int(key[0])


def jaccard(text_a: str, text_b: str, n: int) -> float:
    """Shared over all distinct word n-grams of two texts, normalized: 0 to 1; 0 when a text has no word."""
    a, b = _shingles(text_a, n), _shingles(text_b, n)
    shared = len(a & b)
    return shared / (len(a) + len(b) - shared) if shared else 0.0


def _shingles(text: str, n: int) -> frozenset[tuple[str, ...]]:
    words = normalize(text).split()
    if not words:
        return frozenset()
    n = min(n, len(words))
    return frozenset(zip(*(words[start:] for start in range(n)), strict=False))
