"""Questions answered after thinking: outputs scored by a reward function, counted by format and answer.

A reward function takes (response, ground truth) and gives 0.0 or 1.0 as "format_reward",
"answer_reward" and "reward"; see the handout (alignment, sections 3 and 4).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cs336.evals.report import Z_95, wilson_interval
from cs336.evals.rewards import GroundTruth, RewardAll, RewardFn, reward_each
from cs336.evals.task import (
    Completion,
    EvalResult,
    Example,
    Frame,
    Generate,
    GradeAll,
    Graded,
    Task,
    accuracy_metrics,
    pick_rows,
    run_task,
    save_result,
)
from cs336.tokens.chat import fill_template

ANSWER_END = "</answer>"  # kept in the output: without it a response is not well formatted
MAX_NEW_TOKENS = 1_024  # of every MATH evaluation in the handout


def evaluate_reasoning(
    examples: Sequence[Example],
    *,
    reward: RewardAll,
    generate: Generate,
    name: str,
    template: str = "r1_zero",
    max_new_tokens: int = MAX_NEW_TOKENS,
    max_examples: int = 0,
    seed: int = 0,
) -> EvalResult:
    """Ask every question, score the responses.

    Args:
        examples: records with `question` and `answer`, the ground truth; a field `level` is counted by.
        reward: rewards of all responses; `reward_each` makes one of a reward function.
        generate: the stop string may be left on a response or cut off it.
        name: the set's name beside the score.
        template: prompt template with the placeholder `{question}`. Responses end at `</answer>` if it
            opens the thinking, as r1_zero does; else at the end of text or of their length.
        max_examples: draw this many of the questions with `seed`; 0 takes all.

    Returns:
        What `run_task` returns; rows also hold `format_reward`, `answer_reward`, `reward` and, where grading
        was given up, why it was `lost`; metrics also `num_lost`, `categories` (see `category_metrics`) and,
        if the examples have levels, `by_level`.

    Raises:
        ValueError: no usable example, or rewards that are not 0 or 1.
    """
    thinks = "<think>" in fill_template(template, question="")
    task = Task(
        name=name,
        examples=examples,
        fault=reasoning_fault,
        instruction=lambda example: example["question"],
        grade=_grade(reward),
        frame=Frame(
            lambda question: fill_template(template, question=question),
            (ANSWER_END,) if thinks else (),
            _with_stop_string if thinks else lambda completion: completion.text,
        ),
    )
    result = run_task(task, generate=generate, max_new_tokens=max_new_tokens, max_examples=max_examples, seed=seed)
    lost = {"num_lost": sum("lost" in row for row in result.rows)}
    metrics = result.metrics | lost | category_metrics(result.rows) | _by_level(result.rows)
    return EvalResult(name, result.rows, metrics)


def evaluate_vllm(
    vllm_model: Any,
    reward_fn: RewardFn,
    prompts: Sequence[str],
    eval_sampling_params: Any,
    ground_truths: Sequence[GroundTruth],
    *,
    folder: Path | None = None,
    name: str = "math",
) -> EvalResult:
    """Generate once for every prompt with vLLM, score, and write the generations down.

    Args:
        vllm_model: a `vllm.LLM`, or anything whose `generate(prompts, sampling_params)` gives objects like its.
        reward_fn: (response, ground truth) -> rewards.
        prompts: filled in.
        eval_sampling_params: one output a prompt, the stop string kept in it.
        ground_truths: one a prompt.
        folder: where `rows.jsonl` and `metrics.json` go; None writes nothing.

    Raises:
        ValueError: another number of ground truths or of outputs than of prompts.
    """
    if len(prompts) != len(ground_truths) or not prompts:
        raise ValueError(f"{len(prompts)} prompts and {len(ground_truths)} ground truths; give one each")
    outputs = [request.outputs for request in vllm_model.generate(list(prompts), eval_sampling_params)]
    if len(outputs) != len(prompts) or any(len(each) != 1 for each in outputs):
        raise ValueError("need one output a prompt; set n=1 in the sampling parameters")
    grade = _grade(reward_each(reward_fn))
    graded = grade([{"answer": truth} for truth in ground_truths], [only.text for (only,) in outputs])
    rows = [
        {
            "index": index,
            "prompt": prompt,
            "ground_truth": truth,
            "output": only.text,
            "finish": only.finish_reason,
            "prediction": mark.prediction,
            "correct": mark.correct,
            **mark.details,
        }
        for index, (prompt, truth, (only,), mark) in enumerate(
            zip(prompts, ground_truths, outputs, graded, strict=True)
        )
    ]
    metrics = {
        "num_examples": len(rows),
        **accuracy_metrics([row["correct"] for row in rows]),
        "num_outputs_truncated": sum(row["finish"] == "length" for row in rows),
        **category_metrics(rows),
    }
    result = EvalResult(name, rows, metrics)
    if folder is not None:
        save_result(folder, result)
    return result


def category_metrics(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How many outputs had which (format, answer) rewards.

    Returns:
        `categories`: for "(1,1)", "(1,0)", "(0,0)", and "(0,1)" should it occur, the `count`, its `share`
        and the share's 95 % interval, `low` and `high`.
    """
    counts = Counter((int(row["format_reward"]), int(row["answer_reward"])) for row in rows)
    categories = {}
    for pair in [(1, 1), (1, 0), (0, 0), *([(0, 1)] if (0, 1) in counts else [])]:
        low, high = wilson_interval(counts[pair], len(rows))
        categories[f"({pair[0]},{pair[1]})"] = {
            "count": counts[pair],
            "share": counts[pair] / len(rows),
            "low": low,
            "high": high,
        }
    return {"categories": categories}


def draw_of_category(
    rows: Sequence[dict[str, Any]], format_reward: int, answer_reward: int, *, count: int = 10, seed: int = 0
) -> list[dict[str, Any]]:
    """Some random outputs of one category, to be read: is the model at fault or the parser?

    Args:
        count: at most; the handout asks for ten.
    """
    pair = (format_reward, answer_reward)
    return pick_rows(rows, lambda row: (row["format_reward"], row["answer_reward"]) == pair, count=count, seed=seed)


def pool_seeds(results: Sequence[EvalResult]) -> dict[str, Any]:
    """One accuracy of several runs on the same questions, such as those of several sampling seeds.

    The runs share their questions, so a question counts once however often it was asked: the interval
    is that of the mean over questions of the share of right answers, which the normal distribution gives; where all
    questions fared alike, which leaves that nothing to go by, it is Wilson's.

    Returns:
        `accuracy`, `accuracy_low`, `accuracy_high`, `num_examples` (questions), `num_runs`,
        `accuracy_of_runs`, and `run_spread`, the standard deviation between runs (0 for one).

    Raises:
        ValueError: no run, or runs on different questions.
    """
    if not results or len({tuple(row["index"] for row in result.rows) for result in results}) != 1:
        raise ValueError(f"{len(results)} runs, or not on the same questions; pool runs of one task and draw")
    per_question = [
        sum(row["correct"] for row in rows) / len(results)
        for rows in zip(*(result.rows for result in results), strict=True)
    ]
    count, mean = len(per_question), sum(per_question) / len(per_question)
    variance = sum((share - mean) ** 2 for share in per_question) / max(1, count - 1)
    half = Z_95 * math.sqrt(variance / count)
    low, high = (mean - half, mean + half) if variance else wilson_interval(round(mean * count), count)
    of_runs = [sum(row["correct"] for row in result.rows) / count for result in results]
    spread = math.sqrt(sum((each - mean) ** 2 for each in of_runs) / max(1, len(of_runs) - 1))
    return {
        "accuracy": mean,
        "accuracy_low": max(0.0, low),
        "accuracy_high": min(1.0, high),
        "num_examples": count,
        "num_runs": len(results),
        "accuracy_of_runs": of_runs,
        "run_spread": spread,
    }


def reasoning_fault(example: Example) -> str | None:
    """Why a record cannot be asked; None when it can."""
    if not isinstance(example.get("question"), str) or not example["question"].strip():
        return "no question"
    if example.get("answer") in (None, "", []):
        return "no answer"
    return None


def _with_stop_string(completion: Completion) -> str:
    """The text with the stop string that ended it, should the generator have cut it off."""
    ended = completion.finish == "stop" and not completion.text.endswith(ANSWER_END)
    return completion.text + ANSWER_END if ended else completion.text


def _grade(reward: RewardAll) -> GradeAll:
    def grade(examples: Sequence[Example], outputs: Sequence[str]) -> list[Graded]:
        all_rewards = reward(outputs, [example["answer"] for example in examples])
        if len(all_rewards) != len(outputs):
            raise ValueError(f"{len(all_rewards)} rewards for {len(outputs)} responses")
        return [_graded(output, rewards) for output, rewards in zip(outputs, all_rewards, strict=True)]

    return grade


def _graded(output: str, rewards: Mapping[str, Any]) -> Graded:
    kept: dict[str, Any] = {name: float(rewards[name]) for name in ("format_reward", "answer_reward", "reward")}
    if not {kept["format_reward"], kept["answer_reward"]} <= {0.0, 1.0}:
        raise ValueError(f"rewards are {kept}; format and answer are counted, so each must be 0 or 1")
    if rewards.get("lost"):
        kept["lost"] = rewards["lost"]
    prediction = _answer_of(output) if kept["format_reward"] else None
    return Graded(prediction, correct=kept["answer_reward"] == 1, details=kept)


def _answer_of(output: str) -> str:
    """What people look at: the text in the last answer tags, else from the last box on, else the last line."""
    if "<answer>" in output:
        return output.rpartition("<answer>")[2].replace(ANSWER_END, "").strip()
    if "\\boxed" in output:
        return output[output.rindex("\\boxed") :].strip()
    return output.strip().rpartition("\n")[2]


def _by_level(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    levels = {str(row["example"].get("level", "")) for row in rows} - {""}
    if not levels:
        return {}
    return {
        "by_level": {
            level: {"num_examples": len(marks), **accuracy_metrics(marks)}
            for level in sorted(levels)
            if (marks := [row["correct"] for row in rows if str(row["example"].get("level", "")) == level])
        }
    }
