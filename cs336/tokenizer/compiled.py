# mypy: disable-error-code="assignment"
"""The tokenizer's inner loops, compiled at run time by Numba: over bytes, without Python objects, without the GIL.

Each kernel has a plain twin in `reference` (the scanner's is `pretokenize.PATTERN`), which says what it computes;
tests hold them equal. The first call compiles (seconds, announced by `warm_up`); later processes load the result from
the cache beside this file, or in Numba's cache folder when that is read-only.

Segments, and why their buffers are padded: `segments`.

A *table* is an open-addressed hash table of pre-tokens: rows of four 64-bit words. The first two are the
key: a pre-token of up to 15 bytes is its own key, zero-filled, its length in the top byte; a longer one has
its hash, then 255 in the top byte and the place in `texts` of its length (8 bytes) and its bytes. The other
two are the value.

All kernels are in one file: Numba's cache notices a changed file, not a changed kernel elsewhere.
"""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import regex
from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba import njit, types
from numba.core import cgutils, config
from numba.extending import intrinsic

from cs336 import compilation

SHORT_BYTES = 15  # longest pre-token that is its own key

OTHER, LETTER, NUMBER, SPACE = 0, 1, 2, 3  # classes of code points

_LONG = np.uint64(0xFF) << np.uint64(56)
_PLACE = ~_LONG
_MIX = np.uint64(0x9E3779B97F4A7C15)  # 2**64 / golden ratio: multiplicative hashing (Knuth 6.4)
_MIX_2 = np.uint64(0xC2B2AE3D27D4EB4F)
_HIGH_BITS = np.uint64(0x8080808080808080)
_ONES = np.uint64(0xFFFFFFFFFFFFFFFF)
_ID_BITS, _RANK_BITS = np.uint64(21), np.uint64(22)  # of a row of the table of merges: two ids and a rank
_RANK = np.uint64((1 << 22) - 1)
_NO_RANK = np.uint32(0xFFFFFFFF)
_LONG_PRETOKEN_BYTES = 64  # from here on the heap is faster than looking at every pair again
_REMEMBERED_BYTES = 255  # longer pre-tokens hardly ever come again
_AHEAD = 16  # words between the one dealt with and the one fetched
_CUTS_AT_ONCE = 66  # of 64 bytes, what is written too much included, and the segment's end
_SCANNED = 512  # pre-tokens found before they are looked up: with their keys they stay in the nearest cache


def warm_up() -> None:
    """Compile the kernels, or load them from the cache; says so if that takes a while."""
    _warm_up()


@functools.cache
def _warm_up() -> None:
    with announced():
        buffer = np.zeros(128, np.uint8)
        starts, ends = np.array([0]), np.array([1])
        table = count_segments(buffer, starts, ends, classes(), *empty_table())
        counted = counted_words(*table[:3])
        add_counts(*table, *counted)
        first_invalid_byte(buffer, 1)
        find_token(buffer, 1, buffer)


def announced() -> AbstractContextManager[None]:
    """For first calls of kernels: says so when they take a while, as they are compiled then."""
    return compilation.announced("the tokenizer's inner loops")


@functools.cache
def classes() -> np.ndarray:
    """Class of every code point, as the `regex` package has it: what PATTERN means by \\p{L}, \\p{N} and \\s."""
    points = np.arange(0x110000, dtype="<u4")
    points[0xD800:0xE000] = 0  # surrogates, which no text has
    text = points.tobytes().decode("utf-32-le")
    found = np.full(0x110000, OTHER, np.uint8)
    for kind, pattern in ((LETTER, r"\p{L}+"), (NUMBER, r"\p{N}+"), (SPACE, r"\s+")):
        for match in regex.finditer(pattern, text):
            found[match.start() : match.end()] = kind
    return found


def empty_table() -> tuple[np.ndarray, int, np.ndarray, int]:
    """table, num_entries, texts, num_texts: as the kernels take them, without an entry."""
    return np.zeros((1 << 16, 4), np.uint64), 0, np.empty(1 << 16, np.uint8), 0


def empty_memory() -> tuple[np.ndarray, int, np.ndarray, int, np.ndarray, int]:
    """table, num_entries, texts, num_texts, kept, num_kept: as `encode_segments` takes them, without an entry."""
    return *empty_table(), np.empty(1 << 16, np.uint32), 0


@intrinsic
def _load_word(typing_context: Any, data: Any, place: Any) -> Any:
    """Eight bytes from any place of a byte array as one little-endian word."""
    signature = types.uint64(data, place)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        word = ir.IntType(64)
        pointer = builder.bitcast(builder.gep(array.data, [arguments[1]]), word.as_pointer())
        return builder.load(pointer, typ=word, align=1)

    return signature, generate


@intrinsic
def _between(typing_context: Any, data: Any, place: Any, fold: Any, first: Any, last: Any) -> Any:
    """One bit for each of 64 bytes from any place of a byte array, the first byte's lowest: whether the byte, with
    the bits of `fold` set, is from `first` to `last`. Compiles to the widest vectors that the processor has."""
    signature = types.uint64(data, place, types.uint8, types.uint8, types.uint8)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        vector = ir.VectorType(ir.IntType(8), 64)
        pointer = builder.bitcast(builder.gep(array.data, [arguments[1]]), vector.as_pointer())
        values = builder.load(pointer, typ=vector, align=1)

        fold, first, last = arguments[2:]
        above = builder.sub(builder.or_(values, _all_of(builder, fold, 64)), _all_of(builder, first, 64))
        found = builder.icmp_unsigned("<=", above, _all_of(builder, builder.sub(last, first), 64))
        return builder.bitcast(found, ir.IntType(64))

    return signature, generate


@intrinsic
def _prefetch(typing_context: Any, data: Any, place: Any) -> Any:
    """Tell the processor that an entry of an array will be read soon."""
    signature = types.void(data, place)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        pointer, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        address = builder.bitcast(builder.gep(array.data, [arguments[1]]), pointer)
        kind = ir.FunctionType(ir.VoidType(), [pointer, number, number, number])
        prefetch = builder.module.declare_intrinsic("llvm.prefetch", [pointer], kind)
        builder.call(prefetch, [address, *(ir.Constant(number, each) for each in (0, 3, 1))])  # to read, keep, data
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def _trailing_zeros(typing_context: Any, word: Any) -> Any:
    signature = types.uint64(types.uint64)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 0))

    return signature, generate


@intrinsic
def _ones(typing_context: Any, word: Any) -> Any:
    """Number of bits that are set."""
    signature = types.uint64(types.uint64)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return signature, generate


@intrinsic
def _lowest_of_16(typing_context: Any, values: Any, place: Any) -> Any:
    """The lowest of 16 32-bit numbers from a place of an array."""
    signature = types.uint32(values, place)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        numbers = _load_16(context, builder, signature, arguments)
        kind = ir.FunctionType(ir.IntType(32), [numbers.type])
        lowest = cgutils.get_or_insert_function(builder.module, kind, "llvm.vector.reduce.umin.v16i32")
        return builder.call(lowest, [numbers])

    return signature, generate


@intrinsic
def _equal_of_16(typing_context: Any, values: Any, place: Any, value: Any) -> Any:
    """One bit for each of 16 32-bit numbers from a place of an array, the first one's lowest: whether it is `value`."""
    signature = types.uint64(values, place, types.uint32)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        numbers = _load_16(context, builder, signature, arguments)
        found = builder.icmp_unsigned("==", numbers, _all_of(builder, arguments[2], 16))
        return builder.zext(builder.bitcast(found, ir.IntType(16)), ir.IntType(64))

    return signature, generate


def _load_16(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    array = context.make_array(signature.args[0])(context, builder, arguments[0])
    vector = ir.VectorType(ir.IntType(32), 16)
    pointer = builder.bitcast(builder.gep(array.data, [arguments[1]]), vector.as_pointer())
    return builder.load(pointer, typ=vector, align=4)


def _all_of(builder: Any, value: Any, number: int) -> Any:
    """A vector of the same value so many times."""
    nothing = ir.Constant(ir.VectorType(value.type, number), ir.Undefined)
    one = builder.insert_element(nothing, value, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(one, nothing, ir.Constant(ir.VectorType(ir.IntType(32), number), [0] * number))


@intrinsic
def _leading_zeros(typing_context: Any, word: Any) -> Any:
    signature = types.uint64(types.uint64)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.ctlz(arguments[0], ir.Constant(ir.IntType(1), 0))

    return signature, generate


@intrinsic
def _write_places_packed(typing_context: Any, target: Any, number: Any, bits: Any, place: Any) -> Any:
    """Write to `target`, from entry `number` on, `place` plus the place of each bit that is set, and up to 63 entries
    of no meaning behind them. For processors that pack the bytes of a vector in one step."""
    signature = types.void(target, number, types.uint64, types.int64)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        number, bits, place = arguments[1:]
        vector, mask = ir.VectorType(ir.IntType(8), 64), ir.VectorType(ir.IntType(1), 64)
        kind = ir.FunctionType(vector, [vector, vector, mask])
        pack = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.avx512.mask.compress.v64i8")
        nothing = ir.Constant(vector, ir.Undefined)
        offsets = builder.call(pack, [ir.Constant(vector, list(range(64))), nothing, builder.bitcast(bits, mask)])
        count = builder.ctpop(bits)
        numbers = ir.VectorType(ir.IntType(64), 16)
        base = _all_of(builder, place, 16)

        def write_16(first: int) -> None:
            chosen = ir.Constant(ir.VectorType(ir.IntType(32), 16), list(range(first, first + 16)))
            places = builder.add(builder.zext(builder.shuffle_vector(offsets, nothing, chosen), numbers), base)
            entry = builder.gep(array.data, [builder.add(number, number.type(first))])
            builder.store(places, builder.bitcast(entry, numbers.as_pointer()), align=8)

        write_16(0)  # more are rare
        with builder.if_then(builder.icmp_unsigned(">", count, count.type(16)), likely=False):
            for first in (16, 32, 48):
                write_16(first)
        return context.get_dummy_value()

    return signature, generate


@njit(cache=True, nogil=True)
def _write_places_one_by_one(target, number, bits, place):
    """As `_write_places_packed`, for other processors: sixteen at a time, as their number cannot be foreseen."""
    while bits:
        for offset in range(16):
            target[number + offset] = place + np.int64(_trailing_zeros(bits))
            bits &= bits - np.uint64(1)
        number += 16


def _packs_bytes() -> bool:
    """Whether code is compiled for a processor that packs bytes: this one, unless Numba is told otherwise."""
    is_host = config.CPU_NAME is None and config.CPU_FEATURES is None and config.ENABLE_AVX
    return bool(is_host and get_host_cpu_features().get("avx512vbmi2", False))


_write_places = _write_places_packed if _packs_bytes() else _write_places_one_by_one


# ---- pre-tokens: the twin of pretokenize.PATTERN ----------------------------------------------------


@njit(cache=True, nogil=True)
def _decode(buffer, place):
    """Code point of the UTF-8 sequence at `place`, its length in the bits above 2**24."""
    first = np.int64(buffer[place])
    if first < 0x80:
        return first | (1 << 24)
    second = np.int64(buffer[place + 1]) & 0x3F
    if first < 0xE0:
        return ((first & 0x1F) << 6) | second | (2 << 24)
    third = np.int64(buffer[place + 2]) & 0x3F
    if first < 0xF0:
        return ((first & 0x0F) << 12) | (second << 6) | third | (3 << 24)
    fourth = np.int64(buffer[place + 3]) & 0x3F
    return ((first & 0x07) << 18) | (second << 12) | (third << 6) | fourth | (4 << 24)


@njit(cache=True, nogil=True)
def _letters(buffer, place):
    """A bit for each of 64 bytes: whether it is an ASCII letter."""
    return _between(buffer, place, 0x20, 0x61, 0x7A)


@njit(cache=True, nogil=True)
def _run_end(buffer, place, end, kind, classes):
    """Where the run of characters of class `kind` that goes on at `place` ends."""
    if kind == LETTER:
        while place < end:
            others = ~_letters(buffer, place)
            if others == np.uint64(0):
                place += 64
                continue
            place += np.int64(_trailing_zeros(others))
            if place >= end or buffer[place] < 0x80:
                break
            point = _decode(buffer, place)
            if classes[point & 0xFFFFFF] != LETTER:
                break
            place += point >> 24
        return min(place, end)
    while place < end:
        byte = buffer[place]
        if byte < 0x80:
            if classes[byte] != kind:
                break
            place += 1
        else:
            point = _decode(buffer, place)
            if classes[point & 0xFFFFFF] != kind:
                break
            place += point >> 24
    return min(place, end)


@njit(cache=True, nogil=True)
def _pretoken_end(buffer, place, end, classes):
    """Where the pre-token that starts at `place` ends; `end` is the segment's."""
    byte = buffer[place]
    if byte == 0x20 and place + 1 < end:
        kind = classes[_decode(buffer, place + 1) & 0xFFFFFF]
        if kind != SPACE:
            return _run_end(buffer, place + 1, end, kind, classes)
    elif byte == 0x27:
        length = _contraction(buffer, place, end)
        if length:
            return place + length
    kind = classes[_decode(buffer, place) & 0xFFFFFF]
    if kind != SPACE:
        return _run_end(buffer, place, end, kind, classes)
    # White space: all of it at the segment's end, else all but its last character, but at least one.
    last_start = place
    stop = place
    while stop < end:
        point = _decode(buffer, stop)
        if classes[point & 0xFFFFFF] != SPACE:
            break
        last_start = stop
        stop += point >> 24
    return stop if stop >= end or last_start == place else last_start


@njit(cache=True, nogil=True)
def pretoken_ends(buffer, start, end, classes, ends):
    """Write the ends of the pre-tokens of one segment to `ends`, until that is full or the segment ends.

    ASCII is cut 64 bytes at a time: a bit for each byte says what it is, and shifts and masks of these
    words say where a pre-token starts. Where other characters come, `_pretoken_end` goes on one by one.

    Args:
        start: of the segment, or where an earlier call stopped: `ends[number - 1]`.
        ends: at least 200 long.

    Returns:
        how many were written; the last is `end` when the segment is done.
    """
    number = 0
    room = len(ends) - _CUTS_AT_ONCE  # so many more are written at most
    place = last = start  # place: of the 64 bytes looked at; last: where the pre-token begun last starts
    fresh = True
    one = np.uint64(1)
    before_letter = before_number = before_other = before_white = before_space = np.uint64(0)
    carried_starts = carried_inner = np.uint64(0)
    while place < end and number < room:
        letters = _letters(buffer, place)
        numbers = _between(buffer, place, 0, 0x30, 0x39)
        spaces = _between(buffer, place, 0, 0x20, 0x20)
        whites = spaces | _between(buffer, place, 0, 0x09, 0x0D)
        quotes = _between(buffer, place, 0, 0x27, 0x27)
        others = _between(buffer, place, 0, 0x80, 0xFF) | _between(buffer, place, 0, 0x1C, 0x1F)
        left = end - place
        inside = _ONES if left >= 64 else (one << np.uint64(left)) - one
        if others & inside:
            # Not ASCII (or one of the four control characters on whose class Unicode versions differ).
            stop = min(place + 64, end)
            while last < stop and number < room:
                last = _pretoken_end(buffer, last, end, classes)
                ends[number] = last
                number += 1
            place = last
            fresh = True
            continue
        others = ~(letters | numbers | whites)
        if fresh:
            before_letter = before_number = before_other = before_white = before_space = np.uint64(0)
            carried_starts = carried_inner = np.uint64(0)
        after_white = np.uint64(1)  # white space up to the segment's end is one pre-token
        if left > 64:
            after_white = np.uint64(classes[_decode(buffer, place + 64) & 0xFFFFFF] == SPACE)
        runs = letters & ~((letters << one) | before_letter)
        runs |= numbers & ~((numbers << one) | before_number)
        runs |= others & ~((others << one) | before_other)
        white_runs = whites & ~((whites << one) | before_white)
        last_whites = whites & ~(((whites | ~inside) >> one) | (after_white << np.uint64(63)))
        # The one space before a run belongs to it.
        starts = (runs & ~((spaces << one) | before_space)) | white_runs | last_whites
        starts = (starts | carried_starts) & ~carried_inner
        carried_starts = carried_inner = np.uint64(0)
        quotes &= starts & inside
        while quotes:
            offset = np.int64(_trailing_zeros(quotes))
            quotes &= quotes - one
            length = _contraction(buffer, place + offset, end)
            if length:  # it starts no run of letters, and what follows starts anew
                if offset + 1 < 64:
                    starts &= ~(one << np.uint64(offset + 1))
                else:
                    carried_inner |= one << np.uint64(offset + 1 - 64)
                if offset + length < 64:
                    starts |= one << np.uint64(offset + length)
                else:
                    carried_starts |= one << np.uint64(offset + length - 64)
        starts &= inside
        if fresh:
            starts &= ~one  # known already
            fresh = False
        _write_places(ends, number, starts, place)
        number += np.int64(_ones(starts))
        if number:
            last = ends[number - 1]
        top = np.uint64(63)
        before_letter, before_number, before_other = letters >> top, numbers >> top, others >> top
        before_white, before_space = whites >> top, spaces >> top
        place += 64
    if place >= end and last < end:
        ends[number] = end
        number += 1
    return number


@njit(cache=True, nogil=True)
def _contraction(buffer, place, end):
    """Length of the contraction that starts with the apostrophe at `place`; 0 if none does."""
    if place + 1 < end:
        after = buffer[place + 1]
        if after == 0x73 or after == 0x64 or after == 0x6D or after == 0x74:  # 's 'd 'm 't
            return 2
        if place + 2 < end:
            last = buffer[place + 2]
            if (after == 0x6C and last == 0x6C) or (last == 0x65 and (after == 0x76 or after == 0x72)):  # 'll 've 're
                return 3
    return 0


@njit(cache=True, nogil=True)
def first_invalid_byte(buffer, end):
    """Where a byte string stops to be UTF-8 (Unicode 3.9, table 3-7); -1 if it is all of it."""
    place = 0
    while place < end:
        if place + 8 <= end and (_load_word(buffer, place) & _HIGH_BITS) == np.uint64(0):
            place += 8
            continue
        first = buffer[place]
        if first < 0x80:
            place += 1
            continue
        low, high = 0x80, 0xBF  # of the second byte
        if 0xC2 <= first <= 0xDF:
            length = 2
        elif 0xE0 <= first <= 0xEF:
            length = 3
            if first == 0xE0:
                low = 0xA0
            elif first == 0xED:
                high = 0x9F
        elif 0xF0 <= first <= 0xF4:
            length = 4
            if first == 0xF0:
                low = 0x90
            elif first == 0xF4:
                high = 0x8F
        else:
            return place
        if place + length > end or not low <= buffer[place + 1] <= high:
            return place
        for offset in range(2, length):
            if not 0x80 <= buffer[place + offset] <= 0xBF:
                return place
        place += length
    return -1


@njit(cache=True, nogil=True)
def find_token(buffer, end, token):
    """All places of the bytes `token` before `end`, also overlapping ones."""
    places, number = np.empty(64, np.int64), 0
    place = _next_token(buffer, 0, end, token)
    while place >= 0:
        if number == len(places):
            larger = np.empty(2 * number, np.int64)
            larger[:number] = places
            places = larger
        places[number] = place
        number += 1
        place = _next_token(buffer, place + 1, end, token)
    return places[:number]


@njit(cache=True, nogil=True)
def _next_token(buffer, place, end, token):
    """The first place of `token` from `place` on, before `end`; -1 if there is none."""
    beyond = len(token) - 1
    first, last = token[0], token[beyond]
    while place + beyond < end:
        found = _ONES  # near the buffer's end every place is looked at
        if place + beyond + 64 <= len(buffer):
            found = _between(buffer, place, 0, first, first) & _between(buffer, place + beyond, 0, last, last)
        while found:
            start = place + np.int64(_trailing_zeros(found))
            found &= found - np.uint64(1)
            if start + beyond >= end:
                return -1
            same = True
            for offset in range(beyond + 1):
                same = same and buffer[start + offset] == token[offset]
            if same:
                return start
        place += 64
    return -1


# ---- tables of pre-tokens ---------------------------------------------------------------------------


@njit(cache=True, nogil=True)
def _cut_key(low, high, length):
    """The key of a pre-token of 1 to `SHORT_BYTES`, from the first 16 bytes at its place."""
    low &= _ONES >> np.uint64(64 - 8 * min(length, 8))
    high &= (_ONES >> np.uint64(1)) >> np.uint64(63 - 8 * max(length - 8, 0))
    return low, high | (np.uint64(length) << np.uint64(56))


@njit(cache=True, nogil=True)
def _short_key(buffer, place, length):
    """The key of a pre-token of up to `SHORT_BYTES`."""
    return _cut_key(_load_word(buffer, place), _load_word(buffer, place + 8), length)


@njit(cache=True, nogil=True)
def _mixed(low, high):
    mixed = (low ^ (high * _MIX_2)) * _MIX
    return mixed ^ (mixed >> np.uint64(32))


@njit(cache=True, nogil=True)
def _hash_of_short(low, high):
    """Of a product the upper bits depend on all bits of the factors; the lower ones are for very large tables."""
    mixed = (low ^ (high * _MIX_2)) * _MIX
    return mixed ^ (mixed >> np.uint64(40))


@njit(cache=True, nogil=True)
def _hash_of_long(buffer, place, length):
    mixed = np.uint64(length)
    while length >= 8:
        mixed = _mixed(_load_word(buffer, place), mixed)
        place += 8
        length -= 8
    if length:
        mixed = _mixed(_load_word(buffer, place) & (_ONES >> np.uint64(64 - 8 * length)), mixed)
    return mixed


@njit(cache=True, nogil=True)
def _short_keys(buffer, place, cuts, num_cuts, table, lengths, lows, highs, hashes):
    """Write the keys of pre-tokens and their hashes, and have their rows fetched: by the time they are looked up
    they have come from memory, all at once. Longer pre-tokens get a key that no row has.

    Three loops, as the second becomes vector instructions.
    """
    for number in range(num_cuts):
        cut = cuts[number]
        lengths[number] = cut - place
        lows[number], highs[number] = _load_word(buffer, place), _load_word(buffer, place + 8)
        place = cut
    for number in range(num_cuts):
        length = lengths[number]
        low, high = _cut_key(lows[number], highs[number], min(length, SHORT_BYTES))
        if length > SHORT_BYTES:
            low, high = np.uint64(1), np.uint64(0)
        lows[number], highs[number] = low, high
        hashes[number] = _hash_of_short(low, high)
    last = np.uint64(len(table) - 1)
    words = table.reshape(-1)
    for number in range(num_cuts):
        _prefetch(words, np.int64(hashes[number] & last) * 4)


@njit(cache=True, nogil=True)
def _find_short(table, low, high, hashed):
    """Row of a short key, or of the empty row where it belongs."""
    last = np.uint64(len(table) - 1)
    row = hashed & last
    while table[row, 1] != np.uint64(0) and (table[row, 0] != low or table[row, 1] != high):
        row = (row + np.uint64(1)) & last
    return row


@njit(cache=True, nogil=True)
def _find_long(table, texts, buffer, place, length, hashed):
    """Row of a long pre-token, or of the empty row where it belongs."""
    last = np.uint64(len(table) - 1)
    row = (hashed * _MIX_2 >> np.uint64(20)) & last
    while table[row, 1] != np.uint64(0):
        if table[row, 0] == hashed and table[row, 1] >= _LONG:
            start = np.int64(table[row, 1] & _PLACE)
            if _load_word(texts, start) == np.uint64(length):
                same = True
                for offset in range(length):
                    if texts[start + 8 + offset] != buffer[place + offset]:
                        same = False
                        break
                if same:
                    return row
        row = (row + np.uint64(1)) & last
    return row


@njit(cache=True, nogil=True)
def _add_long(table, row, texts, num_texts, buffer, place, length, hashed):
    """Put a long pre-token into an empty row; returns `texts`, grown if need be, and how much of it is used."""
    if num_texts + length + 8 > len(texts):
        larger = np.empty(2 * (num_texts + length + 8), np.uint8)
        larger[:num_texts] = texts[:num_texts]
        texts = larger
    return texts, _write_long(table, row, texts, num_texts, buffer, place, length, hashed)


@njit(cache=True, nogil=True)
def _write_long(table, row, texts, num_texts, buffer, place, length, hashed):
    """Put a long pre-token into an empty row; returns how much of `texts` is used."""
    for offset in range(8):
        texts[num_texts + offset] = (length >> (8 * offset)) & 0xFF
    for offset in range(length):
        texts[num_texts + 8 + offset] = buffer[place + offset]
    table[row, 0] = hashed
    table[row, 1] = _LONG | np.uint64(num_texts)
    return num_texts + length + 8


@njit(cache=True, nogil=True)
def _grown(table, times):
    """The same entries in `times` as many rows."""
    larger = np.zeros((times * len(table), 4), np.uint64)
    last = np.uint64(len(larger) - 1)
    for place in range(len(table)):
        high = table[place, 1]
        if high != np.uint64(0):
            low = table[place, 0]
            hashed = low * _MIX_2 >> np.uint64(20) if high >= _LONG else _hash_of_short(low, high)
            row = hashed & last
            while larger[row, 1] != np.uint64(0):
                row = (row + np.uint64(1)) & last
            larger[row, 0], larger[row, 1] = low, high
            larger[row, 2], larger[row, 3] = table[place, 2], table[place, 3]
    return larger


# ---- counting: the twin of reference.count_pretokens ------------------------------------------------


@njit(cache=True, nogil=True)
def count_segments(buffer, starts, ends, classes, table, num_entries, texts, num_texts):
    """Count the pre-tokens of segments; value word 0 of a row is its count.

    Returns:
        table, num_entries, texts, num_texts: the table may have grown.
    """
    cuts = np.empty(_SCANNED, np.int64)
    lengths, lows = np.empty(_SCANNED, np.int64), np.empty(_SCANNED, np.uint64)
    highs, hashes = np.empty(_SCANNED, np.uint64), np.empty(_SCANNED, np.uint64)
    for segment in range(len(starts)):
        place, end = starts[segment], ends[segment]
        while place < end:
            num_cuts = pretoken_ends(buffer, place, end, classes, cuts)
            if 2 * (num_entries + num_cuts) > len(table):
                table = _grown(table, 2)
            _short_keys(buffer, place, cuts, num_cuts, table, lengths, lows, highs, hashes)
            added, num_long = _count_short(table, lows, highs, hashes, num_cuts)
            num_entries += added
            if num_long:
                for found in range(num_cuts):
                    cut = cuts[found]
                    if highs[found] == np.uint64(0):
                        length = cut - place
                        hashed = _hash_of_long(buffer, place, length)
                        row = _find_long(table, texts, buffer, place, length, hashed)
                        if table[row, 1] == np.uint64(0):
                            texts, num_texts = _add_long(table, row, texts, num_texts, buffer, place, length, hashed)
                            num_entries += 1
                        table[row, 2] += np.uint64(1)
                    place = cut
            place = cuts[num_cuts - 1]
    return table, num_entries, texts, num_texts


@njit(cache=True, nogil=True)
def _count_short(table, lows, highs, hashes, num_cuts):
    """Count the short ones of the pre-tokens whose keys are given; the table has room for all.

    A function of its own, as no array is replaced here: Numba would count references to it at every step.

    Returns:
        number of new entries, and of longer pre-tokens, which are left out.
    """
    added, num_long = 0, 0
    for found in range(num_cuts):
        low, high = lows[found], highs[found]
        if high == np.uint64(0):
            num_long += 1
            continue
        row = _find_short(table, low, high, hashes[found])
        if table[row, 1] == np.uint64(0):
            table[row, 0], table[row, 1] = low, high
            added += 1
        table[row, 2] += np.uint64(1)
    return added, num_long


@njit(cache=True, nogil=True)
def add_counts(table, num_entries, texts, num_texts, words, starts, counts):
    """Add counted words, as `counted_words` gives them, to a table."""
    for number in range(len(counts)):
        place = starts[number]
        length = starts[number + 1] - place
        if length <= SHORT_BYTES:
            low, high = _short_key(words, place, length)
            row = _find_short(table, low, high, _hash_of_short(low, high))
            if table[row, 1] == np.uint64(0):
                table[row, 0], table[row, 1] = low, high
                num_entries += 1
        else:
            hashed = _hash_of_long(words, place, length)
            row = _find_long(table, texts, words, place, length, hashed)
            if table[row, 1] == np.uint64(0):
                texts, num_texts = _add_long(table, row, texts, num_texts, words, place, length, hashed)
                num_entries += 1
        table[row, 2] += np.uint64(counts[number])
        if 2 * num_entries > len(table):
            table = _grown(table, 2)
    return table, num_entries, texts, num_texts


@njit(cache=True, nogil=True)
def counted_words(table, num_entries, texts):
    """The distinct pre-tokens of a table: their bytes one after the other (padded), starts, and counts."""
    total = 0
    for row in range(len(table)):
        high = table[row, 1]
        if high >= _LONG:
            total += np.int64(_load_word(texts, np.int64(high & _PLACE)))
        elif high != np.uint64(0):
            total += np.int64(high >> np.uint64(56))
    words = np.zeros(total + 16, np.uint8)
    starts = np.empty(num_entries + 1, np.int64)
    counts = np.empty(num_entries, np.int64)
    number, place = 0, 0
    for row in range(len(table)):
        high = table[row, 1]
        if high == np.uint64(0):
            continue
        starts[number] = place
        counts[number] = np.int64(table[row, 2])
        number += 1
        if high >= _LONG:
            start = np.int64(high & _PLACE)
            length = np.int64(_load_word(texts, start))
            for offset in range(length):
                words[place + offset] = texts[start + 8 + offset]
            place += length
        else:
            for offset in range(np.int64(high >> np.uint64(56))):
                word = table[row, 0] if offset < 8 else high
                words[place] = np.uint8((word >> np.uint64(8 * (offset & 7))) & np.uint64(0xFF))
                place += 1
    starts[number] = place
    return words, starts, counts


# ---- learning merges: the twin of reference.learn_merges --------------------------------------------


@njit(cache=True, nogil=True)
def _pair_row(rows, lefts, rights, left, right):
    """Row of a pair in the hash table of pairs, or of the empty row (-1) where it belongs."""
    last = np.uint64(len(rows) - 1)
    key = (np.uint64(left) << np.uint64(32)) | np.uint64(right)
    row = (_mixed(key, np.uint64(0)) * _MIX_2 >> np.uint64(20)) & last
    while rows[row] >= 0 and (lefts[rows[row]] != left or rights[rows[row]] != right):
        row = (row + np.uint64(1)) & last
    return row


@njit(cache=True, nogil=True)
def _larger_rows(rows, lefts, rights, num_pairs):
    larger = np.full(2 * len(rows), -1, np.int32)
    for pair in range(num_pairs):
        larger[_pair_row(larger, lefts, rights, lefts[pair], rights[pair])] = pair
    return larger


@njit(cache=True, nogil=True)
def _compare_tokens(token_bytes, token_starts, left, right):
    """Negative, zero or positive as the bytes of one token sort before, with or after another's."""
    start, other = token_starts[left], token_starts[right]
    length, other_length = token_starts[left + 1] - start, token_starts[right + 1] - other
    for offset in range(min(length, other_length)):
        difference = np.int64(token_bytes[start + offset]) - np.int64(token_bytes[other + offset])
        if difference:
            return difference
    return length - other_length


@njit(cache=True, nogil=True)
def _merges_before(pair, count, other, other_count, lefts, rights, token_bytes, token_starts):
    """Whether a pair comes out of the heap before another: greater count, then greater bytes."""
    if count != other_count:
        return count > other_count
    order = _compare_tokens(token_bytes, token_starts, lefts[pair], lefts[other])
    if order == 0:
        order = _compare_tokens(token_bytes, token_starts, rights[pair], rights[other])
    return order > 0


@njit(cache=True, nogil=True)
def _sift_up(heap, heap_counts, place, lefts, rights, token_bytes, token_starts):
    pair, count = heap[place], heap_counts[place]
    while place > 0:
        parent = (place - 1) >> 1
        if not _merges_before(pair, count, heap[parent], heap_counts[parent], lefts, rights, token_bytes, token_starts):
            break
        heap[place], heap_counts[place] = heap[parent], heap_counts[parent]
        place = parent
    heap[place], heap_counts[place] = pair, count


@njit(cache=True, nogil=True)
def _sift_down(heap, heap_counts, size, place, lefts, rights, token_bytes, token_starts):
    pair, count = heap[place], heap_counts[place]
    while True:
        child = 2 * place + 1
        if child >= size:
            break
        if child + 1 < size and _merges_before(
            heap[child + 1],
            heap_counts[child + 1],
            heap[child],
            heap_counts[child],
            lefts,
            rights,
            token_bytes,
            token_starts,
        ):
            child += 1
        if not _merges_before(heap[child], heap_counts[child], pair, count, lefts, rights, token_bytes, token_starts):
            break
        heap[place], heap_counts[place] = heap[child], heap_counts[child]
        place = child
    heap[place], heap_counts[place] = pair, count


@njit(cache=True, nogil=True)
def pair_index(symbols, starts, word_counts):
    """All adjacent pairs of the words' bytes.

    What is read together stands together, since each place read costs a trip to memory: a node is one 64-bit word,
    the number of a word above 32 bits, and below them one more than the next node's number (0: none).

    Returns:
        lefts, rights, counts, heads: of each pair; rows, num_pairs: its hash table;
        nodes, num_nodes: linked lists of the words that hold each pair, from `heads` on (as a node has the next).
    """
    num_positions = len(symbols)
    # Merging shortens words: at most two new occurrences for each position that goes. Memory that is
    # never written costs nothing, so the arrays have their greatest size from the start.
    bound = 3 * num_positions + 1
    nodes = np.empty(bound + 1, np.int64)
    lefts, rights = np.empty(bound, np.int32), np.empty(bound, np.int32)
    counts, heads = np.empty(bound, np.int64), np.empty(bound, np.int32)
    direct = np.full((256, 256), -1, np.int32)
    num_pairs = 0
    occurrences = np.zeros(1 << 16, np.int64)
    for word in range(len(word_counts)):
        for place in range(starts[word], starts[word + 1] - 1):
            left, right = symbols[place], symbols[place + 1]
            pair = direct[left, right]
            if pair < 0:
                pair = num_pairs
                direct[left, right] = pair
                lefts[pair], rights[pair], counts[pair], heads[pair] = left, right, 0, 0
                num_pairs += 1
            counts[pair] += word_counts[word]
            occurrences[pair] += 1
    # The nodes of a pair side by side, so that the processor sees them coming.
    free = np.zeros(num_pairs + 1, np.int64)
    for pair in range(num_pairs):
        free[pair + 1] = free[pair] + occurrences[pair]
    num_nodes = free[num_pairs]
    for word in range(len(word_counts)):
        for place in range(starts[word], starts[word + 1] - 1):
            pair = direct[symbols[place], symbols[place + 1]]
            free[pair] = _add_node(pair, word, heads, nodes, free[pair])
    rows = np.full(1 << 17, -1, np.int32)
    while len(rows) < 4 * num_pairs:
        rows = _larger_rows(rows, lefts, rights, 0)
    for pair in range(num_pairs):
        rows[_pair_row(rows, lefts, rights, lefts[pair], rights[pair])] = pair
    return lefts, rights, counts, heads, rows, num_pairs, nodes, num_nodes


@njit(cache=True, nogil=True)
def _add_node(pair, word, heads, nodes, num_nodes):
    """Put a word into the list of a pair, unless it is the last that was; returns the number of nodes."""
    head = heads[pair]
    if head and nodes[head - 1] >> 32 == word:
        return num_nodes
    nodes[num_nodes] = (np.int64(word) << 32) | np.int64(head)
    heads[pair] = num_nodes + 1
    return num_nodes + 1


@njit(cache=True, nogil=True)
def _pair_of(left, right, rows, lefts, rights, counts, heads, num_pairs):
    """Number of a pair, new if need be; returns it, the table of rows, and the number of pairs."""
    row = _pair_row(rows, lefts, rights, left, right)
    if rows[row] >= 0:
        return rows[row], rows, num_pairs
    pair = num_pairs
    lefts[pair], rights[pair], counts[pair], heads[pair] = left, right, 0, 0
    rows[row] = pair
    num_pairs += 1
    if 2 * num_pairs > len(rows):
        rows = _larger_rows(rows, lefts, rights, num_pairs)
    return pair, rows, num_pairs


@njit(cache=True, nogil=True)
def _token_of(left, right, num_tokens, token_bytes, token_starts, token_rows):
    """The token that two make: a new one, or the one that has these bytes already. Writes its bytes."""
    start = token_starts[num_tokens]
    length = 0
    for part in (left, right):
        for offset in range(token_starts[part], token_starts[part + 1]):
            token_bytes[start + length] = token_bytes[offset]
            length += 1
    token_starts[num_tokens + 1] = start + length
    last = np.uint64(len(token_rows) - 1)
    row = _hash_of_long(token_bytes, start, length) & last
    while token_rows[row] >= 0:
        if _compare_tokens(token_bytes, token_starts, token_rows[row], num_tokens) == 0:
            return token_rows[row]
        row = (row + np.uint64(1)) & last
    token_rows[row] = num_tokens
    return num_tokens


@njit(cache=True, nogil=True)
def learn(
    num_merges,
    symbols,
    words,
    lefts,
    rights,
    counts,
    heads,
    rows,
    num_pairs,
    nodes,
    num_nodes,
    token_bytes,
    token_starts,
    token_rows,
    num_tokens,
    threshold,
    merged_lefts,
    merged_rights,
):
    """Merge the most frequent pair `num_merges` times, or until none is left.

    The heap holds the pairs that occur at least `threshold` times. When it runs empty the threshold is
    halved and the heap filled anew, so that the many rare pairs are never sorted.

    Args:
        symbols: tokens of each word, in place: a word gets shorter.
        words: rows of (where a word starts in `symbols`, its length, its frequency, nothing).
        lefts ... num_nodes: as `pair_index` gives them.
        token_bytes, token_starts, token_rows, num_tokens: bytes of each token, and a hash table of them.
        merged_lefts, merged_rights: to be filled.

    Returns:
        number of merges made (fewer than asked for also when `token_bytes` is full), and what a next call
        must be given: rows, num_pairs, num_nodes, num_tokens, threshold (0: no pair is left).
    """
    limit = len(token_starts)
    left_pair, right_pair = np.empty(limit, np.int32), np.empty(limit, np.int32)  # (it, new) and (new, it)
    left_old, right_old = np.empty(limit, np.int32), np.empty(limit, np.int32)  # (it, left) and (right, it)
    left_stamp, right_stamp = np.full(limit, -1, np.int64), np.full(limit, -1, np.int64)
    touched, found = np.empty(2 * limit, np.int32), np.empty(1 << 12, np.int64)
    heap, heap_counts = np.empty(1 << 12, np.int32), np.empty(1 << 12, np.int64)
    size = made = 0
    must_fill = True
    while made < num_merges:
        best = -1
        while best < 0 and threshold > 0:
            if must_fill:
                must_fill = False
                for pair in range(num_pairs):
                    if counts[pair] >= threshold:
                        if size == len(heap):
                            heap, heap_counts = _twice(heap, heap_counts)
                        heap[size], heap_counts[size] = pair, counts[pair]
                        size += 1
                for place in range(size // 2 - 1, -1, -1):
                    _sift_down(heap, heap_counts, size, place, lefts, rights, token_bytes, token_starts)
            while size and best < 0:
                top = heap[0]
                if counts[top] == heap_counts[0]:
                    best = top
                elif counts[top] >= threshold:  # less than when it was pushed
                    heap_counts[0] = counts[top]
                    _sift_down(heap, heap_counts, size, 0, lefts, rights, token_bytes, token_starts)
                else:
                    size = _pop(heap, heap_counts, size, lefts, rights, token_bytes, token_starts)
            if best < 0:
                threshold >>= 1
                must_fill = True
        if best < 0:
            break
        left, right = lefts[best], rights[best]
        length = token_starts[left + 1] - token_starts[left] + token_starts[right + 1] - token_starts[right]
        if token_starts[num_tokens] + length + 16 > len(token_bytes):
            break  # the caller makes room
        size = _pop(heap, heap_counts, size, lefts, rights, token_bytes, token_starts)
        new = _token_of(left, right, num_tokens, token_bytes, token_starts, token_rows)
        if new == num_tokens:
            num_tokens += 1
        merged_lefts[made], merged_rights[made] = left, right
        made += 1
        num_touched = 0
        # The words first, so that what is read of each can be fetched while those before it are dealt with.
        num_found, node = 0, heads[best]
        while node:
            if num_found == len(found):
                larger = np.empty(2 * num_found, np.int64)
                larger[:num_found] = found
                found = larger
            found[num_found] = nodes[node - 1] >> 32
            node = nodes[node - 1] & 0xFFFFFFFF
            num_found += 1
        for number in range(min(_AHEAD, num_found)):
            _prefetch(words, 4 * found[number])
        for number in range(num_found):
            if number + _AHEAD < num_found:
                _prefetch(words, 4 * found[number + _AHEAD])
            if number + _AHEAD // 2 < num_found:
                _prefetch(symbols, words[4 * found[number + _AHEAD // 2]])
            word = found[number]
            start, length, frequency = words[4 * word], words[4 * word + 1], words[4 * word + 2]
            # Nothing to do if an earlier merge took the pair out of this word.
            place = 0
            while place < length - 1 and not (symbols[start + place] == left and symbols[start + place + 1] == right):
                place += 1
            if place >= length - 1:
                continue
            write = place
            while place < length:
                symbol = symbols[start + place]
                if symbol != left or place == length - 1 or symbols[start + place + 1] != right:
                    symbols[start + write] = symbol
                    write += 1
                    place += 1
                    continue
                if write > 0:
                    before = symbols[start + write - 1]
                    if left_stamp[before] != made:
                        left_stamp[before] = made
                        left_old[before], rows, num_pairs = _pair_of(
                            before, left, rows, lefts, rights, counts, heads, num_pairs
                        )
                        left_pair[before], rows, num_pairs = _pair_of(
                            before, new, rows, lefts, rights, counts, heads, num_pairs
                        )
                        touched[num_touched] = left_pair[before]
                        num_touched += 1
                    counts[left_old[before]] -= frequency
                    pair = left_pair[before]
                    counts[pair] += frequency
                    num_nodes = _add_node(pair, word, heads, nodes, num_nodes)
                if place + 2 < length:
                    after = symbols[start + place + 2]
                    if right_stamp[after] != made:
                        right_stamp[after] = made
                        right_old[after], rows, num_pairs = _pair_of(
                            right, after, rows, lefts, rights, counts, heads, num_pairs
                        )
                        right_pair[after], rows, num_pairs = _pair_of(
                            new, after, rows, lefts, rights, counts, heads, num_pairs
                        )
                        touched[num_touched] = right_pair[after]
                        num_touched += 1
                    counts[right_old[after]] -= frequency
                    pair = right_pair[after]
                    counts[pair] += frequency
                    num_nodes = _add_node(pair, word, heads, nodes, num_nodes)
                symbols[start + write] = new
                write += 1
                place += 2
            words[4 * word + 1] = write
        counts[best] = 0
        heads[best] = 0
        for number in range(num_touched):
            pair = touched[number]
            if counts[pair] >= threshold:
                if size == len(heap):
                    heap, heap_counts = _twice(heap, heap_counts)
                heap[size], heap_counts[size] = pair, counts[pair]
                _sift_up(heap, heap_counts, size, lefts, rights, token_bytes, token_starts)
                size += 1
    return made, rows, num_pairs, num_nodes, num_tokens, threshold


@njit(cache=True, nogil=True)
def _twice(heap, heap_counts):
    larger, larger_counts = np.empty(2 * len(heap), np.int32), np.empty(2 * len(heap), np.int64)
    larger[: len(heap)] = heap
    larger_counts[: len(heap)] = heap_counts
    return larger, larger_counts


@njit(cache=True, nogil=True)
def _pop(heap, heap_counts, size, lefts, rights, token_bytes, token_starts):
    """Take the first entry out of a heap; returns its new size."""
    size -= 1
    heap[0], heap_counts[0] = heap[size], heap_counts[size]
    if size:
        _sift_down(heap, heap_counts, size, 0, lefts, rights, token_bytes, token_starts)
    return size


# ---- encoding: the twin of reference.apply_merges ---------------------------------------------------


@njit(cache=True, nogil=True)
def pair_table(lefts, rights):
    """Hash table of the merges, in order: one word a row for the left id, the right id and the rank, all ones where
    empty. Ids must be less than 2**21 - 1."""
    size = 1024
    while size < 2 * len(lefts):  # as small as it may be: what stays in a cache is found faster than a shorter way
        size *= 2
    pairs = np.full(size, _ONES, np.uint64)
    last = np.uint64(size - 1)
    for rank in range(len(lefts)):
        key, row = _pair_key(pairs, lefts[rank], rights[rank])
        while pairs[row] != _ONES and pairs[row] >> _RANK_BITS != key:
            row = (row + np.uint64(1)) & last
        if pairs[row] == _ONES:  # of a pair that is listed twice, the first counts
            pairs[row] = (key << _RANK_BITS) | np.uint64(rank)
    return pairs


@njit(cache=True, nogil=True)
def _pair_key(pairs, left, right):
    """The key of a pair of ids, and the row where the search for it begins."""
    key = (np.uint64(left) << _ID_BITS) | np.uint64(right)
    return key, key * _MIX >> (np.uint64(64) - _trailing_zeros(np.uint64(len(pairs))))


@njit(cache=True, nogil=True)
def _rank(pairs, left, right):
    """Rank of the merge of a pair of ids; `_NO_RANK` if they do not merge."""
    last = np.uint64(len(pairs) - 1)
    key, row = _pair_key(pairs, left, right)
    while pairs[row] >> _RANK_BITS != key:
        if pairs[row] == _ONES:
            return _NO_RANK
        row = (row + np.uint64(1)) & last
    return np.uint32(pairs[row] & _RANK)


@njit(cache=True, nogil=True)
def ranks_of_bytes(pairs, byte_ids):
    """`_rank` of all pairs of single bytes, at 256 times the first byte and the second."""
    ranks = np.empty(1 << 16, np.uint32)
    for left in range(256):
        for right in range(256):
            ranks[256 * left + right] = _rank(pairs, byte_ids[left], byte_ids[right])
    return ranks


@njit(cache=True, nogil=True)
def _merge(buffer, place, length, pairs, merged, byte_ids, byte_ranks, ids, ranks, out, start):
    """Write the ids of one pre-token, shorter than `_LONG_PRETOKEN_BYTES`, to `out` from `start` on; returns how many.

    Nothing is moved: a bit of `begins` says for each byte whether a token begins there, `ids` which, and `ranks`
    how early it merges with the next.
    """
    one = np.uint64(1)
    for offset in range(0, length, 16):
        ranks[offset : offset + 16] = _NO_RANK
    for offset in range(length - 1):
        ids[offset] = byte_ids[buffer[place + offset]]
        ranks[offset] = byte_ranks[256 * np.int64(buffer[place + offset]) + np.int64(buffer[place + offset + 1])]
    ids[length - 1] = byte_ids[buffer[place + length - 1]]
    begins = (one << np.uint64(length)) - one
    while True:
        best = _lowest_of_16(ranks, 0)
        for offset in range(16, length, 16):
            best = min(best, _lowest_of_16(ranks, offset))
        if best == _NO_RANK:
            break
        places = _equal_of_16(ranks, 0, best)
        for offset in range(16, length, 16):
            places |= _equal_of_16(ranks, offset, best) << np.uint64(offset)
        while places:  # all places of this rank, before any new pair
            left = _trailing_zeros(places)
            places &= places - one
            behind = begins & (~one << left)
            right = _trailing_zeros(behind)
            begins &= ~(one << right)
            places &= ~(one << right)  # in a run of the same token every second place is taken already
            ids[left] = merged[best]
            ranks[left] = ranks[right] = _NO_RANK
            behind &= begins
            if behind:
                ranks[left] = _rank(pairs, ids[left], ids[_trailing_zeros(behind)])
            before = begins & ((one << left) - one)
            if before:
                last = np.uint64(63) - _leading_zeros(before)
                ranks[last] = _rank(pairs, ids[last], ids[left])
    number = start
    while begins:
        out[number] = ids[_trailing_zeros(begins)]
        begins &= begins - one
        number += 1
    return number - start


@njit(cache=True, nogil=True)
def _push_word(heap, size, value):
    while size > 0 and heap[(size - 1) >> 1] > value:
        heap[size] = heap[(size - 1) >> 1]
        size = (size - 1) >> 1
    heap[size] = value


@njit(cache=True, nogil=True)
def _pop_word(heap, size):
    """Drop the smallest of `size` values."""
    size -= 1
    value = heap[size]
    place = 0
    while 2 * place + 1 < size:
        child = 2 * place + 1
        if child + 1 < size and heap[child + 1] < heap[child]:
            child += 1
        if heap[child] >= value:
            break
        heap[place] = heap[child]
        place = child
    heap[place] = value


@njit(cache=True, nogil=True)
def _merge_long(buffer, place, length, pairs, merged, byte_ids, out, start):
    """As `_merge`, in time n log n: ids in a linked list, pairs that merge in a heap by rank and place."""
    ids = np.empty(length, np.int64)
    before, after = np.empty(length, np.int64), np.empty(length, np.int64)
    heap = np.empty(3 * length, np.uint64)
    touched = np.empty(2 * length, np.int64)
    for offset in range(length):
        ids[offset] = byte_ids[buffer[place + offset]]
        before[offset] = offset - 1
        after[offset] = offset + 1
    after[length - 1] = -1
    size = 0
    for offset in range(length - 1):
        rank = _rank(pairs, ids[offset], ids[offset + 1])
        if rank != _NO_RANK:
            _push_word(heap, size, (np.uint64(rank) << np.uint64(32)) | np.uint64(offset))
            size += 1
    while size:
        best = heap[0] >> np.uint64(32)
        num_touched = 0
        while size and heap[0] >> np.uint64(32) == best:  # all places of this rank, before any new pair
            left = np.int64(heap[0] & np.uint64(0xFFFFFFFF))
            _pop_word(heap, size)
            size -= 1
            right = after[left]
            if ids[left] < 0 or right < 0:
                continue
            if np.uint64(_rank(pairs, ids[left], ids[right])) != best:
                continue
            ids[left] = merged[best]
            ids[right] = -1
            after[left] = after[right]
            if after[left] >= 0:
                before[after[left]] = left
            if before[left] >= 0:
                touched[num_touched] = before[left]
                num_touched += 1
            touched[num_touched] = left
            num_touched += 1
        for number in range(num_touched):
            left = touched[number]
            if ids[left] < 0 or after[left] < 0:
                continue
            rank = _rank(pairs, ids[left], ids[after[left]])
            if rank != _NO_RANK:
                if size == len(heap):
                    larger = np.empty(2 * size, np.uint64)
                    larger[:size] = heap
                    heap = larger
                _push_word(heap, size, (np.uint64(rank) << np.uint64(32)) | np.uint64(left))
                size += 1
    number = 0
    for offset in range(length):
        if ids[offset] >= 0:
            out[start + number] = ids[offset]
            number += 1
    return number


@njit(cache=True, nogil=True)
def encode_segments(
    buffer,
    starts,
    ends,
    specials,
    classes,
    pairs,
    merged,
    byte_ids,
    byte_ranks,
    max_entries,
    table,
    num_entries,
    texts,
    num_texts,
    kept,
    num_kept,
    out,
    segment_ends,
    segment,
    place,
    number,
):
    """Ids of segments, and of the special token after each; until the memory has to grow, or all is done.

    The table remembers pre-tokens: value word 0 of a row holds the first two ids, word 1 their number and the
    third (upper half), or of more than three, above 16 bits, the place of all of them in `kept`.

    No array is replaced here: Numba would count references to it at every step.

    Args:
        specials: id of the special token that follows each segment; -1 for none.
        pairs, byte_ranks: as `pair_table` and `ranks_of_bytes` give them.
        merged: id that each merge makes, by rank.
        max_entries: none is added to the table beyond this.
        out: to be filled; as long as the segments have bytes, and `PADDING`.
        segment_ends: to be filled with the number of ids up to the end of each segment.
        segment, place, number: where to go on, and how many ids there are already.

    Returns:
        segment, place, number: where it stopped; all is done if there is no such segment.
        num_entries, num_texts, num_kept: how much of the memory is used.
    """
    ids, ranks = np.empty(_LONG_PRETOKEN_BYTES, np.uint32), np.empty(_LONG_PRETOKEN_BYTES, np.uint32)
    cuts = np.empty(_SCANNED, np.int64)
    lengths, lows = np.empty(_SCANNED, np.int64), np.empty(_SCANNED, np.uint64)
    highs, hashes = np.empty(_SCANNED, np.uint64), np.empty(_SCANNED, np.uint64)
    while segment < len(starts):
        end = ends[segment]
        while place < end:
            num_cuts = pretoken_ends(buffer, place, end, classes, cuts)
            if num_entries < max_entries and not _has_room(
                table, num_entries, texts, num_texts, kept, num_kept, num_cuts, cuts[num_cuts - 1] - place
            ):
                return segment, place, number, num_entries, num_texts, num_kept
            _short_keys(buffer, place, cuts, num_cuts, table, lengths, lows, highs, hashes)
            found = 0
            while True:
                found, number = _copy_known(table, lows, highs, hashes, found, num_cuts, out, number)
                if found == num_cuts:
                    break
                place = cuts[found - 1] if found else place
                length = lengths[found]
                low, high = lows[found], highs[found]
                row = np.uint64(0)
                if length <= SHORT_BYTES:
                    row = _find_short(table, low, high, hashes[found])
                elif length <= _REMEMBERED_BYTES:
                    low = _hash_of_long(buffer, place, length)
                    row = _find_long(table, texts, buffer, place, length, low)
                found += 1
                if length <= _REMEMBERED_BYTES and table[row, 1] != np.uint64(0):
                    number = _copy_row(table, row, kept, out, number)
                    continue
                if length < _LONG_PRETOKEN_BYTES:
                    count = _merge(buffer, place, length, pairs, merged, byte_ids, byte_ranks, ids, ranks, out, number)
                else:
                    count = _merge_long(buffer, place, length, pairs, merged, byte_ids, out, number)
                if num_entries < max_entries and length <= _REMEMBERED_BYTES:
                    if length <= SHORT_BYTES:
                        table[row, 0], table[row, 1] = low, high
                    else:
                        num_texts = _write_long(table, row, texts, num_texts, buffer, place, length, low)
                    num_entries += 1
                    num_kept = _remember(table, row, kept, num_kept, out, number, count)
                number += count
            place = cuts[num_cuts - 1]
        if specials[segment] >= 0:
            out[number] = specials[segment]
            number += 1
        segment_ends[segment] = number
        segment += 1
        if segment < len(starts):
            place = starts[segment]
    return segment, place, number, num_entries, num_texts, num_kept


@njit(cache=True, nogil=True)
def _has_room(table, num_entries, texts, num_texts, kept, num_kept, num_pretokens, num_bytes):
    """Whether so many more pre-tokens of so many bytes can be remembered."""
    num_bytes = min(num_bytes, _REMEMBERED_BYTES * num_pretokens)
    return (
        2 * (num_entries + num_pretokens) <= len(table)
        and num_texts + num_bytes + 8 * num_pretokens <= len(texts)
        and num_kept + num_bytes <= len(kept)
    )


def grown_memory(
    table: np.ndarray, num_entries: int, texts: np.ndarray, num_texts: int, kept: np.ndarray, num_kept: int
) -> tuple[np.ndarray, int, np.ndarray, int, np.ndarray, int]:
    """A memory with room for at least one more block of `encode_segments`."""
    bound = _REMEMBERED_BYTES * _SCANNED
    if 2 * (num_entries + _SCANNED) > len(table):
        table = _grown(table, 4)  # its entries are limited, and empty rows cost less than moving twice
    if num_texts + bound + 8 * _SCANNED > len(texts):
        texts = np.concatenate([texts, np.empty(len(texts) + bound, np.uint8)])
    if num_kept + bound > len(kept):
        kept = np.concatenate([kept, np.empty(len(kept) + bound, np.uint32)])
    return table, num_entries, texts, num_texts, kept, num_kept


@njit(cache=True, nogil=True)
def _copy_known(table, lows, highs, hashes, found, num_cuts, out, number):
    """Write the ids of the pre-tokens from `found` on, up to one that is long, new, or of more than three ids.

    Places are unsigned, since signed ones are tested for negative values at each use.

    Returns:
        that pre-token, `num_cuts` if there is none, and the number of ids in `out`.
    """
    words, last = table.reshape(-1), np.uint64(len(table) - 1)
    one = np.uint64(1)
    filled, place, stop = np.uint64(number), np.uint64(found), np.uint64(num_cuts)
    while place < stop:
        low, high = lows[place], highs[place]
        row = hashes[place] & last
        while (words[row << np.uint64(2)] ^ low) | (words[(row << np.uint64(2)) + one] ^ high):
            if words[(row << np.uint64(2)) + one] == np.uint64(0):
                return np.int64(place), np.int64(filled)
            row = (row + one) & last
        # All three are written, whatever their number: what is too much will be overwritten.
        value, rest = words[(row << np.uint64(2)) + np.uint64(2)], words[(row << np.uint64(2)) + np.uint64(3)]
        out[filled] = value & np.uint64(0xFFFFFFFF)
        out[filled + one] = value >> np.uint64(32)
        out[filled + np.uint64(2)] = rest >> np.uint64(32)
        if rest & np.uint64(0xFFFF) > np.uint64(3):
            break
        filled += rest & np.uint64(0xFFFF)
        place += one
    return np.int64(place), np.int64(filled)


@njit(cache=True, nogil=True)
def _copy_row(table, row, kept, out, number):
    """Write the ids of a row's pre-token; returns the number of ids in `out`."""
    value, rest = table[row, 2], table[row, 3]
    count = np.int64(rest & np.uint64(0xFFFF))
    out[number] = value & np.uint64(0xFFFFFFFF)
    out[number + 1] = value >> np.uint64(32)
    if count == 3:
        out[number + 2] = rest >> np.uint64(32)
    elif count > 3:
        first = np.int64(rest >> np.uint64(16))
        for offset in range(2, count):
            out[number + offset] = kept[first + offset]
    return number + count


@njit(cache=True, nogil=True)
def _remember(table, row, kept, num_kept, out, start, count):
    """Write the ids of a pre-token into its row; returns how much of `kept` is used."""
    second = np.uint64(out[start + 1]) if count > 1 else np.uint64(0)
    table[row, 2] = np.uint64(out[start]) | (second << np.uint64(32))
    if count <= 3:
        third = np.uint64(out[start + 2]) if count > 2 else np.uint64(0)
        table[row, 3] = np.uint64(count) | (third << np.uint64(32))
        return num_kept
    table[row, 3] = np.uint64(count) | (np.uint64(num_kept) << np.uint64(16))
    for offset in range(count):
        kept[num_kept + offset] = out[start + offset]
    return num_kept + count
