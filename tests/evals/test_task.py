"""Running a task: prompts, drawing, marking, counting, saving."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, replace

import pytest

from cs336.evals.task import (
    ALPACA,
    ZERO_SHOT,
    EvalConfig,
    Frame,
    Graded,
    Task,
    each,
    pick_rows,
    read_sample,
    run_task,
    sample_path,
    save_result,
    subsample,
    trim_fence,
)
from cs336.tokens.chat import alpaca_prompt, wrap_instruction


@dataclass(frozen=True)
class Written:
    """A completion as a generator hands it back."""

    text: str
    finish: str = "stop"
    prompt_truncated: bool = False


def doubles(numbers):
    """A small real task: double the number."""

    def grade(example, output):
        prediction = output if output.lstrip("-").isdigit() else None
        return Graded(prediction, correct=prediction == str(2 * example["number"]))

    return Task(
        name="doubles",
        examples=[{"number": number} for number in numbers],
        fault=lambda example: None if isinstance(example["number"], int) else "not a number",
        instruction=lambda example: f"twice {example['number']}",
        grade=each(grade),
        frame=Frame(lambda text: text, ("# Query:",), ZERO_SHOT.read),
    )


def doubling_model(prompts, *, max_new_tokens, stop):
    """Right for even numbers, off by one for 1 and 3, prose and too long for the other odd ones."""
    assert tuple(stop) == ("# Query:",)
    outputs = []
    for prompt in prompts:
        number = int(prompt.split()[1])
        if number % 2 == 0:
            outputs.append(Written(f"{2 * number}\n```\n"))
        elif number < 5:
            outputs.append(Written(str(2 * number + 1), "end", prompt_truncated=True))
        else:
            outputs.append(Written("it is hard to say"[:max_new_tokens], "length"))
    return outputs


def test_counts_and_rows_of_a_small_task_by_hand():
    result = run_task(doubles([0, 1, "two", 3, 4, 5]), generate=doubling_model, max_new_tokens=8)
    assert result.metrics["num_examples"] == 5
    assert result.metrics["num_correct"] == 2
    assert result.metrics["accuracy"] == 0.4
    assert result.metrics["accuracy_low"] == pytest.approx(0.1176, abs=1e-4)  # Wilson, 2 of 5
    assert result.metrics["accuracy_high"] == pytest.approx(0.7693, abs=1e-4)
    assert result.metrics["num_unparseable"] == 1
    assert result.metrics["unparseable_share"] == 0.2
    assert result.metrics["num_prompts_truncated"] == 2
    assert result.metrics["num_outputs_truncated"] == 1
    assert result.metrics["skipped"] == {"not a number": 1}
    assert result.metrics["examples_per_second"] > 0
    assert [row["index"] for row in result.rows] == [0, 1, 3, 4, 5]
    assert result.rows[0] == {
        "index": 0, "example": {"number": 0}, "prompt": "twice 0", "output": "0", "finish": "stop",
        "prompt_truncated": False, "prediction": "0", "correct": True,
    }  # fmt: skip


def test_equal_runs_save_equal_bytes_without_timings(tmp_path):
    for folder in ("first", "second"):
        save_result(tmp_path / folder, run_task(doubles(range(6)), generate=doubling_model, max_new_tokens=8))
    for name in ("rows.jsonl", "metrics.json"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()
    metrics = json.loads((tmp_path / "first" / "metrics.json").read_text())
    assert metrics["accuracy"] == 0.5
    assert not any("second" in name for name in metrics)
    assert len((tmp_path / "first" / "rows.jsonl").read_text().splitlines()) == 6


def test_a_drawn_part_keeps_order_and_depends_on_the_seed_alone():
    items = list(range(100, 200))
    drawn = subsample(items, 10, seed=1)
    assert drawn == sorted(set(drawn)) == subsample(items, 10, seed=1)
    assert set(drawn) <= set(items)
    assert drawn != subsample(items, 10, seed=2)
    assert subsample(items, 0, seed=1) == subsample(items, 1000, seed=1) == items


def test_a_task_without_usable_examples_is_an_error():
    with pytest.raises(ValueError, match=r"none of 1 examples .*not a number"):
        run_task(doubles(["two"]), generate=doubling_model, max_new_tokens=8)


def test_a_generator_that_loses_an_output_is_an_error():
    with pytest.raises(ValueError, match="returned 1 outputs for 2 prompts"):
        run_task(doubles([2, 4]), generate=lambda prompts, **_: [Written("4")], max_new_tokens=8)


def test_failures_are_picked_at_random_but_repeatably():
    rows = run_task(doubles(range(40)), generate=doubling_model, max_new_tokens=8).rows
    wrong = pick_rows(rows, lambda row: not row["correct"], count=5, seed=3)
    assert len(wrong) == 5
    assert not any(row["correct"] for row in wrong)
    assert wrong == pick_rows(rows, lambda row: not row["correct"], count=5, seed=3)


@pytest.mark.parametrize(
    ("output", "trimmed"),
    [
        ("18\n```\n\n", "18"),
        ("18```", "18"),
        (" 18 ", "18"),
        ("```py\n1\n``` and 2", "```py\n1\n``` and 2"),
        ("```", ""),
    ],
)
def test_only_the_trailing_fence_is_trimmed(output, trimmed):
    assert trim_fence(output) == trimmed


def test_frames_of_base_and_tuned_models():
    assert ZERO_SHOT.wrap("Hi.") == wrap_instruction("Hi.")
    assert ZERO_SHOT.stop == ("# Query:",)
    assert ZERO_SHOT.read(Written(" Hello.\n```\n")) == "Hello."
    assert ALPACA.wrap("Hi.") == alpaca_prompt("Hi.")
    assert ALPACA.stop == ()
    assert ALPACA.read(Written(" Hello.\n```\n")) == "Hello.\n```"  # no fence of ours


def test_outputs_that_are_judged_later_have_no_marks():
    result = run_task(replace(doubles([2, 4]), grade=None), generate=doubling_model, max_new_tokens=8)
    assert [row["output"] for row in result.rows] == ["4", "8"]
    assert not {"correct", "prediction"} & set(result.rows[0])
    assert not {"accuracy", "num_unparseable"} & set(result.metrics)
    assert result.metrics["num_examples"] == 2


@pytest.mark.parametrize("fields", [{"max_mmlu": -1}, {"max_gsm8k": -2}, {"mmlu_few_shot": -1}, {"max_new_tokens": 0}])
def test_impossible_settings_are_errors(fields):
    with pytest.raises(ValueError, match=next(iter(fields))):
        EvalConfig(**fields)


def test_samples_are_found_by_name():
    assert len(read_sample("mmlu")) >= 60
    assert sample_path("gsm8k").name == "gsm8k_sample.jsonl"
    with pytest.raises(ValueError, match=r"'math'; there are \['alpaca_eval', 'gsm8k', 'mmlu', 'safety'\]"):
        sample_path("math")


def test_the_tasks_import_without_the_crawls_libraries_and_without_torch():
    code = """
import sys
for name in ("dagster", "polars", "fasttext", "resiliparse", "datasketch", "jaxtyping"):
    sys.modules[name] = None
import cs336.evals.mmlu, cs336.evals.gsm8k, cs336.evals.report
assert "torch" not in sys.modules
import cs336.evals.perplexity
"""
    subprocess.run([sys.executable, "-c", code], check=True)
