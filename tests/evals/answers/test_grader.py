"""The decisions that the course's grader was observed to make."""

import pytest

from cs336.evals.answers import grader
from cs336.evals.answers.grader import grade

OBSERVED = [  # answer, gold, fast, slow
    ("0.25", r"\frac14", True, True),
    ("50%", "50", True, True),
    ("1,234", "1234", True, True),
    ("3 1/2", "7/2", True, True),
    ("10 cm", "10", True, True),
    ("2x+1", "1+2x", True, True),
    ("x=5", "5", True, True),
    ("(A)", "A", True, True),
    ("2/4", "1/2", False, True),
    ("2^{10}", "1024", False, True),
    ("The answer is 42.", "42", False, True),
    ("x+y+z", "z+y+x", False, True),
    ("1/(x+1)", r"\frac{1}{x+1}", False, True),
    (r"\{1,2\}", r"\{2,1\}", False, True),
    (r"50\%", "0.5", False, True),
    ("[1,2]", "(1,2)", False, False),
    ("(2,1)", "(1,2)", False, False),
    ("1/3", "0.3333", False, False),
    ("3 million", "3000000", False, False),
    ("(a)", "(c)", True, True),  # letters eaten as units: a known false accept
]


@pytest.mark.parametrize(("answer", "gold", "fast", "slow"), OBSERVED)
def test_an_observed_decision(answer, gold, fast, slow):
    assert grade(answer, gold) is fast
    assert grade(answer, gold, fast=True) is fast
    assert grade(answer, gold, fast=False) is slow


def test_a_boxed_gold_is_unwrapped_and_a_broken_box_matches_nothing():
    assert grade("5", r"so \boxed{5}")
    assert not grade("5", r"\boxed{5")
    assert not grade(r"\boxed{5", r"\boxed{5", fast=False)


@pytest.mark.parametrize("error", [ValueError, RecursionError, MemoryError])
@pytest.mark.parametrize("stage", ["mathd_equal", "sympy_equal"])
def test_a_stage_that_fails_says_no_and_leaves_the_others_their_say(stage, error, monkeypatch):
    def fail(answer, gold):
        raise error

    monkeypatch.setattr(grader, stage, fail)
    assert grade("5", "5")
    assert not grade("5", "6")


@pytest.mark.parametrize(
    "text", ["x+", "((", "\\frac{", "$", "{", "", "\x00", "a" * 5_000, "1" * 5_000, "∑∫", "-" * 9_999 + "x"]
)
def test_no_text_is_an_error(text):
    assert not grade(text, "5")
    assert not grade("5", text)
    assert not grade(text, "5", fast=False)
