"""Approaches 1 and 2 against hand-made profiles and a law whose optimum is known."""

import numpy as np
import pytest

from cs336.scaling.accounting import num_tokens
from cs336.scaling.isoflops import Minima, envelope, fit_frontier, lowest_runs, parabola_minima
from cs336.scaling.measurements import CannotFit, measurements
from cs336.scaling.parametric import ParametricLaw

SYMMETRIC = ParametricLaw(E=1.7, A=400.0, B=400.0, alpha=0.3, beta=0.3)  # each profile is symmetric in log N


def profiles(law, budgets, factors):
    """Runs of a law: at each budget sizes at these factors of the best one."""
    compute = np.repeat(budgets, len(factors))
    sizes = np.tile(factors, len(budgets)) * law.frontier().parameters(compute)
    return measurements(sizes, compute, law(sizes, num_tokens(compute, sizes)))


def test_the_lowest_run_by_hand():
    runs = measurements([1, 2, 4, 1, 2, 4], [6, 6, 6, 600, 600, 600], [3.0, 2.0, 2.5, 1.9, 1.8, 1.7])
    minima = lowest_runs(runs)
    assert minima.compute.tolist() == [6, 600]
    assert minima.parameters.tolist() == [2, 4] and minima.losses.tolist() == [2.0, 1.7]
    assert minima.tokens.tolist() == [0.5, 25.0]
    assert minima.bracketed.tolist() == [True, False]  # 4 is the largest size: a larger one might do better


def test_a_parabola_by_hand():
    """2 + (ln N - 1)^2 exactly, so its vertex is at e; one that opens downwards has none."""
    log_sizes = np.array([0.0, 0.5, 2.0, 3.0])
    losses = np.concatenate([2 + (log_sizes - 1) ** 2, 9 - (log_sizes - 1) ** 2])
    minima = parabola_minima(measurements(np.exp(np.tile(log_sizes, 2)), np.repeat([1.0, 2.0], 4), losses))
    assert minima.parameters[0] == pytest.approx(np.e) and minima.losses[0] == pytest.approx(2.0)
    assert np.isnan(minima.parameters[1]) and minima.bracketed.tolist() == [True, False]


def test_a_vertex_beyond_the_sizes_is_not_bracketed():
    log_sizes = np.array([2.0, 3.0, 4.0])
    minima = parabola_minima(measurements(np.exp(log_sizes), [1.0] * 3, 2 + (log_sizes - 1) ** 2))
    assert minima.parameters[0] == pytest.approx(np.e) and not minima.bracketed[0]


def test_two_sizes_make_no_parabola():
    assert np.isnan(parabola_minima(measurements([1, 2, 2], [1, 1, 1], [2.0, 3.0, 3.1])).parameters[0])


def test_a_parabola_with_weights_equals_numpys_with_the_runs_repeated():
    runs = profiles(SYMMETRIC, [1e18], [0.2, 0.6, 1.1, 3, 4])
    weights = np.array([[1.0, 1, 1, 1, 1], [0, 2, 1, 2, 0]])
    minima = parabola_minima(runs, weights)
    for draw, counts in enumerate(weights.astype(int)):
        x, y = np.repeat(np.log(runs.parameters), counts), np.repeat(runs.losses, counts)
        c, b, a = np.polyfit(x, y, 2)
        assert minima.parameters[draw, 0] == pytest.approx(np.exp(-b / (2 * c)), rel=1e-6)
        assert minima.losses[draw, 0] == pytest.approx(a - b**2 / (4 * c), rel=1e-6)


def test_a_run_that_a_draw_lacks_is_not_its_lowest():
    runs = measurements([1, 2, 4, 8], [6] * 4, [3.0, 2.0, 2.5, 4.0])
    minima = lowest_runs(runs, np.array([[1, 0, 2, 1], [0, 3, 1, 0]]))
    assert minima.parameters[:, 0].tolist() == [4, 2]
    assert minima.bracketed[:, 0].tolist() == [True, False]  # in the second draw no smaller size is left


@pytest.mark.parametrize("rule", [lowest_runs, parabola_minima])
def test_both_rules_find_the_exact_frontier_where_nothing_is_coarse(rule):
    exact = SYMMETRIC.frontier()
    found = fit_frontier(rule(profiles(SYMMETRIC, [1e17, 1e18, 1e19, 1e20], [0.25, 0.5, 1, 2, 4])))
    assert found.parameters.exponent == pytest.approx(0.5) == exact.parameters.exponent
    assert found.parameters(1e24) == pytest.approx(exact.parameters(1e24))
    assert found.tokens(1e24) == pytest.approx(exact.tokens(1e24))
    # A parabola cuts a little below or above the flat bottom of the true profile.
    assert found.loss(1e24) == pytest.approx(exact.loss(1e24), abs=0.05)


def test_the_envelope_reads_each_size_between_its_own_horizons():
    """Two budgets between the horizons of three sizes; log loss is interpolated over log C."""
    runs = measurements(
        [1, 1, 2, 2, 4, 4, 8],
        [1e2, 1e6, 1e2, 1e6, 1e4, 1e6, 1e4],
        [4.0, 4.0, 9.0, 1.0, 3.5, 2.0, 0.1],  # size 4 says nothing below 1e4, size 8 with one horizon nothing at all
    )
    minima = envelope(runs, at=[1e3, 1e4, 1e5])
    assert minima.parameters.tolist() == [1, 2, 2]
    assert minima.losses == pytest.approx([4.0, 3.0, 9**0.25])
    assert minima.bracketed.tolist() == [False, True, True]


def test_the_envelope_finds_the_exponent_of_a_law():
    sizes, tokens = (grid.ravel() for grid in np.meshgrid(np.geomspace(1e7, 1e10, 25), np.geomspace(1e9, 1e12, 25)))
    law = ParametricLaw(E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28)
    found = fit_frontier(envelope(measurements(sizes, 6 * sizes * tokens, law(sizes, tokens))))
    assert found.parameters.exponent == pytest.approx(law.frontier().parameters.exponent, abs=0.01)
    assert found.parameters(1e22) == pytest.approx(law.frontier().parameters(1e22), rel=0.05)


def test_the_envelope_needs_several_horizons():
    with pytest.raises(CannotFit, match="several budgets"):
        envelope(profiles(SYMMETRIC, [1e18, 1e19], [0.4, 1, 2]))


def test_a_frontier_needs_two_budgets_with_a_minimum_between_sizes():
    with pytest.raises(CannotFit, match="1 of 2 budgets"):
        fit_frontier(lowest_runs(measurements([1, 2, 4, 1, 2, 4], [6] * 3 + [60] * 3, [3, 2, 2.5, 1.9, 1.8, 1.7])))


def test_minima_at_nearly_one_budget_are_no_fit():
    minima = Minima(np.array([1e15, 1.001e15]), np.array([1e6, 1e6]), np.array([5.0, 5.0]), np.array([True, True]))
    with pytest.raises(CannotFit, match="nearly the same"):
        fit_frontier(minima)
