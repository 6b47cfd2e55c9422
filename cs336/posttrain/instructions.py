"""What models are tuned on after pretraining: instructions and preferences, by the catalogue's names.

Problems with verified answers (`cs336.evals.generated_tasks`) can stand among the instructions, and make preferences of
their own: the right solution before one with a slip, or a tuned model's right answer before a wrong one of its own
(`cs336.posttrain.sampled_pairs`). Where a data set is not on this machine, a preset may say that the project's own few
examples take its place.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cs336 import catalog
from cs336.evals.generated_tasks import GeneratedConfig, Problem, TraceConfig, draw_work, generate_problems
from cs336.evals.generated_traces import with_slip, worked
from cs336.evals.gsm8k import gsm8k_instruction
from cs336.files import UserError, read_jsonl
from cs336.posttrain.preferences import Preference, read_hh, split_preferences
from cs336.tokens.packing import shuffled

SAMPLES = Path(__file__).parent / "samples"
INSTRUCTIONS_SAMPLE = SAMPLES / "instructions_sample.jsonl"
PREFERENCES_SAMPLE = SAMPLES / "preferences_sample.jsonl"
INSTRUCTION_SETS = ("ultrachat-safety", "t0-sample", "alpaca-demo")
PREFERENCE_SETS = ("hh-rlhf", "hh-rlhf-harmless-test")
HH, VERIFIED = "hh", "verified"  # kinds of preference pairs
PROBLEMS = "generated problems"  # their source
_END_OF_TEXT = "<|endoftext|>"  # T0's responses end with it; packing adds the tokenizer's own


@dataclass(frozen=True, kw_only=True)
class InstructionsConfig:
    """What a model is tuned on first, and which model.

    Attributes:
        base: "" for the preset's own base model; else a folder, an entry of the catalogue, or a name on the hub.
        max_context: positions kept of such a checkpoint.
        dtype: of its weights while they are tuned, "float32" or "bfloat16", in which the steps of tuning are mostly
            rounded away.
        datasets: of `INSTRUCTION_SETS`.
        max_examples: of each of these sets, drawn with the seed; 0 takes all.
        num_valid: examples held out of all sets without a split of their own; of those with one, all are taken.
        num_problems: generated problems with worked answers among the instructions.
        problems: which ones.
        traces: how they are worked out; its template has no part in it.
        sample_if_absent: the project's own examples stand for data sets that are not here; else that is an error.
    """

    base: str = ""
    max_context: int = 4_096
    dtype: str = "float32"
    datasets: tuple[str, ...] = ("ultrachat-safety",)
    max_examples: int = 0
    num_valid: int = 500
    num_problems: int = 0
    problems: GeneratedConfig = field(default_factory=GeneratedConfig)
    traces: TraceConfig = field(default_factory=lambda: TraceConfig(direct=0.0, steps=1.0, digits=0.0))
    sample_if_absent: bool = False

    def __post_init__(self) -> None:
        _check_names("dtype", (self.dtype,), ("float32", "bfloat16"))
        _check_names("datasets", self.datasets, INSTRUCTION_SETS)
        if not self.datasets and not self.num_problems:
            raise ValueError("datasets and num_problems are empty; name something to train on")


@dataclass(frozen=True, kw_only=True)
class PreferencesConfig:
    """Which pairs DPO trains on.

    Attributes:
        kinds: "hh", people's choices of Anthropic's HH, and "verified", right solutions before wrong ones: a run each.
        datasets: of `PREFERENCE_SETS`, for "hh".
        max_pairs: of these, drawn with the seed; 0 takes all.
        num_valid: pairs held out, of either kind; the handout's is about 200.
        num_problems: generated problems, for "verified", behind those of the instructions.
        num_samples: answers to each of these that are drawn from the instruction-tuned model, of which a right and a
            wrong one make a pair; 0 pairs written solutions with such that have a slip.
        sample_if_absent: as in `InstructionsConfig`.
    """

    kinds: tuple[str, ...] = (HH, VERIFIED)
    datasets: tuple[str, ...] = ("hh-rlhf",)
    max_pairs: int = 0
    num_valid: int = 200
    num_problems: int = 2_000
    num_samples: int = 0
    sample_if_absent: bool = False

    def __post_init__(self) -> None:
        _check_names("kinds", self.kinds, (HH, VERIFIED))
        _check_names("datasets", self.datasets, PREFERENCE_SETS)
        if self.num_valid < 1 or self.num_problems < 1:
            raise ValueError(f"num_valid and num_problems are 1 or more, got {self.num_valid} and {self.num_problems}")
        if self.num_samples < 0 or self.num_samples == 1:
            raise ValueError(f"num_samples is {self.num_samples}; a pair needs 2 or more, and 0 draws none")


def _check_names(name: str, given: Sequence[str], known: Sequence[str]) -> None:
    if unknown := [each for each in given if each not in known]:
        raise ValueError(f"{name}: there is no {unknown[0]!r}; there are {', '.join(known)}")


# ---- instructions

Example = dict[str, str]  # prompt, response, source


def instruction_examples(
    config: InstructionsConfig, *, seed: int
) -> tuple[list[Example], list[Example], dict[str, Counter[str]]]:
    """Examples to train and to validate on, each in the order of its sets.

    A prompt that came before, and an empty prompt or response, is dropped, so no prompt is on both sides.

    Returns:
        Records of `prompt`, `response` and `source`; and for each source how many were "trained on", "held out", or
        dropped for which reason.

    Raises:
        UserError: a set is not on this machine, unless the sample may stand for it; or a file is not as it should be.
    """
    counts: dict[str, Counter[str]] = {}
    splits: tuple[list[Example], list[Example]] = ([], [])
    seen: set[str] = set()
    without_split = [name for name in _sources(config) if name != "ultrachat-safety"]
    for name in _sources(config):
        count = counts[name] = Counter()
        train, valid = (_usable(part, seen, count) for part in _read_set(name, config))
        if name != PROBLEMS:
            train = _drawn(train, config.max_examples, seed)
        if name in without_split:
            share = min(config.num_valid // len(without_split), len(train) // 5)
            held_out = set(shuffled(len(train), seed=seed, epoch=1)[:share])
            valid = [each for place, each in enumerate(train) if place in held_out]
            train = [each for place, each in enumerate(train) if place not in held_out]
        count["trained on"], count["held out"] = len(train), len(valid)
        splits[0].extend(train)
        splits[1].extend(valid)
    return *splits, counts


def _sources(config: InstructionsConfig) -> list[str]:
    """Sets to read: those that are here, the sample if some may be missing and is, then the problems."""
    found = [name for name in config.datasets if not config.sample_if_absent or catalog.find(name)]
    sample = [INSTRUCTIONS_SAMPLE.stem] if len(found) < len(config.datasets) else []
    return found + sample + ([PROBLEMS] if config.num_problems else [])


def _read_set(name: str, config: InstructionsConfig) -> tuple[list[Example], list[Example]]:
    """Training and validation examples of a source; no validation ones where the set has no split."""
    if name == "ultrachat-safety":
        files = catalog.files_of(name)
        train, test = (files[f"{split}.jsonl.gz"] for split in ("train", "test"))
        return _records(train, "prompt", "response", name), _records(test, "prompt", "response", name)
    readers: dict[str, Callable[[], list[Example]]] = {
        "t0-sample": lambda: _records(catalog.require(name), "prompt", "completion", name),
        "alpaca-demo": lambda: _alpaca(catalog.require(name), name),
        INSTRUCTIONS_SAMPLE.stem: lambda: _records(INSTRUCTIONS_SAMPLE, "prompt", "response", name),
        PROBLEMS: lambda: [
            problem_example(each, config.traces, name)
            for each in generate_problems(config.problems, "train", config.num_problems)
        ],
    }
    return readers[name](), []


def problem_example(problem: Problem, traces: TraceConfig, source: str) -> Example:
    """A problem as an instruction, asked as GSM8K's are, with its solution; the answer stands after `####`."""
    style, steps = draw_work(problem, traces)
    return {
        "prompt": gsm8k_instruction({"question": problem.question}),
        "response": solution(steps, style),
        "source": source,
    }


def solution(steps: Sequence[Any], style: str) -> str:
    """Steps of a generated problem as a response."""
    text = worked(steps, style)
    return f"{text}\n#### {steps[-1].result}" if text else f"#### {steps[-1].result}"


def _records(path: Path, prompt: str, response: str, source: str) -> list[Example]:
    examples = []
    for number, row in enumerate(read_jsonl(path), 1):
        if not isinstance(row, dict) or not all(isinstance(row.get(name), str) for name in (prompt, response)):
            raise UserError(f"{path}: record {number} has no texts `{prompt}` and `{response}`")
        text = row[response].removesuffix(_END_OF_TEXT).strip()
        examples.append({"prompt": row[prompt].strip(), "response": text, "source": source})
    return examples


def _alpaca(path: Path, source: str) -> list[Example]:
    """Alpaca's records, whose input stands below the instruction."""
    with catalog.open_text(path) as file:
        rows = json.load(file)
    examples = []
    for number, row in enumerate(rows, 1):
        match row:
            case {"instruction": str(instruction), "input": str(given), "output": str(output)}:
                prompt = f"{instruction.strip()}\n\n{given.strip()}".strip()
                examples.append({"prompt": prompt, "response": output.strip(), "source": source})
            case _:
                raise UserError(f"{path}: record {number} has no texts instruction, input and output")
    return examples


def _usable(examples: Sequence[Example], seen: set[str], count: Counter[str]) -> list[Example]:
    kept = []
    for each in examples:
        reason = "empty" if not each["prompt"] or not each["response"] else ""
        reason = reason or ("prompt came before" if each["prompt"] in seen else "")
        if reason:
            count[reason] += 1
            continue
        seen.add(each["prompt"])
        kept.append(each)
    return kept


def _drawn(examples: list[Any], most: int, seed: int) -> list[Any]:
    if not most or most >= len(examples):
        return examples
    return [examples[place] for place in sorted(shuffled(len(examples), seed=seed, epoch=0)[:most])]


# ---- preferences


def preference_pairs(
    kind: str, config: PreferencesConfig, instructions: InstructionsConfig, *, seed: int
) -> tuple[list[Preference], list[Preference], Mapping[str, int]]:
    """Training and validation pairs of a kind, no instruction on both sides; and what was dropped for which reason.

    Raises:
        UserError: HH is not on this machine, and the sample may not stand for it.
    """
    if kind == VERIFIED:
        train, valid = verified_problems(config, instructions)
        rng = random.Random(f"pairs {seed}")
        made = [_verified(each, instructions.traces, rng) for each in [*train, *valid]]
        return made[: len(train)], made[len(train) :], {}
    pairs, dropped = _hh_pairs(config)
    pairs = _drawn(pairs, config.max_pairs, seed)
    num_valid = min(config.num_valid, len(pairs) // 3)
    return *split_preferences(pairs, num_valid, seed=seed), dropped


def verified_problems(
    config: PreferencesConfig, instructions: InstructionsConfig
) -> tuple[list[Problem], list[Problem]]:
    """Problems whose answers make pairs, to train on and to validate on; no instruction has them."""
    first = 3 * instructions.num_problems + 1_000  # behind all that those may have been drawn from
    train = generate_problems(instructions.problems, "train", config.num_problems, first=first)
    return train, generate_problems(instructions.problems, "valid", config.num_valid)


def _hh_pairs(config: PreferencesConfig) -> tuple[list[Preference], dict[str, int]]:
    if config.sample_if_absent and not all(catalog.find(name) for name in config.datasets):
        return [Preference(**row) for row in read_jsonl(PREFERENCES_SAMPLE)], {}
    return read_hh([path for name in config.datasets for path in catalog.require_files(name)])


def _verified(problem: Problem, traces: TraceConfig, rng: random.Random) -> Preference:
    """The right solution, and one with a slip; in the style "direct" another answer alone."""
    style, _ = draw_work(problem, traces)
    return Preference(
        instruction=gsm8k_instruction({"question": problem.question}),
        chosen=solution(problem.steps, style),
        rejected=solution(with_slip(problem.steps, rng), style),
        source=PROBLEMS,
    )


def read_preferences(path: Path) -> Iterator[Preference]:
    """Pairs as the graph keeps them: JSON Lines of `instruction`, `chosen`, `rejected` and `source`."""
    return (Preference(**row) for row in read_jsonl(path))
