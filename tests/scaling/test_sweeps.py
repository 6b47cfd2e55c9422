"""What sweeps say, from losses chosen by hand."""

import math

import pytest

from cs336.scaling.ledger import Main
from cs336.scaling.sweeps import batch_sizes, learning_rates, seeds, shapes
from tests.scaling.test_runs import made_run

MAIN = Main(batch_size=128, learning_rate=1e-3, seed=0)


def test_the_best_rate_is_that_of_lowest_mean_and_a_rate_that_diverged_is_never_it():
    runs = [
        made_run(learning_rate=5e-4, final_loss=6.0),
        made_run(learning_rate=1e-3, final_loss=5.0),
        made_run(learning_rate=1e-3, final_loss=6.4, seed=1),
        made_run(learning_rate=2e-3, final_loss=math.nan, outcome="diverged: step 9"),
        made_run(learning_rate=1e-3, batch_size=256),  # one rate alone says nothing
    ]
    (row,) = learning_rates(runs)
    assert row["losses"] == pytest.approx({5e-4: 6.0, 1e-3: 5.7, 2e-3: math.inf})
    assert (row["best_rate"], row["at_edge"], row["shape"], row["batch_size"]) == (1e-3, False, "64x2x2", 128)
    (edge,) = learning_rates(runs[:3])
    assert edge["best_rate"] == 1e-3 and edge["at_edge"]


def test_batch_sizes_are_compared_at_one_shape_budget_and_rate():
    runs = [
        made_run(final_loss=6.0),
        made_run(batch_size=256, final_loss=6.2),
        made_run(batch_size=256, learning_rate=5e-4, final_loss=1.0),
        made_run(batch_size=256, compute_budget=3e13, final_loss=1.0),
    ]
    (row,) = batch_sizes(runs)
    assert row["losses"] == {128: 6.0, 256: 6.2} and row["learning_rate"] == 1e-3


def profile_run(d_model, num_layers, num_heads, loss):
    return made_run(
        d_model=d_model,
        num_layers=num_layers,
        num_heads=num_heads,
        parameters=12 * num_layers * d_model**2,
        final_loss=loss,
    )


def bowl(parameters):
    return 5 + 0.1 * math.log(parameters / 1e6) ** 2


def test_a_shape_off_the_ladder_is_compared_with_the_profile_at_its_size():
    ladder = [(64, 2, 2), (128, 2, 2), (192, 3, 3), (256, 4, 4), (320, 5, 5)]
    runs = [profile_run(*shape, bowl(12 * shape[1] * shape[0] ** 2)) for shape in ladder]
    runs.append(profile_run(192, 9, 3, bowl(12 * 9 * 192**2) + 0.25))
    rows = {row["shape"]: row for row in shapes(runs, MAIN)}
    assert rows["192x9x3"]["excess"] == pytest.approx(0.25) and not rows["192x9x3"]["on_ladder"]
    assert (rows["192x9x3"]["aspect_ratio"], rows["192x9x3"]["head_size"]) == (pytest.approx(192 / 9), 64)
    assert all(row["excess"] == pytest.approx(0, abs=1e-9) for name, row in rows.items() if name != "192x9x3")
    assert shapes(runs[:-1], MAIN) == [], "nothing off the ladder"
    assert shapes([*runs[:3], runs[-1]], MAIN) == [], "three sizes are no profile to compare with"


def test_the_spread_of_seeds_is_their_standard_deviation():
    runs = [made_run(seed=seed, final_loss=loss) for seed, loss in enumerate((5.0, 5.2, 5.4))]
    (row,) = seeds([*runs, made_run(batch_size=256)])
    assert (row["num_seeds"], row["mean"], row["spread"]) == (3, pytest.approx(5.2), pytest.approx(0.2))
