"""Pictures of the report that are not those of the fits: sweeps, residuals, contours, parity, costs, the check."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cs336.pictures import new_figure, save, tidy
from cs336.scaling.accounting import num_tokens
from cs336.scaling.measurements import Measurements
from cs336.scaling.parametric import ParametricLaw
from cs336.scaling.plots import budget_colors, label, new_axes, short_budget, style
from cs336.scaling.summary import count
from cs336.scaling.surrogate import HeldOut

Row = Mapping[str, Any]
_MARKS = "osD^v<>PX"
_STYLES: Sequence[Literal["-", "--"]] = ("-", "--")  # of the smallest batch, and of the others
_NATS = "final loss, nats per token"


def losses_by_rate(rows: Sequence[Row], path: Path) -> None:
    """`sweeps.learning_rates`: loss over learning rate, a panel a budget, a line a size; diverged at the top edge."""
    from matplotlib.lines import Line2D

    budgets, batch_sizes = (sorted({row[name] for row in rows}) for name in ("budget", "batch_size"))
    columns = min(4, len(budgets))
    lines = math.ceil(len(budgets) / columns)
    figure = new_figure(2.4 * columns + 1.2, 2.4 * lines)
    panels = list(figure.subplots(lines, columns, sharex=True, sharey="row", squeeze=False).flat)
    colors = budget_colors(row["parameters"] for row in rows)
    for budget, axes in zip(budgets, panels, strict=False):
        style(axes)
        axes.set_title(short_budget(budget), fontsize=9)
        some = [row for row in rows if row["budget"] == budget]
        sound = [loss for row in some for loss in row["losses"].values() if math.isfinite(loss)]
        top = max(sound, default=1.0) + 0.1
        for row in some:
            color, dashes = colors[row["parameters"]], _STYLES[row["batch_size"] != batch_sizes[0]]
            places = list(row["losses"])
            heights = [loss if math.isfinite(loss) else top for loss in row["losses"].values()]
            axes.plot(places, heights, dashes, marker="o", ms=2.5, lw=1.0, color=color)
            axes.plot(row["best_rate"], row["losses"][row["best_rate"]], "o", ms=6, mfc="none", color=color)
            lost = [rate for rate, loss in row["losses"].items() if not math.isfinite(loss)]
            axes.plot(lost, [top] * len(lost), "x", ms=8, color=color)
    for axes in panels[len(budgets) :]:
        axes.set_axis_off()
    marks = [Line2D([], [], color=color, label=count(size)) for size, color in colors.items()]
    for size, dashes in zip(batch_sizes, _STYLES, strict=False):
        marks.append(Line2D([], [], linestyle=dashes, color="grey", label=f"batch {size}"))
    figure.legend(handles=marks, frameon=False, fontsize=7, loc="outside right center", title="parameters")
    figure.supxlabel("learning rate", fontsize=9)
    figure.supylabel(_NATS, fontsize=9)
    save(figure, path)


def differences_by_batch(rows: Sequence[Row], path: Path) -> None:
    """`sweeps.batch_sizes`: what a larger batch loses against the smallest one, over size, a color a budget."""
    figure, axes = new_axes()
    colors = budget_colors(row["budget"] for row in rows)
    others = sorted({size for row in rows for size in list(row["losses"])[1:]})
    for row in rows:
        smallest, *larger = row["losses"]
        for size in larger:
            gap = row["losses"][size] - row["losses"][smallest]
            mark = _MARKS[others.index(size) % len(_MARKS)]
            axes.plot(row["parameters"], gap, mark, ms=5, mfc="none", color=colors[row["budget"]])
    for budget, color in colors.items():
        axes.plot([], [], "o", color=color, label=short_budget(budget))
    axes.axhline(0, lw=0.8, color="grey")
    label(axes, "parameters", "larger batch less smallest, nats")
    save(figure, path)


def excess_by_shape(rows: Sequence[Row], path: Path) -> None:
    """`sweeps.shapes`: distance from the profile over aspect ratio and over head size; the ladder's shapes hollow."""
    figure = new_figure(9.0, 3.8)
    colors = budget_colors(row["budget"] for row in rows)
    for axes, key, name in zip(
        figure.subplots(1, 2, sharey=True),
        ("aspect_ratio", "head_size"),
        ("width over layers", "width over heads"),
        strict=True,
    ):
        for row in rows:
            fill = {"mfc": "none"} if row["on_ladder"] else {}
            axes.plot(row[key], row["excess"], "o", ms=5, color=colors[row["budget"]], **fill)
        for budget, color in colors.items():
            axes.plot([], [], "o", color=color, label=short_budget(budget))
        axes.set_xscale("log", base=2)
        axes.axhline(0, lw=0.8, color="grey")
        tidy(axes)
        label(axes, name, "loss less the profile's, nats" if key == "aspect_ratio" else "")
    save(figure, path)


def residuals(runs: Measurements, law: ParametricLaw, path: Path) -> None:
    """Measured less the parametric law, over size, a line a budget."""
    figure, axes = new_axes()
    for budget, color in budget_colors(runs.budgets.tolist()).items():
        profile = runs.where(runs.compute == budget)
        order = np.argsort(profile.parameters)
        gaps = (profile.losses - law(profile.parameters, profile.tokens))[order]
        axes.plot(profile.parameters[order], gaps, ".-", lw=0.8, ms=5, color=color, label=short_budget(budget))
    axes.axhline(0, lw=0.8, color="grey")
    label(axes, "parameters", "measured less the law, nats")
    save(figure, path)


def contours(runs: Measurements, law: ParametricLaw, path: Path) -> None:
    """The parametric law over compute and size: lines of equal loss, the runs, and the best size of each budget."""
    figure, axes = new_axes()
    compute = np.geomspace(runs.compute.min() / 2, runs.compute.max() * 10, 120)
    sizes = np.geomspace(runs.parameters.min() / 2, runs.parameters.max() * 4, 120)
    across, up = np.meshgrid(compute, sizes)
    losses = law(up, num_tokens(across, up))
    levels = np.quantile(losses, np.linspace(0.02, 0.9, 14))
    drawn = axes.contour(across, up, losses, levels=np.unique(levels), cmap="viridis_r", linewidths=0.8)
    axes.clabel(drawn, fontsize=7, fmt="%.2f")
    axes.plot(runs.compute, runs.parameters, ".", ms=4, color="grey", label="runs")
    best = law.frontier().parameters(compute)
    if np.all(np.isfinite(best)):
        axes.plot(compute, best, "--", lw=1.2, color="#d62728", label="best size")
    axes.set_yscale("log")
    axes.set_ylim(sizes[0], sizes[-1])
    label(axes, "compute, FLOPs", "parameters")
    save(figure, path)


def parity(pairs: Sequence[HeldOut], path: Path) -> None:
    """Runs that were held out, a color a decade; those that the API accepts are filled."""
    figure, axes = new_axes()
    decades = [10.0 ** math.floor(math.log10(pair.budget) + 1e-12) for pair in pairs]
    for decade, color in budget_colors(decades).items():
        name: str | None = f"from {short_budget(decade)}"
        for of_api, fill in ((True, color), (False, "none")):
            some = [pair for pair, of in zip(pairs, decades, strict=True) if of == decade and pair.of_api == of_api]
            places, heights = [pair.measured for pair in some], [pair.predicted for pair in some]
            axes.plot(places, heights, "o", ms=4, mfc=fill, color=color, label=name if some else None)
            name = None if some else name
    losses = [loss for pair in pairs for loss in (pair.measured, pair.predicted)]
    ends = [min(losses), max(losses)]
    axes.plot(ends, ends, "-", lw=0.8, color="grey")
    axes.set_xscale("linear")
    label(axes, "measured, nats per token", "predicted without the run")
    save(figure, path)


def costs(rows: Sequence[Row], path: Path) -> None:
    """`ledger.ledger` without its sum: nominal and real FLOPs of each phase."""
    figure, axes = new_axes()
    names = [row["phase"] for row in rows]
    for key, shift, color in (("nominal_flops", -0.2, "#1f77b4"), ("real_flops", 0.2, "#ff7f0e")):
        places = [place + shift for place in range(len(names))]
        axes.barh(places, [row[key] or math.nan for row in rows], 0.4, color=color, label=key.replace("_flops", ""))
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    label(axes, "FLOPs", "")
    save(figure, path)


def utilisations(runs: Sequence[Any], path: Path) -> None:
    """Of each run, over the real FLOPs of a token; a color for how many runs shared the device."""
    figure, axes = new_axes()
    known = [run for run in runs if run.finished and run.utilisation and run.tokens]
    for packed, color in budget_colors(float(run.packed) for run in known).items():
        some = [run for run in known if run.packed == packed]
        places, heights = [run.real_flops / run.tokens for run in some], [run.utilisation for run in some]
        name = "alone" if packed == 1 else f"{packed:.0f} at a time"
        axes.plot(places, heights, "o", ms=4, mfc="none", color=color, label=name)
    axes.set_ylim(0, None)
    label(axes, "real FLOPs of a token", "of the device's peak, one run")
    save(figure, path)


def check(checked: Row, path: Path) -> None:
    """Losses at the predicted budget over size, and the prediction with its intervals."""
    figure, axes = new_axes()
    sizes = [float(size) for size in checked["losses"]]
    axes.plot(sizes, list(checked["losses"].values()), "o-", lw=0.8, color="#1f77b4", label="measured, mean of seeds")
    if checked["vertex"]:
        vertex = checked["vertex"]
        axes.plot(vertex["parameters"], vertex["loss"], "o", ms=8, mfc="none", color="#1f77b4", label="their parabola")
    size, loss = checked["predicted"]["parameters"], checked["predicted"]["loss"]
    spans = [[[each["estimate"] - each["low"]], [each["high"] - each["estimate"]]] for each in (size, loss)]
    axes.errorbar(
        [size["estimate"]],
        [loss["estimate"]],
        xerr=np.maximum(spans[0], 0),
        yerr=np.maximum(spans[1], 0),
        fmt="D",
        ms=5,
        capsize=4,
        color="#d62728",
        label="predicted before",
    )
    label(axes, "parameters", _NATS)
    save(figure, path)
