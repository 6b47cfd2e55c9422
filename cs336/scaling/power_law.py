"""Power laws, with and without a floor, and the compute-optimal frontier that three of them make.

A law's numbers are floats, or arrays of one number a bootstrap draw; everything here works on both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cs336.scaling.accounting import FLOPS_PER_PARAMETER_TOKEN

Array = NDArray[np.float64]
Number = Any  # a float, or an array of one number a draw

_RAW_EXPONENTS = np.linspace(-3, 3, 601)
_FLOOR_EXPONENTS = np.geomspace(0.005, 2, 300)
_GOLDEN = (np.sqrt(5) - 1) / 2
_NARROWINGS = 60  # by 0.618 each: from any two grid points to the rounding of a float
_CLOSE = 1e-9  # rounding of sums of a few dozen logarithms
_NARROWEST = 1e-2  # summed squares of log x around their mean: two x within 15 % of each other make no line


@dataclass(frozen=True)
class PowerLaw:
    """y = exp(log_coefficient) * x ** exponent."""

    log_coefficient: Number
    exponent: Number

    def __call__(self, x: ArrayLike) -> Number:
        """The law at x."""
        return np.exp(self.log_coefficient + self.exponent * np.log(x))

    @property
    def coefficient(self) -> Number:
        """The law at 1."""
        return np.exp(self.log_coefficient)


@dataclass(frozen=True)
class FlooredLaw:
    """y = floor + coefficient * x ** -exponent: what remains however much is spent, and what spending lowers."""

    floor: Number
    coefficient: Number
    exponent: Number

    def __call__(self, x: ArrayLike) -> Number:
        """The law at x."""
        return self.floor + self.coefficient * np.power(x, -self.exponent)


@dataclass(frozen=True)
class Frontier:
    """What to train with a budget C of nominal FLOPs, and the loss to expect.

    Attributes:
        parameters: N_opt(C).
        tokens: D_opt(C).
        loss: L_opt(C) in nats; NaN where there were too few budgets for a floor.

    Raises:
        ValueError: parameters and tokens do not cost C together: their exponents must sum to 1 and 6 k k' be 1.
    """

    parameters: PowerLaw
    tokens: PowerLaw
    loss: FlooredLaw

    def __post_init__(self) -> None:
        exponents = np.asarray(self.parameters.exponent + self.tokens.exponent)
        with np.errstate(invalid="ignore"):  # of draws without a fit
            costs = np.asarray(self.parameters.log_coefficient + self.tokens.log_coefficient)
        costs = costs + np.log(FLOPS_PER_PARAMETER_TOKEN)
        # NaN is a draw without a fit. Rounding grows with what is summed; that of the cost, extrapolated from C to 1,
        # is larger.
        apart = np.abs(exponents - 1) > _CLOSE * _largest(self.parameters.exponent, self.tokens.exponent)
        scale = _largest(self.parameters.log_coefficient, self.tokens.log_coefficient)
        if np.any(apart) or np.any(np.abs(costs) > 100 * _CLOSE * scale):
            raise ValueError(
                f"exponents sum to {exponents}, not 1, or 6 N D is exp({costs}) C, not C;"
                " derive the tokens from the parameters: D = C / (6 N)"
            )


def _largest(one: Number, other: Number) -> Number:
    return np.maximum(1.0, np.maximum(np.abs(one), np.abs(other)))


def fit_log_log(x: ArrayLike, y: ArrayLike, use: ArrayLike = True) -> PowerLaw:
    """Least squares between the logarithms: every point counts alike, whatever its size.

    Args:
        x: (points,), positive.
        y: (..., points): one law for each leading index.
        use: points that count; as y.

    Returns:
        The law; NaN where fewer than two x are left, or where those are nearly the same.
    """
    log_x, log_y = np.log(np.asarray(x, dtype=float)), np.log(np.asarray(y, dtype=float))
    weights = np.broadcast_to(np.asarray(use, dtype=float), log_y.shape) * np.isfinite(log_y)
    log_y = np.where(weights > 0, log_y, 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        total = weights.sum(axis=-1)
        mean_x, mean_y = (weights * log_x).sum(axis=-1) / total, (weights * log_y).sum(axis=-1) / total
        centred = log_x - mean_x[..., None]
        spread = (weights * centred**2).sum(axis=-1)
        exponent = (weights * centred * log_y).sum(axis=-1) / np.where(spread > _NARROWEST, spread, np.nan)
    return PowerLaw(mean_y - exponent * mean_x, exponent)


def fit_raw(x: ArrayLike, y: ArrayLike) -> PowerLaw:
    """Least squares between the values themselves, for the comparison: the largest x alone decides nearly all of it.

    Args:
        x: (points,), positive, two distinct values at least.
        y: (points,).
    """
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    scale = np.exp(np.log(x).mean())

    def coefficient(exponent: Array) -> Array:  # the best one for a given exponent, in closed form
        powers = (x / scale) ** exponent[..., None]
        return (powers * y).sum(axis=-1) / (powers**2).sum(axis=-1)

    def error(exponent: Array) -> Array:
        return ((coefficient(exponent)[..., None] * (x / scale) ** exponent[..., None] - y) ** 2).sum(axis=-1)

    exponent = _lowest(error, _RAW_EXPONENTS)
    return PowerLaw(float(np.log(coefficient(exponent)) - exponent * np.log(scale)), float(exponent))


def fit_floored(x: ArrayLike, y: ArrayLike, use: ArrayLike = True) -> FlooredLaw:
    """Least squares in y for a law with a floor of 0 at least.

    Args:
        x: (points,), positive.
        y: (..., points), such as losses in nats: one law for each leading index.
        use: points that count; as y.

    Returns:
        The law; NaN where fewer than three points are left, as those leave the floor open.
    """
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    weights = np.broadcast_to(np.asarray(use, dtype=float), y.shape) * np.isfinite(y)
    y = np.where(weights > 0, y, 0.0)
    scale = np.exp(np.log(x).mean())

    def floor_and_coefficient(exponent: Array) -> tuple[Array, Array]:
        powers = (x / scale) ** -exponent[..., None]
        total = weights.sum(axis=-1)
        mean_power, mean_y = (weights * powers).sum(axis=-1) / total, (weights * y).sum(axis=-1) / total
        centred = powers - mean_power[..., None]
        slope = (weights * centred * y).sum(axis=-1) / (weights * centred**2).sum(axis=-1)
        floor = mean_y - slope * mean_power
        without_floor = (weights * powers * y).sum(axis=-1) / (weights * powers**2).sum(axis=-1)
        return np.maximum(floor, 0.0), np.where(floor < 0, without_floor, slope)

    def error(exponent: Array) -> Array:
        floor, coefficient = floor_and_coefficient(exponent)
        law = floor[..., None] + coefficient[..., None] * (x / scale) ** -exponent[..., None]
        return (weights * (law - y) ** 2).sum(axis=-1)

    with np.errstate(invalid="ignore", divide="ignore"):
        exponent = _lowest(error, _FLOOR_EXPONENTS, y.shape[:-1])
        floor, coefficient = floor_and_coefficient(exponent)
    enough = np.where(weights.sum(axis=-1) >= 3, 1.0, np.nan)
    return FlooredLaw(floor * enough, coefficient * scale**exponent * enough, exponent * enough)


def _lowest(error: Callable[[Array], Array], grid: Array, shape: tuple[int, ...] = ()) -> Array:
    """Where an error is lowest: of a grid first, then by golden section between the best point's neighbours."""
    errors = np.stack([error(np.full(shape, value)) for value in grid])
    best = np.argmin(np.where(np.isfinite(errors), errors, np.inf), axis=0)
    low, high = grid[np.maximum(best - 1, 0)], grid[np.minimum(best + 1, len(grid) - 1)]
    for _ in range(_NARROWINGS):
        left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
        lower_left = error(left) < error(right)
        low, high = np.where(lower_left, low, left), np.where(lower_left, right, high)
    return (low + high) / 2
