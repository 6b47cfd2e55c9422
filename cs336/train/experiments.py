"""What the handout varies: runs described apart from being run, and what their curves say (CS336, assignment 1)."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cs336.files import read_json, write_json
from cs336.model.transformer import ModelConfig
from cs336.train.loop import TrainConfig
from cs336.train.metrics import METRICS_FILE, read_rows

DIVERGED_FILE = "diverged.txt"
OUTCOME_FILE = "outcome.json"

_WARMUP_FRACTION = 0.05
_FINAL_RATE = 0.1  # of the highest
_NUM_EVALUATIONS = 20  # points of a validation curve
_SEQUENCES_PER_EVALUATION = 256
# A loss that ends so far above the lowest of its own curve, or rises so far above that of guessing, has diverged,
# though it is a number: nats.
_DIVERGED_NATS = 0.2

ABLATIONS: dict[str, dict[str, Any]] = {  # the baseline is RMSNorm before, RoPE, SwiGLU
    "baseline": {},
    "no-norm": {"norm": "none", "qk_norm": False},
    "post-norm": {"norm": "post"},
    "no-positions": {"positions": "none"},
    "silu": {"feed_forward": "silu", "d_ff": 0},  # 4 d_model wide, so parameters are equal
}


@dataclass(frozen=True, kw_only=True)
class ExperimentConfig:
    """The grids of a preset's experiments.

    Attributes:
        num_tokens: that each run trains on.
        learning_rates: of the sweep, rising until a run diverges.
        batch_sizes: besides the largest that fits into memory.
        batch_rate_factors: learning rates tried at each, in units of the best one times the square root
            of the ratio of batch sizes.
        small_batch_size: batches up to this one stop after `small_batch_seconds`.
        small_batch_seconds: of training, by the clock; runs beside them take some of it.
        small_batch_warmup_steps, small_batch_valid_interval: of these runs, whose number of steps nobody knows.
        max_batch_size: where the search for the largest batch ends.
        lower_rate_factors: rates of the model without norms, in units of the best one.
        num_seeds: repeats of each ablation.
        context_lengths, vocab_sizes: of the side studies.
    """

    num_tokens: int
    learning_rates: tuple[float, ...]
    batch_sizes: tuple[int, ...]
    batch_rate_factors: tuple[float, ...] = (0.5, 1.0, 2.0)
    small_batch_size: int = 8
    small_batch_seconds: float = 60.0
    small_batch_warmup_steps: int = 500
    small_batch_valid_interval: int = 2_500
    max_batch_size: int = 16_384
    lower_rate_factors: tuple[float, ...] = (0.3, 0.1, 0.03)
    num_seeds: int = 3
    context_lengths: tuple[int, ...] = ()
    vocab_sizes: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class SpeedrunConfig:
    """The best model for a given time: anything but the text and the clock is free.

    Attributes:
        model: with at most `max_parameters`.
        train: its `max_seconds` is the time.

    Raises:
        ValueError: no time limit.
    """

    model: ModelConfig
    train: TrainConfig
    max_parameters: int = 120_000_000

    def __post_init__(self) -> None:
        if not self.train.max_seconds:
            raise ValueError("a speedrun needs a time limit; set speedrun.train.max_seconds")


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training run of a study.

    Attributes:
        rate_factor: the learning rate is this times the best one of the sweep; 0 for the one in `train`.
        at_memory_limit: the batch is the largest that fits, instead of the one in `train`.
        num_tokens: that the run trains on.
    """

    model: ModelConfig
    train: TrainConfig
    num_tokens: int
    seed: int = 0
    rate_factor: float = 0.0
    at_memory_limit: bool = False

    @property
    def runs_alone(self) -> bool:
        """Whether it needs the device for itself: it fills the memory."""
        return self.at_memory_limit

    def resolved(self, *, best_rate: float, best_rate_batch_size: int, largest_batch_size: int) -> TrainConfig:
        """The settings to train with, once the studies that this one builds on have been made.

        The best rate is carried to another batch size by the square root of their ratio, as Adam's
        noise asks for (Malladi et al. 2022, arXiv:2205.10287).
        """
        train = self.train
        if self.at_memory_limit:
            train = within_budget(train, self.num_tokens, self.model.context_length, batch_size=largest_batch_size)
        if self.rate_factor:
            scale = math.sqrt(train.batch_size / best_rate_batch_size)
            train = at_rate(train, self.rate_factor * best_rate * scale)
        return train


def within_budget(train: TrainConfig, num_tokens: int, context_length: int, *, batch_size: int = 0) -> TrainConfig:
    """`train` with as many steps as `num_tokens` allow, and all that follows from their number.

    Args:
        batch_size: 0 for the one in `train`.
    """
    batch_size = batch_size or train.batch_size
    num_steps = max(1, num_tokens // (batch_size * context_length))
    parts_fit = train.micro_batch_size and batch_size % train.micro_batch_size == 0
    return replace(
        train,
        batch_size=batch_size,
        micro_batch_size=train.micro_batch_size if parts_fit else 0,
        num_steps=num_steps,
        warmup_steps=math.ceil(_WARMUP_FRACTION * num_steps),
        valid_interval=max(1, num_steps // _NUM_EVALUATIONS),
        valid_batches=max(1, _SEQUENCES_PER_EVALUATION // batch_size),
        checkpoint_interval=max(1, num_steps // 2),
        keep_checkpoints=1,
    )


def at_rate(train: TrainConfig, learning_rate: float) -> TrainConfig:
    """`train` with another highest learning rate, the lowest in proportion."""
    return replace(train, learning_rate=learning_rate, min_learning_rate=_FINAL_RATE * learning_rate)


def learning_rate_runs(model: ModelConfig, train: TrainConfig, config: ExperimentConfig) -> dict[str, Run]:
    """One run a rate (problem learning_rate)."""
    budgeted = within_budget(train, config.num_tokens, model.context_length)
    return {
        f"rate-{rate:g}": Run(model=model, train=at_rate(budgeted, rate), num_tokens=config.num_tokens)
        for rate in config.learning_rates
    }


def batch_size_runs(model: ModelConfig, train: TrainConfig, config: ExperimentConfig) -> dict[str, Run]:
    """Batches from 1 to the memory limit, the rate tuned again for each (problem batch_size_experiment)."""
    runs: dict[str, Run] = {}
    for size in (*config.batch_sizes, 0):
        small = 0 < size <= config.small_batch_size
        budgeted = within_budget(train, config.num_tokens, model.context_length, batch_size=size)
        if small:
            budgeted = replace(
                budgeted,
                max_seconds=config.small_batch_seconds,
                schedule_by_clock=True,
                warmup_steps=config.small_batch_warmup_steps,
                valid_interval=config.small_batch_valid_interval,
            )
        for factor in config.batch_rate_factors:
            runs[f"batch-{size or 'limit'}-rate-x{factor:g}"] = Run(
                model=model,
                train=budgeted,
                num_tokens=config.num_tokens,
                rate_factor=factor,
                at_memory_limit=size == 0,
            )
    return runs


def ablation_runs(model: ModelConfig, train: TrainConfig, config: ExperimentConfig) -> dict[str, Run]:
    """The baseline and what is left out of it, each with several seeds; without norms at lower rates too.

    The handout's problems layer_norm_ablation, pre_norm_ablation, no_pos_emb and swiglu_ablation.
    """
    budgeted = within_budget(train, config.num_tokens, model.context_length)
    variants = {(name, 1.0): changes for name, changes in ABLATIONS.items()}
    variants |= {("no-norm", factor): ABLATIONS["no-norm"] for factor in config.lower_rate_factors}
    return {
        f"{name}{f'-rate-x{factor:g}' if factor != 1 else ''}-seed-{seed}": Run(
            model=replace(model, **changes),
            train=budgeted,
            num_tokens=config.num_tokens,
            seed=seed,
            rate_factor=factor,
        )
        for (name, factor), changes in variants.items()
        for seed in range(config.num_seeds)
    }


def context_length_runs(model: ModelConfig, train: TrainConfig, config: ExperimentConfig) -> dict[str, Run]:
    """The same tokens a step in shorter and longer contexts."""
    tokens_per_step = train.batch_size * model.context_length
    runs = {}
    for length in config.context_lengths:
        size = max(1, tokens_per_step // length)
        runs[f"context-{length}"] = Run(
            model=replace(model, context_length=length),
            train=within_budget(train, config.num_tokens, length, batch_size=size),
            num_tokens=config.num_tokens,
            rate_factor=1.0,
        )
    return runs


def vocab_size_runs(model: ModelConfig, train: TrainConfig, config: ExperimentConfig) -> dict[str, Run]:
    """Other vocabularies; each run reads the token shards made with its own."""
    budgeted = within_budget(train, config.num_tokens, model.context_length)
    return {
        f"vocab-{size}": Run(model=model, train=budgeted, num_tokens=config.num_tokens, rate_factor=1.0)
        for size in config.vocab_sizes
    }


def write_outcome(folder: Path, model: ModelConfig, train: TrainConfig, *, seed: int) -> dict[str, Any]:
    """Sum up a finished or diverged run in `outcome.json`, from its curve; returns what was written.

    `diverged` is empty, or why the run counts as diverged: a loss or gradient that was no finite number
    (the file that says so is `DIVERGED_FILE`), a loss that ended above the lowest of its curve, or one that
    at any time was worse than guessing: clipped gradients and Adam keep numbers finite at any rate.
    """
    rows = list(read_rows(folder / METRICS_FILE))
    valid = [row["valid_loss"] for row in rows if "valid_loss" in row]
    diverged = (folder / DIVERGED_FILE).read_text(encoding="utf-8") if (folder / DIVERGED_FILE).exists() else ""
    guessing = math.log(model.vocab_size)
    if not diverged and valid and valid[-1] > min(valid) + _DIVERGED_NATS:
        diverged = f"the loss rose from {min(valid):.3f} to {valid[-1]:.3f}"
    elif not diverged and valid and max(valid) > guessing + _DIVERGED_NATS:
        diverged = f"the loss rose to {max(valid):.3f}; guessing costs {guessing:.3f}"
    last = rows[-1] if rows else {}
    outcome = {
        "learning_rate": train.learning_rate,
        "batch_size": train.batch_size,
        "context_length": model.context_length,
        "seed": seed,
        "num_steps": last.get("step", 0),
        "num_tokens": last.get("num_tokens", 0),
        "seconds": last.get("seconds", 0.0),
        "tokens_per_second": last.get("tokens_per_second", 0),
        "train_loss": last.get("train_loss"),
        "valid_loss": valid[-1] if valid and not (folder / DIVERGED_FILE).exists() else None,
        "diverged": diverged,
        "model": dataclasses.asdict(model),
        "train": dataclasses.asdict(train),
    }
    write_json(folder / OUTCOME_FILE, outcome)
    return outcome


def read_outcomes(folders: Iterable[Path]) -> dict[str, dict[str, Any]]:
    """What each run came to, by the name of its folder."""
    return {folder.name: read_json(folder / OUTCOME_FILE) for folder in folders}


def read_curves(folders: Iterable[Path]) -> dict[str, list[dict[str, Any]]]:
    """The rows of each run that have a validation loss, by the name of its folder."""
    return {folder.name: [row for row in read_rows(folder / METRICS_FILE) if "valid_loss" in row] for folder in folders}


def best_run(outcomes: dict[str, dict[str, Any]]) -> str:
    """Name of the run with the lowest validation loss among those that did not diverge.

    Raises:
        ValueError: all diverged.
    """
    sound = {name: each["valid_loss"] for name, each in outcomes.items() if not each["diverged"]}
    if not sound:
        raise ValueError("every run diverged; add lower learning_rates to the preset's experiments")
    return min(sound, key=lambda name: sound[name])


def mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation of some seeds; the latter is 0 for one."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def variant_of(name: str) -> str:
    """What a run shares with those of other seeds: its name without the seed."""
    return name.rpartition("-seed-")[0]
