"""Kinds of failure, each by an output that is of that kind and of no earlier one."""

import pytest

from cs336.evals.failures import count_kinds, failure_kind, repeats_itself


def _graded(output, *, prediction=None, finish="end"):
    example = {"question": "How many apples?", "answer": "#### 3"}
    return {"example": example, "output": output, "prediction": prediction, "finish": finish, "correct": False}


def _judged(output):
    return {"instruction": "Name three large rivers of Asia.", "output_2": output, "preference": 1.0}


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        (_graded(" \n"), "nothing written"),
        (_graded("####", finish="length"), "signs alone, no words"),
        (_graded("so it is the sum " * 3 + "4", prediction="4"), "repeats itself"),
        (_graded("It is four.", finish="length"), "cut off before an answer"),
        (_graded("It is four."), "no answer in the form asked for"),
        (_graded("It is 4.", prediction="4", finish="length"), "wrong answer"),
        (_judged("three large rivers of asia"), "repeats what was asked"),
        (_judged("The Nile."), "fewer than ten words"),
        (_judged("The Nile, the Amazon and the Mississippi are long, but none of them flows there."), "other text"),
        ({"prompts_final": "x", "output": "", "metrics": {"safe": 0.0}}, "nothing written"),
    ],
)
def test_each_kind_by_an_output(row, kind):
    assert failure_kind(row) == kind


def test_kinds_are_counted_in_their_order():
    rows = [_judged("The Nile."), _graded(""), _judged("Rhine."), _graded("4", prediction="4")]
    assert list(count_kinds(rows).items()) == [("nothing written", 1), ("wrong answer", 1), ("fewer than ten words", 2)]


def test_four_words_three_times_are_a_repetition():
    assert repeats_itself(["a", "b", "c", "d", "a", "b", "c", "d", "a", "b", "c", "d"])
    assert not repeats_itself(["a", "b", "c", "d", "a", "b", "c", "d", "e", "f", "g"])
    assert not repeats_itself([])
