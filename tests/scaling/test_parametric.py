"""Approach 3 against laws that are known, against SciPy, and against its own derivatives."""

import numpy as np
import pytest
from scipy.optimize import approx_fprime, minimize, minimize_scalar
from scipy.special import huber, logsumexp

from cs336.scaling import lbfgs
from cs336.scaling.accounting import num_tokens
from cs336.scaling.exercise import LAW, exercise_runs
from cs336.scaling.measurements import CannotFit, measurements
from cs336.scaling.parametric import (
    HUBER_DELTA,
    STARTS,
    HuberObjective,
    ParametricLaw,
    fit_parametric,
    fit_parametric_draws,
)
from cs336.scaling.uncertainty import bootstrap_weights

NAMES = ("E", "A", "B", "alpha", "beta")


@pytest.fixture(scope="module")
def noisy():
    exact = exercise_runs()
    return exact._replace(losses=exact.losses * np.exp(np.random.default_rng(0).normal(0, 0.005, len(exact.losses))))


@pytest.fixture(scope="module")
def fitted(noisy):
    return fit_parametric(noisy)


def objective(numbers, runs, weights=1.0):
    """The specification word for word, on the original coordinates, without our code."""
    a, b, e, alpha, beta = numbers
    terms = [a - alpha * np.log(runs.parameters), b - beta * np.log(runs.tokens), np.full(len(runs.losses), e)]
    return (weights * huber(HUBER_DELTA, logsumexp(terms, axis=0) - np.log(runs.losses))).sum() / HUBER_DELTA**2


def numbers_of(law):
    return np.array([np.log(law.A), np.log(law.B), np.log(law.E), law.alpha, law.beta])


def test_the_grid_of_starts_is_the_papers():
    assert STARTS.shape == (6 * 6 * 5 * 5 * 5, 5) == (4_500, 5)
    assert [sorted(set(column)) for column in STARTS.T] == [
        [0, 5, 10, 15, 20, 25],
        [0, 5, 10, 15, 20, 25],
        [-1, -0.5, 0, 0.5, 1],
        [0, 0.5, 1, 1.5, 2],
        [0, 0.5, 1, 1.5, 2],
    ]


def test_value_and_gradient_are_the_specifications(noisy):
    weights = bootstrap_weights(noisy, 3, seed=1)
    problem = HuberObjective(noisy, weights)
    points = numbers_of(LAW) + np.random.default_rng(2).normal(0, 0.01, (3, 5))
    which = np.array([2, 0, 1])
    values, gradients = problem(problem.centred(points), which)
    for place, draw in enumerate(which):
        assert values[place] == pytest.approx(objective(points[place], noisy, weights[draw]))
        slopes = approx_fprime(
            problem.centred(points)[place], lambda p, d=draw: problem(p[None], np.array([d]))[0][0], 1e-7
        )
        assert gradients[place] == pytest.approx(slopes, rel=1e-3, abs=1)


def test_the_exercises_law_is_found_to_three_decimals_and_better():
    law = fit_parametric(exercise_runs())
    assert (law.E, law.alpha, law.beta) == pytest.approx((2.69, 0.34, 0.36), abs=1e-7)
    coefficients = [law.A, law.B]
    assert coefficients == pytest.approx([1_606.4, 3_210.7])


def test_no_search_of_scipys_ends_lower(noisy, fitted):
    """From the exact law and from our answer, by L-BFGS-B and without gradients."""
    assert fitted.huber == pytest.approx(objective(numbers_of(fitted), noisy))
    for start in (numbers_of(LAW), numbers_of(fitted)):
        for method in ("L-BFGS-B", "Nelder-Mead"):
            theirs = minimize(objective, start, args=(noisy,), method=method, options={"maxiter": 4_000})
            assert fitted.huber <= theirs.fun * (1 + 1e-9)


def test_no_start_run_to_the_end_is_lower(noisy, fitted):
    problem = HuberObjective(noisy, np.ones((1, len(noisy.losses))))
    ends = lbfgs.minimize(lambda points, which: problem(points, np.zeros_like(which)), problem.centred(STARTS))
    assert ends.values.min() == pytest.approx(fitted.huber, rel=1e-9)
    assert (ends.values < 1.01 * fitted.huber).sum() > 1_000  # not by luck: a third of the starts lead there


def test_an_outlier_hardly_moves_it(noisy, fitted):
    """Huber: one loss off by half moves a squared error's fit far, this one within its noise."""
    losses = noisy.losses.copy()
    losses[40] *= 1.5
    law = fit_parametric(noisy._replace(losses=losses), STARTS[::50])
    assert law.alpha == pytest.approx(fitted.alpha, abs=0.02) and pytest.approx(fitted.E, abs=0.05) == law.E


def test_a_draw_from_the_best_start_ends_where_the_whole_grid_does(noisy, fitted):
    weights = bootstrap_weights(noisy, 2, seed=3)
    draws = fit_parametric_draws(noisy, weights, fitted)
    for draw, counts in enumerate(weights.astype(int)):
        repeated = measurements(*(np.repeat(column, counts) for column in noisy))
        whole = fit_parametric(repeated)
        assert draws.huber[draw] == pytest.approx(whole.huber, rel=1e-6)
        assert draws.alpha[draw] == pytest.approx(whole.alpha, abs=1e-4)
        assert draws.beta[draw] == pytest.approx(whole.beta, abs=1e-4)


@pytest.mark.parametrize("law", [LAW, ParametricLaw(E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28)])
def test_the_closed_form_is_the_minimum_that_a_search_finds(law):
    frontier = law.frontier()
    for compute in (1e18, 1e23):
        found = minimize_scalar(
            lambda log_n, c=compute: law(np.exp(log_n), num_tokens(c, np.exp(log_n))),
            bounds=(10, 35),
            method="bounded",
            options={"xatol": 1e-9},
        )
        assert frontier.parameters(compute) == pytest.approx(np.exp(found.x), rel=1e-4)
        assert frontier.loss(compute) == pytest.approx(found.fun, rel=1e-12)
        assert 6 * frontier.parameters(compute) * frontier.tokens(compute) == pytest.approx(compute)


def test_the_exact_answer_of_the_exercise():
    frontier = LAW.frontier()
    assert frontier.parameters.exponent == pytest.approx(0.5143, abs=5e-5)
    assert frontier.parameters([1e23, 1e24]) == pytest.approx([91.9e9, 300.3e9], rel=5e-4)
    assert frontier.tokens([1e23, 1e24]) == pytest.approx([181.4e9, 555.0e9], rel=5e-4)


def test_without_a_falling_term_nothing_is_optimal():
    law = ParametricLaw(
        E=np.array([2.0, 2.0]),
        A=np.array([1.0, 4e2]),
        B=np.array([1.0, 4e2]),
        alpha=np.array([0.0, 0.3]),
        beta=np.array([0.3, 0.3]),
    )
    assert np.isnan(law.frontier().parameters(1e20)).tolist() == [True, False]


def test_too_few_runs_are_told():
    with pytest.raises(CannotFit, match="4 runs"):
        fit_parametric(measurements([1, 2, 3, 4], [1, 2, 3, 4], [4, 3, 2, 1]))
    with pytest.raises(CannotFit, match="6 runs"):
        fit_parametric(measurements([7] * 6, range(1, 7), range(6, 0, -1)))
