"""How far to trust a fit: bootstrap intervals, and how it would have fared at the largest budget, unseen."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cs336.scaling.isoflops import Minima, lowest_runs, parabola_minima
from cs336.scaling.measurements import CannotFit, Measurements
from cs336.scaling.power_law import Array, Frontier

_FEWEST_SIZES = 3  # of a budget in a draw: a parabola needs them
_MAX_REDRAWS = 1_000


def bootstrap_weights(runs: Measurements, num_draws: int, seed: int) -> NDArray[np.float64]:
    """How often each bootstrap draw holds each run, (draws, runs).

    Runs are drawn with replacement within their budget, so that no draw loses one: the budgets were chosen, not found.
    Where a budget has three sizes or more, so it has in each draw: others are drawn again.
    """
    generator = np.random.default_rng(seed)
    weights = np.zeros((num_draws, len(runs.losses)))
    for budget in runs.budgets:
        profile = np.flatnonzero(runs.compute == budget)
        fewest = min(_FEWEST_SIZES, len(np.unique(runs.parameters[profile])))
        waiting = np.arange(num_draws)
        for _ in range(_MAX_REDRAWS):
            shares = np.full(len(profile), 1 / len(profile))
            drawn = generator.multinomial(len(profile), shares, size=len(waiting))
            enough = _num_sizes(drawn, runs.parameters[profile]) >= fewest
            weights[np.ix_(waiting[enough], profile)] = drawn[enough]
            waiting = waiting[~enough]
            if not len(waiting):
                break
        weights[np.ix_(waiting, profile)] = 1.0  # thousands of runs of few sizes: as measured
    return weights


def _num_sizes(drawn: NDArray[np.int64], sizes: Array) -> NDArray[np.int64]:
    return np.stack([drawn[:, sizes == size].sum(axis=1) > 0 for size in np.unique(sizes)]).sum(axis=0)


class Interval(NamedTuple):
    """A range that holds the stated share of the draws."""

    low: float
    high: float


def interval(draws: ArrayLike, level: float = 0.95) -> Interval | None:
    """The middle share `level` of the draws; those without a value are left out, and None is returned if most are.

    Raises:
        ValueError: `level` is not between 0 and 1.
    """
    if not 0 < level < 1:
        raise ValueError(f"an interval's level is a share between 0 and 1, not {level}")
    values = np.asarray(draws, dtype=float)
    found = values[np.isfinite(values)]
    if (
        not len(found) or len(found) < len(values) / 2
    ):  # few of many are no sample: they are those that resemble the fit
        return None
    return Interval(*map(float, np.quantile(found, [(1 - level) / 2, (1 + level) / 2])))


class HeldOut(NamedTuple):
    """A prediction of the largest budget with a minimum by a fit that never saw it, beside what was found there.

    What was found is the vertex of the budget's parabola, or its lowest run where the parabola has none between two
    sizes.

    Attributes:
        compute: the budget.
        parameters: predicted and found.
        loss: predicted and found, in nats.
    """

    compute: float
    parameters: tuple[float, float]
    loss: tuple[float, float]

    @property
    def parameters_error(self) -> float:
        """Predicted by found, less 1."""
        return self.parameters[0] / self.parameters[1] - 1

    @property
    def loss_error(self) -> float:
        """Predicted less found, in nats."""
        return self.loss[0] - self.loss[1]


def held_out_budget(runs: Measurements) -> float:
    """The largest budget whose minimum lies between two sizes: at one that is open, what was found is no minimum.

    Raises:
        CannotFit: there is none.
    """
    closed = parabola_minima(runs).bracketed | lowest_runs(runs).bracketed
    if not closed.any():
        raise CannotFit("no budget has its lowest loss between two sizes, so none to compare a prediction with")
    return float(runs.budgets[closed][-1])


def below_held_out(runs: Measurements) -> Measurements:
    """All runs of smaller budgets than the one that is held out."""
    return runs.where(runs.compute < held_out_budget(runs))


def held_out(runs: Measurements, frontier: Frontier) -> HeldOut:
    """The error at the budget held out of a frontier that was fitted to `below_held_out(runs)`."""
    compute = held_out_budget(runs)
    profile = runs.where(runs.compute == compute)
    minima = parabola_minima(profile)
    if not minima.bracketed[0]:
        minima = lowest_runs(profile)
    return compared(frontier, minima, 0)


def compared(frontier: Frontier, minima: Minima, place: int) -> HeldOut:
    """What a frontier says at one of the budgets beside what was found there."""
    compute = float(minima.compute[place])
    return HeldOut(
        compute,
        (float(frontier.parameters(compute)), float(minima.parameters[place])),
        (float(frontier.loss(compute)), float(minima.losses[place])),
    )
