"""Pictures of fits: what was measured, what was fitted, and the lines drawn on to budgets nobody has paid for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cs336.pictures import new_figure, save, tidy
from cs336.scaling.fits import APPROACHES, ENVELOPE, LOWEST, PARABOLA, TEXT_LIMIT, Fits
from cs336.scaling.isoflops import Minima
from cs336.scaling.measurements import Measurements
from cs336.scaling.parametric import ParametricLaw
from cs336.scaling.uncertainty import interval

LINE_END = 1e24  # lines are drawn at least so far
_COLORS = dict(zip((*APPROACHES, TEXT_LIMIT), ("#2ca02c", "#d62728", "#1f77b4", "#9467bd", "#ff7f0e"), strict=True))
_LABELS = {
    "parameters": "best size, parameters",
    "tokens": "best number of tokens",
    "loss": "loss at the best size, nats per token",
}


def draw_all(fits: Fits, folder: Path, *, until: float = LINE_END, truth: ParametricLaw | None = None) -> list[str]:
    """Write parameters.png, tokens.png, loss.png and profiles.png; returns their names.

    Args:
        until: budget that the lines reach.
        truth: the law that the runs came from, drawn dashed.
    """
    minima = {name: fit.minima for name, fit in fits.fits.items() if fit.minima is not None}
    draw_profiles(fits.runs, minima, folder / "profiles.png")
    return [*draw_laws(fits, folder, until=until, truth=truth), "profiles.png"]


def draw_laws(
    fits: Fits,
    folder: Path,
    *,
    until: float = LINE_END,
    truth: ParametricLaw | None = None,
    later: Mapping[str, float] | None = None,
) -> list[str]:
    """Write parameters.png, tokens.png and loss.png, as `draw_all` does.

    Args:
        later: what was measured after the fit: `compute`, and the best `parameters`, `tokens` and `loss` there.
    """
    for quantity in _LABELS:
        _draw_laws(fits, quantity, folder / f"{quantity}.png", until, truth, later or {})
    return [f"{name}.png" for name in _LABELS]


def _draw_laws(
    fits: Fits, quantity: str, path: Path, until: float, truth: ParametricLaw | None, later: Mapping[str, float]
) -> None:
    """Points that were fitted and each approach's line over the budget: log-log, but a loss has a floor."""
    figure, axes = new_axes()
    compute = np.geomspace(fits.runs.budgets[0], max(until, fits.runs.budgets[-1]), 200)
    for name, fit in fits.fits.items():
        line = getattr(fit.frontier, quantity)(compute)
        if np.isfinite(line).any():  # a law may have no answer anywhere
            axes.plot(compute, line, lw=1.3, color=_COLORS[name], label=name)
        if fit.draws is not None:
            draws = getattr(fit.draws, quantity)
            edges = [interval(draws(each)) or (np.nan, np.nan) for each in compute]
            axes.fill_between(compute, *zip(*edges, strict=True), color=_COLORS[name], alpha=0.12, lw=0)
        if fit.minima is not None:
            values = fit.minima.losses if quantity == "loss" else getattr(fit.minima, quantity)
            dots, use = {"ms": 2} if name == ENVELOPE else {"ms": 5}, fit.minima.bracketed
            axes.plot(fit.minima.compute[use], values[use], "o", color=_COLORS[name], mfc="none", **dots)
    if truth is not None:
        axes.plot(compute, getattr(truth.frontier(), quantity)(compute), "--", lw=1.0, color="black", label="exact law")
    if later:
        axes.plot(later["compute"], later[quantity], "*", ms=10, color="black", label="measured later")
    drawn = any(np.isfinite(line.get_ydata()).any() for line in axes.lines)
    axes.set_yscale("log" if drawn and quantity != "loss" else "linear")
    axes.set_xlim(compute[0], compute[-1])
    label(axes, "compute, FLOPs", _LABELS[quantity])
    save(figure, path)


def draw_profiles(runs: Measurements, minima: Mapping[str, Minima], path: Path) -> None:
    """Loss over size, a line a budget, with the minima between two sizes that each rule finds."""
    figure, axes = new_axes()
    for budget, color in budget_colors(runs.budgets).items():
        profile = runs.where(runs.compute == budget)
        order = np.argsort(profile.parameters)
        axes.plot(profile.parameters[order], profile.losses[order], ".-", lw=0.8, ms=4, color=color)
        axes.annotate(
            short_budget(budget),
            (profile.parameters[order[-1]], profile.losses[order[-1]]),
            xytext=(4, 0),
            textcoords="offset points",
            fontsize=7,
            color=color,
        )
    for name, mark in ((LOWEST, "s"), (PARABOLA, "o")):
        if name in minima:
            found, use = minima[name], minima[name].bracketed
            axes.plot(found.parameters[use], found.losses[use], mark, ms=6, mfc="none", color=_COLORS[name], label=name)
    label(axes, "parameters", "final loss, nats per token")
    save(figure, path)


def budget_colors(budgets: Iterable[float]) -> dict[float, Any]:
    """A color for each budget, from the smallest to the largest."""
    from matplotlib import colormaps

    ordered = sorted(set(budgets))
    return {
        budget: colormaps["viridis"](0.9 * place / max(1, len(ordered) - 1)) for place, budget in enumerate(ordered)
    }


def short_budget(budget: float) -> str:
    """ "3e15"."""
    return f"{budget:.2g}".replace("e+", "e").replace("e0", "e")


def new_axes() -> tuple[Any, Any]:
    """A figure and its axes, x logarithmic."""
    figure = new_figure(6.4, 4.2)
    axes = figure.add_subplot()
    style(axes)
    return figure, axes


def style(axes: Any) -> None:
    """As all plots of fits are: x logarithmic, a light grid, no frame."""
    axes.set_xscale("log")
    tidy(axes)


def label(axes: Any, x: str, y: str) -> None:
    """Name the axes, and show the legend if there is one."""
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(frameon=False, fontsize=8)
