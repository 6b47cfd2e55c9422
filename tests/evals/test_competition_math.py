"""MATH: reading problems and traces, and joining them."""

from __future__ import annotations

import json

import pytest

from cs336.evals.competition_math import MathFields, correct_traces, question_of, read_math, read_traces
from cs336.evals.reasoning import reasoning_fault
from cs336.evals.rewards import reward_each
from cs336.files import UserError
from cs336.tokens.chat import fill_template, r1_zero_prompt


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_fields_are_named_by_the_caller(tmp_path):
    default = write(
        tmp_path / "a.jsonl", [{"problem": "1+1?", "answer": "2", "level": "Level 1", "subject": "Algebra"}]
    )
    assert read_math(default) == [{"question": "1+1?", "answer": "2", "level": "Level 1", "subject": "Algebra"}]
    own = write(tmp_path / "b.jsonl", [{"q": "1+1?", "gold": 2, "type": "Algebra"}])
    fields = MathFields(question="q", answer="gold", subject="type")
    assert read_math(own, fields) == [{"question": "1+1?", "answer": 2, "subject": "Algebra"}]
    with pytest.raises(UserError, match=r"b.jsonl: record 1 has no 'problem'; name the fields"):
        read_math(own)


def test_real_problems_are_all_read(shared_data):
    train = read_math(shared_data / "eval/math/train_answers.jsonl.gz")
    test = read_math(shared_data / "eval/math/test_answers.jsonl.gz")
    assert (len(train), len(test)) == (7_500, 5_000)
    assert sum(reasoning_fault(problem) is not None for problem in train) == 2  # without an answer
    assert not any(reasoning_fault(problem) for problem in test)
    assert test[0]["subject"] == "Prealgebra"


@pytest.mark.parametrize("name", ["a", "b", "c"])
def test_every_real_trace_finds_its_problem(shared_data, name):
    problems = read_math(shared_data / "eval/math/train_answers.jsonl.gz")
    traces = read_traces(shared_data / f"sft/math_think_traces_{name}.jsonl.gz")
    everything = reward_each(lambda response, truth: {"reward": 1.0, "format_reward": 1.0})
    kept, counts = correct_traces(traces, problems, reward=everything)
    assert counts == {"kept": len(traces), "wrong": 0, "not in form": 0, "no problem": 0}
    # Two of the files state the right answer themselves, written as in the problems but for a few.
    stated = [row for row in zip(kept, traces, strict=True) if "ground_truth" in row[1]]
    assert len(stated) == (0 if name == "c" else len(traces))
    assert sum(joined["ground_truth"] == trace["ground_truth"] for joined, trace in stated) >= 0.99 * len(stated)


def test_wrong_and_unknown_traces_are_left_out_and_counted():
    problems = [{"question": "1+1?", "answer": "2"}, {"question": "Two\n lines?", "answer": "3"}]
    traces = [
        {"prompt": r1_zero_prompt("1+1?"), "response": "2"},
        {"prompt": r1_zero_prompt("1+1?"), "response": "5"},
        {"prompt": r1_zero_prompt("1+1?"), "response": "two"},
        {"prompt": r1_zero_prompt("9+9?"), "response": "18"},
        {"prompt": "Two lines?", "response": "3", "note": "x"},
    ]

    def said(response, truth):
        return {"reward": float(response == truth), "format_reward": float(response.isdigit())}

    reward = reward_each(said)
    kept, counts = correct_traces(traces, problems, reward=reward)
    assert counts == {"kept": 2, "wrong": 1, "not in form": 1, "no problem": 1}
    assert kept == [traces[0] | {"ground_truth": "2"}, traces[4] | {"ground_truth": "3"}]


def test_a_prompt_gives_its_question_back():
    question = "What is {x}?\nUser: I\nAssistant: <think>"
    assert question_of(r1_zero_prompt(question)) == question
    assert question_of(fill_template("r1_zero_short", question=question), template="r1_zero_short") == question
    assert question_of("plain") == "plain"


def test_a_file_without_traces_is_an_error(tmp_path):
    path = write(tmp_path / "t.jsonl", [{"prompt": "x", "response": "y"}, {"prompt": "x"}])
    with pytest.raises(UserError, match="record 2 has no prompt and response"):
        read_traces(path)
