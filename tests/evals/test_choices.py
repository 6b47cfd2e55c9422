"""Multiple choice by log-likelihood, with and without worked questions."""

from __future__ import annotations

import gzip
import json

import pytest

from cs336.evals.choices import ChoiceItem, evaluate_choices, likeliest, read_choice_items
from cs336.evals.report import wilson_interval
from cs336.files import UserError, write_jsonl

ITEMS = [
    ChoiceItem((("The sky is", " blue"), ("The sky is", " a big green cheese")), 0),
    ChoiceItem((("He fell because he", " slipped"), ("He fell because she", " slipped")), 1),
    ChoiceItem((("2+2=", " 5"), ("2+2=", " 4"), ("2+2=", " 22")), 1),
]
# Nats that a model with opinions of its own gives, by the end of prompt and continuation.
NATS = {
    "The sky is blue": -6.0, "The sky is a big green cheese": -9.0,
    "He fell because he slipped": -3.0, "He fell because she slipped": -2.5,
    "2+2= 5": -1.0, "2+2= 4": -2.0, "2+2= 22": -7.0,
}  # fmt: skip


def choose(pairs):
    return [NATS[prompt.rpartition("\n\n")[2] + continuation] for prompt, continuation in pairs]


def test_both_accuracies_by_hand():
    result = evaluate_choices(ITEMS, choose=choose, name="three")
    assert [row["choice"] for row in result.rows] == [0, 1, 0]
    # -6 nats over 5 bytes is less likely a byte than -9 over 19.
    assert [row["choice_per_byte"] for row in result.rows] == [1, 1, 0]
    assert result.rows[2]["choice_logprobs"] == [-1.0, -2.0, -7.0]
    assert result.metrics["choice_accuracy"] == 2 / 3
    assert (result.metrics["choice_accuracy_low"], result.metrics["choice_accuracy_high"]) == wilson_interval(2, 3)
    assert result.metrics["choice_per_byte_accuracy"] == 1 / 3
    assert result.metrics["chance"] == pytest.approx((1 / 2 + 1 / 2 + 1 / 3) / 3)


def test_worked_questions_are_others_with_their_right_options():
    seen = []

    def watch(pairs):
        seen.extend(pairs)
        return choose(pairs)

    result = evaluate_choices(ITEMS, choose=watch, name="three", num_shots=2)
    assert [row["choice"] for row in result.rows] == [0, 1, 0]
    assert {seen[0][0], seen[1][0]} <= {
        "He fell because she slipped\n\n2+2= 4\n\nThe sky is", "2+2= 4\n\nHe fell because she slipped\n\nThe sky is",
    }  # fmt: skip
    assert seen[0][0] == seen[1][0]
    first = [prompt for prompt, _ in seen]
    seen.clear()
    evaluate_choices(ITEMS, choose=watch, name="three", num_shots=2)
    assert first == [prompt for prompt, _ in seen]
    with pytest.raises(ValueError, match="3 worked questions of 3"):
        evaluate_choices(ITEMS, choose=choose, name="three", num_shots=3)


def test_nan_and_nothing_are_errors_and_a_tie_goes_to_the_first():
    with pytest.raises(ValueError, match="three: the model gives log-probabilities that are NaN"):
        evaluate_choices(ITEMS, choose=lambda pairs: [float("nan")] * len(pairs), name="three")
    with pytest.raises(ValueError, match="three: 1 log-probabilities for 7 options"):
        evaluate_choices(ITEMS, choose=lambda pairs: [-1.0], name="three")
    with pytest.raises(ValueError, match="no questions"):
        evaluate_choices([], choose=choose, name="three")
    assert likeliest([-2.0, -1.0, -1.0]) == 1


def test_files_of_both_forms_are_read(tmp_path):
    write_jsonl(
        tmp_path / "a.jsonl",
        [
            {"query": "Question: Why?", "choices": ["x", "y"], "gold": 1},
            {"query": "Question: Which?\nAnswer:", "choices": ["A", "B"], "gold": 0},
            {"query": "He ran, therefore", "choices": ["x", "y"], "gold": 0},
            {"context_options": ["As he", "As she"], "continuation": "ran.", "gold": 1},
        ],
    )
    assert [item.options for item in read_choice_items(tmp_path / "a.jsonl")] == [
        (("Question: Why?\nAnswer:", " x"), ("Question: Why?\nAnswer:", " y")),
        (("Question: Which?\nAnswer:", " A"), ("Question: Which?\nAnswer:", " B")),
        (("He ran, therefore", " x"), ("He ran, therefore", " y")),
        (("As he", " ran."), ("As she", " ran.")),
    ]
    for bad in ({"query": "x", "choices": ["a"], "gold": 1}, {"context": "x", "continuation": "y"}, ["x"]):
        write_jsonl(tmp_path / "b.jsonl", [bad])
        with pytest.raises(UserError, match="record 1 is no multiple-choice question"):
            read_choice_items(tmp_path / "b.jsonl")


def test_every_real_multiple_choice_file_is_read(shared_data):
    counts = {}
    for path in sorted((shared_data / "eval/icl_tasks").glob("*.gz")):
        with gzip.open(path, "rt") as lines:
            if "gold" not in json.loads(lines.readline()):
                continue
        items = read_choice_items(path)
        counts[path.name.partition(".")[0]] = len(items)
        assert all(0 <= item.gold < len(item.options) >= 2 for item in items)
    assert counts == {
        "arc_challenge": 1172, "arc_easy": 2376, "commonsense_qa": 1221, "copa": 100, "openbook_qa": 500,
        "piqa": 1838, "winograd_wsc": 273, "winogrande": 1267,
    }  # fmt: skip
