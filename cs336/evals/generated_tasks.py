"""Word problems and sums without end, with verified answers and worked traces, in GSM8K's format.

Made for small models (60 M parameters and fewer): learnt from some thousand traces, then from rewards
alone.

Order       Problem i of a split depends on the seed, the split and i alone: streams are read from any
            place, in parts or again, and never end.
Splits      A problem belongs to the split that the hash of its calculations falls into, whatever the
            seed: train 85 %, valid 5 %, test 10 %. Names, things and wording do not count, nor the order
            of addends and factors, so no test problem is a training problem in other words. (One step of
            a longer training problem may be all of a test problem of level 1.)
Answers     Each problem is worked out twice: when it is made, and from its written solution (`verify`).
Difficulty  A level is a number of steps, 1 to 8, and the size of the numbers; the highest add facts that
            nobody asks for, in any order. See `LEVELS`, and `generated_stories` for the kinds. Few numbers
            are soon known by heart: of 12,000 training problems of level 1 only 2,071 calculate
            differently, and new ones bring old calculations in 90 % (level 2: 58 %, level 3: 21 %; level 1
            with `max_value` 1,000: 69 %). Rewards on what is known by heart teach nothing, so RL wants
            level 3 and up, or larger numbers. For models that are smaller still, keep the two steps and make
            the numbers few: sums of level 2 with `max_value` 10 are about 870 training problems of 72 different
            steps, all of which are in training problems, while no test problem is.
Traces      Three styles (`generated_traces`): the answer at once, one calculation a step, or digit by
            digit. Training data that mix them, as people's do, leave a model as unsure of how to work:
            more of the same traces does not change that, while rewards can teach it to work the careful
            way, which is where RL has room. `slip_share` makes some traces wrong, for comparisons with
            filtered data.
Tokens      Numbers are written plainly, so that every grader and tokenizer can read them. But GPT-2's
            pre-tokens let BPE merge digits: "734" may be one token or three, and a model must learn of
            each token which digits it holds before a carry makes sense to it. Train the tokenizer with
            the ten digits among its special tokens (`DIGITS`): each is then a token of its own, and
            digit-by-digit traces are a matter of single tokens. The words are few (164), so a vocabulary
            of 701 holds them whole, and a trace has 11 to 12 tokens in the style "direct", 21 to 120 on
            average by level in "steps", 33 to 321 in "digits" (at most 425), after a prompt of 30 to 85.
Prompts     The template r1_zero_short keeps the thinking and answer tags of r1_zero without its
            preamble, which at that vocabulary has 192 tokens, more than most of the problems.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any

from cs336.evals.generated_stories import KINDS, Level, Step, calculate, draw_problem
from cs336.evals.generated_traces import STYLES, calculation, with_slip, worked
from cs336.tokens.chat import fill_template, read_template

DIGITS = tuple("0123456789")

LEVELS = {
    1: Level(num_steps=1, max_value=100),
    2: Level(num_steps=2, max_value=100),
    3: Level(num_steps=3, max_value=100),
    4: Level(num_steps=4, max_value=1_000),
    5: Level(num_steps=5, max_value=1_000, num_distractors=1, shuffled=True),
    6: Level(num_steps=6, max_value=1_000, num_distractors=1, shuffled=True),
    7: Level(num_steps=7, max_value=10_000, num_distractors=2, shuffled=True),
    8: Level(num_steps=8, max_value=10_000, num_distractors=2, shuffled=True),
}

# Percent of all problems, by the hash of their calculations.
SPLITS = {"test": range(10), "valid": range(10, 15), "train": range(15, 100)}

_ANNOTATION = re.compile(r"(\d+)([-+*/])(\d+) = <<([^=<>]+)=(\d+)>>(\d+)")


@dataclass(frozen=True, kw_only=True)
class GeneratedConfig:
    """Which problems.

    Attributes:
        levels: keys of `LEVELS`; a problem is of each with the same probability.
        kinds: of `KINDS`, likewise.
        max_value: no number is larger, whatever the level; 0 keeps each level's own limit. 10 or more; small ones have
            no problems of some kinds and levels, which drawing one says.
        seed: another seed, other problems; the splits stay disjoint.
    """

    levels: tuple[int, ...] = (1, 2, 3, 4)
    kinds: tuple[str, ...] = KINDS
    max_value: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_value and not 10 <= self.max_value <= 1_000_000:
            raise ValueError(f"max_value is {self.max_value}; give 0, or 10 to 1,000,000")
        for name, known in (("levels", tuple(LEVELS)), ("kinds", KINDS)):
            given = getattr(self, name)
            if not given or not set(given) <= set(known):
                raise ValueError(f"{name} are {given}; give some of {known}")


@dataclass(frozen=True, kw_only=True)
class TraceConfig:
    """How training traces are written.

    Attributes:
        direct, steps, digits: weights of the three styles (`generated_traces`).
        slip_share: share of traces, of those that show their steps, with a slip and so a wrong answer.
        template: prompt template around the question; responses always fit those that end in `<think>`.
        seed: fixes the styles and slips of all traces.
    """

    direct: float = 0.25
    steps: float = 0.5
    digits: float = 0.25
    slip_share: float = 0.0
    template: str = "r1_zero_short"
    seed: int = 0

    def __post_init__(self) -> None:
        weights = [getattr(self, style) for style in STYLES]
        if min(weights) < 0 or not sum(weights):
            raise ValueError(
                f"the weights of {', '.join(STYLES)} are {weights}; none may be negative, one must not be 0"
            )
        if not 0 <= self.slip_share <= 1:
            raise ValueError(f"slip_share is {self.slip_share}; give 0 to 1")
        if not read_template(self.template).endswith("<think>"):
            raise ValueError(f"template {self.template!r} does not end in <think>, where the traces begin")


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A question with its solution.

    Attributes:
        question: in words.
        steps: the solution.
        kind: one of `KINDS`.
        level: a key of `LEVELS`.
        split: "train", "valid" or "test".
        index: its place in the stream of its split.
    """

    question: str
    steps: tuple[Step, ...]
    kind: str
    level: int
    split: str
    index: int

    @property
    def answer(self) -> int:
        return self.steps[-1].result


def generate_problem(config: GeneratedConfig, split: str, index: int) -> Problem:
    """Problem `index` of a split.

    Raises:
        ValueError: no such split.
    """
    if split not in SPLITS:
        raise ValueError(f"no split {split!r}; there are {', '.join(SPLITS)}")
    rng = random.Random(f"{config.seed} {split} {index}")
    level, kind = rng.choice(config.levels), rng.choice(config.kinds)
    hardness = replace(LEVELS[level], max_value=config.max_value) if config.max_value else LEVELS[level]
    while True:
        question, steps = draw_problem(rng, kind, hardness)
        if split_of(steps) == split:
            return Problem(question=question, steps=steps, kind=kind, level=level, split=split, index=index)


def generate_problems(config: GeneratedConfig, split: str, count: int, *, first: int = 0) -> list[Problem]:
    """`count` problems of a split with different questions, from number `first` of its stream on.

    For questions without traces beside traced ones of the same split, start behind the last index of those.

    Raises:
        ValueError: no such split, or its easiest levels do not have so many.
    """
    problems: dict[str, Problem] = {}
    index = first
    while len(problems) < count:
        problem = generate_problem(config, split, index)
        problems.setdefault(problem.question, problem)
        index += 1
        if index - first > 3 * count + 1_000:
            raise ValueError(f"only {len(problems)} of {count} {split} problems differ; add levels or kinds")
    return list(problems.values())


def split_of(steps: Sequence[Step]) -> str:
    """The split that the calculations belong to, whatever story they stand in."""
    parts = []
    for step in steps:
        operands = [step.left, step.right] if step.operator in "-/" else sorted((step.left, step.right))
        parts.append(f"{operands[0]}{step.operator}{operands[1]}")
    percent = int.from_bytes(blake2b(";".join(parts).encode(), digest_size=8).digest()) % 100
    return next(split for split, share in SPLITS.items() if percent in share)


def to_record(problem: Problem) -> dict[str, Any]:
    """The problem as GSM8K writes it: `question`, and `answer` with `<<...>>` annotations and `#### gold`.

    Further fields: `kind`, `level`, `split`, `index`.
    """
    lines = []
    for step in problem.steps:
        plain = f"{step.left}{step.operator}{step.right}"
        lines.append(step.sentence.format(f"{plain} = <<{plain}={step.result}>>{step.result}"))
    record = {
        "question": problem.question,
        "answer": "\n".join([*lines, f"#### {problem.answer}"]),
        "kind": problem.kind,
        "level": problem.level,
        "split": problem.split,
        "index": problem.index,
    }
    verify(record)
    return record


def to_question(problem: Problem) -> dict[str, Any]:
    """The problem as `evaluate_reasoning` asks it: `question`, and the ground truth alone as `answer`.

    Further fields: `kind`, `level`.
    """
    return {
        "question": problem.question,
        "answer": str(problem.answer),
        "kind": problem.kind,
        "level": problem.level,
    }


def verify(record: Mapping[str, Any]) -> None:
    """Work the written solution out again.

    Every calculation must be right and written alike thrice, every operand must stand in the question
    or come from an earlier line, and the last result must be the answer.

    Raises:
        ValueError: it is not so; names the line.
    """
    *lines, last = record["answer"].split("\n")
    known = Counter(re.findall(r"\d+", record["question"]))
    result = None
    for line in lines:
        found = _ANNOTATION.search(line)
        if not found:
            raise ValueError(f"no calculation in {line!r}")
        left, operator, right, inside, marked, result = found.groups()
        if inside != f"{left}{operator}{right}" or marked != result:
            raise ValueError(f"the calculation and its annotation differ in {line!r}")
        if not known[left] or not known[right]:
            raise ValueError(f"an operand of {line!r} is neither given nor worked out")
        if calculate(int(left), operator, int(right)) != int(result):
            raise ValueError(f"the calculation is wrong in {line!r}")
        known[result] += 1
    if last != f"#### {result}":
        raise ValueError(f"the last line is {last!r}, the last result {result}")


def to_trace(problem: Problem, config: TraceConfig) -> dict[str, Any]:
    """The problem as a training example of reasoning.

    Returns:
        `prompt` (filled in) and `response` (from inside `<think>` to `</answer>`), the `question`, the
        right answer as `ground_truth`, and `style`, `correct`, `level`, `kind`.
    """
    style, steps = draw_work(problem, config)
    return {
        "prompt": fill_template(config.template, question=problem.question),
        "response": to_response(steps, style),
        "question": problem.question,
        "ground_truth": str(problem.answer),
        "style": style,
        "correct": steps[-1].result == problem.answer,
        "level": problem.level,
        "kind": problem.kind,
    }


def draw_work(problem: Problem, config: TraceConfig) -> tuple[str, tuple[Step, ...]]:
    """How a problem is worked out: a style, and the steps, with a slip or without; a problem's own, whenever drawn."""
    rng = random.Random(f"trace {config.seed} {problem.split} {problem.question}")
    style = _draw_style(rng, config)
    slips = style != "direct" and rng.random() < config.slip_share
    return style, with_slip(problem.steps, rng) if slips else problem.steps


def _draw_style(rng: random.Random, config: TraceConfig) -> str:
    return rng.choices(STYLES, [getattr(config, style) for style in STYLES])[0]


def to_response(steps: Sequence[Step], style: str) -> str:
    """What follows `<think>`: the steps in one style, and the answer they lead to in its tags."""
    thought = worked(steps, style)
    return f"{' ' + thought if thought else ''} </think> <answer>{steps[-1].result}</answer>"


def generate_drill(config: GeneratedConfig, index: int, *, num_lines: int = 10) -> str:
    """A text for pretraining: single calculations, one a line, in the head or digit by digit.

    They are those of training problems without their stories, but none that is a held-out problem by
    itself: a model that has read them can calculate, and still has to learn what a problem asks for.
    """
    rng = random.Random(f"drill {config.seed} {index}")
    lines: list[str] = []
    while len(lines) < num_lines:
        problem = generate_problem(config, "train", rng.randrange(2**40))
        step = rng.choice(problem.steps)
        if split_of([step]) != "train":
            continue
        by_digits = rng.random() < 0.5
        lines.append(calculation(step.left, step.operator, step.right, result=step.result, by_digits=by_digits))
    return "\n".join(lines)


def iter_problems(config: GeneratedConfig, split: str, *, first: int = 0) -> Iterator[Problem]:
    """The endless stream of a split, from number `first` on; questions may come again, most at level 1."""
    index = first
    while True:
        yield generate_problem(config, split, index)
        index += 1
