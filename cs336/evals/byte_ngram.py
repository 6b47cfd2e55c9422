"""The baseline that a small language model must beat: byte n-grams with Witten-Bell interpolation.

A byte b after the history h (the bytes before it, as many as the order allows) has

    P(b | h) = (c(h, b) + T(h) * P(b | h')) / (c(h) + T(h))

where c counts in the training text, T(h) is the number of different bytes seen after h, and h' is h
without its first byte. Below the empty history every byte has 1/256; a history never seen passes its
shorter one's answer on.

Source    Witten and Bell 1991; in this interpolated form Chen and Goodman 1998, section 2.
Documents stand alone: each begins after a boundary, which histories may hold, and which is not predicted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

_BOUNDARY = 256  # a symbol no byte has
_SYMBOL_BITS = 9
_BYTE_BITS = 8
_LARGEST_ORDER = 7  # six symbols of history and a byte fill 62 of 64 bits

# Symbols counted at a time: 8 bytes each and a sorted copy, so about 250 MB.
_CHUNK_SYMBOLS = 1 << 23


@dataclass(frozen=True)
class _Order:
    """Counts for histories of one length; the arrays of a group share their order.

    Attributes:
        pairs, pair_counts: history and next byte packed into one number, ascending; c(h, b).
        histories, totals, num_distinct: histories, ascending; c(h); T(h).
    """

    pairs: np.ndarray
    pair_counts: np.ndarray
    histories: np.ndarray
    totals: np.ndarray
    num_distinct: np.ndarray


class WittenBellByteModel:
    """Interpolated Witten-Bell estimates of the next byte, from up to four bytes before it."""

    def __init__(self, texts: Iterable[str], *, max_order: int = 5) -> None:
        """Count every order up to `max_order` (order n looks at n - 1 bytes of history).

        Raises:
            ValueError: `max_order` is not within 1 and 7, the texts hold no byte, or a text holds a
                lone surrogate.
        """
        if not 1 <= max_order <= _LARGEST_ORDER:
            raise ValueError(f"max_order {max_order} is not supported; choose 1 to {_LARGEST_ORDER}")
        self.max_order = max_order
        pairs: np.ndarray = np.empty(0, np.uint64)
        counts: np.ndarray = np.empty(0, np.int64)
        for symbols in _chunks(texts, max_order):
            new_pairs, new_counts = np.unique(_pack(symbols, max_order), return_counts=True)
            pairs, counts = _add_up(np.concatenate([pairs, new_pairs]), np.concatenate([counts, new_counts]))
        if not len(pairs):
            raise ValueError("the training texts hold no byte; give at least one non-empty text")
        # Shorter histories' counts are sums of longer ones', since every byte has its full history.
        orders = []
        for order in range(max_order, 0, -1):
            orders.append(_count_histories(pairs, counts))
            shorter = np.uint64((1 << (_SYMBOL_BITS * max(order - 2, 0) + _BYTE_BITS)) - 1)
            pairs, counts = _add_up(pairs & shorter, counts)
        self._orders = orders[::-1]

    def probabilities(self, text: str) -> np.ndarray:
        """P of each byte of one document given those before it, float64, in order."""
        return self._probabilities_of_keys(_pack(_symbols(text, self.max_order), self.max_order))

    def next_byte_probabilities(self, history: bytes) -> np.ndarray:
        """P of each of the 256 bytes after `history`, which begins a document."""
        padded = np.concatenate([np.full(self.max_order - 1, _BOUNDARY), np.frombuffer(history, np.uint8)])
        packed = 0
        for symbol in padded[len(padded) - self.max_order + 1 :]:
            packed = packed << _SYMBOL_BITS | int(symbol)
        return self._probabilities_of_keys(np.uint64(packed << _BYTE_BITS) | np.arange(256, dtype=np.uint64))

    def bits_per_byte(self, texts: Iterable[str]) -> float:
        """Mean of -log2 P over all bytes of the documents.

        Raises:
            ValueError: the documents hold no byte.
        """
        bits, num_bytes = 0.0, 0
        for text in texts:
            probabilities = self.probabilities(text)
            bits -= float(np.log2(probabilities).sum())
            num_bytes += len(probabilities)
        if not num_bytes:
            raise ValueError("the documents hold no byte; give at least one non-empty text")
        return bits / num_bytes

    def _probabilities_of_keys(self, keys: np.ndarray) -> np.ndarray:
        """From the shortest history to the longest, each leaning on the one before."""
        result = np.full(len(keys), 1 / 256)
        for order, counts in enumerate(self._orders, 1):
            pairs = keys & np.uint64((1 << (_SYMBOL_BITS * (order - 1) + _BYTE_BITS)) - 1)
            history = pairs >> np.uint64(_BYTE_BITS)
            pair_count = _look_up(counts.pairs, counts.pair_counts, pairs)
            total = _look_up(counts.histories, counts.totals, history)
            distinct = _look_up(counts.histories, counts.num_distinct, history)
            seen = total > 0
            weighted = pair_count[seen] + distinct[seen] * result[seen]
            result[seen] = weighted / (total[seen] + distinct[seen])
        return result


def _symbols(text: str, max_order: int) -> np.ndarray:
    """A document's bytes after as many boundaries as a history is long."""
    encoded = np.frombuffer(text.encode(), np.uint8)
    return np.concatenate([np.full(max_order - 1, _BOUNDARY, np.uint16), encoded], dtype=np.uint16)


def _chunks(texts: Iterable[str], max_order: int) -> Iterator[np.ndarray]:
    parts: list[np.ndarray] = []
    size = 0
    for text in texts:
        parts.append(_symbols(text, max_order))
        size += len(parts[-1])
        if size >= _CHUNK_SYMBOLS:
            yield np.concatenate(parts)
            parts, size = [], 0
    if parts:
        yield np.concatenate(parts)


def _pack(symbols: np.ndarray, max_order: int) -> np.ndarray:
    """For every byte its history and itself in one number, the nearest symbols lowest."""
    is_byte = symbols[max_order - 1 :] != _BOUNDARY
    num = len(symbols) - max_order + 1
    keys: np.ndarray = np.zeros(num, np.uint64)
    for place in range(max_order - 1):
        keys = keys << np.uint64(_SYMBOL_BITS) | symbols[place : place + num]
    keys = keys << np.uint64(_BYTE_BITS) | (symbols[max_order - 1 :] & 0xFF)
    return keys[is_byte]


def _add_up(keys: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Equal keys become one, with the sum of their counts; ascending."""
    order = np.argsort(keys, kind="stable")
    keys, counts = keys[order], counts[order]
    starts = _starts_of_runs(keys)
    return keys[starts], np.add.reduceat(counts, starts) if len(keys) else counts


def _count_histories(pairs: np.ndarray, counts: np.ndarray) -> _Order:
    histories = pairs >> np.uint64(_BYTE_BITS)
    starts = _starts_of_runs(histories)
    return _Order(
        pairs=pairs,
        pair_counts=counts,
        histories=histories[starts],
        totals=np.add.reduceat(counts, starts),
        num_distinct=np.diff(np.append(starts, len(pairs))),
    )


def _starts_of_runs(ascending: np.ndarray) -> np.ndarray:
    return np.flatnonzero(np.append(True, ascending[1:] != ascending[:-1])) if len(ascending) else np.empty(0, np.int64)


def _look_up(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The values of wanted keys; 0 where a key is not there."""
    places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[places] == wanted, values[places], 0)
