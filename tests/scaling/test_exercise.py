"""The exercise's table: its lowest runs, every row of predictions, and the gap between rule and truth."""

import itertools

import numpy as np
import pytest

from cs336.scaling.accounting import num_tokens
from cs336.scaling.exercise import LAW, LOWEST_SIZES, as_records, exercise_runs
from cs336.scaling.isoflops import fit_frontier, lowest_runs, parabola_minima
from cs336.scaling.power_law import fit_raw

TABLE = {  # budget -> size in millions, tokens in billions, loss; each to four digits
    6e18: (762.1, 1.312, 5.900),
    1e19: (806.6, 2.066, 5.618),
    3e19: (1_537, 3.253, 5.107),
    6e19: (1_952, 5.123, 4.831),
    1e20: (3_253, 5.123, 4.653),
    3e20: (5_904, 8.469, 4.311),
    6e20: (6_971, 14.35, 4.121),
    1e21: (6_859, 24.30, 4.003),
    3e21: (12_150, 41.16, 3.773),
}


def digits(value, number):
    return float(f"{value:.{number}g}")


def test_there_are_eight_sizes_at_each_of_nine_budgets():
    runs = exercise_runs()
    assert len(runs.losses) == 72 and len(set(runs.parameters)) == 72
    assert all((runs.compute == budget).sum() == 8 for budget in TABLE)
    assert runs.losses == pytest.approx(LAW(runs.parameters, runs.tokens), abs=3e-8)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_lowest_runs_are_the_tables(seed):
    minima = lowest_runs(exercise_runs(seed))
    assert minima.compute.tolist() == list(TABLE) and minima.bracketed.all()
    for size, tokens, loss, (millions, billions, nats) in zip(
        minima.parameters, minima.tokens, minima.losses, TABLE.values(), strict=True
    ):
        assert digits(size / 1e6, 4) == millions
        assert digits(tokens / 1e9, 4) == billions
        assert round(loss, 3) == nats


def test_a_seed_gives_the_same_runs_and_another_seed_others():
    assert np.array_equal(exercise_runs(3).parameters, exercise_runs(3).parameters)
    shared = np.intersect1d(exercise_runs(0).parameters, exercise_runs(1).parameters)
    assert shared.tolist() == sorted(LOWEST_SIZES.values())


def test_lowest_run_in_log_log_space():
    frontier = fit_frontier(lowest_runs(exercise_runs()))
    assert digits(frontier.parameters.exponent, 3) == 0.469
    assert [digits(n / 1e9, 3) for n in frontier.parameters([1e23, 1e24])] == [70.0, 206]
    assert [digits(d / 1e9, 3) for d in frontier.tokens([1e23, 1e24])] == [238, 809]


def test_lowest_run_in_raw_space():
    minima = lowest_runs(exercise_runs())
    size, tokens = fit_raw(minima.compute, minima.parameters), fit_raw(minima.compute, minima.tokens)
    assert digits(size.exponent, 3) == 0.404 and digits(tokens.exponent, 3) == 0.597
    assert [digits(n / 1e9, 3) for n in size([1e23, 1e24])] == [50.0, 127]
    assert [digits(d / 1e9, 3) for d in tokens([1e23, 1e24])] == [337, 1_330]


@pytest.mark.parametrize("seed", range(20))
def test_the_parabolas_exponent_is_the_exact_one_whatever_is_drawn(seed):
    exponent = fit_frontier(parabola_minima(exercise_runs(seed))).parameters.exponent
    assert exponent == pytest.approx(0.5143, abs=0.01)


def test_the_handouts_rule_misses_the_optimum_by_a_quarter_and_more():
    exact, rule = LAW.frontier(), fit_frontier(lowest_runs(exercise_runs()))
    gaps = [float(rule.parameters(compute) / exact.parameters(compute)) - 1 for compute in (1e23, 1e24)]
    assert gaps == pytest.approx([-0.24, -0.31], abs=0.005)


def test_records_have_the_handouts_form():
    records = as_records(exercise_runs())
    assert set(records[0]) == {"parameters", "compute_budget", "final_loss"}
    assert all(isinstance(each["parameters"], int) and isinstance(each["compute_budget"], float) for each in records)
    first = list(itertools.islice(records, 8))
    size = [each["parameters"] for each in first]
    assert size == sorted(size) and 762_100_000 in size
    lowest = min(first, key=lambda each: each["final_loss"])
    assert lowest["final_loss"] == pytest.approx(LAW(762.1e6, num_tokens(6e18, 762.1e6)))
