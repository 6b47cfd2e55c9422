"""Pictures of post-training: curves of runs side by side, accuracies with their intervals, accuracy over time."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cs336.pictures import new_figure, save, shade, tidy

# Column of a run's rows -> how its axis is called.
LABELS = {
    "valid_accuracy": "accuracy, held out",
    "valid_loss": "loss, held out, nats per token",
    "reward": "mean reward of rollouts",
    "format_reward": "mean format reward of rollouts",
    "nats_per_token": "loss, nats per token",
    "token_entropy": "entropy, nats per token",
    "mean_length": "tokens per response",
    "mean_length_correct": "tokens per right response",
    "mean_length_incorrect": "tokens per wrong response",
    "grad_norm": "gradient norm",
    "clip_fraction": "share of clipped tokens",
    "would_clip_fraction": "share of tokens that clipping would stop",
    "ratio_max": "greatest ratio of an update",
    "valid_length": "tokens per response, held out",
}
_PANELS_IN_A_ROW = 4
_NOISY = {"reward", "format_reward", "nats_per_token", "token_entropy", "mean_length", "grad_norm"}
_MANY_RUNS, _SMOOTHED_STEPS = 4, 5  # lines of so many runs hide each other unless they are means of some steps


def run_panels(
    runs: Mapping[str, Sequence[Mapping[str, Any]]], columns: Sequence[str], path: Path, *, over: str = "step"
) -> None:
    """One panel for each column that any run has, one line for each run; validations with dots.

    A run that is 0 throughout, as others are not, is named in the panel and not drawn, since it would flatten them.

    Args:
        runs: rows of `metrics.jsonl` by the run's name.
        columns: keys of `LABELS`.
        over: the column that they are drawn over; "step" are rollout batches of GRPO's runs, however many updates each
            makes.
    """
    present = [column for column in columns if any(column in row for rows in runs.values() for row in rows)]
    num_rows = -(-len(present) // _PANELS_IN_A_ROW)
    in_a_row = -(-len(present) // num_rows)
    figure = new_figure(3.4 * in_a_row, 2.8 * num_rows + 0.4)
    panels = list(figure.subplots(num_rows, in_a_row, squeeze=False).flat)
    for unused in panels[len(present) :]:
        unused.set_axis_off()
    handles: dict[str, Any] = {}
    for axes, column in zip(panels, present, strict=False):
        tidy(axes)
        axes.set_title(LABELS[column], fontsize=9)
        axes.set_xlabel("step" if over == "step" else "seconds", fontsize=8)
        handles |= _draw_lines(axes, runs, column, over)
    if len(runs) > 1:
        drawn = [name for name in runs if name in handles]
        figure.legend(
            [handles[name] for name in drawn], drawn, loc="outside lower center", ncols=5, frameon=False, fontsize=7
        )
    save(figure, path)


def _draw_lines(axes: Any, runs: Mapping[str, Sequence[Mapping[str, Any]]], column: str, over: str) -> dict[str, Any]:
    """A panel's lines, by the names of those that are drawn."""
    lines = {
        name: [(_place(row, over), row[column]) for row in rows if row.get(column) is not None]
        for name, rows in runs.items()
    }
    zero = [name for name, points in lines.items() if points and not any(value for _, value in points)]
    if len(zero) == sum(bool(points) for points in lines.values()):
        zero = []
    if zero:
        names = ", ".join(zero) if len(zero) < 3 else f"{len(zero)} runs"
        axes.text(0.02, 0.02, f"0 throughout: {names}", fontsize=7, transform=axes.transAxes, zorder=3)
    if len(runs) >= _MANY_RUNS and column in _NOISY and over == "step":
        lines = {name: _smooth(points) for name, points in lines.items()}
        axes.set_title(f"{LABELS[column]}\n(mean of {_SMOOTHED_STEPS} steps)", fontsize=9)
    if column == "ratio_max":
        axes.set_yscale("log")  # one update of many may be hundreds of times the others
    dotted = "o-" if column.startswith("valid_") else "-"
    drawn = {}
    for place, (name, points) in enumerate(lines.items()):
        if points and name not in zero:
            color = shade(place, len(runs))
            (drawn[name],) = axes.plot(*zip(*points, strict=True), dotted, ms=3, lw=1.1, color=color)
    return drawn


def _smooth(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """One point for each step: the mean of the last `_SMOOTHED_STEPS`, or of as many as there are."""
    values: dict[float, list[float]] = {}
    for place, value in points:  # a step has several where it makes several updates
        values.setdefault(place, []).append(value)
    means = [(place, statistics.fmean(some)) for place, some in values.items()]
    windows = [means[max(0, end - _SMOOTHED_STEPS) : end] for end in range(1, len(means) + 1)]
    return [(window[-1][0], statistics.fmean(value for _, value in window)) for window in windows]


def _place(row: Mapping[str, Any], over: str) -> float:
    return row.get("grpo_step", row["step"]) if over == "step" else row[over]


def shares_with_intervals(shares: Mapping[str, tuple[float, float, float]], path: Path, *, label: str) -> None:
    """One bar for each share, with its interval: value, low and high."""
    figure = new_figure(6.0, 0.4 * len(shares) + 1.2)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, axis="x")
    values = [value for value, _, _ in shares.values()]
    below = [value - low for value, low, _ in shares.values()]
    above = [high - value for value, _, high in shares.values()]
    axes.barh(list(shares), values, xerr=(below, above), color="#1f77b4", ecolor="black", capsize=3)
    for position, (value, _, high) in enumerate(shares.values()):
        axes.text(high, position, f"  {value:.1%}", va="center", fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, min(1.15, 1.15 * max(0.05, *(high for _, _, high in shares.values()))))
    axes.set_xlabel(label)
    save(figure, path)


def scores_over_seeds(
    scores: Mapping[str, tuple[float, float, float]], seeds: Mapping[str, Sequence[float]], path: Path
) -> None:
    """A point with its interval for each run (value, low and high), and small ones for its seeds; the best at the top.

    The axis begins where values do, but for those that are 0, which are told as such.
    """
    shown = dict(sorted(scores.items(), key=lambda item: item[1][0]))
    figure = new_figure(6.4, 0.27 * len(shown) + 0.9)
    axes = figure.add_subplot()
    tidy(axes)
    axes.set_xlabel("accuracy on held-out problems: of all seeds with its 95 % interval, rings by seed", fontsize=8)
    lows = [low for value, low, _ in shown.values() if value]
    left = min([*lows, *(value for some in seeds.values() for value in some if value)], default=0.0)
    for place, (name, (value, low, high)) in enumerate(shown.items()):
        if value == 0:
            axes.text(left, place, "0 %", va="center", fontsize=7)
            continue
        axes.plot(seeds.get(name, ()), [place] * len(seeds.get(name, ())), "o", ms=4, mfc="none", color="grey")
        spread = [[value - low], [high - value]]
        axes.errorbar(value, place, xerr=spread, fmt="o", ms=5, color=shade(0, 2), ecolor="black", capsize=3)
    axes.set_yticks(range(len(shown)), list(shown), fontsize=8)
    axes.set_ylim(-0.6, len(shown) - 0.4)
    save(figure, path)


def accuracy_over_time(curves: Mapping[str, Sequence[tuple[float, float]]], limit_seconds: float, path: Path) -> None:
    """Held-out accuracy over the seconds of training since the start policy; a line where the time is over."""
    figure = new_figure(7.0, 3.6)
    axes = figure.add_subplot()
    tidy(axes)
    for place, (name, points) in enumerate(curves.items()):
        color = shade(place, len(curves))
        axes.plot(*zip(*points, strict=True), "o-", ms=3, lw=1.1, color=color, label=name)
    longest = max((seconds for points in curves.values() for seconds, _ in points), default=0.0)
    if limit_seconds <= 1.5 * longest:  # else the curves would be a line at the left
        axes.axvline(limit_seconds, lw=0.9, ls=":", color="grey")
    axes.set_xlabel("seconds of training since the start policy")
    axes.set_ylabel("accuracy, held out")
    axes.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    save(figure, path)
