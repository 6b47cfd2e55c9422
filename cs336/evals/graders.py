"""Answers to scores: what counts as the same number."""

from __future__ import annotations

import re
from decimal import Decimal

# ASCII digits with an optional sign, thousands commas, decimals. Commas count only where they cut
# groups of three, so "1,234" is one number and "3,4" is two. A "-" right after a digit is a minus
# or a dash between two numbers ("16-3"), not a sign.
# A point in front makes a fraction only where no word or number ends at it: ".5", but "it is so.5 of".
NUMBER = re.compile(
    r"(?:(?<![0-9])-)?"
    r"(?:(?:(?<![0-9])[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|(?<![\w.])\.[0-9]+)"
)


def last_number(text: str) -> str | None:
    """The last number written in digits, without commas; None when there is none.

    Decimals and sign are kept as written ("-1,250.50" gives "-1250.50"); a full stop that ends the
    sentence is not part of the number; numbers spelled out in words do not count.
    """
    numbers = NUMBER.findall(text)
    return numbers[-1].replace(",", "") if numbers else None


def normalize_number(text: str) -> Decimal | None:
    """The value of a text that is one number and nothing else, exactly; None otherwise.

    Thousands commas, a leading "$" and surrounding blanks are ignored, as the gold answers of
    GSM8K have them now and then.
    """
    bare = text.strip().removeprefix("$").replace(",", "")
    if not re.fullmatch(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)", bare):
        return None
    return Decimal(bare)


def numbers_equal(first: str, second: str) -> bool:
    """Whether both texts are numbers of the same value: "18.00" equals "18", "1,000" equals "1000".

    Decimal arithmetic: no rounding, so 0.1 + 0.2 traps do not arise. A text that is no number
    equals nothing.
    """
    a, b = normalize_number(first), normalize_number(second)
    return a is not None and a == b
