"""The process by hand, its gradient by differences, its fit beside SciPy's, and what it says far from all rows."""

import numpy as np
import pytest
from scipy.optimize import approx_fprime, minimize
from scipy.stats import multivariate_normal

from cs336.scaling import gaussian_process
from cs336.scaling.gaussian_process import LENGTH_PRIOR, fit_process, negative_log_posterior

CONSTANT, SLOPES = gaussian_process._CONSTANT, gaussian_process._SLOPES


def matern(distance):
    """Rasmussen and Williams 2006, equation 4.17, of nu = 5/2."""
    return (1 + 5**0.5 * distance + 5 / 3 * distance**2) * np.exp(-(5**0.5) * distance)


def covariances(some, others, lengths, amplitude):
    """Term by term, without a look at the code."""
    return np.array(
        [
            [
                amplitude**2 * matern(np.linalg.norm((a - b) / lengths)) + CONSTANT**2 + SLOPES**2 * (a @ b)
                for b in others
            ]
            for a in some
        ]
    )


@pytest.fixture(scope="module")
def drawn():
    """60 rows of a plane, a bend along the first feature, and noise of 0.05 times what is known of it."""
    draw = np.random.default_rng(0)
    features = draw.uniform(-3, 3, (60, 3)) + 10
    noises = draw.uniform(0.5, 2, 60)
    targets = 0.3 * features[:, 1] + np.sin(features[:, 0]) + 0.05 * noises * draw.normal(size=60)
    return features, targets, noises


@pytest.fixture(scope="module")
def fitted(drawn):
    return fit_process(*drawn)


def test_means_and_deviations_are_those_of_conditional_gaussians(drawn, fitted):
    features, targets, noises = drawn
    asked = np.array([[10.0, 9.0, 11.0], [14.0, 10.0, 2.0]]) - fitted.centre
    rows = features - features.mean(axis=0)
    kind = (fitted.lengths, fitted.amplitude)
    inverse = np.linalg.inv(covariances(rows, rows, *kind) + np.diag((fitted.noise * noises) ** 2 + 1e-6))
    between = covariances(asked, rows, *kind)
    left = np.diag(covariances(asked, asked, *kind) - between @ inverse @ between.T)
    means, deviations = fitted(asked + fitted.centre)
    np.testing.assert_allclose(means, between @ inverse @ targets, rtol=1e-7)
    np.testing.assert_allclose(deviations, np.sqrt(left), rtol=1e-5)


def objective(drawn):
    features, targets, noises = drawn
    rows = features - features.mean(axis=0)
    squares, plane = gaussian_process._squares(rows, rows), gaussian_process._plane(rows, rows)
    return lambda point: negative_log_posterior(point, squares, plane, targets, noises)


def test_the_gradient_is_that_of_differences(drawn):
    found = objective(drawn)
    for point in np.random.default_rng(1).normal(scale=0.5, size=(5, 5)):
        numeric = approx_fprime(point, lambda at: found(at)[0], 1e-6)
        np.testing.assert_allclose(found(point)[1], numeric, rtol=1e-3, atol=1e-3)


def test_the_fit_is_scipys_of_the_density_itself(drawn, fitted):
    features, targets, noises = drawn
    rows = features - features.mean(axis=0)

    def surprise(point):
        lengths, amplitude, noise = np.exp(point[:3]), np.exp(point[3]), np.exp(point[4])
        covariance = covariances(rows, rows, lengths, amplitude) + np.diag((noise * noises) ** 2 + 1e-6)
        prior = ((point[:3] - LENGTH_PRIOR[0]) ** 2 / LENGTH_PRIOR[1] ** 2).sum() / 2
        return prior - multivariate_normal(cov=covariance).logpdf(targets)

    ours = np.log([*fitted.lengths, fitted.amplitude, fitted.noise])
    theirs = minimize(surprise, ours + 0.05, method="L-BFGS-B").x
    np.testing.assert_allclose(ours, theirs, atol=0.02)  # ours are rounded to 0.01
    assert fitted.noise == pytest.approx(0.05, rel=0.4)
    assert fitted.lengths[0] < fitted.lengths[2], "the third feature does nothing"


def test_what_is_fitted_does_not_hang_on_the_last_digits_of_a_machine(drawn, fitted, monkeypatch):
    """As another linear algebra would have it: every covariance differs in its last digits."""
    exact = gaussian_process._matern
    draw = np.random.default_rng(2)

    def rounded(squares, lengths):
        correlations, slopes = exact(squares, lengths)
        return correlations * (1 + 1e-14 * np.eye(*squares.shape[1:]) * draw.normal()), slopes

    monkeypatch.setattr(gaussian_process, "_matern", rounded)
    again = fit_process(*drawn)
    assert (again.lengths == fitted.lengths).all() and again.noise == fitted.noise
    asked = drawn[0] + 1.0
    for one, other in zip(again(asked), fitted(asked), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


def test_far_from_all_rows_the_plane_is_left_and_the_doubt_grows(fitted):
    far = fitted.centre + np.array([[0.0, step, 0.0] for step in (0.0, 10.0, 100.0, 200.0)])
    means, deviations = fitted(far)
    assert (means[3] - means[2]) / 100 == pytest.approx(0.3, abs=0.05)
    assert (np.diff(deviations) > 0).all() and deviations[0] < 0.1 < fitted.amplitude < deviations[2]


def test_targets_without_noise_are_met():
    features = np.linspace(0, 3, 12)[:, None]
    targets = np.cos(features[:, 0])
    means, deviations = fit_process(features, targets, np.ones(12))(features)
    np.testing.assert_allclose(means, targets, atol=2e-3)
    assert deviations.max() < 2e-3


def test_a_feature_that_never_changes_says_nothing():
    features = np.column_stack([np.linspace(0, 3, 12), np.full(12, 7.0)])
    process = fit_process(features, 2 - features[:, 0], np.full(12, 0.01))
    np.testing.assert_allclose(process(np.array([[1.5, 7.0]]))[0], 0.5, atol=1e-2)
