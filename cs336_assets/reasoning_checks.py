"""What must hold of the runs of reasoning."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from cs336.files import read_json
from cs336.posttrain.runs import COUNTS_FILE, training_seconds
from cs336.train.metrics import METRICS_FILE, read_rows
from cs336_assets.asset import Metadata, check


@check(asset="sft_model")
def all_traces_fit(sft_model: list[Path]) -> tuple[bool, Metadata]:
    """No trace was too long for the model: the longest are the most careful ones, and would be missed."""
    left_out = {folder.name: read_json(folder / COUNTS_FILE)["num_left_out"] for folder in sft_model}
    return bool(left_out) and not any(left_out.values()), {"num_left_out": left_out}


@check(asset="sft_model", blocking=True)
def sft_stayed_finite(sft_model: list[Path]) -> tuple[bool, Metadata]:
    """No step had an infinite or undefined loss or gradient."""
    return _finite(sft_model)


@check(asset="grpo_model", blocking=True)
def grpo_stayed_finite(grpo_model: list[Path]) -> tuple[bool, Metadata]:
    """No step had an infinite or undefined loss or gradient."""
    return _finite(grpo_model)


@check(asset="expert_iteration_model")
def every_round_kept_some(expert_iteration_model: list[Path]) -> tuple[bool, Metadata]:
    """Each round found right answers to learn from."""
    rounds = {
        folder.name: [row["num_kept"] for row in read_rows(folder / METRICS_FILE) if row["step"]]
        for folder in expert_iteration_model
    }
    return bool(rounds) and all(kept and min(kept) > 0 for kept in rounds.values()), {"kept": rounds}


@check(asset="grpo_model")
def generator_and_trainer_agree(grpo_model: list[Path]) -> tuple[bool, Metadata]:
    """After each sync both give a rollout's tokens the same log-probabilities: 0.05 nats apart on average at most.

    A generator in bf16 beside a trainer in fp32 is some hundredths off for single tokens; a wrong weight, much more.
    """
    column = "mean_logprob_difference"
    worst = {
        folder.name: max(row[column] for row in read_rows(folder / METRICS_FILE) if column in row)
        for folder in grpo_model
    }
    return max(worst.values(), default=math.inf) <= 0.05, {"largest_mean_difference": worst}


@check(asset="longer_sft_model")
def it_had_as_much_time_as_grpo(longer_sft_model: list[Path], grpo_model: list[Path]) -> tuple[bool, Metadata]:
    """The second SFT arm trained for at least as long as the chain's GRPO."""
    ours, theirs = (training_seconds(folders[0]) for folders in (longer_sft_model, grpo_model))
    return ours >= theirs, {"longer_sft_seconds": ours, "grpo_seconds": theirs}


def _finite(folders: Sequence[Path]) -> tuple[bool, Metadata]:
    bad = {}
    for folder in folders:
        rows = [row for row in read_rows(folder / METRICS_FILE) if row["step"]]
        steps = [row["step"] for row in rows if not math.isfinite(row["train_loss"] + row["grad_norm"])]
        bad[folder.name] = "no step" if not rows else steps[:20]
    return bool(bad) and not any(bad.values()), {"bad_steps": bad}
