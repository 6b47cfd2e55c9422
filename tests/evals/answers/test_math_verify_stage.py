"""math-verify's decisions, and what is kept from it."""

import itertools
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cs336.evals.answers import math_verify_stage
from cs336.evals.answers.math_verify_stage import math_verify_equal, repetition


@pytest.mark.parametrize(
    ("answer", "gold", "equal"),
    [
        ("2/4", "1/2", True),
        ("$2/4$", "1/2", True),
        (r"with $5$ it is \boxed{7}", "7", True),  # a box comes first
        ("it costs 12$", "12", True),  # a plain expression, as no LaTeX is found
        (r"\{3,1\}", r"\{1,3\}", True),
        ("1/3", "0.3333", False),
        ("", "5", False),
        ("Evelyn", "evelyn", True),  # by their normal forms; to math-verify they are products of letters
        (r"so $\frac12$ it is", "0.5", True),  # what has dollar signs gets no others
    ],
)
def test_decisions_by_hand(answer, gold, equal):
    assert math_verify_equal(answer, gold) is equal


def test_long_and_repetitive_texts_are_turned_away():
    short, long = "1+" * 60 + "1", "1+" * 80 + "1"
    assert math_verify_equal(f"0+{short}", short)
    assert not math_verify_equal(long, long)  # though it is the same text
    assert not math_verify_equal("81", long)
    assert not math_verify_equal(long, "81")
    varied = "+".join(str(number**3) for number in range(1, 40))
    assert len(varied) > 128
    assert math_verify_equal(f"0+{varied}", varied)


@given(st.text(alphabet="ab", max_size=40) | st.text(alphabet="abcdef", max_size=60))
def test_repetition_is_the_sum_of_common_prefixes_of_sorted_suffixes(text):
    suffixes = sorted(text[start:] for start in range(len(text)))
    common = 0
    for one, other in itertools.pairwise(suffixes):
        length = 0
        while length < len(one) and length < len(other) and one[length] == other[length]:
            length += 1
        common += length
    n = len(text)
    assert repetition(text) == pytest.approx(2 * common / (n * (n + 1)) if n > 1 else 0.0)


def test_repetition_of_a_long_text_is_found_at_once():
    start = time.monotonic()
    assert repetition("ab" * 20_000) > 0.9
    assert time.monotonic() - start < 5


def test_reading_that_takes_too_long_is_ended(monkeypatch):
    def hang(*args, **kwargs):
        while True:
            pass

    monkeypatch.setattr("math_verify.parser.extract_target_from_pred", hang)
    start = time.monotonic()
    assert not math_verify_equal("1/2", "2/4")
    assert time.monotonic() - start < 10


def test_other_threads_are_served_without_a_limit(monkeypatch):
    limits, found = [], []
    verify = math_verify_stage.verify
    monkeypatch.setattr(
        math_verify_stage,
        "verify",
        lambda *args, timeout_seconds: limits.append(timeout_seconds) or verify(*args, timeout_seconds=timeout_seconds),
    )
    thread = threading.Thread(target=lambda: found.append(math_verify_equal("2/4", "1/2")))
    thread.start()
    thread.join()
    found.append(math_verify_equal("2/4", "1/2"))
    assert found == [True, True]
    assert limits == [0, 1]
