"""What the rows of a run's `metrics.jsonl` say: how a column moved, and when an accuracy was reached."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from statistics import fmean
from typing import Any, NamedTuple

Rows = Sequence[Mapping[str, Any]]


class Moved(NamedTuple):
    """A column at the beginning and at the end of a run: the mean of its first and of its last quarter, at least one
    row each.
    """

    first: float
    last: float

    @property
    def change(self) -> float:
        return self.last - self.first


class Reached(NamedTuple):
    """When a validation was first as good: after how many rollout batches (of GRPO, else updates), and seconds."""

    steps: int
    seconds: float


def moved(rows: Rows, column: str) -> Moved | None:
    """How a column moved over the rows that have it; None where none has."""
    values = [row[column] for row in rows if row.get(column) is not None]
    if not values:
        return None
    quarter = max(1, len(values) // 4)
    return Moved(fmean(values[:quarter]), fmean(values[-quarter:]))


def mean_of(rows: Rows, column: str) -> float | None:
    """The mean of a column over the rows that have it; None where none has."""
    values = [row[column] for row in rows if row.get(column) is not None]
    return fmean(values) if values else None


def by_update(rows: Rows, column: str) -> list[float]:
    """A column's mean over all rollout batches, for the first update of a batch, the second, and so on.

    Empty where a row of GRPO has it not.
    """
    updates = [row for row in rows if "grpo_step" in row]
    if not updates or any(row.get(column) is None for row in updates):
        return []
    batches = [[row[column] for row in batch] for _, batch in groupby(updates, key=lambda row: row["grpo_step"])]
    longest = max(map(len, batches))
    return [fmean(batch[place] for batch in batches if place < len(batch)) for place in range(longest)]


def reached(rows: Rows, accuracy: float) -> Reached | None:
    """When a run's validation first had an accuracy; None if it never had."""
    for row in rows:
        if row.get("valid_accuracy", -1.0) >= accuracy:
            return Reached(row.get("grpo_step", row["step"]), row["seconds"])
    return None
