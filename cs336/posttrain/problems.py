"""Problems with verified answers, and worked traces: generated ones, GSM8K, MATH, or those of files."""

from __future__ import annotations

import dataclasses
import os
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cs336 import catalog
from cs336.download import cached_sha256
from cs336.evals.competition_math import MathFields, question_of, read_math, read_traces
from cs336.evals.generated_tasks import (
    GeneratedConfig,
    TraceConfig,
    generate_problems,
    iter_problems,
    to_question,
    to_record,
    to_trace,
)
from cs336.evals.gsm8k import gsm8k_fault, gsm8k_questions, gsm8k_trace
from cs336.evals.rewards import reward_named
from cs336.files import UserError, read_jsonl
from cs336.tokens.chat import fill_template

_DATA_FOLDER = "$CS336_DATA/"


@dataclass(frozen=True, kw_only=True)
class ProblemsConfig:
    """Which problems are reasoned about, how they are asked, and what is a right answer.

    Attributes:
        task: "generated" (`cs336.evals.generated_tasks`), "gsm8k" or "math"; the last two from the catalogue's files.
        num_train: problems for rewards; 0 takes all that a file has.
        num_valid: problems of the curves. Of files they are held out of the training problems.
        num_test: problems that only final scores see; 0 takes the whole test file.
        num_traces, num_valid_traces: worked traces for SFT, and for its validation loss; 0 takes all others of a file.
        template: prompt template around a question.
        reward: a name in `cs336.evals.rewards.REWARDS`.
        first: place in the stream of generated training problems at which the traces begin; those before were
            pretrained on. Problems for rewards come after the traces.
        generated: which generated problems; the preset's seed is added to theirs.
        traces: how generated problems are worked out.
        train_file, test_file, trace_file: JSON Lines instead of the catalogue's, gzipped or not; `$CS336_DATA/...` lies
            below the data folder. Traces have `prompt` (filled in) and `response`.
        fields: what question and answer are called in the files of the task "math".
    """

    task: str = "generated"
    num_train: int = 4_096
    num_valid: int = 256
    num_test: int = 1_024
    num_traces: int = 4_096
    num_valid_traces: int = 256
    template: str = "r1_zero_short"
    reward: str = "r1_zero"
    first: int = 0
    generated: GeneratedConfig = field(default_factory=GeneratedConfig)
    traces: TraceConfig = field(default_factory=TraceConfig)
    train_file: str = ""
    test_file: str = ""
    trace_file: str = ""
    fields: MathFields = field(default_factory=MathFields)

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise ValueError(f"no task {self.task!r}; there are {', '.join(TASKS)}")
        fill_template(self.template, question="")
        reward_named(self.reward)
        counts = {each.name: getattr(self, each.name) for each in dataclasses.fields(self) if "num_" in each.name}
        least = {name: int(self.task == "generated" or name == "num_valid") for name in counts}
        for name, count in counts.items():
            if count < least[name]:
                raise ValueError(f"{name} is {count}; give at least {least[name]}")
        if self.first < 0:
            raise ValueError(f"first is {self.first}; give 0 or more")
        if self.task == "generated" and self.traces.template != self.template:
            raise ValueError(
                f"traces are written for template {self.traces.template!r}, questions asked with {self.template!r};"
                " give both the same"
            )

    def identity(self) -> dict[str, Any]:
        """All settings, and the checksums of one's own files.

        Raises:
            UserError: a file is not there.
        """
        settings = {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}
        own = {name: getattr(self, name) for name in ("train_file", "test_file", "trace_file")}
        return settings | {name: cached_sha256(_path_of(file)) if file else "" for name, file in own.items()}


@dataclass(frozen=True)
class ProblemSet:
    """Records, disjoint by question but for the two kinds of validation.

    Attributes:
        train, valid, test: problems, `question` and `answer` (the ground truth), with `level` and `kind` where known;
            generated ones also have their `solution`.
        traces, valid_traces: `prompt` (filled in) and `response`; `ground_truth` where it is known.
    """

    train: list[dict[str, Any]]
    valid: list[dict[str, Any]]
    test: list[dict[str, Any]]
    traces: list[dict[str, Any]]
    valid_traces: list[dict[str, Any]]


def make_problems(config: ProblemsConfig, *, seed: int) -> ProblemSet:
    """Draw or read all problems and traces of a task.

    Raises:
        UserError: a file is missing, damaged, or has too few records.
    """
    return TASKS[config.task](config, seed)


def prompts_of(problems: Sequence[Mapping[str, Any]], template: str) -> list[str]:
    """What a policy is asked, problem by problem."""
    return [fill_template(template, question=problem["question"]) for problem in problems]


# ---- generated


def _generated(config: ProblemsConfig, seed: int) -> ProblemSet:
    problems = replace(config.generated, seed=config.generated.seed + seed)
    traces = replace(config.traces, seed=config.traces.seed + seed)
    worked = generate_problems(problems, "train", config.num_traces, first=config.first)
    seen = {each.question for each in worked}
    asked = []
    for each in iter_problems(problems, "train", first=worked[-1].index + 1):
        if each.question not in seen:
            seen.add(each.question)
            asked.append(each)
        if len(asked) == config.num_train:
            break
        if each.index > worked[-1].index + 3 * config.num_train + 1_000:
            raise UserError(f"only {len(asked)} of {config.num_train} training problems differ; add levels or kinds")
    valid = generate_problems(problems, "valid", config.num_valid)
    test = generate_problems(problems, "test", config.num_test)
    train_records, valid_records, test_records = (
        [to_question(each) | {"solution": to_record(each)["answer"]} for each in split]
        for split in (asked, valid, test)
    )
    return ProblemSet(
        train=train_records,
        valid=valid_records,
        test=test_records,
        traces=[to_trace(each, traces) for each in worked],
        valid_traces=[to_trace(each, traces) for each in generate_problems(problems, "valid", config.num_valid_traces)],
    )


# ---- files


def _gsm8k(config: ProblemsConfig, seed: int) -> ProblemSet:
    train, test = (
        [row for row in read_jsonl(_file(own, "gsm8k", f"{split}.jsonl")) if gsm8k_fault(row) is None]
        for own, split in ((config.train_file, "train"), (config.test_file, "test"))
    )
    traces = (
        read_traces(_path_of(config.trace_file))
        if config.trace_file
        else [gsm8k_trace(row, template=config.template) for row in train]
    )
    return _from_files(config, seed, gsm8k_questions(train), gsm8k_questions(test), traces)


def _math(config: ProblemsConfig, seed: int) -> ProblemSet:
    train, test = (
        read_math(_file(own, "math", f"{split}_answers.jsonl"), config.fields)
        for own, split in ((config.train_file, "train"), (config.test_file, "test"))
    )
    traces: list[dict[str, str]] = []
    if config.trace_file:
        traces = read_traces(_path_of(config.trace_file))
    elif found := catalog.find("math-sft"):  # for SFT alone: rewards need none
        traces = read_traces(found)
    return _from_files(config, seed, train, test, traces)


def _from_files(
    config: ProblemsConfig,
    seed: int,
    train: Sequence[Mapping[str, Any]],
    test: Sequence[Mapping[str, Any]],
    traces: Sequence[Mapping[str, Any]],
) -> ProblemSet:
    """Shuffle, hold out, and leave what is held out out of the traces."""
    tested = {_key(each["question"]) for each in test}
    unlike: dict[str, dict[str, Any]] = {}  # MATH has a question twice: one could be held out, the other trained on
    for each in train:
        unlike.setdefault(_key(each["question"]), dict(each))
    pool = [each for key, each in unlike.items() if key not in tested]
    if len(pool) <= config.num_valid:
        raise UserError(f"{len(pool)} training problems are too few to hold {config.num_valid} of them out")
    random.Random(seed).shuffle(pool)
    valid, pool = pool[: config.num_valid], pool[config.num_valid :]
    held_out = tested | {_key(each["question"]) for each in valid}
    worked = list({(each["prompt"], each["response"]): dict(each) for each in traces}.values())
    worked = [each for each in worked if _key(question_of(each["prompt"], template=config.template)) not in held_out]
    random.Random(seed).shuffle(worked)
    chosen = random.Random(seed).sample(range(len(test)), min(config.num_test or len(test), len(test)))
    num_valid_traces = config.num_valid_traces if len(worked) > config.num_valid_traces else 0
    return ProblemSet(
        train=pool[: config.num_train or None],
        valid=valid,
        test=[dict(test[place]) for place in sorted(chosen)],
        traces=worked[num_valid_traces:][: config.num_traces or None],
        valid_traces=worked[:num_valid_traces],
    )


def _key(question: str) -> str:
    """Questions are the same whatever their white space: files differ in it."""
    return " ".join(question.split())


def _file(own: str, entry: str, name: str) -> Path:
    if own:
        return _path_of(own)
    catalog.require(entry)
    found = catalog.find_file(entry, name)
    assert found is not None
    return found


def _path_of(file: str) -> Path:
    if file.startswith(_DATA_FOLDER) and not os.environ.get("CS336_DATA"):
        raise UserError(f"{file}: CS336_DATA is not set; set it to the folder that holds the file")
    path = Path(os.path.expanduser(file.replace(_DATA_FOLDER, os.environ.get("CS336_DATA", "") + "/", 1)))
    if not path.is_file():
        raise UserError(f"{file}: not found; correct the preset's `problems`")
    return path


TASKS: dict[str, Callable[[ProblemsConfig, int], ProblemSet]] = {
    "generated": _generated,
    "gsm8k": _gsm8k,
    "math": _math,
}
