"""Approach 3: one law of size and tokens, L = E + A / N^alpha + B / D^beta, fitted to all runs.

Source: Hoffmann et al. 2022, arXiv:2203.15556, section 3.3 and appendix D.4.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cs336.scaling import lbfgs
from cs336.scaling.accounting import FLOPS_PER_PARAMETER_TOKEN
from cs336.scaling.measurements import CannotFit, Measurements
from cs336.scaling.power_law import Array, FlooredLaw, Frontier, Number, PowerLaw

HUBER_DELTA = 1e-3  # residuals of the log-loss beyond it count by their size, not its square
_NUM_NUMBERS = 5
# Most of the work would be the last digits of starts that lost long ago: each start goes on until its steps gain less
# than the first share of its value, and so many of the best to the end. A test runs all to the end: nothing is lower.
_ROUGH, _NUM_FINISHED = 1e-4, 100
_START_VALUES = (  # of a, b, e, alpha, beta: 4,500 starts
    np.arange(0, 26, 5.0),
    np.arange(0, 26, 5.0),
    np.arange(-1, 1.01, 0.5),
    np.arange(0, 2.01, 0.5),
    np.arange(0, 2.01, 0.5),
)
STARTS: NDArray[np.float64] = np.array(list(itertools.product(*_START_VALUES)))


@dataclass(frozen=True)
class ParametricLaw:
    """L(N, D) = E + A / N^alpha + B / D^beta, in nats per token; floats, or arrays of one number a draw.

    Attributes:
        huber: the objective where the fit ended: summed Huber losses of the log-loss residuals, by delta^2.
    """

    E: Number
    A: Number
    B: Number
    alpha: Number
    beta: Number
    huber: Number = 0.0

    def __call__(self, parameters: ArrayLike, tokens: ArrayLike) -> Number:
        """The law for a size and a number of tokens."""
        return self.E + self.A * np.power(parameters, -self.alpha) + self.B * np.power(tokens, -self.beta)

    def frontier(self) -> Frontier:
        """The best size, its tokens and its loss for every budget, in closed form.

        N_opt = G (C/6)^(beta/(alpha+beta)) and D_opt = (C/6)^(alpha/(alpha+beta)) / G with
        G = (alpha A / (beta B))^(1/(alpha+beta)). Put into the law, both terms fall as C^-(alpha beta/(alpha+beta)),
        so L_opt is a power law with floor E exactly.

        A fit may end where one exponent is 0 or negative: then nothing is optimal, and the numbers are NaN.
        """
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            sound = np.where((np.asarray(self.alpha) > 0) & (np.asarray(self.beta) > 0), 1.0, np.nan)
            total = (self.alpha + self.beta) * sound
            log_g = np.log(self.alpha * self.A / (self.beta * self.B)) / total
            exponent = self.beta / total
            parameters = PowerLaw(log_g - exponent * np.log(FLOPS_PER_PARAMETER_TOKEN), exponent)
            tokens = PowerLaw(-log_g - self.alpha / total * np.log(FLOPS_PER_PARAMETER_TOKEN), self.alpha / total)
            coefficient = self.A * np.exp(-self.alpha * parameters.log_coefficient) + self.B * np.exp(
                -self.beta * tokens.log_coefficient
            )
        return Frontier(parameters, tokens, FlooredLaw(self.E, coefficient, self.alpha * self.beta / total))


CHINCHILLA = ParametricLaw(E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28)  # arXiv:2203.15556, appendix D.4


def fit_parametric(runs: Measurements, starts: Array = STARTS) -> ParametricLaw:
    """Minimize Huber(delta = 1e-3) of the log-loss residuals by L-BFGS from every start; the best is kept.

    The law is evaluated as a log-sum-exp of a - alpha ln N, b - beta ln D and e, with A = e^a, B = e^b, E = e^e.

    Args:
        runs: five at least, of sizes and token counts that differ.
        starts: (starts, 5) of a, b, e, alpha, beta; by default the paper's grid of 4,500.

    Raises:
        CannotFit: fewer runs than the law has numbers, or all of one size or one number of tokens.
    """
    if len(runs.losses) < _NUM_NUMBERS or len(np.unique(runs.parameters)) < 2 or len(np.unique(runs.tokens)) < 2:
        raise CannotFit(f"the law has {_NUM_NUMBERS} numbers; {len(runs.losses)} runs of these sizes do not fix them")
    problem = HuberObjective(runs, np.ones((1, len(runs.losses))))

    def objective(points: Array, which: NDArray[np.intp]) -> tuple[Array, Array]:
        return problem(points, np.zeros_like(which))

    rough = lbfgs.minimize(objective, problem.centred(np.asarray(starts, dtype=float)), tolerance=_ROUGH)
    found = lbfgs.minimize(objective, rough.points[np.argsort(rough.values)[:_NUM_FINISHED]])
    best = int(np.argmin(found.values))
    law = problem.law(found.points[best], found.values[best])
    return ParametricLaw(*(float(getattr(law, name)) for name in law.__dataclass_fields__))


def fit_parametric_draws(runs: Measurements, weights: ArrayLike, best: ParametricLaw) -> ParametricLaw:
    """The law of each bootstrap draw, starting where the fit to all runs ended.

    Args:
        weights: (draws, runs); how often each draw holds each run.
        best: of `fit_parametric` on the same runs.
    """
    weights = np.asarray(weights, dtype=np.float64)
    problem = HuberObjective(runs, weights)
    start = np.array([np.log(best.A), np.log(best.B), np.log(best.E), best.alpha, best.beta])
    found = lbfgs.minimize(problem, problem.centred(np.repeat(start[None], len(weights), axis=0)))
    return problem.law(found.points, found.values)


class HuberObjective:
    """The objective and its gradient, for points in coordinates where ln N and ln D are centred.

    There a and alpha, and b and beta, hardly depend on each other, which saves most of the iterations; the starts and
    the minima are the same points. Divided by delta^2, so that the numbers are near 1.
    """

    def __init__(self, runs: Measurements, weights: Array) -> None:
        log_n, log_d = np.log(runs.parameters), np.log(runs.tokens)
        self._middle = log_n.mean(), log_d.mean()
        self._log_n, self._log_d = log_n - self._middle[0], log_d - self._middle[1]
        self._log_losses, self._weights = np.log(runs.losses), weights

    def __call__(self, points: Array, which: NDArray[np.intp]) -> tuple[Array, Array]:
        a, b, e, alpha, beta = (points[:, place, None] for place in range(_NUM_NUMBERS))
        of_size, of_tokens = a - alpha * self._log_n, b - beta * self._log_d
        largest = np.maximum(np.maximum(of_size, of_tokens), e)
        of_size, of_tokens, floor = np.exp(of_size - largest), np.exp(of_tokens - largest), np.exp(e - largest)
        total = of_size + of_tokens + floor
        residuals = (largest + np.log(total) - self._log_losses) / HUBER_DELTA
        sizes = np.abs(residuals)
        weights = self._weights[which]
        values = weights * np.where(sizes <= 1, 0.5 * residuals**2, sizes - 0.5)
        slopes = weights * np.clip(residuals, -1, 1) / (HUBER_DELTA * total)
        by_a, by_b = slopes * of_size, slopes * of_tokens
        by_numbers = [by_a.sum(axis=1), by_b.sum(axis=1), (slopes * floor).sum(axis=1)]
        by_exponents = [-(by_a @ self._log_n), -(by_b @ self._log_d)]
        return values.sum(axis=1), np.stack(by_numbers + by_exponents, axis=1)

    def centred(self, points: Array) -> Array:
        """Points (batch, 5) of a, b, e, alpha, beta in the centred coordinates."""
        moved = points.copy()
        moved[:, 0] -= points[:, 3] * self._middle[0]
        moved[:, 1] -= points[:, 4] * self._middle[1]
        return moved

    def law(self, points: Array, values: Array) -> ParametricLaw:
        """Centred points (..., 5) as laws."""
        a, b, e, alpha, beta = np.moveaxis(points, -1, 0)
        a, b = a + alpha * self._middle[0], b + beta * self._middle[1]
        with np.errstate(over="ignore"):  # of draws with nearly no exponent
            return ParametricLaw(np.exp(e), np.exp(a), np.exp(b), alpha, beta, values)
