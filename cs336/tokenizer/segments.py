"""Texts as one byte buffer, cut at documents' ends and at special tokens: what the compiled kernels read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

PADDING = 80  # bytes that may be read past the end, at most


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
        data = bytearray(b"".join(parts))
        data.extend(bytes(PADDING))
    found = list(_special_tokens(data, specials, text_ends))
    starts_at = np.array([start for start, _, _ in found], np.int64)
    ends_at = np.array([end for _, end, _ in found], np.int64)
    # A segment ends where a special token starts or a text ends, and the next begins behind that.
    is_special = np.concatenate([np.ones(len(found), bool), np.zeros(len(text_ends), bool)])
    ends = np.concatenate([starts_at, text_ends])
    order = np.lexsort([is_special, ends])
    ends = ends[order]
    behind = np.concatenate([ends_at, text_ends])[order]
    ids = np.concatenate([np.array([number for _, _, number in found], np.int64), np.full(len(text_ends), -1)])[order]
    return Segments(
        buffer=np.frombuffer(data, np.uint8),
        starts=np.concatenate([np.zeros(1, np.int64), behind[:-1]]),
        ends=ends,
        specials=ids,
        last_of_text=np.flatnonzero(~is_special[order]),
    )


def _special_tokens(
    data: bytearray, specials: Mapping[bytes, int], text_ends: np.ndarray
) -> Iterator[tuple[int, int, int]]:
    """(start, end, id) of the special tokens, left to right; none reaches over the end of a text."""
    found: list[tuple[int, int, int]] = []
    for token, number in specials.items():
        place = data.find(token)
        while place >= 0:
            found.append((place, place + len(token), number))
            place = data.find(token, place + 1)
    found.sort(key=lambda each: (each[0], -each[1]))
    last = 0
    for start, end, number in found:
        if start < last:
            continue
        text = np.searchsorted(text_ends, start, side="right")
        if text < len(text_ends) and end <= text_ends[text]:
            yield start, end, number
            last = end
