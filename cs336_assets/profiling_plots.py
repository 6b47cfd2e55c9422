"""Pictures of time and memory on one device."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cs336.pictures import new_figure, save, tidy
from cs336.profiling.cells import FAILURE, Row
from cs336.profiling.kernel_times import KINDS

_COLORS = {"forward": "#1f77b4", "backward": "#d62728", "optimizer": "#2ca02c"}


def milliseconds_by_size(rows: Sequence[Row], path: Path) -> None:
    """Bars with their standard deviation, a group for each size, a color for each mode; what failed has no bar."""
    figure, axes = _axes()
    sizes = list(dict.fromkeys(row["settings"]["size"] for row in rows))
    modes = list(dict.fromkeys(row["settings"]["mode"] for row in rows))
    width = 0.8 / max(1, len(modes))
    for place, mode in enumerate(modes):
        chosen = [row for row in rows if row["settings"]["mode"] == mode and FAILURE not in row]
        axes.bar(
            [sizes.index(row["settings"]["size"]) + (place - (len(modes) - 1) / 2) * width for row in chosen],
            [1e3 * row["mean_seconds"] for row in chosen],
            width,
            yerr=[1e3 * row["std_seconds"] for row in chosen],
            capsize=2,
            label=mode,
        )
    axes.set_xticks(range(len(sizes)), sizes)
    axes.set_ylabel("milliseconds")
    if any(FAILURE not in row for row in rows):
        axes.set_yscale("log")
        axes.legend(frameon=False, fontsize=8)
    save(figure, path)


def shares_by_kind(rows: Sequence[Row], path: Path) -> None:
    """Where a forward pass's time goes, by kind of kernel: one bar for each size and context."""
    sound = [row for row in rows if FAILURE not in row]
    figure, axes = _axes(height=0.32 * len(sound) + 1.4)
    names = [f"{row['settings']['size']}, T={row['settings']['context_length']:,}" for row in sound]
    left = [0.0] * len(sound)
    for kind in (*KINDS, "other"):
        if not any(kind in row["seconds_by_kind"] for row in sound):
            continue
        widths = [row["seconds_by_kind"].get(kind, 0.0) / row["kernel_seconds"] for row in sound]
        axes.barh(names, widths, left=left, label=kind)
        left = [before + width for before, width in zip(left, widths, strict=True)]
    axes.margins(y=0.01)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xlabel("share of the forward pass's kernel time")
    if sound:
        axes.legend(frameon=False, ncols=3, fontsize=7, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    save(figure, path)


def time_and_memory_by_length(rows: Sequence[Row], path: Path) -> None:
    """Attention: milliseconds forward and backward, and memory kept, over the length; eager solid, compiled dashed."""
    figure = new_figure(10.0, 3.6)
    sides = figure.subplots(1, 3)
    titles = {"forward_seconds": "forward, ms", "backward_seconds": "backward, ms", "saved_bytes": "kept, MiB"}
    scales = {"forward_seconds": 1e3, "backward_seconds": 1e3, "saved_bytes": 2**-20}
    lines: dict[tuple[int, bool], list[Row]] = {}
    for row in rows:
        if FAILURE not in row:
            lines.setdefault((row["settings"]["d"], row["settings"]["compiled"]), []).append(row)
    widths = list(dict.fromkeys(width for width, _ in lines))
    for axes, (key, title) in zip(sides, titles.items(), strict=True):
        tidy(axes)
        for (width, compiled), found in lines.items():
            axes.plot(
                [row["settings"]["length"] for row in found],
                [scales[key] * row[key] if row.get(key) else math.nan for row in found],
                "--" if compiled else "-",
                marker="o",
                ms=3,
                color=f"C{widths.index(width)}",
                label=f"d = {width}" if not compiled else None,
            )
        axes.set_xscale("log", base=2)
        if any(row.get(key) for found in lines.values() for row in found):  # a CPU does not tell what is kept
            axes.set_yscale("log")
        axes.set_xlabel("T")
        axes.set_title(title, fontsize=9)
    if lines:
        sides[0].legend(frameon=False, fontsize=7)
    save(figure, path)


def memory_timeline(timeline: Mapping[str, Any], title: str, path: Path) -> None:
    """Active memory over the allocator's events of one step, the stages behind it in their colors."""
    figure, axes = _axes(width=8.0)
    values = [each / 2**30 for each in timeline["active_bytes"]]
    places = [each * timeline["events_per_point"] for each in range(len(values))]
    axes.fill_between(places, values, step="post", color="#444444", alpha=0.35, lw=0)
    axes.plot(places, values, lw=0.8, color="#222222", drawstyle="steps-post")
    peak = max(values)
    ends = [first for _, first in timeline["stages"][1:]] + [len(values)]
    for (name, first), end in zip(timeline["stages"], ends, strict=True):
        start, stop = first * timeline["events_per_point"], end * timeline["events_per_point"]
        axes.axvspan(start, stop, color=_COLORS.get(name, "grey"), alpha=0.12, lw=0)
        axes.text((start + stop) / 2, 1.06 * peak, name, ha="center", va="bottom", fontsize=8, color=_COLORS.get(name))
    top = values.index(peak)
    axes.annotate(f"peak {peak:,.3g} GiB", (places[top], peak), xytext=(6, 3), textcoords="offset points", fontsize=8)
    axes.set_ylim(0, 1.2 * peak)
    axes.set_xlim(0, max(1, places[-1]))
    axes.set_xlabel("allocations and releases of the step, in order")
    axes.set_ylabel("active memory, GiB")
    axes.set_title(title, fontsize=9)
    save(figure, path)


def _axes(width: float = 6.5, height: float = 3.4) -> Any:
    figure = new_figure(width, height)
    axes = figure.add_subplot()
    tidy(axes)
    return figure, axes
