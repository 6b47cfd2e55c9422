"""Graded answers as they are read, and where our decisions differ from the labels."""

import pytest

from benchmarks.grade import mistakes
from benchmarks.graded_answers import SETS, LabelledAnswer, read_set
from cs336.evals.answers.grader import grade
from cs336.files import UserError


def test_mistakes_are_counted_by_kind_and_listed_once():
    answers = [
        LabelledAnswer("1", "2", False),
        LabelledAnswer("1", "2", False),
        LabelledAnswer("3", "4", False),
        LabelledAnswer("5", "5", True),
        LabelledAnswer("6" * 200, "6.0", True),
        LabelledAnswer("7", "8", None),  # nobody has said
    ]
    assert mistakes(answers, [True, True, False, True, False, True]) == {
        "num_accepted": 4,
        "num_labelled": 5,
        "num_false_accepts": 2,
        "num_false_rejects": 1,
        "false_accepts": [["1", "2", 2]],
        "false_rejects": [["6" * 100 + "...", "6.0", 1]],
    }


def test_a_folder_without_the_answers_is_an_error(tmp_path):
    for name in SETS:
        with pytest.raises(UserError, match="set CS336_DATA"):
            read_set(name, tmp_path)


@pytest.mark.parametrize(
    ("name", "num", "num_right", "false_accepts", "false_rejects"),
    [
        ("gsm8k", 5_276, 2_001, [], []),
        ("tora", 2_624, 2_164, [], []),
        # Both are right: the labels are of a grader that cut "4:30 p.m." short, and kept "10{,}000" whole.
        ("math", 800, 728, [[r"4:30 \text{ p.m.}", r"\text{4:30 p.m.}", 8], ["10000", "10{,}000", 1]], []),
        ("math-verify-tests", 185, 163, [["$(+5)(b+2)$", "$(a+5)(b+2)$", 1]], None),  # a letter, eaten as a unit
        ("mario-tests", 34, 29, [], None),
    ],
)
def test_decisions_of_the_fast_path_beside_the_labels(shared_data, name, num, num_right, false_accepts, false_rejects):
    answers = read_set(name, shared_data)
    assert len(answers) == num
    assert sum(bool(each.right) for each in answers) == num_right
    found = mistakes(answers, [grade(each.answer, each.gold) for each in answers])
    assert found["false_accepts"] == false_accepts
    assert false_rejects is None or found["false_rejects"] == false_rejects


def test_right_answers_beside_others_of_their_type(shared_data):
    answers = read_set("another", shared_data)
    assert len(answers) == 4_996
    assert sorted(each.answer for each in answers) == sorted(each.gold for each in answers)
    assert sum(each.answer == each.gold for each in answers) < 100
