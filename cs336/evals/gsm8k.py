"""GSM8K: word problems of grade-school arithmetic; the last number of the output counts.

Source: Cobbe et al. 2021, arXiv:2110.14168. Prompt and parser follow the handout (alignment
supplement).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from cs336.evals.graders import last_number, normalize_number, numbers_equal
from cs336.evals.task import ZERO_SHOT, EvalConfig, EvalResult, Example, Frame, Generate, Graded, Task, each, run_task
from cs336.tokens.chat import fill_template

_ANNOTATION = re.compile(r"<<[^<>]*>>")


def evaluate_gsm8k(
    examples: Sequence[Example],
    *,
    generate: Generate,
    config: EvalConfig,
    frame: Frame = ZERO_SHOT,
    name: str = "gsm8k",
) -> EvalResult:
    """Share of problems whose last number is the right one.

    Args:
        examples: records with `question` and `answer`, the gold number after `####`.
        generate: greedy generation.
        frame: `ALPACA` for models tuned on that template.
        name: the set's name beside the score; "gsm8k sample" for the project's own questions.

    Returns:
        See `run_task`.

    Raises:
        ValueError: no usable example.
    """
    task = Task(
        name=name,
        examples=examples,
        fault=gsm8k_fault,
        instruction=gsm8k_instruction,
        grade=each(grade_gsm8k),
        frame=frame,
    )
    return run_task(
        task,
        generate=generate,
        max_new_tokens=config.max_new_tokens,
        max_examples=config.max_gsm8k,
        seed=config.seed,
    )


def gsm8k_fault(example: Example) -> str | None:
    """Why a record is no GSM8K problem; None when it is one."""
    if not isinstance(example.get("question"), str) or not example["question"].strip():
        return "no question"
    if not isinstance(example.get("answer"), str) or gold_answer(example["answer"]) is None:
        return "no number after ####"
    return None


def gsm8k_instruction(example: Example) -> str:
    """What is asked: the question and `Answer:`."""
    return fill_template("gsm8k", question=example["question"])


def gsm8k_questions(examples: Sequence[Example]) -> list[dict[str, str]]:
    """The problems as `evaluate_reasoning` asks them: `question`, and the gold number alone as `answer`.

    Records without one keep an empty answer, which is left out there and counted.
    """
    return [{"question": example["question"], "answer": gold_answer(example["answer"]) or ""} for example in examples]


def gsm8k_trace(example: Example, *, template: str = "r1_zero") -> dict[str, str]:
    """A training problem as a worked trace, its written solution as the thought.

    Returns:
        `prompt` (filled in), `response` (from inside `<think>` to `</answer>`), the `question`, and the gold answer as
        `ground_truth`. The `<<...>>` annotations of calculations are left out.

    Raises:
        ValueError: the record has no gold answer.
    """
    gold = gold_answer(example["answer"])
    if gold is None:
        raise ValueError(f"no number after #### in {example['answer']!r}; leave such records out (gsm8k_fault)")
    thought = _ANNOTATION.sub("", example["answer"].rpartition("####")[0]).strip()
    return {
        "prompt": fill_template(template, question=example["question"]),
        "response": f" {thought} </think> <answer>{gold}</answer>",
        "question": example["question"],
        "ground_truth": gold,
    }


def gold_answer(answer: str) -> str | None:
    """The number after `####`, without commas; None when there is none."""
    _, mark, gold = answer.rpartition("####")
    if not mark or normalize_number(gold) is None:
        return None
    return gold.strip().removeprefix("$").replace(",", "")


def grade_gsm8k(example: Example, output: str) -> Graded:
    """Mark one output: the same value is right, however it is written ("18.00" for "18").

    Raises:
        ValueError: the record has no gold answer.
    """
    gold = gold_answer(example["answer"])
    if gold is None:
        raise ValueError(f"no number after #### in {example['answer']!r}; leave such records out (gsm8k_fault)")
    prediction = parse_gsm8k_response(model_output=output)
    return Graded(prediction, correct=prediction is not None and numbers_equal(prediction, gold))


def parse_gsm8k_response(model_output: str) -> str | None:
    """The last number in the text as a string of digits, commas removed; None if it has no digits.

    Sign and decimals are kept; a "-" right after a digit is not a sign ("16-3" ends in "3").
    """
    return last_number(model_output)
