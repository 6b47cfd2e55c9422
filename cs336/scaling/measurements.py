"""Measured losses as the fitters take them, and the files they come from."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cs336.files import UserError, read_json, read_jsonl
from cs336.scaling.accounting import num_tokens

KEYS = ("parameters", "compute_budget", "final_loss")  # of the handout's JSON


class CannotFit(ValueError):
    """These runs do not determine this law; the message says what is missing."""


class Measurements(NamedTuple):
    """Runs as arrays of one entry each.

    Attributes:
        parameters: N.
        compute: nominal FLOPs, C = 6 N D. Runs with the same number form one IsoFLOP profile.
        losses: final loss, in nats per token.
    """

    parameters: NDArray[np.float64]
    compute: NDArray[np.float64]
    losses: NDArray[np.float64]

    @property
    def tokens(self) -> NDArray[np.float64]:
        """D = C / (6 N)."""
        return num_tokens(self.compute, self.parameters)

    @property
    def budgets(self) -> NDArray[np.float64]:
        """Distinct budgets, ascending."""
        return np.unique(self.compute)

    def where(self, chosen: NDArray[np.bool_]) -> Measurements:
        """Only the chosen runs."""
        return Measurements(*(column[chosen] for column in self))


def measurements(parameters: Iterable[float], compute: Iterable[float], losses: Iterable[float]) -> Measurements:
    """Runs from any sequences of numbers, checked.

    Raises:
        ValueError: the lengths differ, there is no run, or a number is not above 0 and finite.
    """
    columns = [np.asarray(list(column), dtype=np.float64) for column in (parameters, compute, losses)]
    if len({len(column) for column in columns}) > 1 or not len(columns[0]):
        raise ValueError(f"need as many parameters as budgets and losses, got {[len(column) for column in columns]}")
    for name, column in zip(("parameters", "compute", "losses"), columns, strict=True):
        wrong = column[~(np.isfinite(column) & (column > 0))]
        if len(wrong):
            raise ValueError(f"{name} hold {wrong[0]}; leave out runs that diverged")
    return Measurements(*columns)


def best_of_equals(runs: Measurements) -> Measurements:
    """Of several runs of the same size and budget, such as learning rates tried, the one of lowest loss."""
    best: dict[tuple[float, float], int] = {}
    for place, (parameters, compute, loss) in enumerate(zip(*runs, strict=True)):
        key = (parameters, compute)
        if key not in best or loss < runs.losses[best[key]]:
            best[key] = place
    chosen = np.zeros(len(runs.losses), dtype=bool)
    chosen[list(best.values())] = True
    return runs.where(chosen)


def read_measurements(path: Path) -> Measurements:
    """Runs of a file: a JSON array of objects with the keys of the handout, or JSON Lines of such objects.

    Other keys are allowed and not read.

    Raises:
        UserError: the file is missing, is not of that form, or a run of it has no usable number; the line names the
            file, the run and the remedy.
    """
    rows = list(read_jsonl(path)) if {".jsonl"} & set(path.suffixes) else read_json(path)
    if not isinstance(rows, list) or not rows:
        raise UserError(f"{path}: holds no list of runs; give a JSON array of objects with {', '.join(KEYS)}")
    return Measurements(*np.array([_numbers(path, place, row) for place, row in enumerate(rows, 1)]).T)


def _numbers(path: Path, place: int, row: Any) -> list[float]:
    numbers = []
    for key in KEYS:
        value = row.get(key) if isinstance(row, dict) else None
        if value is None:
            raise UserError(f"{path}: run {place} has no {key}; each run needs {', '.join(KEYS)}")
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
            raise UserError(f"{path}: run {place} has {key} {value!r}; give a number above 0, or leave the run out")
        numbers.append(float(value))
    return numbers
