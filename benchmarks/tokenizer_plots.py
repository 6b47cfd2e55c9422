"""Figures over the length of the text, one line a contender: learning, its memory, encoding, folders.

Memory of learning also over the distinct pre-tokens of the text, which it grows with.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from cs336 import pictures

Row = dict[str, Any]
Points = dict[str, list[tuple[float, float]]]


def _megabytes(row: Row) -> float | None:
    return row["input"]["bytes"] / 1e6


def _num_distinct(row: Row) -> float | None:
    return row["input"].get("num_distinct")


def _figure(row: Row) -> float | None:
    return row["figure"]


def _peak_megabytes(row: Row) -> float | None:
    return row["peak_bytes"] and row["peak_bytes"] / 1e6


class _Plot(NamedTuple):
    """Attributes: the file's name, what is drawn of a row and over what, of which cases."""

    name: str
    title: str
    label: str
    value: Callable[[Row], float | None]
    chosen: Callable[[str], bool]
    over: Callable[[Row], float | None] = _megabytes
    over_label: str = "text, MB"


def _is_learning(case: str) -> bool:
    return case.startswith(("train-", "memory-"))


PLOTS = [
    _Plot(
        "train_seconds",
        "Learning a vocabulary",
        "seconds",
        lambda row: row["seconds"],
        lambda case: case.startswith("train-"),
    ),
    _Plot("train_memory", "Learning a vocabulary: peak memory of the process", "MB", _peak_megabytes, _is_learning),
    _Plot(
        "train_memory_by_distinct",
        "Learning a vocabulary: peak memory of the process",
        "MB",
        _peak_megabytes,
        _is_learning,
        _num_distinct,
        "distinct pre-tokens of the text",
    ),
    _Plot(
        "encode_first",
        "Encoding on one thread, first pass",
        "MB/s",
        _figure,
        lambda case: case.startswith("encode-") and case.endswith("-first"),
    ),
    _Plot(
        "encode_second",
        "Encoding on one thread, second pass",
        "MB/s",
        _figure,
        lambda case: case.startswith("encode-") and case.endswith("-second"),
    ),
    _Plot("folder", "Encoding a folder of files", "MB/s", _figure, lambda case: case.startswith("folder-")),
]


def draw(rows: list[Row], folder: Path) -> list[Path]:
    """Write one PNG for each plot that has a line of two sizes or more; returns their paths."""
    drawn = []
    for plot in PLOTS:
        points = _points([row for row in rows if plot.chosen(row["case"])], plot)
        if any(len(line) > 1 for line in points.values()):
            path = folder / f"tokenizer_{plot.name}.png"
            _draw(path, plot, points)
            drawn.append(path)
    return drawn


def _points(rows: list[Row], plot: _Plot) -> Points:
    """(what is drawn over, value) by contender; of several vocabularies, the first."""
    points: Points = defaultdict(list)
    first = next((row["input"].get("vocabulary") for row in rows), None)
    for row in rows:
        if "failure" in row or row["input"].get("vocabulary") != first:
            continue
        place, value = plot.over(row), plot.value(row)
        if place and value:
            points[row["contender"]].append((place, value))
    return points


def _draw(path: Path, plot: _Plot, points: Points) -> None:
    figure = pictures.new_figure(6.4, 4.0)
    axes = figure.add_subplot()
    for contender, line in points.items():
        places, values = zip(*sorted(line), strict=True)
        axes.plot(places, values, marker="o", label=contender, linewidth=2.5 if contender == "ours" else 1.2)
    axes.set(title=plot.title, xlabel=plot.over_label, ylabel=plot.label, xscale="log", yscale="log")
    axes.grid(True, which="major", alpha=0.3)
    axes.legend()
    pictures.save(figure, path)
