"""Figures over the length of the text, one line a contender: learning, its memory, encoding, folders."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

Points = dict[str, list[tuple[float, float]]]

# File, title, label, what is drawn of a row, logarithmic, and which rows.
PLOTS: list[tuple[str, str, str, Callable[[dict[str, Any]], float | None], Callable[[str], bool]]] = [
    (
        "train_seconds",
        "Learning a vocabulary",
        "seconds",
        lambda row: row["seconds"],
        lambda case: case[:6] == "train-",
    ),
    (
        "train_memory",
        "Learning a vocabulary: peak memory of the process",
        "MB",
        lambda row: row["peak_bytes"] and row["peak_bytes"] / 1e6,
        lambda case: case.startswith(("train-", "memory-")),
    ),
    (
        "encode_first",
        "Encoding on one thread, first pass",
        "MB/s",
        lambda row: row["figure"],
        lambda case: case.startswith("encode-") and case.endswith("-first"),
    ),
    (
        "encode_second",
        "Encoding on one thread, second pass",
        "MB/s",
        lambda row: row["figure"],
        lambda case: case.startswith("encode-") and case.endswith("-second"),
    ),
    ("folder", "Encoding a folder of files", "MB/s", lambda row: row["figure"], lambda case: case[:7] == "folder-"),
]


def draw(rows: list[dict[str, Any]], folder: Path) -> list[Path]:
    """Write one PNG for each plot that has a line of two sizes or more; returns their paths."""
    drawn = []
    for name, title, label, value, chosen in PLOTS:
        points = _points([row for row in rows if chosen(row["case"])], value)
        if any(len(line) > 1 for line in points.values()):
            path = folder / f"tokenizer_{name}.png"
            _draw(path, title, label, points)
            drawn.append(path)
    return drawn


def _points(rows: list[dict[str, Any]], value: Callable[[dict[str, Any]], float | None]) -> Points:
    """(megabytes, value) by contender; of several vocabularies, the first."""
    points: Points = defaultdict(list)
    first = next((row["input"].get("vocabulary") for row in rows), None)
    for row in rows:
        if "failure" in row or row["input"].get("vocabulary") != first:
            continue
        drawn = value(row)
        if drawn:
            points[row["contender"]].append((row["input"]["bytes"] / 1e6, drawn))
    return points


def _draw(path: Path, title: str, label: str, points: Points) -> None:
    from matplotlib.figure import Figure  # no global state, no display

    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.add_subplot()
    for contender, line in points.items():
        sizes, values = zip(*sorted(line), strict=True)
        axes.plot(sizes, values, marker="o", label=contender, linewidth=2.5 if contender == "ours" else 1.2)
    axes.set(title=title, xlabel="text, MB", ylabel=label, xscale="log", yscale="log")
    axes.grid(True, which="major", alpha=0.3)
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
