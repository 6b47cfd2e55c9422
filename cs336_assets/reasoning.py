"""Reasoning: problems with verified answers, and what learns to solve them: SFT, Expert Iteration, GRPO."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cs336.evals.competition_math import question_of
from cs336.hardware import pick_device
from cs336.model.accounting import count_parameters
from cs336.model.transformer import load_model
from cs336.posttrain.config import (
    ExpertIterationRun,
    GrpoRun,
    ReasoningConfig,
    SftRun,
    chain_cells,
    expert_iteration_runs,
    grpo_runs,
    longer_sft_runs,
    sft_runs,
)
from cs336.posttrain.policy import save_policy
from cs336.posttrain.problems import ProblemsConfig, make_problems, prompts_of
from cs336.posttrain.rollouts import ROLLOUTS_FOLDER
from cs336.posttrain.runs import (
    PARTS,
    Site,
    read_records,
    run_expert_iteration,
    run_grpo,
    run_sft,
    training_seconds,
    write_problems,
)
from cs336.posttrain.start import PolicyConfig, shape_of, tokenizer_of, write_start
from cs336.presets import Preset
from cs336.tokenizer.bpe import Tokenizer
from cs336.tokens.codec import encode_prompts, is_huggingface
from cs336.train.metrics import METRICS_FILE, read_rows
from cs336_assets import reasoning_plots
from cs336_assets.asset import WHOLE, Metadata, Step, Takes, asset, check
from cs336_assets.crawl import table
from cs336_assets.extract import preview

SPLITS = ("train", "valid", "test")
_NUM_SHOWN = 4  # problems, traces and rollouts that metadata shows


# ---- problems


@asset(group="reasoning", kinds={"python"}, owner="team:posttrain", datasets=("gsm8k", "math", "math-sft"))
def reasoning_problems(step: Step, problems: ProblemsConfig, seed: int) -> Metadata:
    """Problems to be rewarded for, held-out ones for curves and for final scores, and worked traces for SFT.

    Made by a generator, with answers that were worked out twice, or read from GSM8K, MATH or files of one's own. What
    is held out stands in no other part.
    """
    made = make_problems(problems, seed=seed)
    write_problems(made, step.folder)
    levels = sorted({str(each["level"]) for each in made.test if "level" in each})
    by_level = [
        [level, *(sum(str(each.get("level")) == level for each in getattr(made, split)) for split in SPLITS)]
        for level in levels
    ]
    traces = "\n\n".join(preview(each["prompt"] + each["response"], 1_200) for each in made.traces[:_NUM_SHOWN])
    return {
        "task": problems.task,
        "parts": table(["part", "records"], [[name, len(getattr(made, name))] for name in PARTS]),
        "levels": table(["level", *SPLITS], by_level),
        "questions": table(["question", "answer"], [[each["question"], each["answer"]] for each in made.train[:8]]),
        "traces": {"markdown": traces or "none"},
    }


@check(asset="reasoning_problems", blocking=True)
def no_held_out_problem_is_trained_on(reasoning_problems: Path, problems: ProblemsConfig) -> tuple[bool, Metadata]:
    """No question of validation or test is asked in training or worked in a trace; nor, of generated problems, is any
    of them one of training in other words, with the same calculations.
    """
    train, traces = (read_records(reasoning_problems, part) for part in ("train", "traces"))
    held_out = [each for split in SPLITS[1:] for each in read_records(reasoning_problems, split)]
    traced = {question_of(each["prompt"], template=problems.template) for each in traces}
    seen = traced | {each["question"] for each in train}
    leaks = [each["question"] for each in held_out if each["question"] in seen]
    known = {_calculations(each["solution"]) for each in train if "solution" in each}
    in_other_words = [each["question"] for each in held_out if _calculations(each.get("solution", "")) in known]
    facts = {"num_held_out": len(held_out), "leaks": leaks[:5], "in_other_words": in_other_words[:5]}
    return bool(held_out) and not leaks and not in_other_words, facts


@check(asset="reasoning_problems")
def rewards_are_for_new_problems(reasoning_problems: Path, problems: ProblemsConfig) -> tuple[bool, Metadata]:
    """No problem that is rewarded has a trace: what RL teaches was not learnt by heart in SFT.

    Of files, whose few problems serve both, this only says how many do.
    """
    traces = read_records(reasoning_problems, "traces")
    traced = {question_of(each["prompt"], template=problems.template) for each in traces}
    shared = sum(each["question"] in traced for each in read_records(reasoning_problems, "train"))
    return problems.task != "generated" or not shared, {"num_shared": shared}


def _calculations(solution: str) -> tuple[str, ...]:
    """What a written solution calculates, whatever the order of what is added or multiplied."""
    parts = []
    for left, operator, right in re.findall(r"<<(\d+)([-+*/])(\d+)=", solution):
        first, second = sorted((left, right)) if operator in "+*" else (left, right)
        parts.append(f"{first}{operator}{second}")
    return tuple(parts)


# ---- where it starts


def _own_model(preset: Preset, part: str | None) -> str | None:
    return None if preset.policy.start else WHOLE


@asset(
    group="reasoning",
    kinds={"pytorch"},
    owner="team:posttrain",
    takes={"base_model": _own_model, "tokenizer": _own_model},
)
def start_policy(step: Step, base_model: Path | None, tokenizer: Path | None, policy: PolicyConfig) -> Metadata:
    """The policy before post-training: this preset's own base model, or an imported checkpoint.

    Model and tokenizer in one folder; of a checkpoint only a note of which it is.
    """
    if base_model and tokenizer:
        save_policy(load_model(base_model), Tokenizer.load(tokenizer), step.folder)
    else:
        write_start(step.folder, policy)
    shape = shape_of(step.folder, policy)
    return {
        "start": policy.start or "the preset's own base model",
        "num_parameters": count_parameters(shape).total,
        "context_length": shape.context_length,
        "dtype": policy.dtype,
    }


@check(asset="start_policy", blocking=True)
def questions_leave_room_to_think(
    start_policy: Path,
    reasoning_problems: Path,
    policy: PolicyConfig,
    problems: ProblemsConfig,
    reasoning: ReasoningConfig,
) -> tuple[bool, Metadata]:
    """The longest prompt of validation leaves the context room for the longest response; all come back from tokens."""
    tokenizer, context_length = tokenizer_of(start_policy), shape_of(start_policy, policy).context_length
    prompts = prompts_of(read_records(reasoning_problems, "valid"), problems.template)
    encoded = list(encode_prompts(tokenizer, prompts))
    broken = []
    if not is_huggingface(tokenizer):  # some of theirs tidy up the blanks of what they decode
        broken = [prompt for prompt, ids in zip(prompts, encoded, strict=True) if tokenizer.decode(ids) != prompt]
    longest, response = max(map(len, encoded)), reasoning.grpo.sampling_max_tokens
    facts = {"longest_prompt": longest, "longest_response": response, "context_length": context_length}
    return not broken and longest + response <= context_length, facts | {"broken": broken[:3]}


# ---- training


def _trained(cells: Any, takes: Mapping[str, Takes] | None = None) -> Any:
    """Declare runs as cells of one asset, which go on where they were stopped."""
    return asset(
        group="reasoning",
        kinds={"pytorch"},
        owner="team:posttrain",
        cells=lambda preset: cells(preset.reasoning, preset.problems),
        resumable=True,
        pool="gpu",
        takes=takes,
    )


def of_chain(asset: str) -> Takes:
    """The chain's cell of an asset, for every part; of several, the last."""

    def takes(preset: Preset, part: str | None) -> str | None:
        cells = chain_cells(preset.reasoning, preset.problems)[asset]
        return cells[-1] if cells else None

    return takes


def _where(setting: str, stage: str) -> Takes:
    """The chain's cell of a stage (WHOLE of the start policy) where the preset starts from it."""

    def takes(preset: Preset, part: str | None) -> str | None:
        if getattr(preset.reasoning, setting) != stage:
            return None
        return of_chain(f"{stage}_model")(preset, part) if stage else WHOLE

    return takes


@_trained(sft_runs)
def sft_model(
    step: Step, start_policy: Path, reasoning_problems: Path, policy: PolicyConfig, seed: int, cell: SftRun
) -> Metadata:
    """SFT on worked traces: all of them, fewer, or only those with the right answer; kept at its best validation.

    Every validation also samples an answer to each held-out problem.
    """
    outcome, counts = run_sft(cell, _site(step, start_policy, reasoning_problems, policy, seed))
    return counts | {"best_step": outcome.best_step, "ended_by": outcome.ended_by} | _run_shown(step)


@_trained(
    expert_iteration_runs,
    takes={
        "start_policy": _where("expert_iteration_from", ""),
        "sft_model": _where("expert_iteration_from", "sft"),
    },
)
def expert_iteration_model(
    step: Step,
    start_policy: Path | None,
    sft_model: Path | None,
    reasoning_problems: Path,
    policy: PolicyConfig,
    seed: int,
    cell: ExpertIterationRun,
) -> Metadata:
    """Expert Iteration: sample answers, keep the right ones, fine-tune on them, and again from there."""
    start = start_policy or sft_model
    assert start is not None
    rows = run_expert_iteration(cell, _site(step, start, reasoning_problems, policy, seed))
    shown = ("step", "num_sampled", "num_kept", "num_solved", "valid_accuracy", "token_entropy", "mean_length")
    rounds = [[_number(row.get(name)) for name in shown] for row in rows]
    return {"rounds": table(list(shown), rounds)} | _run_shown(step)


@_trained(
    grpo_runs,
    takes={
        "start_policy": _where("grpo_from", ""),
        "sft_model": _where("grpo_from", "sft"),
        "expert_iteration_model": _where("grpo_from", "expert_iteration"),
    },
)
def grpo_model(
    step: Step,
    start_policy: Path | None,
    sft_model: Path | None,
    expert_iteration_model: Path | None,
    reasoning_problems: Path,
    policy: PolicyConfig,
    seed: int,
    cell: GrpoRun,
) -> Metadata:
    """GRPO on verified rewards, and its variants: each answer is compared with others to the same question."""
    start = start_policy or sft_model or expert_iteration_model
    assert start is not None
    outcome = run_grpo(cell, _site(step, start, reasoning_problems, policy, seed))
    return {"best_step": outcome.best_step, "ended_by": outcome.ended_by} | _run_shown(step)


@_trained(
    longer_sft_runs,
    takes={
        "sft_model": of_chain("sft_model"),
        "expert_iteration_model": _where("grpo_from", "expert_iteration"),
        "grpo_model": of_chain("grpo_model"),
    },
)
def longer_sft_model(
    step: Step,
    sft_model: Path,
    expert_iteration_model: Path | None,
    grpo_model: Path,
    reasoning_problems: Path,
    policy: PolicyConfig,
    seed: int,
    cell: SftRun,
) -> Metadata:
    """What more SFT gives in GRPO's time: from the chain's SFT on, for as long by the clock as its GRPO took.

    With it counts the Expert Iteration that GRPO started from.
    """
    seconds = sum(map(training_seconds, filter(None, (expert_iteration_model, grpo_model))))
    site = _site(step, sft_model, reasoning_problems, policy, seed)
    outcome, counts = run_sft(cell, site, max_seconds=seconds)
    return counts | {"allowed_seconds": seconds, "best_step": outcome.best_step} | _run_shown(step)


def _site(step: Step, start: Path, problems: Path, policy: PolicyConfig, seed: int) -> Site:
    def report(row: dict[str, Any]) -> None:
        if step.context is not None and "valid_accuracy" in row:
            step.context.log.info(f"step {row['step']:,}: {row['valid_accuracy']:.1%} of held-out problems")

    return Site(
        start=start,
        problems=problems,
        folder=step.folder,
        policy=policy,
        seed=seed,
        device=pick_device(step.device),
        num_workers=step.num_workers,
        report=report,
        progress=step.progress,
    )


def _run_shown(step: Step) -> Metadata:
    """What the UI shows of any run: its validations first and best, its time, its curves, and what it wrote last."""
    rows = list(read_rows(step.folder / METRICS_FILE))
    valid = [row["valid_accuracy"] for row in rows if "valid_accuracy" in row]
    columns = ("valid_accuracy", "valid_loss", "reward", "token_entropy", "mean_length", "grad_norm", "clip_fraction")
    reasoning_plots.run_panels({"": rows}, columns, step.folder / "curves.png")
    last = sorted((step.folder / ROLLOUTS_FOLDER).glob("step-*.jsonl"))[-1:]
    responses = [each for path in last for each in read_records(path.parent, path.stem)][:_NUM_SHOWN]
    return {
        "valid_accuracy_at_start": valid[0],
        "best_valid_accuracy": max(valid),
        "training_seconds": rows[-1]["seconds"],
        "num_steps": rows[-1]["step"],
        "curves": {"image": "curves.png"},
        "rollouts": rollouts_table(responses),
    }


def rollouts_table(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Sampled responses to be read, with their rewards."""
    read = [
        [each["prompt"][-200:], each["response"][:600], each["ground_truth"], each["format_reward"], each["reward"]]
        for each in rows
    ]
    return table(["prompt", "response", "right answer", "format", "reward"], read)


def _number(value: Any) -> Any:
    return "-" if value is None else round(value, 4) if isinstance(value, float) else value
