"""Instruction tuning and DPO (alignment supplement): data, pairs, and the models tuned on them."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from cs336.evals.answerer import open_answerer
from cs336.files import read_jsonl, write_json, write_jsonl
from cs336.generate.checkpoints import Checkpoint, load_checkpoint
from cs336.hardware import pick_device
from cs336.posttrain.dpo import DpoConfig, train_dpo
from cs336.posttrain.instruction_sft import InstructionSftConfig, train_instruction_sft
from cs336.posttrain.instructions import (
    INSTRUCTION_SETS,
    INSTRUCTIONS_SAMPLE,
    PREFERENCE_SETS,
    PREFERENCES_SAMPLE,
    VERIFIED,
    InstructionsConfig,
    PreferencesConfig,
    instruction_examples,
    preference_pairs,
    read_preferences,
    verified_problems,
)
from cs336.posttrain.loop import drop_checkpoints
from cs336.posttrain.preferences import Preference
from cs336.posttrain.sampled_pairs import sampled_pairs
from cs336.presets import Preset
from cs336.train.metrics import METRICS_FILE
from cs336_assets import chat_plots
from cs336_assets.asset import CONTENTS, WHOLE, Metadata, Step, asset, check
from cs336_assets.crawl import table

TRAIN_FILE, VALID_FILE, COUNTS_FILE = "train.jsonl", "valid.jsonl", "counts.json"
KEPT_FILE = "kept.json"  # the validation of the weights that DPO ended with


def _own_base(preset: Preset, part: str | None) -> str | None:
    """Our base model and its tokenizer are of no use where the preset tunes another checkpoint."""
    return None if preset.instructions.base else WHOLE


OWN_BASE = {"base_model": _own_base, "tokenizer": _own_base}


@asset(
    group="instruct",
    kinds={"python"},
    owner="team:models",
    datasets=INSTRUCTION_SETS,
    files=(INSTRUCTIONS_SAMPLE,),
    offers=CONTENTS,
)
def instruction_data(step: Step, instructions: InstructionsConfig, seed: int) -> Metadata:
    """Instructions with their responses, to train on and to validate on; no prompt is on both sides.

    The course's set is UltraChat-200K with SafetyTunedLlamas; smaller presets take T0, Alpaca and generated problems
    whose worked answers are verified.
    """
    train, valid, counts = instruction_examples(instructions, seed=seed)
    for name, examples in ((TRAIN_FILE, train), (VALID_FILE, valid)):
        write_jsonl(step.folder / name, examples)
    write_json(step.folder / COUNTS_FILE, counts)
    return {
        "num_train": len(train),
        "num_valid": len(valid),
        "sources": table(["source", "what", "examples"], _counted(counts)),
    }


@check(asset="instruction_data", blocking=True)
def no_instruction_is_on_both_sides(instruction_data: Path) -> tuple[bool, Metadata]:
    """Neither side is empty, and no prompt that is validated on is trained on."""
    train, valid = ({row["prompt"] for row in read_jsonl(instruction_data / name)} for name in (TRAIN_FILE, VALID_FILE))
    return bool(train and valid) and not train & valid, {
        "num_train": len(train),
        "num_valid": len(valid),
        "num_shared": len(train & valid),
    }


# ---- models, and the pairs between them


@asset(
    group="instruct",
    kinds={"pytorch"},
    owner="team:models",
    resumable=True,
    pool="gpu",
    takes=OWN_BASE,
)
def instruction_model(
    step: Step,
    instruction_data: Path,
    base_model: Path | None,
    tokenizer: Path | None,
    instructions: InstructionsConfig,
    instruction_sft: InstructionSftConfig,
    seed: int,
) -> Metadata:
    """The base model tuned on instructions: packed rows in the Alpaca form, plain language modelling of all of it.

    Kept are the weights of the lowest validation loss, with the tokenizer; a run that was killed goes on to the same.
    """
    base = open_base(step, base_model, tokenizer, instructions, dtype=getattr(torch, instructions.dtype))
    outcome = train_instruction_sft(
        base.model,
        base.tokenizer,
        instruction_data / TRAIN_FILE,
        instruction_data / VALID_FILE,
        instruction_sft,
        seed=seed,
        folder=step.folder,
        progress=step.progress,
    )
    drop_checkpoints(step.folder)
    rows = list(read_jsonl(step.folder / METRICS_FILE))
    chat_plots.instruction_curve(rows, step.folder / "curve.png")
    return {
        "num_rows": sum(row.get("num_examples", 0) for row in rows if row.get("epoch") == 0),
        "num_steps": outcome.last_step,
        "best_step": outcome.best_step,
        "valid_loss_before": rows[0]["valid_loss"],
        "valid_loss": outcome.best["valid_loss"],
        "seconds": rows[-1]["seconds"],
        "curve": {"image": "curve.png"},
    }


@check(asset="instruction_model", blocking=True)
def tuning_lowered_the_loss(instruction_model: Path) -> tuple[bool, Metadata]:
    """Every loss is finite, and the best validation is below the one before the first step."""
    rows = list(read_jsonl(instruction_model / METRICS_FILE))
    losses = [row["valid_loss"] for row in rows if "valid_loss" in row]
    finite = all(math.isfinite(row.get("train_loss", 0.0)) for row in rows)
    return finite and min(losses) < losses[0], {"before": losses[0], "best": min(losses)}


def _answering_model(preset: Preset, part: str | None) -> str | None:
    """Verified pairs may be drawn from the tuned model's answers; no others need a model."""
    return WHOLE if part == VERIFIED and preset.preferences.num_samples else None


@asset(
    group="instruct",
    kinds={"pytorch"},
    owner="team:models",
    cells=lambda preset: {kind: kind for kind in preset.preferences.kinds},
    datasets=PREFERENCE_SETS,
    files=(PREFERENCES_SAMPLE,),
    offers=CONTENTS,
    pool="gpu",
    takes={"instruction_model": _answering_model},
)
def preference_data(
    step: Step,
    instruction_model: Path | None,
    preferences: PreferencesConfig,
    instructions: InstructionsConfig,
    cell: str,
    seed: int,
) -> Metadata:
    """Pairs of responses, the better one known: people's choices (HH), or right before wrong solutions.

    Of HH, dialogues with more than one human message are dropped, as are those whose sides differ before the reply, or
    not at all.
    Solutions are written ones, or the tuned model's own answers, which are marked.
    """
    if instruction_model is None:
        train, valid, counts = preference_pairs(cell, preferences, instructions, seed=seed)
    else:
        train, valid, counts = _pairs_of_answers(step, instruction_model, preferences, instructions, seed=seed)
    for name, pairs in ((TRAIN_FILE, train), (VALID_FILE, valid)):
        write_jsonl(step.folder / name, [asdict(pair) for pair in pairs])
    write_json(step.folder / COUNTS_FILE, counts)
    return {
        "num_train": len(train),
        "num_valid": len(valid),
        "counted": table(["what", "number"], [[what, count] for what, count in counts.items()]),
    }


def _pairs_of_answers(
    step: Step, model: Path, preferences: PreferencesConfig, instructions: InstructionsConfig, *, seed: int
) -> tuple[list[Preference], list[Preference], dict[str, int]]:
    """Pairs to train and to validate on, and what was counted of the samples and problems of both."""
    checkpoint = load_checkpoint(model, device=pick_device(step.device))
    train, valid = verified_problems(preferences, instructions)
    with open_answerer(checkpoint) as answerer:
        made = [
            sampled_pairs(each, answerer.backend, preferences.num_samples, seed=seed, progress=step.progress)
            for each in (train, valid)
        ]
    (train_pairs, of_train), (valid_pairs, of_valid) = made
    named = (("training", of_train), ("validation", of_valid))
    counts = {f"{side}, {what}": count for side, of_side in named for what, count in of_side.items()}
    return train_pairs, valid_pairs, counts


@check(asset="preference_data", blocking=True)
def no_pair_is_on_both_sides(preference_data: list[Path]) -> tuple[bool, Metadata]:
    """Of no kind does an instruction stand on both sides, or a pair hold the same response twice."""
    faults = []
    for folder in preference_data:
        train, valid = (list(read_preferences(folder / name)) for name in (TRAIN_FILE, VALID_FILE))
        shared = {pair.instruction for pair in train} & {pair.instruction for pair in valid}
        alike = sum(pair.chosen == pair.rejected for pair in [*train, *valid])
        if shared or alike or not train or not valid:
            faults.append(f"{folder.name}: {len(shared)} instructions shared, {alike} pairs alike")
    return not faults, {"num_kinds": len(preference_data), "faults": faults}


@asset(
    group="instruct",
    kinds={"pytorch"},
    owner="team:models",
    cells=lambda preset: {kind: kind for kind in preset.preferences.kinds},
    resumable=True,
    pool="gpu",
)
def dpo_model(
    step: Step,
    instruction_model: Path,
    preference_data: Path,
    instructions: InstructionsConfig,
    dpo: DpoConfig,
    seed: int,
) -> Metadata:
    """The instruction-tuned model after DPO on one kind of pairs, against itself as it was.

    Policy and reference have a GPU each where there are two. Kept are the weights of the best validation, which the
    preset names, or the last.
    """
    policy = load_checkpoint(instruction_model, device=pick_device(step.device))
    reference = load_checkpoint(instruction_model, device=_second_device(step))
    train, valid = (list(read_preferences(preference_data / name)) for name in (TRAIN_FILE, VALID_FILE))
    outcome = train_dpo(
        policy.model,
        reference.model,
        policy.tokenizer,
        train,
        valid,
        dpo,
        seed=seed,
        folder=step.folder,
        progress=step.progress,
    )
    drop_checkpoints(step.folder)
    rows = list(read_jsonl(step.folder / METRICS_FILE))
    kept = outcome.best if dpo.keep == "best" else rows[-1]
    write_json(step.folder / KEPT_FILE, kept)
    chat_plots.preference_curves(rows, step.folder / "curves.png")
    return {
        "num_pairs": len(train) - outcome.num_left_out,
        "num_too_long": outcome.num_left_out,
        "num_steps": outcome.last_step,
        "best_step": outcome.best_step,
        "seconds": rows[-1]["seconds"],
        "validation": table(["", *_COLUMNS], [_validation(rows[0], "before"), _validation(kept, "kept")]),
        "curves": {"image": "curves.png"},
    }


@check(asset="dpo_model")
def pairs_were_learnt(dpo_model: list[Path]) -> tuple[bool, Metadata]:
    """Of each kind, the loss of the last quarter of steps is below ln 2, that of a policy equal to its reference."""
    losses = {}
    for folder in dpo_model:
        rows = [row["train_loss"] for row in read_jsonl(folder / METRICS_FILE) if "train_loss" in row]
        last = rows[3 * len(rows) // 4 :]
        losses[folder.name] = sum(last) / len(last)
    return all(loss < math.log(2) for loss in losses.values()), {"last_losses": losses}


def open_base(
    step: Step,
    base_model: Path | None,
    tokenizer: Path | None,
    instructions: InstructionsConfig,
    *,
    dtype: torch.dtype | None = None,
) -> Checkpoint:
    """The model that tuning starts from: our own, or the one that the preset names, in `dtype` or as it is stored."""
    device = pick_device(step.device)
    if instructions.base:
        return load_checkpoint(instructions.base, device=device, dtype=dtype, max_context=instructions.max_context)
    assert base_model is not None
    return load_checkpoint(base_model, tokenizer=tokenizer, device=device)


def _second_device(step: Step) -> torch.device:
    device = pick_device(step.device)
    if device.type == "cuda" and device.index in (None, 0) and torch.cuda.device_count() > 1:
        return torch.device("cuda:1")
    return device


_COLUMNS = ("loss", "accuracy", "implicit_accuracy", "margin", "chosen_reward", "rejected_reward")


def _validation(row: dict[str, Any], when: str) -> list[str]:
    # Before the first step the rewards are equal: neither is the greater.
    shown = [f"{row[f'valid_{name}']:.4g}" for name in _COLUMNS]
    return [
        when,
        *(
            "-" if name == "implicit_accuracy" and not row["step"] else text
            for name, text in zip(_COLUMNS, shown, strict=True)
        ),
    ]


def _counted(counts: dict[str, Any]) -> list[list[Any]]:
    return [[name, what, number] for name, of_source in counts.items() for what, number in of_source.items()]
