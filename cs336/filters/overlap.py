# mypy: disable-error-code="assignment"
"""The inner loops of decontamination, compiled by Numba: a text's words, and which of its n-grams an index holds.

`EvalIndex.plain_count` is the plain twin and says what is counted; tests hold the two equal. Words come out of a
text's UTF-8 through a `CharacterTable`; no object is made for a word.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from cs336.compilation import announced
from cs336.filters.character_table import CHARACTER_BYTES, FINAL_SIGMA, CharacterTable

_SPACE, _LINE_FEED = 0x20, 0x0A
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # `ngrams` says what for
_INVERSE = np.uint64(pow(0x9E3779B97F4A7C15, -1, 1 << 64))
_BITS_PER_HASH = 16  # of a filter: of what the table lacks, one in about 20 passes; with more, it leaves the cache


class Table(NamedTuple):
    """What an index holds, for looking up.

    Attributes:
        hashes: sorted.
        bits: the evaluations that each came from.
        passing: bits: one for each hash, at the place that its highest bits name. What is not there need not be
            looked up.
        shift: by which a hash goes to give that place.
    """

    hashes: NDArray[np.uint64]
    bits: NDArray[np.uint64]
    passing: NDArray[np.uint64]
    shift: int


def words_and_lines(text: str, table: CharacterTable) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Hash of each word of a text, and how many words stand before the end of each line.

    Args:
        table: gives a word's characters, a space for what stands between words, and line feeds.
    """
    warm_up()
    if FINAL_SIGMA in text:
        text = text.lower()  # lower case of lower case is the same
    data = text.encode("utf-8", "surrogatepass")
    buffer = np.frombuffer(bytearray(data), np.uint8)
    hashes = np.empty(len(data), np.uint64)  # no character stands for more words than it has bytes
    line_ends = np.empty(data.count(b"\n") + 1, np.int64)
    while True:
        num_words, num_lines, point = text_words(buffer, table.ascii, table.rows, hashes, line_ends)
        if point < 0:
            return hashes[:num_words], line_ends[:num_lines]
        table.add(point)


def table_of(hashes: NDArray[np.uint64], bits: NDArray[np.uint64]) -> Table:
    """Make sorted hashes and the bits of each a table for `overlaps`."""
    size = 1 << max(6, (len(hashes) * _BITS_PER_HASH - 1).bit_length())
    passing = np.zeros(size, np.bool_)
    shift = 65 - size.bit_length()
    passing[hashes >> np.uint64(shift)] = True
    return Table(hashes, bits, np.packbits(passing, bitorder="little").view(np.uint64), shift)


@functools.cache
def warm_up() -> None:
    """Compile the kernels, or load them from Numba's cache; says so if that takes a while."""
    with announced("the inner loops of decontamination"):
        tables = np.zeros(128, np.uint8), np.zeros((1, CHARACTER_BYTES + 1), np.uint8)
        hashes, line_ends = np.empty(4, np.uint64), np.empty(1, np.int64)
        text_words(np.frombuffer(bytearray(b"a"), np.uint8), *tables, hashes, line_ends)
        index = table_of(np.zeros(1, np.uint64), np.ones(1, np.uint64))
        overlaps(hashes[:1], line_ends, 1, index, index)


@njit(cache=True, nogil=True)
def _mix(value):
    """The twin of `ngrams.mix64`; here once more, as Numba's cache sees changes in the kernel's own file only."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


@njit(cache=True, nogil=True)
def _code_point(buffer, place):
    """Code point of the UTF-8 sequence of two bytes or more at `place`, and its length."""
    first = np.int64(buffer[place])
    second = np.int64(buffer[place + 1]) & 0x3F
    if first < 0xE0:
        return ((first & 0x1F) << 6) | second, 2
    third = np.int64(buffer[place + 2]) & 0x3F
    if first < 0xF0:
        return ((first & 0x0F) << 12) | (second << 6) | third, 3
    fourth = np.int64(buffer[place + 3]) & 0x3F
    return ((first & 0x07) << 18) | (second << 12) | (third << 6) | fourth, 4


@njit(cache=True, nogil=True)
def text_words(buffer, ascii, characters, hashes, line_ends):
    """Write the hash of each word, and the number of words before the end of each line.

    Returns:
        number of words; of lines, the last included; -1, or the first code point that the table has no row for.
    """
    value, chunk = np.uint64(0), np.uint64(0)
    shift, length = np.uint64(0), np.uint64(0)
    num_words, num_lines, place = 0, 0, 0
    while place < len(buffer):
        byte = buffer[place]
        num_kept, row = 1, 0
        if byte < 0x80:
            place += 1
            kept = ascii[byte]
        else:
            row, num_bytes = _code_point(buffer, place)
            num_kept = np.int64(characters[row, CHARACTER_BYTES]) - 1
            if num_kept < 0:
                return num_words, num_lines, row
            place += num_bytes
            kept = characters[row, 0]
        for number in range(num_kept):
            if number:
                kept = characters[row, number]
            if kept != _SPACE and kept != _LINE_FEED:
                chunk |= np.uint64(kept) << shift
                shift += np.uint64(8)
                length += np.uint64(1)
                if shift == np.uint64(64):
                    value, chunk, shift = _mix(value ^ chunk), np.uint64(0), np.uint64(0)
                continue
            if length:
                if shift:
                    value = _mix(value ^ chunk)
                hashes[num_words] = value + length * _GOLDEN
                num_words += 1
                value, chunk, shift, length = np.uint64(0), np.uint64(0), np.uint64(0), np.uint64(0)
            if kept == _LINE_FEED:
                line_ends[num_lines] = num_words
                num_lines += 1
    if length:
        if shift:
            value = _mix(value ^ chunk)
        hashes[num_words] = value + length * _GOLDEN
        num_words += 1
    line_ends[num_lines] = num_words
    return num_words, num_lines + 1, -1


@njit(cache=True, nogil=True)
def _bits_of(value, table):
    """Bits of the evaluations that a hash came from; 0 where the table lacks it."""
    hashes, bits, passing, shift = table
    place = value >> np.uint64(shift)
    if not (passing[place >> np.uint64(6)] >> (place & np.uint64(63))) & np.uint64(1):
        return np.uint64(0)
    low, high = 0, len(hashes)
    while low < high:
        middle = (low + high) >> 1
        if hashes[middle] < value:
            low = middle + 1
        else:
            high = middle
    return bits[low] if low < len(hashes) and hashes[low] == value else np.uint64(0)


@njit(cache=True, nogil=True)
def _span(hashes, start, end):
    """The twin of `ngrams.span_hashes`, of one span."""
    total, power = np.uint64(0), np.uint64(1)
    for place in range(start, end):
        total += hashes[place] * power
        power *= _GOLDEN
    return _mix(total + np.uint64(end - start))


@njit(cache=True, nogil=True)
def overlaps(hashes, line_ends, n, ngrams, short):
    """Bits of the evaluations, for each n-gram, each short line and the short whole that matches any.

    Args:
        ngrams, short: of hashes of n-grams, and of texts shorter than n words.
    """
    num_words = len(hashes)
    found = np.empty(num_words + len(line_ends) + 1, np.uint64)
    num_found = 0
    highest, rolling = np.uint64(1), np.uint64(0)
    for place in range(num_words):
        if place < n:
            rolling += hashes[place] * highest
            if place < n - 1:
                highest *= _GOLDEN
                continue
        else:
            rolling = (rolling - hashes[place - n]) * _INVERSE + hashes[place] * highest
        bits = _bits_of(_mix(rolling + np.uint64(n)), ngrams)
        if bits:
            found[num_found] = bits
            num_found += 1
    start, num_lines = 0, 0  # lines that hold a word
    for end in line_ends:
        num_lines += end > start
        if start < end < start + n:
            bits = _bits_of(_span(hashes, start, end), short)
            if bits:
                found[num_found] = bits
                num_found += 1
        start = end
    if 0 < num_words < n and num_lines > 1:
        bits = _bits_of(_span(hashes, 0, num_words), short)
        if bits:
            found[num_found] = bits
            num_found += 1
    return found[:num_found].copy()
