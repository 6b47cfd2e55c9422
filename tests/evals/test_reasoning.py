"""Reasoning evaluations: rewards, categories, levels, seeds, written generations."""

from __future__ import annotations

import json
from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from cs336.evals.generated_tasks import GeneratedConfig, TraceConfig, generate_problems, to_question, to_trace
from cs336.evals.gsm8k import gsm8k_questions
from cs336.evals.reasoning import (
    category_metrics,
    draw_of_category,
    evaluate_reasoning,
    evaluate_vllm,
    pool_seeds,
)
from cs336.evals.report import wilson_interval
from cs336.evals.rewards import reward_each
from cs336.evals.task import EvalResult
from cs336.tokens.chat import fill_template, r1_zero_prompt


@dataclass(frozen=True)
class Written:
    text: str
    finish: str = "stop"
    prompt_truncated: bool = False


def tag_reward(response, ground_truth):
    """The handout's format, and equality of strings."""
    formatted = "</think> <answer>" in response and "</answer>" in response
    answer = response.rpartition("<answer>")[2].replace("</answer>", "").strip()
    right = formatted and answer == str(ground_truth)
    return {"format_reward": float(formatted), "answer_reward": float(right), "reward": float(right)}


EXAMPLES = [
    {"question": "1+1?", "answer": "2", "level": 1},
    {"question": "2+2?", "answer": 4, "level": 1},
    {"question": "3+3?", "answer": "6", "level": 2},
    {"question": "4+4?", "answer": "8", "level": 2},
    {"question": "5+5?", "answer": ""},
]
OUTPUTS = {
    "1+1?": Written(" one more </think> <answer> 2 "),  # the stop string was cut off
    "2+2?": Written(" </think> <answer>5</answer>"),  # and here left on
    "3+3?": Written(" </think>\n<answer>6"),
    "4+4?": Written(" </think> <answer>8", "length"),
}


def answerer(template="r1_zero", seen=None):
    def generate(prompts, *, max_new_tokens, stop):
        if seen is not None:
            seen.append((list(prompts), max_new_tokens, tuple(stop)))
        by_prompt = {fill_template(template, question=question): output for question, output in OUTPUTS.items()}
        return [by_prompt[prompt] for prompt in prompts]

    return generate


def test_rewards_categories_and_levels_by_hand():
    seen = []
    result = evaluate_reasoning(EXAMPLES, reward=reward_each(tag_reward), generate=answerer(seen=seen), name="sums")
    assert seen == [([r1_zero_prompt(f"{i}+{i}?") for i in (1, 2, 3, 4)], 1_024, ("</answer>",))]
    assert [(row["format_reward"], row["answer_reward"], row["reward"]) for row in result.rows] == [
        (1.0, 1.0, 1.0), (1.0, 0.0, 0.0), (0.0, 0.0, 0.0), (0.0, 0.0, 0.0),
    ]  # fmt: skip
    assert [row["prediction"] for row in result.rows] == ["2", "5", None, None]
    assert result.rows[0]["output"] == " one more </think> <answer> 2 </answer>"
    assert result.rows[1]["output"] == " </think> <answer>5</answer>"
    assert result.rows[3]["output"] == " </think> <answer>8"  # cut off by its length: no tag is added
    assert result.metrics["accuracy"] == 0.25
    assert result.metrics["num_outputs_truncated"] == 1
    assert result.metrics["skipped"] == {"no answer": 1}
    low, high = wilson_interval(2, 4)
    assert result.metrics["categories"] == {
        "(1,1)": {"count": 1, "share": 0.25, "low": wilson_interval(1, 4)[0], "high": wilson_interval(1, 4)[1]},
        "(1,0)": {"count": 1, "share": 0.25, "low": wilson_interval(1, 4)[0], "high": wilson_interval(1, 4)[1]},
        "(0,0)": {"count": 2, "share": 0.5, "low": low, "high": high},
    }
    assert {level: each["accuracy"] for level, each in result.metrics["by_level"].items()} == {"1": 0.5, "2": 0.0}
    assert [row["index"] for row in draw_of_category(result.rows, 1, 0)] == [1]


def test_ten_of_a_category_are_drawn_at_random_and_the_same_each_time():
    rows = [{"index": place, "format_reward": float(place % 2), "answer_reward": 0.0} for place in range(200)]
    drawn = [row["index"] for row in draw_of_category(rows, 1, 0)]
    assert len(drawn) == 10 and all(place % 2 for place in drawn) and drawn == sorted(set(drawn))
    assert drawn[-1] > 50, "not the first ones"
    assert drawn == [row["index"] for row in draw_of_category(rows, 1, 0)]
    assert drawn != [row["index"] for row in draw_of_category(rows, 1, 0, seed=1)]


def test_problems_of_gsm8k_and_generated_ones_are_asked_for_their_numbers():
    problems = generate_problems(GeneratedConfig(levels=(1, 2)), "test", 12)
    traces = {trace["prompt"]: trace for trace in (to_trace(problem, TraceConfig()) for problem in problems)}

    def solve(prompts, *, max_new_tokens, stop):
        return [Written(traces[prompt]["response"].removesuffix("</answer>")) for prompt in prompts]

    result = evaluate_reasoning(
        [to_question(problem) for problem in problems],
        reward=reward_each(tag_reward),
        generate=solve,
        name="generated",
        template="r1_zero_short",
    )
    assert result.metrics["accuracy"] == 1.0
    assert sum(level["num_examples"] for level in result.metrics["by_level"].values()) == 12
    records = [{"question": "How many?", "answer": "1+1 = 2\n#### 1,002"}, {"question": "Why?", "answer": "2"}]
    assert gsm8k_questions(records) == [
        {"question": "How many?", "answer": "1002"}, {"question": "Why?", "answer": ""}
    ]  # fmt: skip


def test_prompts_without_thinking_have_no_stop_string_and_keep_their_text():
    seen = []
    result = evaluate_reasoning(
        EXAMPLES[:2],
        reward=reward_each(tag_reward),
        generate=answerer("question_only", seen),
        name="sums",
        template="question_only",
        max_new_tokens=9,
    )
    assert seen == [(["1+1?", "2+2?"], 9, ())]
    assert result.rows[0]["output"] == " one more </think> <answer> 2 "


def test_an_answer_without_its_format_is_counted_on_its_own():
    rows = [{"format_reward": 0.0, "answer_reward": 1.0}, {"format_reward": 1.0, "answer_reward": 1.0}]
    categories = category_metrics(rows)["categories"]
    assert {name: each["count"] for name, each in categories.items()} == {
        "(1,1)": 1, "(1,0)": 0, "(0,0)": 0, "(0,1)": 1,
    }  # fmt: skip


def test_responses_whose_grading_was_given_up_say_why_and_are_counted():
    def reward(responses, truths):
        zeros = {"format_reward": 0.0, "answer_reward": 0.0, "reward": 0.0}
        return [zeros | {"lost": "over 5 s" if number == 1 else None} for number, _ in enumerate(responses)]

    result = evaluate_reasoning(EXAMPLES, reward=reward, generate=answerer(), name="sums")
    assert [row.get("lost") for row in result.rows] == [None, "over 5 s", None, None]
    assert result.metrics["num_lost"] == 1


def test_rewards_that_cannot_be_counted_are_errors():
    half = {"format_reward": 1.0, "answer_reward": 0.5, "reward": 0.5}
    with pytest.raises(ValueError, match="each must be 0 or 1"):
        evaluate_reasoning(EXAMPLES, reward=lambda r, t: [half] * len(r), generate=answerer(), name="sums")
    with pytest.raises(ValueError, match="1 rewards for 4 responses"):
        evaluate_reasoning(EXAMPLES, reward=lambda r, t: [half], generate=answerer(), name="sums")


class FakeLLM:
    """Answers as vLLM does: one request output a prompt."""

    def __init__(self, num_outputs=1):
        self.num_outputs = num_outputs

    def generate(self, prompts, sampling_params):
        assert sampling_params == {"temperature": 1.0}
        only = SimpleNamespace(text=" </think> <answer>4</answer>", finish_reason="stop")
        return [SimpleNamespace(outputs=[only] * self.num_outputs) for _ in prompts]


def test_evaluate_vllm_scores_and_writes_every_generation(tmp_path):
    prompts = [r1_zero_prompt("1+1?"), r1_zero_prompt("2+2?")]
    result = evaluate_vllm(FakeLLM(), tag_reward, prompts, {"temperature": 1.0}, ["2", "4"], folder=tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert rows == result.rows
    assert rows[1] == {
        "index": 1, "prompt": prompts[1], "ground_truth": "4", "output": " </think> <answer>4</answer>",
        "finish": "stop", "prediction": "4", "correct": True,
        "format_reward": 1.0, "answer_reward": 1.0, "reward": 1.0,
    }  # fmt: skip
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["accuracy"] == 0.5
    assert metrics["categories"]["(1,0)"]["count"] == 1


def test_evaluate_vllm_wants_one_output_and_one_truth_a_prompt():
    with pytest.raises(ValueError, match="1 prompts and 2 ground truths"):
        evaluate_vllm(FakeLLM(), tag_reward, ["x"], {"temperature": 1.0}, ["2", "4"])
    with pytest.raises(ValueError, match="n=1"):
        evaluate_vllm(FakeLLM(2), tag_reward, ["x"], {"temperature": 1.0}, ["2"])


def result_of(marks):
    return EvalResult("x", [{"index": i, "correct": mark} for i, mark in enumerate(marks)], {})


def test_seeds_are_pooled_by_question():
    pooled = pool_seeds([result_of([True, True, False, False]), result_of([True, False, False, False])])
    assert pooled["accuracy"] == 0.375
    assert pooled["accuracy_of_runs"] == [0.5, 0.25]
    assert pooled["run_spread"] == pytest.approx(0.125 * 2**0.5)
    # Shares of the questions: 1, 1/2, 0, 0; variance 11/48 with n - 1.
    half = 1.959964 * (11 / 48 / 4) ** 0.5
    assert pooled["accuracy_low"] == 0.0  # 0.375 - 0.469, cut
    assert pooled["accuracy_high"] == pytest.approx(0.375 + half, abs=1e-6)
    assert (pooled["num_examples"], pooled["num_runs"]) == (4, 2)


def test_asking_the_same_again_does_not_narrow_the_interval():
    once = pool_seeds([result_of([True, False] * 20)])
    thrice = pool_seeds([result_of([True, False] * 20)] * 3)
    assert once["accuracy_low"] == thrice["accuracy_low"] > 0
    with pytest.raises(ValueError, match="not on the same questions"):
        pool_seeds([result_of([True]), result_of([True, False])])


def test_where_no_question_was_ever_right_the_interval_is_not_empty():
    pooled = pool_seeds([result_of([False] * 5)] * 2)
    assert (pooled["accuracy_low"], pooled["accuracy_high"]) == wilson_interval(0, 5)
