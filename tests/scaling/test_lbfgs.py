import numpy as np
import pytest
from scipy.optimize import minimize as scipy_minimize

from cs336.scaling import lbfgs


def rosenbrock(points, which):
    """The banana valley, narrower for each problem."""
    x, y = points.T
    steep = 10.0 * (1 + which)
    values = (1 - x) ** 2 + steep * (y - x**2) ** 2
    gradients = np.stack([-2 * (1 - x) - 4 * steep * x * (y - x**2), 2 * steep * (y - x**2)], axis=1)
    return values, gradients


def test_every_problem_of_a_batch_ends_at_its_minimum():
    starts = np.random.default_rng(0).uniform(-2, 2, (50, 2))
    found = lbfgs.minimize(rosenbrock, starts)
    assert found.converged.all()
    assert found.points == pytest.approx(np.ones((50, 2)), abs=1e-5)


def test_a_problem_ends_where_it_would_alone():
    starts = np.random.default_rng(1).uniform(-2, 2, (7, 2))
    together = lbfgs.minimize(rosenbrock, starts, max_iterations=12)
    for place in range(7):
        alone = lbfgs.minimize(
            lambda points, which, of=place: rosenbrock(points, which + of), starts[[place]], max_iterations=12
        )
        assert alone.points[0] == pytest.approx(together.points[place], rel=1e-9)


def test_it_needs_about_as_many_evaluations_as_scipy():
    """On a function without closed form in sight, to the same minimum."""
    scales = np.array([1.0, 3.0, 10.0, 30.0, 100.0])
    calls = 0

    def value(points, which):
        nonlocal calls
        calls += len(points)
        return np.log(np.cosh(scales * (points - 1))).sum(axis=1), scales * np.tanh(scales * (points - 1))

    def alone(point):
        values, gradients = value(point[None], np.zeros(1, dtype=int))
        return values[0], gradients[0]

    start = np.full(5, 1.3)
    theirs = scipy_minimize(alone, start, jac=True, method="L-BFGS-B", options={"ftol": 1e-15, "gtol": 1e-12})
    calls = 0
    ours = lbfgs.minimize(value, start[None])
    assert ours.points[0] == pytest.approx(theirs.x, abs=1e-5)
    assert calls <= 3 * theirs.nfev


def test_a_kink_does_not_stop_it():
    """The absolute value, whose gradient jumps at the minimum."""
    found = lbfgs.minimize(lambda p, which: (np.abs(p - 3).sum(axis=1), np.sign(p - 3)), np.array([[10.0, -7.0]]))
    assert found.values[0] < 1e-6


def test_a_start_without_a_value_or_slope_stays_and_holds_nobody_up():
    def objective(points, which):
        values = np.where(points[:, 0] > 1e3, np.nan, (points**2).sum(axis=1))
        return values, np.where(points > 100, 0.0, 2 * points)

    found = lbfgs.minimize(objective, np.array([[2e3], [500.0], [5.0]]))
    assert found.converged.all() and found.values[0] == np.inf
    assert found.points[1, 0] == 500 and found.values[2] < 1e-12


def test_running_out_of_iterations_is_told():
    assert not lbfgs.minimize(rosenbrock, np.array([[-1.2, 1.0]]), max_iterations=3).converged[0]
