"""Texts as one byte buffer, cut at documents' ends and at special tokens: what the compiled kernels read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
        starts=np.concatenate([np.zeros(1, np.int64), behind[:-1]]),
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
