"""Bootstrap draws keep the design; intervals hold the truth as often as they say; the largest budget is not seen."""

import numpy as np
import pytest

from cs336.scaling.exercise import LAW, exercise_runs
from cs336.scaling.isoflops import fit_frontier, parabola_minima
from cs336.scaling.measurements import CannotFit, measurements
from cs336.scaling.parametric import fit_parametric, fit_parametric_draws
from cs336.scaling.uncertainty import below_held_out, bootstrap_weights, held_out, interval

RUNS = exercise_runs()


def test_each_draw_has_as_many_runs_of_each_budget_as_were_measured():
    weights = bootstrap_weights(RUNS, 200, seed=0)
    for budget in RUNS.budgets:
        counts = weights[:, budget == RUNS.compute]
        assert (counts.sum(axis=1) == 8).all()
        assert ((counts > 0).sum(axis=1) >= 3).all()
    assert weights.mean(axis=0) == pytest.approx(np.ones(72), abs=0.35)


def test_draws_of_few_sizes_keep_three_of_them():
    runs = measurements([1, 2, 4, 5, 1, 2], [6, 6, 6, 6, 12, 12], [3, 2, 2.5, 2.7, 3, 2])
    weights = bootstrap_weights(runs, 500, seed=0)
    assert ((weights[:, :4] > 0).sum(axis=1) >= 3).all()
    assert ((weights[:, 4:] > 0).sum(axis=1) == 2).all()  # a budget of two sizes keeps both


def test_a_seed_gives_the_same_draws_again():
    assert np.array_equal(bootstrap_weights(RUNS, 5, seed=4), bootstrap_weights(RUNS, 5, seed=4))
    assert not np.array_equal(bootstrap_weights(RUNS, 5, seed=4), bootstrap_weights(RUNS, 5, seed=5))


def test_an_interval_by_hand():
    assert interval(np.arange(101.0), 0.9) == pytest.approx((5.0, 95.0))
    assert interval([1.0, np.nan, 3.0], 0.5) == (1.5, 2.5)
    assert interval([np.nan]) is None
    assert interval([1.0, 3.0, np.nan, np.nan]) and interval([1.0, 3.0, np.nan, np.nan, np.nan]) is None
    with pytest.raises(ValueError, match="not 95"):
        interval([1.0], 95)


@pytest.mark.slow
def test_intervals_hold_the_truth_about_as_often_as_they_say():
    """Forty sets of noisy losses: 90 % intervals of the size at 1e23 by parabola and by approach 3."""
    truth = LAW.frontier().parameters(1e23)
    hits = {"parabola": 0, "parametric": 0}
    start = np.array([[np.log(LAW.A), np.log(LAW.B), np.log(LAW.E), LAW.alpha, LAW.beta]])
    for seed in range(40):
        noise = np.random.default_rng(seed).normal(0, 0.005, 72)
        runs = RUNS._replace(losses=RUNS.losses * np.exp(noise))
        weights = bootstrap_weights(runs, 200, seed)
        draws = {
            "parabola": fit_frontier(parabola_minima(runs, weights)),
            "parametric": fit_parametric_draws(runs, weights, fit_parametric(runs, start)).frontier(),
        }
        for name, frontier in draws.items():
            low, high = interval(frontier.parameters(1e23), 0.9)
            hits[name] += low <= truth <= high
    assert all(30 <= count <= 40 for count in hits.values()), hits


def test_the_largest_budget_is_predicted_by_a_fit_that_never_saw_it():
    rest = below_held_out(RUNS)
    assert rest.budgets[-1] == 1e21 and len(rest.losses) == 64
    exact = LAW.frontier()
    error = held_out(RUNS, exact)
    assert error.compute == 3e21
    assert error.parameters[0] == exact.parameters(3e21) and error.loss[0] == exact.loss(3e21)
    assert abs(error.parameters_error) < 0.02 and abs(error.loss_error) < 0.005  # a parabola is not the law

    spoiled = RUNS._replace(losses=np.where(RUNS.compute == 3e21, RUNS.losses + 0.1, RUNS.losses))
    assert held_out(spoiled, exact).loss_error == pytest.approx(error.loss_error - 0.1, abs=1e-6)


def test_a_budget_without_a_vertex_is_compared_with_its_lowest_run():
    runs = measurements([1, 2, 3, 4], [6] * 4, [3.0, 2.0, 1.0, 2.0])
    far = runs._replace(parameters=np.array([1.0, 10.0, 11.0, 12.0]), losses=np.array([2.0, 1.9, 1.2, 1.3]))
    assert held_out(far, LAW.frontier()).parameters[1] == 11  # its parabola's vertex lies beyond 12


def test_a_budget_whose_minimum_may_lie_beyond_its_sizes_is_not_compared_with():
    top = RUNS.compute == 3e21
    small = top & (RUNS.parameters < 5e9)  # the minimum is at 12 B
    open_ended = RUNS.where(~top | small)
    assert held_out(open_ended, LAW.frontier()).compute == 1e21
    assert below_held_out(open_ended).budgets[-1] == 6e20
    with pytest.raises(CannotFit, match="no budget has its lowest loss between two sizes"):
        held_out(RUNS.where(small), LAW.frontier())
