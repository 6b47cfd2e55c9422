"""Gaussian process regression: a plane, a smooth function around it, and noise.

Source    Rasmussen and Williams 2006, Gaussian Processes for Machine Learning: algorithm 2.1 (prediction), equations
          5.8 and 5.9 (marginal likelihood, its gradient), 4.17 (Matern 5/2), section 2.7 (the plane, as a covariance).
Lengths   of each feature its own: how far to go for the function to change. A prior keeps them near one: without it
          those that the rows say little of grow without bound, and the function with them beyond the rows.
Rounding  what is fitted is rounded to a percent, so that the last digits of a minimum, which depend on the machine's
          linear algebra, do not reach the predictions.

Cost is cubic in the rows: for some hundreds of them a fit takes less than a second.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cs336.scaling import lbfgs

Array = NDArray[np.float64]

LENGTH_PRIOR = (0.0, 0.5)  # of a length's logarithm: mean and standard deviation
_CONSTANT, _SLOPES = 3.0, 0.5  # standard deviations of the plane: published exponents of loss are 0.1 to 0.5
_STARTS = (0.4, 0.04)  # amplitude and noise, as shares of the targets' standard deviation
_LEAST_NOISE = 1e-3  # else targets without noise leave a matrix that cannot be inverted
_DIGITS = 2  # of the logarithms of what is fitted


@dataclass(frozen=True, kw_only=True)
class GaussianProcess:
    """A fitted process; call it with features.

    Attributes:
        rows: (rows, features) fitted to, around their centre.
        centre: (features,)
        lengths: (features,) of the function.
        amplitude: its standard deviation around the plane.
        noise: standard deviation of a target, over what is known of it.
        weights: (rows,) inverse covariance times targets.
        whitening: (rows, rows) inverse of the lower Cholesky factor of the targets' covariance.
    """

    rows: Array
    centre: Array
    lengths: Array
    amplitude: float
    noise: float
    weights: Array
    whitening: Array

    def __call__(self, features: Array) -> tuple[Array, Array]:
        """(points, features) -> means (points,), and their standard deviations (points,), without noise."""
        points, between = features - self.centre, self._covariances(features)
        own = self.amplitude**2 + _CONSTANT**2 + _SLOPES**2 * (points**2).sum(axis=1)
        known = ((between @ self.whitening.T) ** 2).sum(axis=1)
        return between @ self.weights, np.sqrt(np.maximum(own - known, 0.0))

    def means(self, features: Array) -> Array:
        """The first of what a call returns, at a fraction of its cost."""
        return self._covariances(features) @ self.weights

    def _covariances(self, features: Array) -> Array:
        points = features - self.centre
        return self.amplitude**2 * _matern(_squares(points, self.rows), self.lengths)[0] + _plane(points, self.rows)


def fit_process(features: Array, targets: Array, noises: Array) -> GaussianProcess:
    """Lengths, amplitude and noise of the largest marginal likelihood times prior; deterministic.

    Args:
        features: (rows, features), finite.
        targets: (rows,)
        noises: (rows,) standard deviations of the targets' noise, up to a factor, which is fitted.
    """
    centre = features.mean(axis=0)
    rows = features - centre
    squares, plane = _squares(rows, rows), _plane(rows, rows)
    spread = max(float(targets.std()), _LEAST_NOISE)
    middle = float(np.median(noises))
    start = np.concatenate([np.full(rows.shape[1], LENGTH_PRIOR[0]), np.log(spread) + np.log(_STARTS)])
    start[-1] -= np.log(middle)

    def objective(points: Array, which: NDArray[np.intp]) -> tuple[Array, Array]:
        found = [negative_log_posterior(point, squares, plane, targets, noises) for point in points]
        return np.array([value for value, _ in found]), np.stack([gradient for _, gradient in found])

    best = np.exp(np.round(lbfgs.minimize(objective, start[None], tolerance=1e-9).points[0], _DIGITS))
    lengths, amplitude, noise = best[:-2], float(best[-2]), float(best[-1])
    covariance = amplitude**2 * _matern(squares, lengths)[0] + plane + np.diag((noise * noises) ** 2 + _LEAST_NOISE**2)
    whitening: Array = np.asarray(np.linalg.inv(np.linalg.cholesky(covariance)), dtype=np.float64)
    return GaussianProcess(
        rows=rows,
        centre=centre,
        lengths=lengths,
        amplitude=amplitude,
        noise=noise,
        weights=whitening.T @ (whitening @ targets),
        whitening=whitening,
    )


def negative_log_posterior(
    point: Array, squares: Array, plane: Array, targets: Array, noises: Array
) -> tuple[float, Array]:
    """What the fit minimizes, up to a constant, and its gradient.

    Args:
        point: (features + 2,) logarithms of lengths, amplitude and noise.
        squares: (features, rows, rows) squared differences of each feature.
        plane: (rows, rows) covariance of the plane.
        targets, noises: (rows,)
    """
    lengths, (amplitude, noise) = np.exp(point[:-2]), np.exp(2 * point[-2:])  # the last two squared
    matern, slope = _matern(squares, lengths)
    covariance = amplitude * matern + plane + np.diag(noise * noises**2 + _LEAST_NOISE**2)
    try:
        half, inverse = np.linalg.cholesky(covariance), np.linalg.inv(covariance)
    except np.linalg.LinAlgError:  # a step too far
        return np.inf, np.zeros_like(point)
    weights = inverse @ targets
    from_prior = (point[:-2] - LENGTH_PRIOR[0]) / LENGTH_PRIOR[1]
    value = 0.5 * targets @ weights + np.log(np.diag(half)).sum() + 0.5 * from_prior @ from_prior
    by_covariance = 0.5 * (inverse - np.outer(weights, weights))
    by_lengths = -2 * amplitude * np.tensordot(squares, by_covariance * slope, axes=2) / lengths**2
    by_others = [2 * amplitude * (by_covariance * matern).sum(), 2 * noise * np.diag(by_covariance) @ noises**2]
    return float(value), np.concatenate([by_lengths + from_prior / LENGTH_PRIOR[1], by_others])


def _squares(some: Array, others: Array) -> Array:
    """(features, some, others)"""
    return (some.T[:, :, None] - others.T[:, None, :]) ** 2


def _matern(squares: Array, lengths: Array) -> tuple[Array, Array]:
    """Correlations (some, others), and their derivatives by the squared distance."""
    distances = np.sqrt(5 * np.tensordot(lengths**-2.0, squares, axes=1))
    falling = np.exp(-distances)
    return (1 + distances + distances**2 / 3) * falling, -5 / 6 * (1 + distances) * falling


def _plane(some: Array, others: Array) -> Array:
    """Covariances (some, others) of a plane that nothing is known of."""
    return _CONSTANT**2 + _SLOPES**2 * (some @ others.T)
