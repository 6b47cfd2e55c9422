"""Numbers in texts, and when two of them are the same."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cs336.evals.graders import last_number, normalize_number, numbers_equal


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("The answer is 18.", "18"),  # the full stop ends the sentence
        ("She pays 3 and then 4", "4"),
        ("It costs $1,234.50 in all.", "1234.50"),
        ("a total of 1,000,000", "1000000"),
        ("the pair 3,4", "4"),  # a comma that separates
        ("years 1999,2001", "2001"),
        ("12,3456", "3456"),  # no group of three
        ("It fell to -5 degrees", "-5"),
        ("16-3", "3"),  # a minus between two numbers
        ("16 - 3", "3"),
        ("(-7)", "-7"),
        ("--7", "-7"),
        ("0.5 of it", "0.5"),
        ("version 3.", "3"),
        ("half is .5", ".5"),
        ("it fell by -.25.", "-.25"),
        ("That is so.5 of them left.", "5"),
        ("and so on ...5", "5"),
        ("x=42!", "42"),
        ("50%", "50"),
        ("007", "007"),
        ("forty-two", None),
        ("", None),
        ("- , .", None),
        ("٣", None),  # digits of other scripts are not searched for
    ],
)
def test_the_last_number_of_a_text_by_hand(text, number):
    assert last_number(text) == number


@given(
    st.text(alphabet="ab -.,$\n", max_size=20), st.integers(-(10**9), 10**9), st.sampled_from(["", ".", " apples", ")"])
)
def test_a_number_after_any_words_is_found_with_or_without_commas(words, value, tail):
    for written in (str(value), f"{value:,}"):
        assert last_number(f"{words} {written}{tail}") == str(value)


@given(st.text())
def test_what_is_found_in_any_text_is_a_plain_number(text):
    number = last_number(text)
    assert (number is None) == (not any(c in "0123456789" for c in text))
    assert number is None or normalize_number(number) is not None


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (" 1,250 ", Decimal(1250)),
        ("$7", Decimal(7)),
        ("-3.50", Decimal("-3.5")),
        ("+2", Decimal(2)),
        (".5", Decimal("0.5")),
        ("4.", Decimal(4)),
        ("3 apples", None),
        ("", None),
        ("NaN", None),
        ("1e5", None),
    ],
)
def test_the_value_of_a_number_by_hand(text, value):
    assert normalize_number(text) == value


@pytest.mark.parametrize(
    ("first", "second", "equal"),
    [
        ("18", "18.00", True),
        ("1,000", "1000", True),
        ("18", "19", False),
        ("0.1", "0.10000001", False),
        ("x", "x", False),
    ],
)
def test_equality_is_of_values_and_exact(first, second, equal):
    assert numbers_equal(first, second) is equal
    assert numbers_equal(second, first) is equal
