"""Medians of timed steps with their quartiles, rounds taken together, and older rows, which have means, beside them.

A row's `ms` is its figure. Where `ms_quartiles` stands beside it, it is the median; older rows have the mean, and its
standard deviation as `ms_std`.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from cs336.profiling.tables import span

ROUND = "round"  # in the cell of a row that is one of several


def median_and_quartiles(values: Sequence[float]) -> dict[str, Any]:
    """`ms` and `ms_quartiles` of times in ms; of a single one, itself three times."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else 3 * [values[0]]
    return {"ms": middle, "ms_quartiles": [low, high]}


def pooled(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each contender, from the latest rows of its rounds: steps together, all else as in the first round.

    A round without times stands for all. A row without rounds, as older ones are, stands where there are none.
    Rounds of another commit, version or way of NCCL than the latest are left out.
    """
    contenders: dict[str, dict[int | None, dict[str, Any]]] = {}
    for row in rows:
        cell = {name: value for name, value in row["cell"].items() if name != ROUND}
        contenders.setdefault(json.dumps(cell, sort_keys=True), {})[row["cell"].get(ROUND)] = row
    return [_together(rounds) for rounds in contenders.values()]


def _together(rounds: dict[int | None, dict[str, Any]]) -> dict[str, Any]:
    rows = [row for number, row in sorted(rounds.items(), key=lambda item: item[0] or 0) if number is not None]
    if not rows:
        return rounds[None]
    latest = max(rows, key=lambda row: row.get("date", ""))
    rows = [row for row in rows if _origin(row) == _origin(latest)]
    row = next((row for row in rows if "ms" not in row), rows[0])
    row = row | {"cell": {name: value for name, value in row["cell"].items() if name != ROUND}}
    if "ms" not in row:
        return row
    steps = [ms for each in rows for ms in each["steps_ms"]]
    parts = {name: statistics.median(each["parts_ms"][name] for each in rows) for name in row["parts_ms"]}
    by_rank = [statistics.median(each) for each in zip(*(each["ms_by_rank"] for each in rows), strict=True)]
    counts = {"num_steps": len(steps), "num_rounds": len(rows)}
    return row | median_and_quartiles(steps) | {"steps_ms": steps, "parts_ms": parts, "ms_by_rank": by_rank} | counts


def _origin(row: dict[str, Any]) -> tuple[Any, ...]:
    """What measured it; the rows of a study that goes on are themselves changes to the commit, and no others count."""
    return row.get("commit", "").removesuffix("+changes"), row.get("versions"), row.get("nccl")


def spread_of(row: dict[str, Any]) -> tuple[float, float]:
    """Between what a row's times lie: the quartiles, or in older rows a standard deviation to each side of the mean."""
    if "ms_quartiles" in row:
        low, high = row["ms_quartiles"]
        return low, high
    return row["ms"] - row["ms_std"], row["ms"] + row["ms_std"]


def spread_text(row: dict[str, Any]) -> str:
    """The same for a table."""
    if "ms_quartiles" not in row:
        return f"± {row['ms_std']:,.3g}"
    return span(row["ms_quartiles"], ",.0f" if row["ms"] >= 100 else ",.3g")


def overlap(row: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether the spreads of two rows overlap, so that their order may be chance."""
    (low, high), (other_low, other_high) = spread_of(row), spread_of(other)
    return low <= other_high and other_low <= high


def ratio_text(row: dict[str, Any], other: dict[str, Any]) -> str:
    """How many times as long as another a row took, and whether their spreads overlap."""
    return f"{row['ms'] / other['ms']:.3g}{' (spreads overlap)' if overlap(row, other) else ''}"


def how_timed(rows: Iterable[dict[str, Any]]) -> str:
    """What the times of these rows are, and their spread; empty where none has one."""
    ways = list(dict.fromkeys(_way(row) for row in rows if "ms" in row))
    return f"Times are {'; and '.join(ways)}." if ways else ""


def _way(row: dict[str, Any]) -> str:
    count = f"{row['num_steps']} steps" if "num_steps" in row else f"{row['num_calls']} calls"
    if "ms_quartiles" not in row:
        return f"means of {count}, their spread (±) a standard deviation"
    rounds = f" of {row['num_rounds']} rounds by turns" if row.get("num_rounds", 1) > 1 else ""
    return f"medians of {count}{rounds}, their spread the quartiles"
