"""What stands for each character in compiled scans of UTF-8: a table from code points to bytes, filled when needed.

A kernel reads ASCII from a small array, and all else from rows by code point. One that meets a code point that has
no row yet stops and says which; `add` makes the rows of its block, and the kernel goes on.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

DROPPED = 0xFF  # in the table of ASCII: nothing stands for this character; no UTF-8 text has this byte
CHARACTER_BYTES = 15  # that stand for one code point, at most: three letters of a Hangul syllable are 9
FINAL_SIGMA = "\u03a3"  # the one letter whose lower case depends on its neighbours
_BLOCK = 256  # code points that enter the table together


class CharacterTable:
    """A normalization that takes each character by itself, as arrays for kernels.

    Attributes:
        ascii: one byte for each of 128 characters, or DROPPED.
        rows: for each code point the bytes that stand for it, and at the end one more than their number (0: no
            row yet). Memory that no block has touched is not there yet.

    Args:
        normalized: what stands for a character, in UTF-8 of at most CHARACTER_BYTES bytes; of ASCII one byte or none.
    """

    def __init__(self, normalized: Callable[[str], bytes]) -> None:
        self._normalized = normalized
        self.ascii = np.empty(128, np.uint8)
        for point in range(128):
            kept = normalized(chr(point))
            self.ascii[point] = kept[0] if kept else DROPPED
        self.rows: NDArray[np.uint8] = np.zeros((0x110000, CHARACTER_BYTES + 1), np.uint8)

    def add(self, point: int) -> None:
        """Make the rows of a code point and its neighbours. Threads that write the same block write the same."""
        first = point - point % _BLOCK
        rows = np.zeros((_BLOCK, CHARACTER_BYTES + 1), np.uint8)
        for offset in range(_BLOCK):
            kept = self._normalized(chr(first + offset))
            rows[offset, : len(kept)] = np.frombuffer(kept, np.uint8)
            rows[offset, CHARACTER_BYTES] = 1 + len(kept)
        self.rows[first : first + _BLOCK, :-1] = rows[:, :-1]
        self.rows[first : first + _BLOCK, -1] = rows[:, -1]  # last: from here on other threads read the row
