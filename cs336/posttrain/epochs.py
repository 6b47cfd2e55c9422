"""Training on a set of examples: passes over them, each in an order of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from cs336.posttrain.loop import Evaluate, Outcome, UpdateConfig, run_updates
from cs336.progress import Progress, silent
from cs336.tokens.packing import shuffled
from cs336.train.metrics import Report


class Objective(Protocol):
    """What a model is tuned for: its examples and its loss."""

    @property
    def num_examples(self) -> int:
        """Examples to train on."""

    @property
    def marks(self) -> Mapping[str, str]:
        """What tells these examples, and what else shapes the loss, from others."""

    @property
    def num_left_out(self) -> int:
        """Training examples that are too long for the model."""

    def add_gradients(self, model: nn.Module, places: Sequence[int]) -> Mapping[str, Tensor | float]:
        """Add the gradient of the mean loss of some examples.

        Returns:
            Columns of the step's row: `train_loss`, `num_tokens`, and others.
        """

    def validate(self, model: nn.Module) -> Mapping[str, float]:
        """Columns of a validation, such as `valid_loss`; called in evaluation mode and without gradients."""


def tune(
    model: nn.Module,
    objective: Objective,
    config: UpdateConfig,
    *,
    seed: int,
    folder: Path,
    tokenizer: Any = None,
    evaluate: Evaluate | None = None,
    report: Report = lambda row: None,
    progress: Progress = silent,
) -> Outcome:
    """Tune a model on examples, in place: `config.num_epochs` passes in batches; see `run_updates`.

    Each step's row also has `epoch` and `num_examples`.

    Raises:
        ValueError: no examples, or no such column as `config.best_by`.
        UserError: a checkpoint of another run.
        NotFinite: a loss or gradient is not finite: nothing of that step is saved.
    """
    if objective.num_examples < 1:
        raise ValueError("there are no examples to train on; give at least one")
    return run_updates(
        model,
        _Epochs(objective, config, seed),
        config,
        seed=seed,
        folder=folder,
        tokenizer=tokenizer,
        evaluate=evaluate,
        report=report,
        progress=progress,
    )


class _Epochs:
    def __init__(self, objective: Objective, config: UpdateConfig, seed: int) -> None:
        self._objective, self._batch_size = objective, config.batch_size
        self._steps_per_epoch = -(-objective.num_examples // config.batch_size)
        self._order = lru_cache(1)(lambda epoch: shuffled(objective.num_examples, seed=seed, epoch=epoch))
        self.num_steps = config.num_epochs * self._steps_per_epoch
        self.marks, self.num_left_out = objective.marks, objective.num_left_out

    def add_gradients(self, model: nn.Module, step: int) -> Mapping[str, Tensor | float]:
        epoch, number = divmod(step, self._steps_per_epoch)
        places = self._order(epoch)[number * self._batch_size : (number + 1) * self._batch_size]
        return {"epoch": epoch, "num_examples": len(places)} | dict(self._objective.add_gradients(model, places))

    def validate(self, model: nn.Module, step: int) -> Mapping[str, float]:
        return self._objective.validate(model)


def micro_batches(places: Sequence[int], lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """Examples of a batch in parts of at most `size`, those of like length together: less is padding."""
    ordered = sorted(places, key=lambda place: (-lengths[place], place))
    for start in range(0, len(ordered), size):
        yield ordered[start : start + size]
