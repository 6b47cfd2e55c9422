"""IsoFLOP profiles of a grid's rows: sizes at one budget that were trained alike."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from cs336.files import UserError
from cs336.scaling.grid import ASPECT_RATIOS, HEAD_SIZES, MIN_SIZES
from cs336.scaling.measurements import Measurements, measurements
from cs336.scaling.rates import Rates
from cs336.scaling.runs import Run, finished_runs


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Sizes at one budget, all else equal.

    Attributes:
        rates: the learning rate of each.
        losses: by size, ascending, in nats: the mean over a shape's seeds, so that a lucky seed wins nothing; of
            several shapes of one size the lowest.
    """

    compute_budget: float
    batch_size: int
    rates: Rates
    losses: dict[int, float]

    @property
    def best_size(self) -> int:
        """The size of lowest loss."""
        return min(self.losses, key=lambda size: self.losses[size])

    @property
    def bracketed(self) -> bool:
        """Whether the lowest loss is neither the smallest size's nor the largest one's."""
        return min(self.losses) < self.best_size < max(self.losses)


def profiles(runs: Iterable[Run]) -> list[Profile]:
    """A profile for each budget, batch size and rule of learning rates, in this order.

    A run is in two: of those with its rate, and of those whose rate is as much over their width; of one size alone,
    the second is left out. Runs without a step, and shapes off the ladder, are in none.
    """
    shapes: dict[tuple[float, int, Rates], dict[tuple[int, ...], list[float]]] = defaultdict(lambda: defaultdict(list))
    for run in finished_runs(runs):
        if run.steps and on_ladder(run):
            for rates in Rates.of(run):
                recipe = run.compute_budget, run.batch_size, rates
                shapes[recipe][run.parameters, run.d_model, run.num_layers, run.num_heads].append(run.final_loss)
    found = []
    for (compute_budget, batch_size, rates), by_shape in sorted(shapes.items()):
        sizes: dict[int, list[float]] = defaultdict(list)
        for (parameters, *_), losses in sorted(by_shape.items()):
            sizes[parameters].append(statistics.fmean(losses))
        lowest = {parameters: min(means) for parameters, means in sizes.items()}
        if rates.constant or len({d_model for _, d_model, *_ in by_shape}) > 1:
            found.append(Profile(compute_budget=compute_budget, batch_size=batch_size, rates=rates, losses=lowest))
    return found


def fullest(some: Iterable[Profile]) -> Profile:
    """Of the profiles of five sizes or more the one of lowest loss; if there are none, of those of most sizes.

    Recipes are not mixed: one that is better, but was tried at some sizes only, would put the minimum among those.
    """
    some = list(some)
    enough = min(MIN_SIZES, max(len(profile.losses) for profile in some))
    return min(
        (profile for profile in some if len(profile.losses) >= enough),
        key=lambda profile: (min(profile.losses.values()), -len(profile.losses), profile.rates),
    )


def fitted_profiles(runs: Iterable[Run], *, min_budget: float = 0.0, max_budget: float) -> list[Profile]:
    """What a law is fitted to: of each budget between two, ascending, the fullest profile.

    Raises:
        UserError: no run is left.
    """
    by_budget: dict[float, list[Profile]] = defaultdict(list)
    for profile in profiles(runs):
        if min_budget <= profile.compute_budget <= max_budget:
            by_budget[profile.compute_budget].append(profile)
    if not by_budget:
        raise UserError(
            f"no finished run has a budget from {min_budget:.0e} to {max_budget:.0e}; train some of the grid first"
        )
    return [fullest(some) for _, some in sorted(by_budget.items())]


def points(runs: Iterable[Run], *, min_budget: float = 0.0, max_budget: float) -> Measurements:
    """The sizes and budgets of `fitted_profiles`, as fitters take them.

    Raises:
        UserError: no run is left.
    """
    chosen = fitted_profiles(runs, min_budget=min_budget, max_budget=max_budget)
    rows = [(size, each.compute_budget, loss) for each in chosen for size, loss in each.losses.items()]
    return measurements(*zip(*rows, strict=True))


def on_ladder(run: Run) -> bool:
    """Whether aspect ratio and head size are those of profiles, so that size alone tells two shapes apart."""
    ratios = (run.d_model / run.num_layers, ASPECT_RATIOS), (run.d_model / run.num_heads, HEAD_SIZES)
    return all(low <= value <= high for value, (low, high) in ratios)
