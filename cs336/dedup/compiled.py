# mypy: disable-error-code="assignment"
"""The inner loops of deduplication, compiled at run time by Numba: over bytes, without Python objects, without the GIL.

Each kernel has a plain twin in `reference` or `lsh`, which says what it computes; tests hold them equal.

Texts come as one buffer of UTF-8 bytes, one after the other, and the place where each ends. Normalization is a
table from code points to the bytes that stand for them (`CharacterTable`), filled as code points turn up: a kernel
that meets one that the table lacks stops and says which, and goes on from that text once it is there.
"""

from __future__ import annotations

import functools

import numpy as np
from numba import njit

from cs336.compilation import announced
from cs336.filters.character_table import CHARACTER_BYTES, DROPPED

_SPACE, _LINE_FEED, _CARRIAGE_RETURN = 0x20, 0x0A, 0x0D
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2**64 / golden ratio, odd: base of the polynomial over words
_INVERSE = np.uint64(pow(0x9E3779B97F4A7C15, -1, 1 << 64))
_ALL_ONES = np.uint64(0xFFFFFFFFFFFFFFFF)


def warm_up() -> None:
    """Compile the kernels, or load them from the cache; says so if that takes a while."""
    _warm_up()


@functools.cache
def _warm_up() -> None:
    with announced("the inner loops of deduplication"):
        buffer, ends = np.array([0x61, _LINE_FEED], np.uint8), np.array([2])
        tables = np.zeros(128, np.uint8), np.zeros((1, CHARACTER_BYTES + 1), np.uint8)
        numbers = np.ones(1, np.uint64)
        sign(buffer, ends, 0, *tables, 1, numbers, numbers, np.empty((1, 1), np.uint32))
        band_keys(np.zeros((1, 1), np.uint32), np.empty((1, 1), np.uint64))
        sets, set_ends = np.empty(4, np.uint64), np.empty(1, np.int64)
        shingle_sets(buffer, ends, 0, *tables, 1, sets, set_ends)
        nowhere = np.zeros(0, np.int64)
        similarities(sets, set_ends, nowhere, nowhere, np.empty(0))
        link(np.zeros(1, np.int64), nowhere, nowhere)
        line_hashes(buffer, 0, 2, numbers.copy(), ends.copy())
        copy_kept(buffer, 0, ends, np.zeros(1, bool), buffer.copy())


@njit(cache=True, nogil=True)
def _mix(value):
    """The twin of `ngrams.mix64`."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


# ---- words and shingles: the twins of reference.normalize, ngrams.hash_bytes, reference.shingle_hashes --


@njit(cache=True, nogil=True)
def _code_point(buffer, place):
    """Code point of the UTF-8 sequence of two bytes or more at `place`, its length in the bits above 2**24."""
    first = np.int64(buffer[place])
    second = np.int64(buffer[place + 1]) & 0x3F
    if first < 0xE0:
        return ((first & 0x1F) << 6) | second | (2 << 24)
    third = np.int64(buffer[place + 2]) & 0x3F
    if first < 0xF0:
        return ((first & 0x0F) << 12) | (second << 6) | third | (3 << 24)
    fourth = np.int64(buffer[place + 3]) & 0x3F
    return ((first & 0x07) << 18) | (second << 12) | (third << 6) | fourth | (4 << 24)


@njit(cache=True, nogil=True)
def _word_hashes(buffer, place, end, ascii, characters, hashes):
    """Write the hash of each word of a text after normalization.

    Returns:
        number of words; or, if the table lacks a code point, that, negated (never 0: ASCII has its own table).
    """
    value, chunk = np.uint64(0), np.uint64(0)
    shift, length = np.uint64(0), np.uint64(0)
    num_words = 0
    while place < end:
        byte = buffer[place]
        if byte < 0x80:
            place += 1
            kept = ascii[byte]
            if kept == DROPPED:
                continue
            if kept != _SPACE:
                chunk |= np.uint64(kept) << shift
                shift += np.uint64(8)
                length += np.uint64(1)
                if shift == np.uint64(64):
                    value, chunk, shift = _mix(value ^ chunk), np.uint64(0), np.uint64(0)
                continue
            num_kept, row = 1, -1
        else:
            point = _code_point(buffer, place)
            row = point & 0xFFFFFF
            num_kept = np.int64(characters[row, CHARACTER_BYTES]) - 1
            if num_kept < 0:
                return -row
            place += point >> 24
        for number in range(num_kept):
            kept = np.uint8(_SPACE) if row < 0 else characters[row, number]
            if kept != _SPACE:
                chunk |= np.uint64(kept) << shift
                shift += np.uint64(8)
                length += np.uint64(1)
                if shift == np.uint64(64):
                    value, chunk, shift = _mix(value ^ chunk), np.uint64(0), np.uint64(0)
            elif length:
                if shift:
                    value = _mix(value ^ chunk)
                hashes[num_words] = value + length * _GOLDEN
                num_words += 1
                value, chunk, shift, length = np.uint64(0), np.uint64(0), np.uint64(0), np.uint64(0)
    if length:
        if shift:
            value = _mix(value ^ chunk)
        hashes[num_words] = value + length * _GOLDEN
        num_words += 1
    return num_words


@njit(cache=True, nogil=True)
def _shingles_in_place(hashes, num_words, n):
    """Replace the words' hashes by those of their n-grams; returns how many. Fewer than n words make one n-gram."""
    if num_words == 0:
        return 0
    n = min(n, num_words)
    highest = np.uint64(1)
    rolling = np.uint64(0)
    for place in range(n):
        rolling += hashes[place] * highest
        if place < n - 1:
            highest *= _GOLDEN
    for start in range(num_words - n + 1):
        first = hashes[start]
        hashes[start] = _mix(rolling + np.uint64(n))
        if start + n < num_words:
            rolling = (rolling - first) * _INVERSE + hashes[start + n] * highest
    return num_words - n + 1


@njit(cache=True, nogil=True)
def _longest(ends):
    longest, start = 0, 0
    for end in ends:
        longest = max(longest, end - start)
        start = end
    return longest


# ---- signatures: the twin of reference.signature ----------------------------------------------------


@njit(cache=True, nogil=True)
def sign(buffer, ends, first, ascii, characters, n, multipliers, offsets, signatures):
    """Write the signature of each text, from number `first` on, into the rows of `signatures`.

    Returns:
        number of the text that holds a code point that the table lacks, and that code point; or the number of
        texts, and 0.
    """
    hashes = np.empty(_longest(ends) // 2 + 2, np.uint64)
    minima = np.empty(len(multipliers), np.uint64)
    for number in range(first, len(ends)):
        start = ends[number - 1] if number else 0
        num_words = _word_hashes(buffer, start, ends[number], ascii, characters, hashes)
        if num_words < 0:
            return number, -num_words
        num_shingles = _shingles_in_place(hashes, num_words, n)
        _minima(hashes, num_shingles, multipliers, offsets, minima)
        for function in range(len(minima)):
            # All ones are for texts without a word alone.
            upper = minima[function] >> np.uint64(32)
            signatures[number, function] = upper if num_shingles == 0 else min(upper, np.uint64(0xFFFFFFFE))
    return len(ends), 0


@njit(cache=True, nogil=True)
def _minima(hashes, num_shingles, multipliers, offsets, minima):
    """Minimum of each function over the shingles; four shingles a step, so that minima are fetched and put back
    a quarter as often. The loop over functions becomes vector instructions."""
    minima[:] = _ALL_ONES
    whole = num_shingles & ~3
    for place in range(0, whole, 4):
        one, two, three, four = hashes[place], hashes[place + 1], hashes[place + 2], hashes[place + 3]
        for function in range(len(minima)):
            multiplier, offset = multipliers[function], offsets[function]
            lowest = min(multiplier * one + offset, multiplier * two + offset)
            other = min(multiplier * three + offset, multiplier * four + offset)
            minima[function] = min(minima[function], min(lowest, other))
    for place in range(whole, num_shingles):
        one = hashes[place]
        for function in range(len(minima)):
            minima[function] = min(minima[function], multipliers[function] * one + offsets[function])


@njit(cache=True, nogil=True)
def band_keys(signatures, keys):
    """Write one 64-bit key for each band of each signature: (bands, documents). The twin of reference.band_key.

    A text without words gets all ones, which no other text gets but by a chance of 1 in 2**64.
    """
    num_rows = signatures.shape[1] // keys.shape[0]
    for document in range(len(signatures)):
        for band in range(keys.shape[0]):
            key = _ALL_ONES if signatures[document, 0] == np.uint32(0xFFFFFFFF) else np.uint64(0)
            if key:
                keys[band, document] = key
                continue
            for row in range(band * num_rows, (band + 1) * num_rows):
                key = _mix(key + np.uint64(signatures[document, row]))
            keys[band, document] = key


# ---- exact similarity: the twin of reference.jaccard ------------------------------------------------


@njit(cache=True, nogil=True)
def shingle_sets(buffer, ends, first, ascii, characters, n, sets, set_ends):
    """Write the distinct shingles of each text, sorted, one text after the other, and where each text's end.

    Returns:
        as `sign`.
    """
    hashes = np.empty(_longest(ends) // 2 + 2, np.uint64)
    place = set_ends[first - 1] if first else 0
    for number in range(first, len(ends)):
        start = ends[number - 1] if number else 0
        num_words = _word_hashes(buffer, start, ends[number], ascii, characters, hashes)
        if num_words < 0:
            return number, -num_words
        num_shingles = _shingles_in_place(hashes, num_words, n)
        own = hashes[:num_shingles]
        own.sort()
        for shingle in range(num_shingles):
            if shingle == 0 or own[shingle] != own[shingle - 1]:
                sets[place] = own[shingle]
                place += 1
        set_ends[number] = place
    return len(ends), 0


@njit(cache=True, nogil=True)
def similarities(sets, set_ends, lefts, rights, similarity):
    """Write the Jaccard similarity of each pair of sets; 0 where one is empty."""
    for pair in range(len(lefts)):
        left, right = lefts[pair], rights[pair]
        place = set_ends[left - 1] if left else 0
        other = set_ends[right - 1] if right else 0
        end, other_end = set_ends[left], set_ends[right]
        total, shared = end - place + other_end - other, 0
        while place < end and other < other_end:
            a, b = sets[place], sets[other]
            shared += a == b
            place += a <= b
            other += b <= a
        similarity[pair] = shared / (total - shared) if shared else 0.0


# ---- clusters: the twin of spreading the least label ------------------------------------------------


@njit(cache=True, nogil=True)
def link(parents, lefts, rights):
    """Union-find: hang the larger root under the smaller, for each pair; then point everyone at the root."""
    for pair in range(len(lefts)):
        a, b = lefts[pair], rights[pair]
        while parents[a] != a:
            parents[a] = parents[parents[a]]
            a = parents[a]
        while parents[b] != b:
            parents[b] = parents[parents[b]]
            b = parents[b]
        parents[max(a, b)] = min(a, b)
    for index in range(len(parents)):  # roots are smaller, so they are done before
        parents[index] = parents[parents[index]]


# ---- lines: the twins of exact_lines' definitions ---------------------------------------------------


@njit(cache=True, nogil=True)
def line_hashes(buffer, start, end, hashes, ends):
    """Write the hash of each line without its terminator, and where the line ends, terminator included.

    Stops when `hashes` is full.

    Returns:
        number of lines, and where the last of them ends.
    """
    value, chunk = np.uint64(0), np.uint64(0)
    shift, length = np.uint64(0), np.uint64(0)
    number, place, begins = 0, start, start
    while place < end and number < len(hashes):
        byte = buffer[place]
        place += 1
        is_end = byte == _LINE_FEED
        if not is_end and not (byte == _CARRIAGE_RETURN and place < end and buffer[place] == _LINE_FEED):
            chunk |= np.uint64(byte) << shift
            shift += np.uint64(8)
            length += np.uint64(1)
            if shift == np.uint64(64):
                value, chunk, shift = _mix(value ^ chunk), np.uint64(0), np.uint64(0)
            is_end = place == end
        if is_end:
            if shift:
                value = _mix(value ^ chunk)
            hashes[number], ends[number] = value + length * _GOLDEN, place
            number, begins = number + 1, place
            value, chunk, shift, length = np.uint64(0), np.uint64(0), np.uint64(0), np.uint64(0)
    return number, begins


@njit(cache=True, nogil=True)
def copy_kept(buffer, start, ends, dropped, target):
    """Copy the lines that are not dropped, one after the other; returns how many bytes. `target` may be `buffer`."""
    written = 0
    for number in range(len(ends)):
        end = ends[number]
        if not dropped[number]:
            for place in range(start, end):
                target[written] = buffer[place]
                written += 1
        start = end
    return written
