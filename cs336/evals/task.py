"""One way to run every task: a prompt for each example, a grade for each output.

The model is a plain callable, so our own engine, vLLM, or a function in a test all fit.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from cs336.evals.report import wilson_interval
from cs336.files import read_jsonl, write_json, write_jsonl
from cs336.tokens.chat import alpaca_prompt, wrap_instruction

Example = Mapping[str, Any]  # one record of a data set, as read from its file

SAMPLES = Path(__file__).parent / "samples"


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """How the question sets are asked; everything that shapes a score.

    Attributes:
        max_mmlu: how many MMLU questions, drawn with `seed`; 0 takes all (14,042 in the test split).
        max_gsm8k: how many GSM8K questions, drawn with `seed`; 0 takes all (1,319 in the test split).
        max_new_tokens: longest output. The handout leaves it open; 256 holds the worked solutions
            of GSM8K, most of which are under 200 tokens. Outputs cut off by it are counted.
        mmlu_few_shot: worked questions of the same subject before each question when the likeliest
            letter is asked for (5 in the MMLU paper, arXiv:2009.03300). Generation is zero-shot, as
            in the handout.
        seed: fixes which questions are drawn.
    """

    max_mmlu: int = 0
    max_gsm8k: int = 0
    max_new_tokens: int = 256
    mmlu_few_shot: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("max_mmlu", "max_gsm8k", "mmlu_few_shot"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; give 0 or a positive number")
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens}; give at least 1")


class Completion(Protocol):
    """What a generator returns for one prompt (`cs336.generate.engine.Completion` is one)."""

    @property
    def text(self) -> str: ...  # without the stop string
    @property
    def finish(self) -> str: ...  # "stop", "end" (end-of-text token) or "length"
    @property
    def prompt_truncated(self) -> bool: ...  # the prompt did not fit and lost its beginning


class Generate(Protocol):
    """Greedy completions, one a prompt, in the order of the prompts."""

    def __call__(self, prompts: Sequence[str], *, max_new_tokens: int, stop: Sequence[str]) -> Sequence[Completion]: ...


# (prompt, continuation) pairs -> log-probability of each continuation given its prompt, in nats
ContinuationLogprobs = Callable[[Sequence[tuple[str, str]]], Sequence[float]]


@dataclass(frozen=True)
class Graded:
    """An output read and marked.

    Attributes:
        prediction: the answer found in the output; None when it could not be parsed.
        correct: whether it is the right one; never true for an unparseable output.
        details: what else the task adds to the row of the output, such as its rewards.
    """

    prediction: str | None
    correct: bool
    details: Mapping[str, Any] = field(default_factory=dict)


# Marks of all outputs of a run, in order; `each` makes one from a function of a single output.
GradeAll = Callable[[Sequence[Example], Sequence[str]], Sequence[Graded]]


def trim_fence(output: str) -> str:
    """An output without the blanks around it and the triple backtick that closes the wrapper's fence."""
    return output.strip().removesuffix("```").rstrip()


@dataclass(frozen=True)
class Frame:
    """What stands around an instruction, and where the output to it ends.

    Attributes:
        wrap: instruction -> prompt.
        stop: strings that end an output.
        read: what counts of a completion.
    """

    wrap: Callable[[str], str]
    stop: tuple[str, ...]
    read: Callable[[Completion], str]


# For base models: after its answer such a model goes on with the next query.
ZERO_SHOT = Frame(wrap_instruction, ("# Query:",), lambda completion: trim_fence(completion.text))
# For models tuned on the Alpaca template, which end their answers themselves.
ALPACA = Frame(alpaca_prompt, (), lambda completion: completion.text.strip())


@dataclass(frozen=True, kw_only=True)
class Task:
    """A set of questions, how to ask them and how to mark the outputs.

    Attributes:
        name: the set's name as it appears beside a score, such as "mmlu" or "mmlu sample".
        examples: the records, all of them.
        fault: why a record cannot be used, in a few words that name no details; None when it can.
        instruction: what is asked of the model, by example.
        grade: marks the outputs as the frame reads them; None where they are judged later.
        frame: around each instruction.
    """

    name: str
    examples: Sequence[Example]
    fault: Callable[[Example], str | None]
    instruction: Callable[[Example], str]
    grade: GradeAll | None
    frame: Frame = ZERO_SHOT


@dataclass(frozen=True)
class EvalResult:
    """Scores of one task and all that led to them.

    Attributes:
        name: the set's name.
        rows: one a question: its `index` in the set, `example`, `prompt`, `output`, `finish`,
            `prompt_truncated`; where the task grades, `prediction`, `correct`, and what it adds.
        metrics: counts and shares (0 to 1); fields ending in `_seconds` and `_per_second` are the
            only ones that differ between equal runs.
    """

    name: str
    rows: list[dict[str, Any]]
    metrics: dict[str, Any] = field(default_factory=dict)


def run_task(
    task: Task, *, generate: Generate, max_new_tokens: int, max_examples: int = 0, seed: int = 0
) -> EvalResult:
    """Ask every question once and mark the outputs.

    Records with a fault are left out and counted by reason in `skipped`.

    Args:
        max_examples: draw this many of the usable questions; 0 takes all.

    Returns:
        Metrics: `num_examples`; where the task grades, `num_correct`, `accuracy` with its 95% Wilson
        interval (`accuracy_low`, `accuracy_high`), `num_unparseable`, `unparseable_share`; and
        `num_prompts_truncated`, `num_outputs_truncated`, `skipped`, `generate_seconds`,
        `examples_per_second`.

    Raises:
        ValueError: no usable example, or the generator returned another number of outputs.
    """
    usable, skipped = split_faulty(task)
    chosen = subsample(usable, max_examples, seed=seed)
    prompts = [task.frame.wrap(task.instruction(task.examples[index])) for index in chosen]

    start = time.perf_counter()
    completions = generate(prompts, max_new_tokens=max_new_tokens, stop=task.frame.stop)
    seconds = time.perf_counter() - start
    if len(completions) != len(prompts):
        raise ValueError(f"the generator returned {len(completions)} outputs for {len(prompts)} prompts")

    outputs = [task.frame.read(completion) for completion in completions]
    rows: list[dict[str, Any]] = [
        {
            "index": index,
            "example": dict(task.examples[index]),
            "prompt": prompt,
            "output": output,
            "finish": completion.finish,
            "prompt_truncated": completion.prompt_truncated,
        }
        for index, prompt, completion, output in zip(chosen, prompts, completions, outputs, strict=True)
    ]
    metrics = {
        "num_examples": len(rows),
        **(_mark(task.grade, rows) if task.grade else {}),
        "num_prompts_truncated": sum(row["prompt_truncated"] for row in rows),
        "num_outputs_truncated": sum(row["finish"] == "length" for row in rows),
        "skipped": skipped,
        "generate_seconds": seconds,
        "examples_per_second": len(rows) / seconds,
    }
    return EvalResult(task.name, rows, metrics)


def _mark(grade: GradeAll, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Add the marks to the rows; returns the metrics that they give."""
    marks = grade([row["example"] for row in rows], [row["output"] for row in rows])
    for row, mark in zip(rows, marks, strict=True):
        row |= {"prediction": mark.prediction, "correct": mark.correct, **mark.details}
    num_unparseable = sum(row["prediction"] is None for row in rows)
    return {
        **accuracy_metrics([row["correct"] for row in rows]),
        "num_unparseable": num_unparseable,
        "unparseable_share": num_unparseable / len(rows),
    }


def each(grade: Callable[[Example, str], Graded]) -> GradeAll:
    """Mark the outputs one by one."""
    return lambda examples, outputs: [grade(example, text) for example, text in zip(examples, outputs, strict=True)]


def split_faulty(task: Task) -> tuple[list[int], dict[str, int]]:
    """Indices of the usable examples, and how many of the others have which fault.

    Raises:
        ValueError: no example is usable.
    """
    usable, faults = [], Counter[str]()
    for index, example in enumerate(task.examples):
        fault = task.fault(example)
        if fault is None:
            usable.append(index)
        else:
            faults[fault] += 1
    if not usable:
        raise ValueError(
            f"{task.name}: none of {len(task.examples)} examples can be used ({dict(faults)}); check the data set"
        )
    return usable, dict(sorted(faults.items()))


def subsample(items: Sequence[int], count: int, *, seed: int) -> list[int]:
    """`count` of the items without repetition, in their order; all of them when `count` is 0 or too large."""
    if count == 0 or count >= len(items):
        return list(items)
    return [items[place] for place in sorted(random.Random(seed).sample(range(len(items)), count))]


def accuracy_metrics(correct: Sequence[bool], *, prefix: str = "") -> dict[str, Any]:
    """Number and share of right answers with the 95% interval, keys starting with `prefix`."""
    low, high = wilson_interval(sum(correct), len(correct))
    return {
        f"{prefix}num_correct": sum(correct),
        f"{prefix}accuracy": sum(correct) / len(correct),
        f"{prefix}accuracy_low": low,
        f"{prefix}accuracy_high": high,
    }


def pick_rows(
    rows: Sequence[dict[str, Any]], wanted: Callable[[dict[str, Any]], bool], *, count: int = 10, seed: int = 0
) -> list[dict[str, Any]]:
    """A few random rows to read, such as wrong answers: `pick_rows(rows, lambda row: not row["correct"])`."""
    found = [place for place, row in enumerate(rows) if wanted(row)]
    return [rows[place] for place in subsample(found, count, seed=seed)]


def save_result(folder: Path, result: EvalResult) -> None:
    """Write `rows.jsonl` and `metrics.json`.

    Timings stay out: equal runs leave equal bytes.
    """
    write_jsonl(folder / "rows.jsonl", result.rows)
    timeless = {name: value for name, value in result.metrics.items() if not name.endswith(("_seconds", "_per_second"))}
    write_json(folder / "metrics.json", {"name": result.name, **timeless})


def read_sample(task: str) -> list[dict[str, Any]]:
    """The question set written for this project, for machines without the real one.

    Its scores carry the set's name with "sample" behind it; they are no scores of that set.

    Args:
        task: "mmlu", "gsm8k", "alpaca_eval" or "safety".
    """
    return list(read_jsonl(sample_path(task)))


def sample_path(task: str) -> Path:
    """The file behind `read_sample`.

    Raises:
        ValueError: there is no sample of that name.
    """
    path = SAMPLES / f"{task}_sample.jsonl"
    if not path.exists():
        names = sorted(file.name.removesuffix("_sample.jsonl") for file in SAMPLES.glob("*_sample.jsonl"))
        raise ValueError(f"no sample set named {task!r}; there are {names}")
    return path
