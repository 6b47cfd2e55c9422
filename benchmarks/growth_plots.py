"""How speed and memory of contenders grow with the input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cs336 import pictures


def draw_growth(path: Path, title: str, over: str, rows: list[dict[str, Any]]) -> None:
    """Write a PNG with a line for each contender: its figure, and its peak memory where it was measured.

    Args:
        over: the part of a row's `input` that grows.
        rows: of one kind of work, in any order.
    """
    figure = pictures.new_figure(11.0, 4.0)
    speed, memory = figure.subplots(1, 2)
    for contender in dict.fromkeys(row["contender"] for row in rows):
        own = sorted(
            (row["input"][over], row["figure"], row["peak_bytes"]) for row in rows if row["contender"] == contender
        )
        speed.plot([size for size, _, _ in own], [figure for _, figure, _ in own], marker="o", label=contender)
        peaks = [(size, peak / 1e6) for size, _, peak in own if peak]
        memory.plot([size for size, _ in peaks], [peak for _, peak in peaks], marker="o", label=contender)
    unit = rows[0]["unit"]
    speed.set(title=f"{title}: {unit}", xlabel=over, ylabel=unit, xscale="log", yscale="log")
    memory.set(title=f"{title}: peak memory", xlabel=over, ylabel="MB", xscale="log", yscale="log")
    for axes in (speed, memory):
        low, high = axes.get_ylim()
        axes.set_ylim(low / 2, high * 2)  # what hardly changes is to look so
        axes.grid(True, which="major", alpha=0.3)
        axes.legend()
    pictures.save(figure, path)


def draw_growth_of(rows: list[dict[str, Any]], prefixes: dict[str, str], over: str, folder: Path) -> list[Path]:
    """A plot for each kind of work of which there are several sizes.

    Args:
        prefixes: name of the plot's file -> how the names of its cases begin; the size is all that follows.
    """
    drawn = []
    for name, prefix in prefixes.items():
        sizes = [row for row in rows if row["case"].removeprefix(prefix).isdigit() and "figure" in row]
        if len({row["case"] for row in sizes}) > 1:
            drawn.append(folder / f"{name}.png")
            draw_growth(drawn[-1], prefix.strip("-"), over, sizes)
            print(f"\nplot: {drawn[-1]}")
    return drawn
