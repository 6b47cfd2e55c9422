"""Approaches 1 and 2: find the best size at several budgets, then fit power laws through what was found.

Source: Hoffmann et al. 2022, arXiv:2203.15556, sections 3.1 and 3.2; CS336 2025, assignment 3, `chinchilla_isoflops`.

Weights repeat runs: `weights[draw, run]` says how often a bootstrap draw holds a run, and every function finds the
minima of all draws at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cs336.scaling.accounting import num_tokens
from cs336.scaling.measurements import CannotFit, Measurements
from cs336.scaling.power_law import Array, Frontier, fit_floored, fit_log_log

ENVELOPE_POINTS = 1_500  # budgets at which the envelope is read: arXiv:2203.15556, section 3.1
_LOSS_POINTS = 60  # of which the loss law sees: it is searched for, and the envelope is smooth

_Found = tuple[Array, Array, NDArray[np.bool_]]  # of one budget: size, loss, bracketed


@dataclass(frozen=True)
class Minima:
    """The best size at each budget.

    Attributes:
        compute: (budgets,) nominal FLOPs, ascending.
        parameters: (..., budgets); NaN where there is no minimum, as of a parabola that opens downwards.
        losses: (..., budgets) in nats.
        bracketed: (..., budgets); False where the minimum is not between the smallest and the largest size, so that
            the true one may lie beyond.
    """

    compute: Array
    parameters: Array
    losses: Array
    bracketed: NDArray[np.bool_]

    @property
    def tokens(self) -> Array:
        """What the budget leaves for the size: D = C / (6 N)."""
        return num_tokens(self.compute, self.parameters)


def lowest_runs(runs: Measurements, weights: ArrayLike | None = None) -> Minima:
    """The run of lowest loss at each budget: the handout's rule. It is as coarse as the sizes that were tried."""
    weights = _weights(runs, weights)
    found: list[_Found] = []
    for budget in runs.budgets:
        profile = runs.compute == budget
        sizes, losses, present = runs.parameters[profile], runs.losses[profile], weights[..., profile] > 0
        best = np.argmin(np.where(present, losses, np.inf), axis=-1)
        found.append((sizes[best], losses[best], _inside(sizes[best], sizes, present)))
    return _minima(runs.budgets, found)


def parabola_minima(runs: Measurements, weights: ArrayLike | None = None) -> Minima:
    """The vertex of a parabola through loss over log N at each budget, by least squares: Chinchilla's rule.

    A budget with fewer than three sizes, or whose parabola does not open upwards, has none: NaN.
    """
    weights = _weights(runs, weights)
    found: list[_Found] = []
    for budget in runs.budgets:
        profile = runs.compute == budget
        sizes, losses, counts = runs.parameters[profile], runs.losses[profile], weights[..., profile]
        middle = np.log(sizes).mean()
        a, b, c = np.moveaxis(_parabola(np.log(sizes) - middle, losses, counts), -1, 0)
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            place = np.where(c > 0, -b / (2 * c), np.nan)
            vertex = np.exp(place + middle)
            vertex = np.where((vertex > 0) & np.isfinite(vertex), vertex, np.nan)  # of draws that are nearly straight
        found.append((vertex, a + place * (b + c * place), _inside(vertex, sizes, counts > 0)))
    return _minima(runs.budgets, found)


def envelope(runs: Measurements, weights: ArrayLike | None = None, at: ArrayLike | None = None) -> Minima:
    """The size of lowest loss at each of many budgets, each size's loss interpolated between its horizons.

    A size is read only between its own shortest and longest run, log loss over log C; one with a single horizon says
    nothing.

    Args:
        at: (budgets,) where to read; by default 1,500 between the smallest and largest, evenly in log C.

    Raises:
        CannotFit: no two sizes have two horizons each.
    """
    weights = _weights(runs, weights)
    sizes = [size for size in np.unique(runs.parameters) if len(np.unique(runs.compute[runs.parameters == size])) > 1]
    if len(sizes) < 2:
        raise CannotFit("the envelope needs two sizes at least that were each trained with several budgets")
    if at is None:
        at = np.geomspace(runs.compute.min(), runs.compute.max(), ENVELOPE_POINTS)
    at = np.asarray(at, dtype=float)
    flat = weights.reshape(-1, weights.shape[-1])
    rows = [_envelope_of_one(runs, np.asarray(sizes), present, np.log(at)) for present in flat > 0]
    shape = (*weights.shape[:-1], len(at))
    parameters, lowest, bracketed = (np.stack(column).reshape(shape) for column in zip(*rows, strict=True))
    return Minima(at, parameters, lowest, bracketed)


def fit_frontier(minima: Minima) -> Frontier:
    """Power laws of N and D in log-log space and the floored law of L, through the bracketed minima.

    Raises:
        CannotFit: fewer than two budgets have a bracketed minimum, or they are nearly one (for draws: the draw's
            numbers are NaN).
    """
    use = minima.bracketed
    if use.ndim == 1 and use.sum() < 2:
        raise CannotFit(
            f"{int(use.sum())} of {len(use)} budgets have their lowest loss between two sizes; a line needs two:"
            " add smaller or larger sizes"
        )
    parameters = fit_log_log(minima.compute, minima.parameters, use)
    if use.ndim == 1 and not np.isfinite(parameters.exponent):
        raise CannotFit("the budgets with a minimum between two sizes are nearly the same; a line needs others")
    if use.ndim == 1 and len(sizes := np.unique(minima.parameters[use])) == 1:
        raise CannotFit(f"{sizes[0]:,.0f} parameters alone are the best between two sizes; a line needs another")
    tokens = fit_log_log(minima.compute, minima.tokens, use)
    # Both were fitted; that they agree is asserted by Frontier.
    some = slice(None, None, max(1, len(minima.compute) // _LOSS_POINTS))
    return Frontier(parameters, tokens, fit_floored(minima.compute[some], minima.losses[..., some], use[..., some]))


def _weights(runs: Measurements, weights: ArrayLike | None) -> Array:
    return np.ones(len(runs.losses)) if weights is None else np.asarray(weights, dtype=np.float64)


def _minima(budgets: Array, found: list[_Found]) -> Minima:
    parameters, lowest, bracketed = zip(*found, strict=True)
    return Minima(budgets, np.stack(parameters, axis=-1), np.stack(lowest, axis=-1), np.stack(bracketed, axis=-1))


def _inside(best: Array, sizes: Array, present: NDArray[np.bool_]) -> NDArray[np.bool_]:
    smallest = np.where(present, sizes, np.inf).min(axis=-1)
    largest = np.where(present, sizes, -np.inf).max(axis=-1)
    return (smallest < best) & (best < largest)


def _parabola(x: Array, y: Array, counts: Array) -> Array:
    """Coefficients (..., 3) of 1, x, x^2 by weighted least squares; NaN with fewer than three distinct x."""
    powers = x[:, None] ** np.arange(3)
    left = np.einsum("...r,ri,rj->...ij", counts, powers, powers)
    right = np.einsum("...r,ri,r->...i", counts, powers, y)
    distinct = np.stack([(counts * (x == value)).sum(axis=-1) > 0 for value in np.unique(x)]).sum(axis=0)
    solvable = distinct >= 3
    left = np.where(solvable[..., None, None], left, np.eye(3))
    return np.where(solvable[..., None], np.linalg.solve(left, right[..., None])[..., 0], np.nan)


def _envelope_of_one(
    runs: Measurements, sizes: Array, present: NDArray[np.bool_], at: Array
) -> tuple[Array, Array, NDArray[np.bool_]]:
    curves = np.full((len(sizes), len(at)), np.inf)
    for place, size in enumerate(sizes):
        chosen = np.flatnonzero(present & (runs.parameters == size))
        order = chosen[np.lexsort((runs.losses[chosen], runs.compute[chosen]))]
        compute, first = np.unique(runs.compute[order], return_index=True)  # of equals the lowest
        if len(compute) > 1:
            losses = np.log(runs.losses[order][first])
            curves[place] = np.interp(at, np.log(compute), losses, left=np.inf, right=np.inf)
    best = curves.argmin(axis=0)
    known = np.isfinite(curves)
    lowest = curves.min(axis=0)
    return (
        np.where(known.any(axis=0), sizes[best], np.nan),
        np.where(known.any(axis=0), np.exp(lowest), np.nan),
        _inside(sizes[best], sizes, known.T),
    )
