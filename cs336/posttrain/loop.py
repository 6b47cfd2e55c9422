"""The loop of post-training: updates by any loss, validated, kept at their best, and resumable after a kill."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from cs336.hardware import device_of, peak_bytes
from cs336.model.transformer import TransformerLM
from cs336.posttrain.policy import mark_of_weights, save_policy, use_gpu_kernels
from cs336.progress import Progress, silent
from cs336.train.checkpoint import (
    CheckpointWriter,
    checkpoint_path,
    checkpoint_paths,
    copy_on_cpu,
    read_checkpoint,
    restore,
    restore_rng,
    rng_state,
)
from cs336.train.loop import NotFinite, compute_deterministically
from cs336.train.metrics import METRICS_FILE, Clock, Report, drop_rows_after
from cs336.train.optimizer import AdamW, clip_gradients
from cs336.train.resume import CHECKPOINTS_FOLDER, check_identity
from cs336.train.schedule import lr_cosine

# A model, in evaluation mode, and steps done -> columns of the validation's row, such as {"valid_accuracy": 0.3}
Evaluate = Callable[[nn.Module, int], Mapping[str, float]]


@dataclass(frozen=True, kw_only=True)
class UpdateConfig:
    """How weights are updated and which are kept, whatever the loss.

    Attributes:
        batch_size: examples in an optimizer step; an epoch's last may have fewer.
        micro_batch_size: examples in a forward pass, whose gradients are added up; 0 takes the batch as a whole.
        num_epochs: passes over the examples, each in an order of its own.
        learning_rate: the highest.
        schedule: "constant", or "cosine", down to 0 at the end.
        warmup_fraction: of the steps, in which the rate rises linearly from 0.
        optimizer: "adamw", or "rmsprop", which keeps one number a weight less.
        betas, weight_decay: of AdamW; decay acts on matrices alone.
        max_grad_norm: global l2 norm above which gradients are scaled down.
        precision: "float32" computes in the weights' own type, "bfloat16" matrix products under autocast.
        valid_interval: steps between two validations, after each of which a checkpoint is written; there is one
            before the first step and one after the last, too.
        best_by: the column of the validation by which a checkpoint is the best; of equal ones the first.
        best_is: "lowest" or "highest".
        keep: "best" or "last", the weights that the run ends with.
        patience: validations in a row that may be no better than the best before the run ends; 0 for no end.
        max_seconds: of wall time, validations included, after which no step begins; 0 for no limit.
    """

    batch_size: int
    learning_rate: float
    micro_batch_size: int = 0
    num_epochs: int = 1
    schedule: str = "constant"
    warmup_fraction: float = 0.0
    optimizer: str = "adamw"
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    precision: str = "float32"
    valid_interval: int = 50
    best_by: str = "valid_loss"
    best_is: str = "lowest"
    keep: str = "best"
    patience: int = 0
    max_seconds: float = 0.0

    def __post_init__(self) -> None:
        for name, choices in (
            ("schedule", ("constant", "cosine")),
            ("optimizer", ("adamw", "rmsprop")),
            ("precision", ("float32", "bfloat16")),
            ("best_is", ("lowest", "highest")),
            ("keep", ("best", "last")),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is {' or '.join(choices)}, got {getattr(self, name)!r}")
        for name in ("batch_size", "num_epochs", "valid_interval"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("learning_rate", "micro_batch_size", "weight_decay", "patience", "max_seconds"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if not 0 <= self.warmup_fraction < 1:
            raise ValueError(f"warmup_fraction lies in [0, 1), got {self.warmup_fraction}")

    @property
    def examples_at_once(self) -> int:
        """Examples in a forward pass."""
        return min(self.micro_batch_size or self.batch_size, self.batch_size)

    def learning_rate_at(self, step: int, num_steps: int) -> float:
        """The learning rate of a step, counted from 1, of so many."""
        warmup_steps = round(self.warmup_fraction * num_steps)
        if self.schedule == "cosine":  # 0 would be reached a step after the last, which else would change nothing
            return lr_cosine(step, self.learning_rate, 0.0, warmup_steps, num_steps + 1)
        return self.learning_rate * min(1.0, step / max(1, warmup_steps))


class Updates(Protocol):
    """What a model is trained by, step for step: `cs336.posttrain.epochs` over examples, or GRPO on its rollouts."""

    @property
    def num_steps(self) -> int:
        """Optimizer steps in all."""

    @property
    def marks(self) -> Mapping[str, str]:
        """What tells this data, and what else shapes the loss, from others."""

    @property
    def num_left_out(self) -> int:
        """Training examples that are too long for the model."""

    def add_gradients(self, model: nn.Module, step: int) -> Mapping[str, Tensor | float]:
        """Add the gradient of a step, counted from 0; a step that is made again after a kill must be the same.

        Returns:
            Columns of the step's row: `train_loss`, `num_tokens`, and others.
        """

    def validate(self, model: nn.Module, step: int) -> Mapping[str, float]:
        """Columns of a validation after so many steps; called in evaluation mode and without gradients."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        best_step: the step after which the validation was best; 0 is before the first.
        best: its row of `metrics.jsonl`.
        last_step: steps done.
        ended_by: "steps" (all were done), "patience" or "time".
        num_left_out: training examples that were too long for the model.
    """

    best_step: int
    best: dict[str, Any]
    last_step: int
    ended_by: str
    num_left_out: int


def run_updates(
    model: nn.Module,
    updates: Updates,
    config: UpdateConfig,
    *,
    seed: int,
    folder: Path,
    tokenizer: Any = None,
    evaluate: Evaluate | None = None,
    report: Report = lambda row: None,
    progress: Progress = silent,
) -> Outcome:
    """Train a model in place; `folder` gets `metrics.jsonl`, `checkpoints/`, and model and tokenizer at the end.

    What a step does is a function of seed, step and weights alone, and a checkpoint holds the random streams, so a
    run that was killed and is started again with the same model and arguments ends with the same weights and curve as
    one that was not (where no time limit ends it).

    Args:
        model: ours or transformers', as it was before the first step, also when the run goes on.
        tokenizer: written beside the model; None for none.
        evaluate: adds columns to each validation, such as an accuracy; draws its random numbers as it likes.
        report: called with every row.

    Returns:
        Which step was the best; the model holds the weights of `config.keep`, in evaluation mode.

    Raises:
        ValueError: no such column as `config.best_by`.
        UserError: a checkpoint of another run.
        NotFinite: a loss or gradient is not finite: nothing of that step is saved.
    """
    writer = CheckpointWriter(folder / CHECKPOINTS_FOLDER, keep=1)
    run = _Run(model, updates, config, writer, seed=seed, folder=folder, evaluate=evaluate, report=report)
    run.resume()
    with contextlib.closing(run), writer:
        if run.state.row is None:
            run.validate_and_save({"step": 0}, ended_by="")
        start = run.state.done
        steps = range(start, start if run.state.ended_by else updates.num_steps)
        for step in progress(steps, unit="steps", label=f"tune, from step {start:,}" if start else "tune"):
            writer.raise_failure()
            row = run.step(step)
            done = step + 1
            ended_by = "steps" if done == updates.num_steps else run.out_of_time()
            if ended_by or done % config.valid_interval == 0:
                run.validate_and_save(row, ended_by)
            else:
                run.write(row)
            if run.state.ended_by:
                break
    run.take_kept_weights()
    save_policy(model, tokenizer, folder)
    best = run.state.best
    assert best is not None
    return Outcome(best["step"], best, run.state.done, run.state.ended_by, updates.num_left_out)


def drop_checkpoints(folder: Path) -> None:
    """Delete the checkpoints of a finished run, which are large; all at once, as some alone would be of no use."""
    checkpoints, gone = folder / CHECKPOINTS_FOLDER, folder / f".{CHECKPOINTS_FOLDER}.gone"
    shutil.rmtree(gone, ignore_errors=True)
    if checkpoints.exists():
        checkpoints.replace(gone)
        shutil.rmtree(gone)


@dataclass
class _State:
    """Where a run stands, beside its weights; what a checkpoint says of it.

    Attributes:
        row: of the last validation, and `best` of the best one.
        num_worse: validations since then.
        ended_by: as of `Outcome`; empty while the run goes on.
    """

    done: int = 0
    row: dict[str, Any] | None = None
    best: dict[str, Any] | None = None
    num_worse: int = 0
    ended_by: str = ""


class _Run:
    def __init__(
        self,
        model: nn.Module,
        updates: Updates,
        config: UpdateConfig,
        writer: CheckpointWriter,
        *,
        seed: int,
        folder: Path,
        evaluate: Evaluate | None,
        report: Report,
    ) -> None:
        self._model, self._updates, self._config, self._writer = model, updates, config, writer
        self._seed, self._folder, self._evaluate, self._report = seed, folder, evaluate, report
        self._device = device_of(model)
        compute_deterministically(self._device)
        if not isinstance(model, TransformerLM):  # what has no deterministic form there must not end the run
            torch.use_deterministic_algorithms(True, warn_only=True)
        use_gpu_kernels(model)
        torch.manual_seed(seed)
        model.train()
        self._optimizer = _optimizer(model, config)
        self.state = _State()

    def resume(self) -> None:
        """Go back to the last checkpoint, if there is one: weights, optimizer, random streams, metrics."""
        self._identity = {
            "config": json.loads(json.dumps(asdict(self._config))),
            "seed": self._seed,
            "data": {**self._updates.marks, "initial_weights": mark_of_weights(self._model)},
        }
        checkpoints = self._folder / CHECKPOINTS_FOLDER
        checkpoints.mkdir(parents=True, exist_ok=True)
        for partial in [*self._folder.glob(".*.partial"), *checkpoints.glob(".*.partial")]:  # of a killed write
            partial.unlink()
        if paths := checkpoint_paths(checkpoints):
            state = read_checkpoint(paths[-1])
            check_identity(paths[-1], state, self._identity)
            restore(state, self._model, self._optimizer)
            restore_rng(state["rng"], self._device)
            self.state = _State(**state["state"])
        rows = drop_rows_after(self._folder / METRICS_FILE, self.state.done if paths else -1)
        self._clock = Clock(rows[-1]["seconds"] if rows else 0.0)
        self._log = (self._folder / METRICS_FILE).open("a", encoding="utf-8", buffering=1)

    def close(self) -> None:
        self._log.close()

    def step(self, step: int) -> dict[str, Any]:
        """Update the weights; returns the step's row."""
        learning_rate = self._config.learning_rate_at(step + 1, self._updates.num_steps)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        before = self._clock.seconds()
        self._optimizer.zero_grad(set_to_none=True)
        measured = dict(self._updates.add_gradients(self._model, step))
        measured["grad_norm"] = clip_gradients(self._model.parameters(), self._config.max_grad_norm)
        self._optimizer.step()
        columns = {name: value.item() if isinstance(value, Tensor) else value for name, value in measured.items()}
        seconds = self._clock.seconds()
        row = {"step": step + 1, "learning_rate": learning_rate} | columns
        row |= {
            "tokens_per_second": round(row["num_tokens"] / max(seconds - before, 1e-9)),
            "step_seconds": round(seconds - before, 4),
            "peak_bytes": peak_bytes(),
        }
        for name in ("train_loss", "grad_norm"):
            if not math.isfinite(row[name]):
                raise self._not_finite(f"{name} became {row[name]}", step + 1)
        return row

    def validate_and_save(self, row: dict[str, Any], ended_by: str) -> None:
        """Complete a step's row by a validation, and write it and a checkpoint."""
        config, state = self._config, self.state
        row |= self._validate(row["step"])
        if config.best_by not in row:
            raise ValueError(f"best_by is {config.best_by!r}, but a validation has {', '.join(row)} alone")
        sign = -1 if config.best_is == "lowest" else 1
        if not math.isfinite(row[config.best_by]):
            raise self._not_finite(f"{config.best_by} became {row[config.best_by]}", row["step"])
        better = state.best is None or sign * row[config.best_by] > sign * state.best[config.best_by]
        num_worse = 0 if better else state.num_worse + 1
        if not ended_by and config.patience and num_worse >= config.patience:
            ended_by = "patience"
        ended_by = ended_by or (self.out_of_time() if row["step"] else "")
        self.write(row)
        self.state = _State(row["step"], row, row if better else state.best, num_worse, ended_by)
        self._log.flush()
        os.fsync(self._log.fileno())
        weights = {"model": self._model.state_dict(), "optimizer": self._optimizer.state_dict()}
        extras = {"iteration": row["step"], "rng": rng_state(self._device), "state": vars(self.state)}
        best_step = self._best_step()
        self._writer.wait()  # the copy before this one must be gone from memory
        self._writer.write(copy_on_cpu(weights) | extras | self._identity, row["step"], protected=(best_step,))

    def write(self, row: dict[str, Any]) -> None:
        """Write a row, and tell who listens."""
        row["seconds"] = round(self._clock.seconds(), 3)
        self._log.write(json.dumps(row) + "\n")
        self._report(row)

    def out_of_time(self) -> str:
        """Why the run ends now, if it does."""
        limit = self._config.max_seconds
        return "time" if limit and self._clock.seconds() >= limit else ""

    def take_kept_weights(self) -> None:
        """Leave the weights that the run ends with in the model."""
        if self._config.keep == "best" and self._best_step() != self.state.done:
            path = checkpoint_path(self._folder / CHECKPOINTS_FOLDER, self._best_step())
            self._model.load_state_dict(read_checkpoint(path, mapped=True)["model"])
        self._model.eval()

    def _best_step(self) -> int:
        assert self.state.best is not None
        return self.state.best["step"]

    def _validate(self, step: int) -> dict[str, float]:
        streams = rng_state(self._device)
        self._model.eval()
        with torch.no_grad():
            columns = dict(self._updates.validate(self._model, step))
            if self._evaluate is not None:
                columns |= {name: float(value) for name, value in self._evaluate(self._model, step).items()}
        self._model.train()
        restore_rng(streams, self._device)
        return columns

    def _not_finite(self, event: str, step: int) -> NotFinite:
        self._writer.settle()
        good = checkpoint_paths(self._folder / CHECKPOINTS_FOLDER)
        kept = f"the last good checkpoint is {good[-1]}" if good else "there is no checkpoint yet"
        line = f"{self._folder / METRICS_FILE}: the {event} at step {step}; {kept}"
        return NotFinite(f"{line}; lower learning_rate, or look at the examples", f"the {event} at step {step}")


def _optimizer(model: nn.Module, config: UpdateConfig) -> torch.optim.Optimizer:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if config.optimizer == "rmsprop":
        return torch.optim.RMSprop(trained, lr=config.learning_rate)
    groups = [
        {"params": [each for each in trained if each.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [each for each in trained if each.ndim < 2], "weight_decay": 0.0},
    ]
    return AdamW([group for group in groups if group["params"]], lr=config.learning_rate, betas=config.betas)
