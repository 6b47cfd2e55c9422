"""Texts and files as byte buffers, cut at documents' ends and at special tokens: what the compiled kernels read."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cs336.files import UserError

PADDING = 80  # bytes that may be read past the end, at most

# A place where the pattern always starts anew (see `pretokenize`), in bytes: white space after a character that
# is none. The look-behinds are all white space beyond ASCII; the other bytes from 0x80 end a character that is not.
_CUT = re.compile(
    rb"[!-~\x80-\xbf](?<!\xc2[\x85\xa0])(?<!\xe1\x9a\x80)(?<!\xe2\x80[\x80-\x8a\xa8\xa9\xaf])(?<!\xe2\x81\x9f)"
    rb"(?<!\xe3\x80\x80)(?=[ \t\r\n]|\xe3\x80\x80)"
)
_CHARACTER_BYTES = 4  # at most: what a look-behind needs
_CUT_WINDOW_BYTES = 65_536


class Segments(NamedTuple):
    """A buffer and the ranges of it that hold ordinary text.

    Attributes:
        buffer: UTF-8 bytes, `PADDING` zeros behind them.
        starts, ends: of each segment; neither a special token nor a document's end is inside.
        specials: id of the special token after each segment, -1 if none.
        last_of_text: the segment that ends each text.
    """

    buffer: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    specials: np.ndarray
    last_of_text: np.ndarray


def cut_segments(texts: Sequence[str] | bytearray, specials: Mapping[bytes, int]) -> Segments:
    """Cut texts at their special tokens: where several start together the longest counts.

    Args:
        texts: strings; or the bytes of one text, `PADDING` zeros behind them.
        specials: UTF-8 bytes and id of each special token.

    Raises:
        UnicodeEncodeError: a text holds a lone surrogate.
    """
    if isinstance(texts, bytearray):
        data = texts
        text_ends = np.array([len(data) - PADDING])
    else:
        parts = [text.encode() for text in texts]
        text_ends = np.cumsum(np.fromiter(map(len, parts), np.int64, len(parts)))
        data = bytearray().join([*parts, bytes(PADDING)])
    starts_at, ends_at, numbers = _special_tokens(data, specials, text_ends)
    # A segment ends where a special token starts or a text ends, and the next begins behind that.
    is_special = np.concatenate([np.ones(len(starts_at), bool), np.zeros(len(text_ends), bool)])
    ends = np.concatenate([starts_at, text_ends])
    order = np.lexsort([is_special, ends])
    ends = ends[order]
    behind = np.concatenate([ends_at, text_ends])[order]
    ids = np.concatenate([numbers, np.full(len(text_ends), -1)])[order]
    return Segments(
        buffer=np.frombuffer(data, np.uint8),
        starts=np.concatenate([np.zeros(1, np.int64), behind])[: len(ends)],
        ends=ends,
        specials=ids,
        last_of_text=np.flatnonzero(~is_special[order]),
    )


def _special_tokens(
    data: bytearray, specials: Mapping[bytes, int], text_ends: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """starts, ends, ids of the special tokens, left to right; none reaches over the end of a text."""
    from cs336.tokenizer import compiled

    buffer, end = np.frombuffer(data, np.uint8), len(data) - PADDING
    places = [compiled.find_token(buffer, end, np.array(bytearray(token))) for token in specials]
    counts = list(map(len, places))
    starts = np.concatenate([np.empty(0, np.int64), *places])
    ends = starts + np.repeat(np.fromiter(map(len, specials), np.int64, len(counts)), counts)
    ids = np.repeat(np.fromiter(specials.values(), np.int64, len(counts)), counts)
    if len(starts) == 0:
        return starts, ends, ids
    text = np.searchsorted(text_ends, starts, side="right")  # empty texts hold none
    order = np.lexsort([-ends, starts])  # the longest first where several start together
    order = order[(ends <= text_ends[text])[order]]
    starts, ends, ids = starts[order], ends[order], ids[order]
    if (starts[1:] < ends[:-1]).any():
        chosen: list[int] = []
        for number, start in enumerate(starts.tolist()):
            if not chosen or start >= ends[chosen[-1]]:
                chosen.append(number)
        starts, ends, ids = starts[chosen], ends[chosen], ids[chosen]
    return starts, ends, ids


def file_ranges(path: Path, specials: Sequence[bytes], range_bytes: int) -> Iterator[tuple[int, int]]:
    """A file in ranges of about `range_bytes`, cut where no pre-token and no special token is torn."""
    size = path.stat().st_size
    start = 0
    with open(path, "rb") as file:
        while start < size:
            end = _safe_cut(file, min(start + range_bytes, size), size, specials)
            yield start, end
            start = end


def _safe_cut(file: Any, place: int, size: int, specials: Sequence[bytes]) -> int:
    """The first safe place from `place` on; `size` if there is none."""
    around = max(_CHARACTER_BYTES, 2 * max(map(len, specials), default=0))  # what a decision looks at
    while place < size:
        before = min(place, around)
        file.seek(place - before)
        window = file.read(before + _CUT_WINDOW_BYTES + around)
        cut = _first_cut(window, before, len(window) - around, specials)
        if cut is not None:
            return place - before + cut
        place += _CUT_WINDOW_BYTES
    return size


def _first_cut(window: bytes, first: int, last: int, specials: Sequence[bytes]) -> int | None:
    """The first place from `first` to `last` where white space begins or a special token has ended, if any."""
    for match in _CUT.finditer(window, first, last):
        if not _overlapping(window, match.end(), match.end(), specials):
            last = match.end()
            break
    else:
        match = None
    cut = match and match.end()
    for special in specials:
        start = window.find(special, max(0, first - len(special)), last)
        while start >= 0:
            end = start + len(special)
            # Where others overlap it, it may be one of them that counts.
            if _overlapping(window, start, end, specials) == [(start, end)]:
                cut = last = end
                break
            start = window.find(special, start + 1, last)
    return cut


def _overlapping(window: bytes, start: int, end: int, specials: Sequence[bytes]) -> list[tuple[int, int]]:
    """Places of special tokens that share a byte with a range, or go across an empty one."""
    found = []
    for special in specials:
        place = window.find(special, max(0, start - len(special) + 1), end + len(special) - 1)
        while place >= 0:
            found.append((place, place + len(special)))
            place = window.find(special, place + 1, end + len(special) - 1)
    return found


def read_segments(path: Path, start: int, end: int, specials: Mapping[bytes, int]) -> Segments:
    """One range of a file, cut at its special tokens.

    Raises:
        UserError: the range is not UTF-8.
    """
    from cs336.tokenizer import compiled

    data = bytearray(end - start + PADDING)
    with open(path, "rb") as file:
        file.seek(start)
        file.readinto(memoryview(data)[: end - start])
    segments = cut_segments(data, specials)
    bad = compiled.first_invalid_byte(segments.buffer, end - start)
    if bad >= 0:
        raise UserError(f"{path}: not UTF-8 at byte {start + bad:,}; convert the file to UTF-8 first")
    return segments
