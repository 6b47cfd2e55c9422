"""Scores of a preset over its seeds: how far runs that differ in nothing else lie apart."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import TypedDict

from cs336.evals.report import METRIC_NAMES, ScoreRow, format_score, lined_up

_SEED = re.compile(r"_seed_(\d+)$")  # as `cs336.preset_lookup.find_preset` names a preset with another seed
_COLUMNS = (
    "preset",
    "model",
    "task",
    "set",
    "metric",
    "mean",
    "std over seeds",
    "lowest",
    "highest",
    "seeds",
    "measured",
)
_RIGHT_ALIGNED = ("mean", "std over seeds", "lowest", "highest", "seeds")


class SeedsRow(TypedDict):
    """One number of one model, over the seeds it was made with.

    Attributes:
        preset: without a seed in its name.
        model, task, set_name, metric: as of `ScoreRow`.
        mean, lowest, highest: over seeds; shares from 0 to 1, not percent.
        spread: standard deviation over seeds (n - 1); None of one seed.
        num_seeds: as many scores.
        measured: where: "here", or the machines of runs made elsewhere.
    """

    preset: str
    model: str
    task: str
    set_name: str
    metric: str
    mean: float
    spread: float | None
    lowest: float
    highest: float
    num_seeds: int
    measured: str


def without_seed(preset: str) -> str:
    """The preset that NAME_seed_2 is with another seed."""
    return _SEED.sub("", preset)


def seed_in(preset: str) -> int | None:
    """The seed in a preset's name; None where there is none, and it is the preset's own."""
    found = _SEED.search(preset)
    return int(found[1]) if found else None


def spread_of(values: Sequence[float]) -> float | None:
    """Standard deviation over seeds; None of one, which has none."""
    return statistics.stdev(values) if len(values) > 1 else None


def over_seeds(rows: Iterable[ScoreRow]) -> list[SeedsRow]:
    """Scores that differ in the seed alone as one row, in the order in which they first stand."""
    groups: dict[tuple[str, ...], list[ScoreRow]] = {}
    for row in rows:
        key = (without_seed(row["preset"]), row["model"], row["task"], row["set_name"], row["metric"])
        groups.setdefault(key, []).append(row)
    return [_row(group) for group in groups.values()]


def _row(group: Sequence[ScoreRow]) -> SeedsRow:
    first, values = group[0], [row["value"] for row in group]
    return SeedsRow(
        preset=without_seed(first["preset"]),
        model=first["model"],
        task=first["task"],
        set_name=first["set_name"],
        metric=first["metric"],
        mean=statistics.fmean(values),
        spread=spread_of(values),
        lowest=min(values),
        highest=max(values),
        num_seeds=len(values),
        measured=", ".join(dict.fromkeys(row["measured"] for row in group)),
    )


def seeds_table(rows: Sequence[SeedsRow]) -> str:
    """The table for a terminal, columns lined up."""
    return lined_up([_cells(row) for row in rows], _COLUMNS, right_aligned=_RIGHT_ALIGNED)


def _cells(row: SeedsRow) -> Mapping[str, str]:
    def shown(value: float | None) -> str:
        return "" if value is None else format_score(row["metric"], value)

    numbers = (shown(row["mean"]), shown(row["spread"]), shown(row["lowest"]), shown(row["highest"]))
    metric = METRIC_NAMES.get(row["metric"], row["metric"])
    values = (row["preset"], row["model"], row["task"], row["set_name"], metric, *numbers)
    return dict(zip(_COLUMNS, (*values, str(row["num_seeds"]), row["measured"]), strict=True))
