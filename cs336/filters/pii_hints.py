# mypy: disable-error-code="assignment"
"""Does a text hold digits in the shape of an IP address or a phone number at all? Most hold neither.

One compiled pass over the bytes, some ten times as fast as searching with the patterns; `IP_SHAPE` and `PHONE_SHAPE`
are what it looks for, and the tests hold it to them.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
from numba import njit

from cs336.compilation import announced

SEPARATOR = "[-. \u00a0\u2010\u2011\u2013]"  # between the groups of a phone number
IP_SHAPE = r"[0-9]\.[0-9]+\.[0-9]+\.[0-9]"
PHONE_SHAPE = f"[0-9]{{3}}{SEPARATOR}?[0-9]{{4}}"
_ZERO, _NINE, _DOT, _HYPHEN, _SPACE = ord("0"), ord("9"), ord("."), ord("-"), ord(" ")


class Hints(NamedTuple):
    """Which shapes a text holds."""

    ip: bool
    phone: bool


def number_hints(text: str) -> Hints:
    """Whether IP_SHAPE and PHONE_SHAPE are found in a text."""
    warm_up()
    return Hints(*_scan(np.frombuffer(bytearray(text.encode("utf-8", "surrogatepass")), np.uint8)))


@functools.cache
def warm_up() -> None:
    """Compile the scanner, or load it from Numba's cache; says so if that takes a while."""
    with announced("the filters' inner loops"):
        _scan(np.frombuffer(bytearray(b"a"), np.uint8))


@njit(cache=True, nogil=True)
def _scan(buffer):
    digits = 0  # that end here
    before = 0  # digits that end at the one separator before those
    dots = 0  # before those, each after a digit, with nothing but digits between them
    ip = phone = False
    place = 0
    while place < len(buffer):
        byte = buffer[place]
        place += 1
        if byte > _NINE and byte < 0x80:  # most are letters
            digits = before = dots = 0
        elif byte >= _ZERO and byte <= _NINE:
            digits += 1
            ip = ip or dots >= 3
            phone = phone or digits >= 7 or (digits >= 4 and before >= 3)
        elif byte == _DOT:
            dots = dots + 1 if digits else 0
            before, digits = digits, 0
        else:
            dots = 0
            if byte == 0xC2 and buffer[place] == 0xA0:
                place += 1
            elif byte == 0xE2 and buffer[place] == 0x80 and buffer[place + 1] in (0x90, 0x91, 0x93):
                place += 2
            elif byte != _HYPHEN and byte != _SPACE:
                digits = 0
            before, digits = digits, 0
    return ip, phone
