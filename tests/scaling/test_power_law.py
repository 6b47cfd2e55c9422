import math

import numpy as np
import pytest
from scipy.optimize import curve_fit

from cs336.scaling.parametric import ParametricLaw
from cs336.scaling.power_law import FlooredLaw, Frontier, PowerLaw, fit_floored, fit_log_log, fit_raw

X = np.array([6e18, 3e19, 1e20, 6e20, 3e21])


def test_a_line_through_two_points_by_hand():
    law = fit_log_log([1e2, 1e4], [10.0, 1_000.0])
    assert law.exponent == pytest.approx(1.0) and law.coefficient == pytest.approx(0.1)
    assert law(1e6) == pytest.approx(1e5)


def test_log_log_equals_numpys_polynomial_fit():
    y = 0.3 * X**0.5 * np.exp(np.random.default_rng(0).normal(0, 0.2, len(X)))
    slope, offset = np.polyfit(np.log(X), np.log(y), 1)
    law = fit_log_log(X, y)
    assert (law.exponent, law.log_coefficient) == pytest.approx((slope, offset))


def test_draws_are_fitted_each_by_itself_and_without_the_points_left_out():
    y = np.exp(np.random.default_rng(1).normal(20, 1, (3, len(X))))
    use = np.array([[1, 1, 1, 1, 1], [0, 1, 1, 0, 1], [0, 0, 1, 0, 0]], dtype=bool)
    law = fit_log_log(X, y, use)
    assert law.exponent[0] == pytest.approx(fit_log_log(X, y[0]).exponent)
    assert law.exponent[1] == pytest.approx(fit_log_log(X[use[1]], y[1][use[1]]).exponent)
    assert math.isnan(law.exponent[2])  # one point is no line


def test_raw_space_equals_scipys_least_squares_and_follows_the_largest_point():
    y = 1e3 * (X / X[0]) ** 0.5
    y[-1] *= 0.6
    raw = fit_raw(X, y)
    (k, a), _ = curve_fit(lambda x, k, a: k * (x / X[-1]) ** a, X, y, p0=(y[-1], 0.5))
    assert raw.exponent == pytest.approx(a, rel=1e-4)
    assert raw(1e23) == pytest.approx(k * (1e23 / X[-1]) ** a, rel=1e-4)
    error_raw, error_log = (abs(law(X[-1]) / y[-1] - 1) for law in (raw, fit_log_log(X, y)))
    assert error_raw < error_log / 2


def test_a_floored_law_is_found_again():
    exact = FlooredLaw(2.69, 6_150.0, 0.17486)
    law = fit_floored(X, exact(X))
    assert (law.floor, law.exponent) == pytest.approx((2.69, 0.17486), rel=1e-4)
    assert law(1e24) == pytest.approx(exact(1e24), rel=1e-5)


def test_a_floored_law_equals_scipys_bounded_least_squares():
    y = 1.7 + 900 * X**-0.15 + np.random.default_rng(2).normal(0, 0.02, len(X))
    law = fit_floored(X, y)
    (floor, c, d), _ = curve_fit(
        lambda x, floor, c, d: floor + c * (x / 1e20) ** -d, X, y, p0=(1, 1, 0.2), bounds=([0, 0, 0], np.inf)
    )
    assert law(X) == pytest.approx(floor + c * (X / 1e20) ** -d, rel=1e-4)


def test_a_floor_is_never_negative():
    """Losses that bend downwards would want one: what is left is a power law."""
    law = fit_floored(X, [4.0, 3.9, 3.7, 3.3, 2.6])
    assert law.floor == 0 and 0 < law.exponent < 0.2


def test_two_budgets_leave_the_floor_open():
    assert math.isnan(fit_floored(X, [4.0, 3.5, 3, 2.8, 2.7], use=[True, False, False, False, True]).floor)


def test_sizes_and_tokens_that_do_not_cost_the_budget_are_an_error():
    loss = FlooredLaw(1.0, 1.0, 1.0)
    Frontier(PowerLaw(0.0, 0.5), PowerLaw(-math.log(6), 0.5), loss)
    with pytest.raises(ValueError, match="exponents sum to"):
        Frontier(PowerLaw(0.0, 0.404), PowerLaw(-math.log(6), 0.597), loss)
    with pytest.raises(ValueError, match="6 N D"):
        Frontier(PowerLaw(0.0, 0.5), PowerLaw(0.0, 0.5), loss)


def test_a_law_that_hardly_falls_costs_the_budget_too():
    """As flat runs, or some of their draws, are fitted: log k is 2e10 here, and rounding grows with it."""
    law = ParametricLaw(2.0, 1e3, 1.0, 1e-10, 3e-10).frontier()
    assert law.parameters.exponent == pytest.approx(0.75) and abs(law.parameters.log_coefficient) > 1e10
    draws = PowerLaw(np.array([0.0, 2e10]), np.array([0.5, 0.5]))
    with pytest.raises(ValueError, match="6 N D"):  # a large log k in one draw excuses no other
        Frontier(draws, PowerLaw(np.array([0.0, -2e10]), np.array([0.5, 0.5])), FlooredLaw(1.0, 1.0, 1.0))


def test_x_that_are_nearly_the_same_make_no_line():
    x = np.array([1e15, 1.01e15, 1.02e15])
    assert np.isnan(fit_log_log(x, x).exponent)
    assert fit_log_log(x**10, x).exponent == pytest.approx(0.1)
