"""What runs were for and what they cost, from rows by hand."""

import math

import pytest

from cs336.scaling.ledger import CHECK, REASONS, Main, budget_ledger, ledger, main_recipe, packing, phase_of
from tests.scaling.test_runs import made_run

MAIN = Main(batch_size=128, learning_rate=1e-3, seed=0)
PREDICTION = {"target_budget": 1e16}


@pytest.mark.parametrize(
    ("changes", "phase"),
    [
        ({}, "profiles"),
        ({"batch_size": 256}, "batch sizes"),
        ({"batch_size": 256, "learning_rate": 5e-4}, "learning rates"),
        ({"learning_rate": 5e-4, "seed": 1}, "seeds"),
        ({"num_layers": 16, "seed": 1}, "shapes"),
        ({"num_heads": 1}, "profiles"),
        ({"num_heads": 4}, "shapes"),
        ({"steps": 0, "num_layers": 16}, "initialisation"),
        ({"steps": 0, "outcome": "out of memory: ...", "final_loss": math.nan}, "profiles"),
        ({"compute_budget": 1e16, "seed": 2}, "check"),
        ({"compute_budget": 1e16, "date": "2020-01-01T00:00:00Z"}, "check"),  # whether too early, `predict.check` says
    ],
)
def test_a_run_has_one_purpose(changes, phase):
    assert phase_of(made_run(**changes), MAIN, PREDICTION) == phase
    assert phase in REASONS


def test_the_main_recipe_is_what_most_runs_have_each_for_itself():
    runs = [made_run(), made_run(batch_size=256), made_run(learning_rate=5e-4), made_run(learning_rate=5e-4, seed=1)]
    assert main_recipe(runs) == Main(128, 1e-3, 0)  # of equals the first
    assert main_recipe([*runs, made_run(learning_rate=5e-4)]).learning_rate == 5e-4
    with pytest.raises(ValueError, match="no recipe"):
        main_recipe([])


def test_profiles_may_have_one_rate_or_one_over_the_width():
    by_width = [
        made_run(d_model=64 * each, num_layers=each, num_heads=each, learning_rate=float(f"{2 / (64 * each):.3g}"))
        for each in range(1, 6)
    ]
    main = main_recipe([made_run(), *by_width, *[made_run()] * 5])
    assert main == Main(128, 1e-3, 0, rate_per_width=2.0)
    assert {phase_of(run, main) for run in by_width} == {"profiles"} == {phase_of(made_run(), main)}
    assert phase_of(made_run(learning_rate=2e-3), main) == "learning rates"
    assert main_recipe([made_run(), *by_width[:4]]).rate_per_width == 0.0


def test_every_run_is_in_the_ledger_once_and_the_sums_are_those_of_the_rows():
    runs = [
        made_run(),
        made_run(compute_budget=3e13, real_flops=4e14, wall_seconds=3.0, packed=1),
        made_run(seed=1, outcome="diverged: step 3", final_loss=math.nan, steps=3, tokens=3 * 65_536),
        made_run(compute_budget=1e16, real_flops=1e17),
        made_run(steps=0, tokens=0, compute_budget=7e12, real_flops=1e12),
    ]
    rows = ledger(runs, PREDICTION)
    assert [(row["phase"], row["runs"]) for row in rows] == [
        ("profiles", 2),
        ("seeds", 1),
        ("initialisation", 1),
        (CHECK, 1),
        ("all", 5),
    ]
    profiles, seeds, start, check, everything = rows
    assert profiles["device_seconds"] == pytest.approx(1.5 / 3 + 3.0) and profiles["budgets"] == [1e13, 3e13]
    assert seeds["without_a_loss"] == everything["without_a_loss"] == 1
    assert start["nominal_flops"] == 0 and everything["nominal_flops"] == 1e13 + 3e13 + 1e13 + 1e16
    assert check["share"] == pytest.approx(1e17 / everything["real_flops"])
    assert sum(row["share"] for row in rows[:-1]) == pytest.approx(1)
    by_budget = budget_ledger(runs)
    assert [row["phase"] for row in by_budget] == ["7e12", "1e13", "3e13", "1e16"]
    assert sum(row["runs"] for row in by_budget) == 5


def test_runs_that_share_a_device_do_more_of_it_together():
    """Peak 1e15: alone at 40 %; three at a time each at 25 %, so the device at 75 %."""
    alone = made_run(packed=1, wall_seconds=1.0, real_flops=4e14, utilisation=0.4)
    shared = [made_run(packed=3, wall_seconds=2.0, real_flops=5e14, utilisation=0.25)] * 3
    of_one, of_three = packing([alone, *shared, made_run(steps=0, packed=3)])
    assert of_one["of_the_device"] == pytest.approx(0.4) == of_one["of_a_run"]
    assert of_three["of_the_device"] == pytest.approx(0.75) and of_three["of_a_run"] == 0.25
    assert of_three["runs"] == 3 and of_three["tokens_per_second"] == pytest.approx(3 * 258 * 65_536 / 2.0)
    (unknown,) = packing([made_run(utilisation=None)])
    assert unknown["of_the_device"] is None and unknown["of_a_run"] is None
