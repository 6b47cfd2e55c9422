"""What a grid's runs say beside the best size: learning rate, batch size, shape, and the noise of a seed."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from cs336.scaling.ledger import Main
from cs336.scaling.profiles import on_ladder
from cs336.scaling.runs import Run, finished_runs

Row = dict[str, Any]


def learning_rates(runs: Iterable[Run]) -> list[Row]:
    """Every recipe that was trained with two learning rates or more, by budget, batch size and size.

    Returns:
        Rows of `budget`, `batch_size`, `shape`, `parameters`, `losses` (rate -> mean over seeds; infinite where a rate
        diverged), `best_rate`, and `at_edge`: the best rate is the lowest or highest tried.
    """
    groups: dict[tuple[Any, ...], dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        if not (run.finished or run.outcome.startswith("diverged")) or (run.finished and not run.steps):
            continue
        key = (run.compute_budget, run.batch_size, run.parameters, shape_of(run))
        groups[key][run.learning_rate].append(run.final_loss if run.finished else math.inf)
    rows = []
    for (budget, batch_size, parameters, shape), by_rate in sorted(groups.items()):
        losses = {rate: statistics.fmean(each) for rate, each in sorted(by_rate.items())}
        if len(losses) > 1:
            best = min(losses, key=lambda rate: losses[rate])
            row = {"budget": budget, "batch_size": batch_size, "shape": shape, "parameters": parameters}
            rows.append(row | {"losses": losses, "best_rate": best, "at_edge": best in (min(losses), max(losses))})
    return rows


def batch_sizes(runs: Iterable[Run]) -> list[Row]:
    """Every shape, budget and learning rate that was trained at two batch sizes or more.

    Returns:
        Rows of `budget`, `shape`, `parameters`, `learning_rate` and `losses` (batch size -> mean over seeds).
    """
    groups: dict[tuple[Any, ...], dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for run in finished_runs(runs):
        if run.steps:
            key = (run.compute_budget, run.parameters, shape_of(run), run.learning_rate)
            groups[key][run.batch_size].append(run.final_loss)
    return [
        {
            "budget": budget,
            "shape": shape,
            "parameters": parameters,
            "learning_rate": rate,
            "losses": {size: statistics.fmean(each) for size, each in sorted(by_size.items())},
        }
        for (budget, parameters, shape, rate), by_size in sorted(groups.items())
        if len(by_size) > 1
    ]


def shapes(runs: Sequence[Run], main: Main) -> list[Row]:
    """How far the main recipe's runs lie from their profile: what aspect ratio and head size do beside size.

    A profile is a parabola in log N through the shapes of the ladder, by least squares; a budget with fewer than four
    such sizes has none.

    Returns:
        Rows of `budget`, `shape`, `parameters`, `aspect_ratio`, `head_size`, `on_ladder` and `excess` in nats: the
        loss less the profile's at that size.
    """
    profiles: dict[float, list[Run]] = defaultdict(list)
    for run in finished_runs(runs):
        recipe = (run.batch_size, run.learning_rate, run.seed)
        if run.steps and recipe == (main.batch_size, main.learning_rate, main.seed):
            profiles[run.compute_budget].append(run)
    rows = []
    for budget, some in sorted(profiles.items()):
        ladder = [run for run in some if on_ladder(run)]
        if len({run.parameters for run in ladder}) < 4 or len(ladder) == len(some):
            continue
        sizes = np.log([run.parameters for run in ladder])
        curve = np.polynomial.Polynomial.fit(sizes, [run.final_loss for run in ladder], 2)
        rows += [
            {
                "budget": budget,
                "shape": shape_of(run),
                "parameters": run.parameters,
                "aspect_ratio": run.d_model / run.num_layers,
                "head_size": run.d_model / run.num_heads,
                "on_ladder": on_ladder(run),
                "excess": run.final_loss - float(curve(math.log(run.parameters))),
            }
            for run in sorted(some, key=lambda run: (run.parameters, shape_of(run)))
        ]
    return rows


def seeds(runs: Iterable[Run]) -> list[Row]:
    """Every run that was made with two seeds or more.

    Returns:
        Rows of `budget`, `shape`, `batch_size`, `learning_rate`, `num_seeds`, `mean` and `spread`, the standard
        deviation, in nats.
    """
    groups: dict[tuple[Any, ...], list[float]] = defaultdict(list)
    for run in finished_runs(runs):
        if run.steps:
            groups[run.compute_budget, shape_of(run), run.batch_size, run.learning_rate].append(run.final_loss)
    return [
        dict(zip(("budget", "shape", "batch_size", "learning_rate"), key, strict=True))
        | {"num_seeds": len(losses), "mean": statistics.fmean(losses), "spread": statistics.stdev(losses)}
        for key, losses in sorted(groups.items())
        if len(losses) > 1
    ]


def shape_of(run: Run) -> str:
    """Width, layers and heads, such as "512x8x8"."""
    return f"{run.d_model}x{run.num_layers}x{run.num_heads}"
