# mypy: disable-error-code="assignment"
"""fastText's inner loops, compiled by Numba: a text's rows of the input matrix, their mean, the labels' scores.

The sums are made in fastText's order and in its precision, so that scores equal its own; the tests hold them equal,
over texts of all languages.
"""

from __future__ import annotations

import functools
import math

import numpy as np
from numba import njit

from cs336.compilation import announced

_FNV_START, _FNV_PRIME = np.uint32(2166136261), np.uint32(16777619)
_FNV64_START, _FNV64_PRIME = np.uint64(14695981039346656037), np.uint64(1099511628211)
_WORDS_PRIME = np.uint64(116049371)
_BEFORE, _AFTER = np.uint8(ord("<")), np.uint8(ord(">"))  # around a word
_END_BYTES = np.frombuffer(b"</s>", np.uint8)  # the word that ends a line
_LABEL_BYTES = np.frombuffer(b"__label__", np.uint8)
_NOTHING = np.float32(-np.inf)
_LOG_FLOOR = 1e-5  # fastText adds it to what it takes the logarithm of


@functools.cache
def warm_up() -> None:
    """Compile the kernels, or load them from Numba's cache; says so if that takes a while."""
    with announced("the classifiers' inner loops"):
        words, ends = np.frombuffer(bytearray(b"ab"), np.uint8), np.array([1, 2])
        vocabulary = words, ends, word_table(words, ends)
        buckets = np.zeros(0, np.uint32), np.zeros(0, np.int32)
        seen = np.zeros(2, np.uint64), np.zeros((2, 16), np.int32)
        rows = np.zeros(64, np.int32)
        text_rows(np.frombuffer(bytearray(b" a b   "), np.uint8), vocabulary, (2, 3, 2, 1, 2), buckets, seen, rows)
        mean_row(np.frombuffer(bytes(9), np.float32, 2, 1).reshape(1, 2), rows[:1])  # as a mapped file's, read-only
        hidden = mean_row(np.ones((1, 2), np.float32), rows[:1])
        tree = np.array([[-1, -1], [-1, -1], [0, 1]], np.int32)
        tree_scores(hidden, np.ones((2, 2), np.float32), tree, np.empty(2, np.float32))
        softmax_scores(hidden, np.ones((2, 2), np.float32), np.empty(2, np.float32))


# ---- words to rows ------------------------------------------------------------------------------------


@njit(cache=True)
def _hashed(value, byte):
    """One step of FNV-1a as fastText takes it: over signed bytes."""
    return np.uint32((value ^ np.uint32(np.int8(byte))) * _FNV_PRIME)


@njit(cache=True)
def _word_hash(buffer, start, end):
    value = _FNV_START
    for place in range(start, end):
        value = _hashed(value, buffer[place])
    return value


@njit(cache=True)
def word_table(words, ends):
    """A hash table of words, which stand in one buffer: the number of a word, or -1, in each slot."""
    num_slots = 16
    while num_slots < 2 * len(ends):
        num_slots *= 2
    slots = np.full(num_slots, -1, np.int32)
    for number in range(len(ends)):
        start = ends[number - 1] if number else 0
        slot = np.int64(_word_hash(words, start, ends[number])) & (num_slots - 1)
        while slots[slot] >= 0:
            slot = (slot + 1) & (num_slots - 1)
        slots[slot] = number
    return slots


@njit(cache=True)
def _begins_with(buffer, start, end, words, word_start, word_end):
    """Do the bytes from `start` to before `end` begin with those of a word?"""
    if end - start < word_end - word_start:
        return False
    for offset in range(word_end - word_start):  # noqa: SIM110 (Numba compiles no generator)
        if buffer[start + offset] != words[word_start + offset]:
            return False
    return True


@njit(cache=True)
def _is(buffer, start, end, words, word_start, word_end):
    return end - start == word_end - word_start and _begins_with(buffer, start, end, words, word_start, word_end)


@njit(cache=True)
def _number_of(buffer, start, end, value, words, ends, slots):
    """Number of a word with this hash in the table, or -1."""
    slot = np.int64(value) & (len(slots) - 1)
    number = slots[slot]
    while number >= 0:
        if _is(buffer, start, end, words, ends[number - 1] if number else 0, ends[number]):
            return number
        slot = (slot + 1) & (len(slots) - 1)
        number = slots[slot]
    return -1


@njit(cache=True)
def _space_bytes(buffer, place):
    """Bytes of the white space or line break at `place`; 0 where there is none."""
    byte = buffer[place]
    if byte <= 0x20:
        # What fastText splits at, and the other line breaks of str.splitlines, which become spaces.
        return np.int64(byte == 0x20 or byte == 0 or (0x09 <= byte <= 0x0D) or (0x1C <= byte <= 0x1E))
    if byte == 0xC2:
        return 2 * np.int64(buffer[place + 1] == 0x85)
    if byte == 0xE2 and buffer[place + 1] == 0x80:
        return 3 * np.int64(buffer[place + 2] == 0xA8 or buffer[place + 2] == 0xA9)
    return 0


@njit(cache=True)
def text_rows(buffer, vocabulary, settings, buckets, seen, rows):
    """Write the numbers of a text's rows in the input matrix: of its words, their character n-grams, its word n-grams.

    Args:
        buffer: UTF-8, a space before and three after it; changed on the way, and restored.
        vocabulary: words in one buffer, where each ends, and the table; words come before labels.
        settings: number of words, of buckets; shortest and longest character n-gram; longest word n-gram.
        buckets: of a pruned model, one bit each, whether it is left; and how many are left before each 32 of them,
            which gives its row. Empty where nothing was pruned.
        seen: hashes of words met before; how many rows and which each has. What it says depends on the word alone,
            so it changes no result. Two words with one 64-bit hash would be taken for one.
        rows: room for them.

    Returns:
        number of rows.
    """
    words, ends, slots = vocabulary
    num_words, _, _, max_chars, word_ngrams = settings
    seen_keys, seen_rows = seen
    hashes = np.empty(len(buffer) // 2 + 2 if word_ngrams > 1 else 0, np.int32)
    end_hash = _word_hash(_END_BYTES, 0, len(_END_BYTES))
    num_rows, num_hashes = 0, 0
    place, last = 1, len(buffer) - 3  # of the text itself: the first byte, and what follows it
    is_end = False
    while not is_end:
        while place < last:
            num_bytes = _space_bytes(buffer, place)
            if num_bytes == 0:
                break
            place += num_bytes
        start = place
        value, key = _FNV_START, _FNV64_START
        while place < last:
            byte = buffer[place]
            if (byte <= 0x20 or byte == 0xC2 or byte == 0xE2) and _space_bytes(buffer, place):
                break
            value = _hashed(value, byte)
            key = (key ^ np.uint64(byte)) * _FNV64_PRIME
            place += 1
        if start == place:  # the line ends
            is_end = True
            value = end_hash
            number = _number_of(_END_BYTES, 0, len(_END_BYTES), value, words, ends, slots)
        else:
            is_end = value == end_hash and _is(buffer, start, place, _END_BYTES, 0, len(_END_BYTES))
            slot = np.int64(key >> np.uint64(32)) & (len(seen_keys) - 1)
            if max_chars > 0 and not is_end and seen_keys[slot] == key:
                num_own = np.int64(seen_rows[slot, 0])
                for own in range(num_own):
                    rows[num_rows + own] = seen_rows[slot, 1 + own]
                num_rows += num_own
                if word_ngrams > 1:
                    hashes[num_hashes] = np.int32(value)
                    num_hashes += 1
                continue
            number = _number_of(buffer, start, place, value, words, ends, slots)
        if number >= num_words or (
            number < 0 and _begins_with(buffer, start, place, _LABEL_BYTES, 0, len(_LABEL_BYTES))
        ):
            continue  # a label
        if word_ngrams > 1:
            hashes[num_hashes] = np.int32(value)
            num_hashes += 1
        begin = num_rows
        if number >= 0:
            rows[num_rows] = number
            num_rows += 1
        if max_chars <= 0 or is_end:
            continue
        before, after = buffer[start - 1], buffer[place]
        buffer[start - 1], buffer[place] = _BEFORE, _AFTER
        num_rows = _character_rows(buffer, start - 1, place + 1, settings, buckets, rows, num_rows)
        buffer[start - 1], buffer[place] = before, after
        if num_rows - begin < seen_rows.shape[1]:
            seen_keys[slot] = key
            seen_rows[slot, 0] = num_rows - begin
            for own in range(num_rows - begin):
                seen_rows[slot, 1 + own] = rows[begin + own]
    if word_ngrams > 1:
        num_rows = _word_ngram_rows(hashes[:num_hashes], settings, buckets, rows, num_rows)
    return num_rows


@njit(cache=True)
def _row_left(bucket, buckets):
    """Row of a bucket of a pruned model, counted from the first bucket; -1 where it was pruned, as most are."""
    kept, before = buckets
    bits = kept[bucket >> np.uint64(5)]
    place = np.uint32(bucket & np.uint64(31))
    if not (bits >> place) & np.uint32(1):
        return -1
    bits &= np.uint32((np.uint64(1) << np.uint64(place)) - np.uint64(1))  # of those before it, how many are set
    bits -= (bits >> np.uint32(1)) & np.uint32(0x55555555)
    bits = (bits & np.uint32(0x33333333)) + ((bits >> np.uint32(2)) & np.uint32(0x33333333))
    bits = (bits + (bits >> np.uint32(4))) & np.uint32(0x0F0F0F0F)
    count = np.uint32(bits * np.uint32(0x01010101)) >> np.uint32(24)
    return np.int64(before[bucket >> np.uint64(5)]) + np.int64(count)


@njit(cache=True)
def _character_rows(buffer, start, end, settings, buckets, rows, num_rows):
    """Append the rows of a word's character n-grams; its brackets are the first byte and the last.

    A bracket alone is none. Returns the number of rows then.
    """
    num_words, num_buckets, min_chars, max_chars, _ = settings
    is_pruned = len(buckets[0]) > 0
    # The rest of dividing a 32-bit number by the number of buckets, by a multiplication.
    divisor, shift = np.uint64(num_buckets), np.uint64(32)
    while (np.uint64(2) << (shift - np.uint64(32))) <= divisor:
        shift += np.uint64(1)
    reciprocal = (np.uint64(1) << shift) // divisor
    for first in range(start, end):
        if buffer[first] & 0xC0 == 0x80:  # not the first byte of a character
            continue
        value = _FNV_START
        place = first
        for length in range(1, max_chars + 1):
            if place == end:
                break
            value = _hashed(value, buffer[place])
            place += 1
            while place < end and buffer[place] & 0xC0 == 0x80:
                value = _hashed(value, buffer[place])
                place += 1
            if length < min_chars or (length == 1 and (first == start or place == end)):
                continue
            bucket = np.uint64(value) - ((np.uint64(value) * reciprocal) >> shift) * divisor
            if bucket >= divisor:  # the reciprocal is rounded down: the quotient is one too low at most
                bucket -= divisor
            row = _row_left(bucket, buckets) if is_pruned else np.int64(bucket)
            if row >= 0:
                rows[num_rows] = num_words + row
                num_rows += 1
    return num_rows


@njit(cache=True)
def _word_ngram_rows(hashes, settings, buckets, rows, num_rows):
    """Append the rows of runs of two words and more; returns the number of rows then."""
    num_words, num_buckets, _, _, word_ngrams = settings
    for first in range(len(hashes)):
        value = np.uint64(np.int64(hashes[first]))
        for second in range(first + 1, min(first + word_ngrams, len(hashes))):
            value = value * _WORDS_PRIME + np.uint64(np.int64(hashes[second]))
            bucket = value % np.uint64(num_buckets)
            row = _row_left(bucket, buckets) if len(buckets[0]) else np.int64(bucket)
            if row >= 0:
                rows[num_rows] = num_words + row
                num_rows += 1
    return num_rows


# ---- rows to scores -------------------------------------------------------------------------------------


@njit(cache=True)
def mean_row(weights, rows):
    """Mean of rows of the input matrix, in float32, added in their order.

    Rows of a mapped file need not be aligned: x86-64 and ARM64 load from any address.
    """
    mean = np.zeros(weights.shape[1], np.float32)
    for number in range(len(rows)):
        row = rows[number]
        for column in range(len(mean)):
            mean[column] += weights[row, column]
    share = np.float32(1.0 / len(rows))
    for column in range(len(mean)):
        mean[column] *= share
    return mean


@njit(cache=True)
def _dot(hidden, output, row):
    total = np.float32(0)
    for column in range(len(hidden)):
        total += output[row, column] * hidden[column]
    return total


@njit(cache=True)
def _log(value):
    return np.float32(math.log(np.float64(value) + _LOG_FLOOR))


@njit(cache=True)
def tree_scores(hidden, output, tree, scores):
    """Write each label's log-probability: the sum over the turns from the root; -inf below 1e-5.

    Args:
        tree: children of each node, left and right: the labels (-1, -1), then inner nodes, the root last.
    """
    num_labels = len(scores)
    scores[:] = _NOTHING
    floor = _log(0.0)
    nodes, sums = np.empty(len(tree), np.int64), np.empty(len(tree), np.float32)
    nodes[0], sums[0] = len(tree) - 1, np.float32(0)
    depth = 1
    while depth:
        depth -= 1
        node, score = nodes[depth], sums[depth]
        if score < floor:
            continue
        if node < num_labels:
            scores[node] = score
            continue
        turn = _dot(hidden, output, node - num_labels)
        right = np.float32(1.0) / (np.float32(1.0) + np.float32(math.exp(-turn)))
        nodes[depth], sums[depth] = tree[node, 0], score + _log(1.0 - right)
        nodes[depth + 1], sums[depth + 1] = tree[node, 1], score + _log(right)
        depth += 2


@njit(cache=True)
def softmax_scores(hidden, output, scores):
    """Write each label's log-probability."""
    for label in range(len(scores)):
        scores[label] = _dot(hidden, output, label)
    highest = scores.max()
    total = np.float32(0)
    for label in range(len(scores)):
        scores[label] = np.float32(math.exp(np.float64(scores[label] - highest)))
        total += scores[label]
    for label in range(len(scores)):
        scores[label] = _log(scores[label] / total)
