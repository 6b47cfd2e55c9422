"""GSM8K: prompt, parser, marking."""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass

import pytest

from cs336.evals.graders import numbers_equal
from cs336.evals.gsm8k import (
    evaluate_gsm8k,
    gold_answer,
    grade_gsm8k,
    gsm8k_fault,
    gsm8k_instruction,
    parse_gsm8k_response,
)
from cs336.evals.task import ALPACA, ZERO_SHOT, EvalConfig, read_sample
from cs336.files import read_jsonl


@dataclass(frozen=True)
class Written:
    text: str
    finish: str = "stop"
    prompt_truncated: bool = False


def test_the_last_number_is_the_prediction_as_a_string():
    assert parse_gsm8k_response(model_output="72 + 5 = 77, so she pays $1,077.") == "1077"
    assert parse_gsm8k_response(model_output="She pays seventy dollars.") is None


def test_the_prompt_is_the_question_and_answer_in_its_frame():
    example = {"question": "How many?", "answer": "#### 1"}
    for frame in (ZERO_SHOT, ALPACA):
        (row,) = evaluate_gsm8k(
            [example], generate=lambda prompts, **_: [Written("1")], config=EvalConfig(), frame=frame
        ).rows
        assert row["prompt"] == frame.wrap("How many?\nAnswer:")


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("steps\n#### 18", "18"),
        ("#### 1,234", "1234"),
        ("#### -5", "-5"),
        ("#### $30", "30"),
        ("18", None),
        ("#### x", None),
    ],
)
def test_gold_stands_after_the_mark_without_commas(answer, gold):
    assert gold_answer(answer) == gold


@pytest.mark.parametrize(
    ("output", "correct"),
    [("It is 14,580.", True), ("14580.00", True), ("14,581", False), ("14,580 in 2 years", False), ("none", False)],
)
def test_marking_compares_values(output, correct):
    assert grade_gsm8k({"question": "?", "answer": "#### 14,580"}, output).correct is correct


def test_records_without_question_or_gold_are_skipped_and_counted():
    examples = [
        {"question": "1 + 1?", "answer": "#### 2"},
        {"question": "1 + 1?", "answer": "2"},
        {"question": "", "answer": "#### 2"},
    ]
    assert [gsm8k_fault(example) for example in examples] == [None, "no number after ####", "no question"]
    result = evaluate_gsm8k(examples, generate=lambda prompts, **_: [Written("2")], config=EvalConfig())
    assert result.metrics["skipped"] == {"no number after ####": 1, "no question": 1}
    assert result.metrics["accuracy"] == 1.0
    with pytest.raises(ValueError, match="####"):
        grade_gsm8k(examples[1], "2")


def test_worked_solutions_of_the_sample_score_full_marks_and_silence_none():
    sample = read_sample("gsm8k")
    solutions = {ZERO_SHOT.wrap(gsm8k_instruction(example)): example["answer"] for example in sample}

    def solve(prompts, *, max_new_tokens, stop):
        return [Written(solutions[prompt] + "\n```") for prompt in prompts]

    full = evaluate_gsm8k(sample, generate=solve, config=EvalConfig(), name="gsm8k sample")
    assert full.metrics["accuracy"] == full.metrics["accuracy_high"] == 1.0
    none = evaluate_gsm8k(
        sample, generate=lambda prompts, **_: [Written("")] * len(prompts), config=EvalConfig(max_gsm8k=7)
    )
    assert (none.metrics["num_examples"], none.metrics["num_unparseable"], none.metrics["num_correct"]) == (7, 7, 0)


def test_every_real_problem_has_a_gold_answer_that_its_own_solution_matches(shared_data):
    num_problems = 0
    for split in ("train", "test"):
        for example in read_jsonl(shared_data / "eval/gsm8k" / f"{split}.jsonl.gz"):
            num_problems += 1
            assert gsm8k_fault(example) is None
            assert grade_gsm8k(example, example["answer"]).correct
    assert num_problems == 8_792


def test_marks_agree_with_the_published_marks_of_real_model_solutions(shared_data):
    num_solutions = 0
    with gzip.open(shared_data / "eval/graded/gsm8k_example_model_solutions.jsonl.gz", "rt") as lines:
        for line in lines:
            row = json.loads(line)
            gold = row["ground_truth"].rpartition("A:")[2].strip().replace(",", "")
            for solution in (value for value in row.values() if isinstance(value, dict)):
                prediction = parse_gsm8k_response(model_output=solution["solution"])
                assert (prediction is not None and numbers_equal(prediction, gold)) == solution["is_correct"]
                num_solutions += 1
    assert num_solutions == 5_276
