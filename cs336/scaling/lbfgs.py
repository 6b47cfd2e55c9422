"""L-BFGS on thousands of small problems at once: one array operation moves all of them.

Source    Nocedal and Wright 2006, Numerical Optimization, algorithms 7.4 and 7.5.
Steps     weak Wolfe conditions by bisection, which also holds where the gradient has kinks: Lewis and Overton 2013,
          doi:10.1007/s10107-012-0514-2, section 2.
Twin      scipy.optimize.minimize(method="L-BFGS-B"), a problem at a time: a test compares them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
# (points (batch, dim), which problems they belong to (batch,)) -> (values (batch,), gradients (batch, dim))
Objective = Callable[[Array, NDArray[np.intp]], tuple[Array, Array]]

_MEMORY = 10  # pairs of steps and gradients' changes that stand for the Hessian
_SUFFICIENT_DECREASE, _CURVATURE = 1e-4, 0.9  # Nocedal and Wright, section 3.1
_MAX_TRIALS = 40  # halvings of a step before its problem counts as finished
_NO_BOUND = np.inf


class Minima(NamedTuple):
    """Where each problem ended.

    Attributes:
        points: (problems, dim).
        values: (problems,).
        converged: False where the iterations ran out first.
    """

    points: Array
    values: Array
    converged: NDArray[np.bool_]


def minimize(
    objective: Objective, starts: Array, *, max_iterations: int = 500, tolerance: float = 1e-12, patience: int = 3
) -> Minima:
    """Minimize one function from each start; problems that are finished cost nothing more.

    Args:
        objective: values and gradients of several problems at once; the second argument says of which.
        starts: (problems, dim).
        max_iterations: of each problem.
        tolerance: a problem is finished when `patience` steps in a row lowered its value by less than this share of
            it, when its gradient is 0, or when no step lowers it.
        patience: see `tolerance`.
    """
    points = np.array(starts, dtype=np.float64)
    num_problems, dim = points.shape
    everything = np.arange(num_problems)
    values, gradients = objective(points, everything)
    converged = ~np.isfinite(values) | ~gradients.any(axis=1)  # a start without a value leads nowhere
    values[~np.isfinite(values)] = np.inf
    idle = np.zeros(num_problems, dtype=np.intp)
    steps = np.zeros((_MEMORY, num_problems, dim))
    changes = np.zeros((_MEMORY, num_problems, dim))
    for _ in range(max_iterations):
        active = everything[~converged]
        if not len(active):
            break
        slopes_of = gradients[active]
        directions = _directions(steps[:, active], changes[:, active], slopes_of)
        slopes = (directions * slopes_of).sum(axis=1)
        uphill = slopes >= 0  # of rounding: forget what was remembered
        directions[uphill] = -slopes_of[uphill]
        slopes[uphill] = -(slopes_of[uphill] ** 2).sum(axis=1)
        found = _line_search(objective, active, points[active], values[active], directions, slopes)
        step, change = found.points - points[active], found.gradients - slopes_of
        steps, changes = np.roll(steps, 1, axis=0), np.roll(changes, 1, axis=0)
        bends_up = (step * change).sum(axis=1) > 0  # else the pair would spoil the Hessian: not remembered
        steps[0, active], changes[0, active] = step * bends_up[:, None], change * bends_up[:, None]
        lowered = values[active] - found.values
        idle[active] = np.where(lowered > tolerance * np.abs(values[active]), 0, idle[active] + 1)
        points[active], values[active], gradients[active] = found.points, found.values, found.gradients
        converged[active] = (idle[active] >= patience) | ~found.gradients.any(axis=1) | ~found.moved
    return Minima(points, values, converged)


def _directions(steps: Array, changes: Array, gradients: Array) -> Array:
    """The two loops over the remembered pairs, newest first; a pair of zeros says nothing."""
    products = (steps * changes).sum(axis=2)
    rho = np.divide(1.0, products, out=np.zeros_like(products), where=products > 0)
    q = gradients.copy()
    alphas = np.zeros_like(rho)
    for i in range(_MEMORY):
        alphas[i] = rho[i] * (steps[i] * q).sum(axis=1)
        q -= alphas[i][:, None] * changes[i]
    lengths = (changes[0] ** 2).sum(axis=1)
    first = np.sqrt((gradients**2).sum(axis=1))  # without any pair: a step of length 1 at most
    scale = np.divide(products[0], lengths, out=1 / np.maximum(first, 1.0), where=products[0] > 0)
    q *= scale[:, None]
    for i in reversed(range(_MEMORY)):
        q += steps[i] * (alphas[i] - rho[i] * (changes[i] * q).sum(axis=1))[:, None]
    return -q


class _Found(NamedTuple):
    points: Array
    values: Array
    gradients: Array
    moved: NDArray[np.bool_]


def _line_search(
    objective: Objective,
    problems: NDArray[np.intp],
    points: Array,
    values: Array,
    directions: Array,
    slopes: Array,
) -> _Found:
    """A step along each direction that lowers the value enough and has passed the steepest part."""
    num = len(problems)
    low, high, length = np.zeros(num), np.full(num, _NO_BOUND), np.ones(num)
    best = _Found(points.copy(), values.copy(), np.zeros_like(points), np.zeros(num, dtype=bool))
    searching = np.arange(num)
    for _ in range(_MAX_TRIALS):
        trial = points[searching] + length[searching, None] * directions[searching]
        with np.errstate(over="ignore", invalid="ignore"):
            value, gradient = objective(trial, problems[searching])
        enough = value <= values[searching] + _SUFFICIENT_DECREASE * length[searching] * slopes[searching]
        flat = (gradient * directions[searching]).sum(axis=1) >= _CURVATURE * slopes[searching]
        keep = enough & (value <= best.values[searching])  # the lowest so far, should the trials run out
        kept = searching[keep]
        best.points[kept], best.values[kept], best.gradients[kept] = trial[keep], value[keep], gradient[keep]
        best.moved[kept] = True
        high[searching] = np.where(enough, high[searching], length[searching])
        low[searching] = np.where(enough & ~flat, length[searching], low[searching])
        searching = searching[~(enough & flat)]
        if not len(searching):
            break
        bounded = np.isfinite(high[searching])
        length[searching] = np.where(bounded, (low + high)[searching] / 2, 2 * low[searching])
    return best
