"""Instruction tuning on packed rows: plain language modelling of prompts and responses alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cs336.hardware import device_of
from cs336.model.logprobs import get_response_log_probs
from cs336.posttrain.epochs import tune
from cs336.posttrain.loop import Evaluate, Outcome, UpdateConfig
from cs336.posttrain.policy import autocast, longest_row
from cs336.progress import Progress, silent
from cs336.tokens.packing import PackedInstructions, stacked
from cs336.train.metrics import Report
from cs336.train.resume import mark_of


@dataclass(frozen=True, kw_only=True)
class InstructionSftConfig(UpdateConfig):
    """How a model is tuned on packed instructions; the defaults are the handout's.

    Attributes:
        seq_length: tokens in a row.
    """

    batch_size: int = 32
    micro_batch_size: int = 2  # what fits beside an 8 B model on 80 GB
    learning_rate: float = 2e-5
    schedule: str = "cosine"
    warmup_fraction: float = 0.03
    seq_length: int = 512


def train_instruction_sft(
    model: nn.Module,
    tokenizer: Any,
    train_path: Path,
    valid_path: Path,
    config: InstructionSftConfig,
    *,
    seed: int,
    folder: Path,
    evaluate: Evaluate | None = None,
    report: Report = lambda row: None,
    progress: Progress = silent,
) -> Outcome:
    """Tune a model on instructions and responses; see `run_updates` for the run, its files and its errors.

    Training documents are shuffled before they are joined, and rows in each epoch. `train_loss` and `valid_loss` are
    nats per token, prompts included.

    Args:
        train_path, valid_path: JSON Lines, gzipped or not, of `prompt` and `response`.

    Raises:
        ValueError: a row longer than the model's context, or too few tokens for one row.
        UserError: a file is missing, or a record of it lacks one of the two texts.
    """
    limit = longest_row(model)
    if limit is not None and config.seq_length >= limit:
        raise ValueError(f"seq_length {config.seq_length} exceeds the model's context of {limit - 1}; take less")
    train = PackedInstructions(tokenizer, train_path, config.seq_length, shuffle=True, seed=seed)
    valid = PackedInstructions(tokenizer, valid_path, config.seq_length, shuffle=False)
    for rows, path in ((train, train_path), (valid, valid_path)):
        if not len(rows):
            raise ValueError(f"{path}: {len(rows.tokens)} tokens do not fill a row of {config.seq_length}; give more")
    return tune(
        model,
        _PackedRows(model, train, valid, config),
        config,
        seed=seed,
        folder=folder,
        tokenizer=tokenizer,
        evaluate=evaluate,
        report=report,
        progress=progress,
    )


class _PackedRows:
    """Negative log-likelihood of every token of a row."""

    num_left_out = 0

    def __init__(
        self, model: nn.Module, train: PackedInstructions, valid: PackedInstructions, config: InstructionSftConfig
    ) -> None:
        self._train, self._valid, self._config, self._device = train, valid, config, device_of(model)
        self.num_examples = len(train)
        self.marks: Mapping[str, str] = {"train_tokens": mark_of(train.tokens), "valid_tokens": mark_of(valid.tokens)}

    def add_gradients(self, model: nn.Module, places: Sequence[int]) -> Mapping[str, Tensor | float]:
        losses = []
        for some in _parts(places, self._config.examples_at_once):
            loss = -self._log_probs(model, self._train, some).sum() / (len(places) * self._config.seq_length)
            loss.backward()
            losses.append(loss.detach())
        return {"train_loss": torch.stack(losses).sum(), "num_tokens": len(places) * self._config.seq_length}

    def validate(self, model: nn.Module) -> Mapping[str, float]:
        total = torch.zeros((), dtype=torch.float64)
        for some in _parts(range(len(self._valid)), self._config.examples_at_once):
            total -= self._log_probs(model, self._valid, some).sum().to("cpu", torch.float64)
        return {"valid_loss": total.item() / (len(self._valid) * self._config.seq_length)}

    def _log_probs(self, model: nn.Module, rows: PackedInstructions, places: Sequence[int]) -> Tensor:
        batch = {name: ids.to(self._device) for name, ids in stacked([rows[place] for place in places]).items()}
        with autocast(self._device, self._config.precision):
            return get_response_log_probs(model, batch["input_ids"], batch["labels"])["log_probs"]


def _parts(places: Sequence[int], size: int) -> list[Sequence[int]]:
    return [places[start : start + size] for start in range(0, len(places), size)]
