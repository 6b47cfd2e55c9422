"""Profiles: one recipe each, by the mean of its seeds; the recipe of most sizes is what laws are fitted to."""

from dataclasses import replace

import pytest

from cs336.files import UserError
from cs336.scaling.profiles import fitted_profiles, points, profiles
from cs336.scaling.rates import Rates
from tests.scaling.test_runs import made_run


def size(layers, loss, **changes):
    """A run of aspect ratio 64 or less, on the ladder, with that loss."""
    shape = {"d_model": 64 * layers, "num_layers": layers, "num_heads": layers}
    return made_run(parameters=12 * layers * (64 * layers) ** 2, final_loss=loss, **(shape | changes))


def test_a_shape_counts_by_the_mean_of_its_seeds_and_of_a_sizes_shapes_the_better_one():
    lucky = [size(2, loss, seed=seed) for seed, loss in enumerate((5.0, 7.0))]
    other = [size(2, 5.8, num_heads=4, seed=seed) for seed in range(2)]
    (profile,) = profiles([*lucky, *other])
    assert profile.losses == {12 * 2 * 128**2: 5.8} and not profile.bracketed


def test_runs_without_a_step_or_a_loss_and_shapes_off_the_ladder_are_in_no_profile():
    left_out = [
        made_run(outcome="diverged: ...", final_loss=float("nan")),
        made_run(compute_budget=1e16, final_loss=1.0),
        made_run(steps=0, final_loss=1.0),
        made_run(num_layers=16, final_loss=1.0, parameters=1),
    ]
    found = points([made_run(), *left_out], max_budget=1e15)
    assert [column.tolist() for column in found] == [[98_304.0], [1e13], [6.5]]
    with pytest.raises(UserError, match="no finished run has a budget from 0e"):
        points(left_out, max_budget=1e15)


def test_a_better_recipe_of_few_sizes_does_not_move_the_minimum():
    swept = [size(layers, loss) for layers, loss in ((1, 5.2), (2, 5.0), (3, 5.1), (4, 5.3))]
    tried = [size(layers, 4.0 + layers / 100, learning_rate=2e-3) for layers in (3, 4)]
    (profile,) = fitted_profiles([*tried, *swept], max_budget=1e15)
    assert (profile.rates, profile.best_size, profile.bracketed) == (Rates(constant=1e-3), 12 * 2 * 128**2, True)
    assert points([*tried, *swept], max_budget=1e15).losses.tolist() == [5.2, 5.0, 5.1, 5.3]


def test_of_recipes_with_equally_many_sizes_the_better_one_is_fitted():
    one = [size(layers, 5.0 + layers / 10) for layers in (1, 2, 3)]
    other = [size(layers, 4.9 + layers / 10, batch_size=256) for layers in (1, 2, 3)]
    assert [each.batch_size for each in fitted_profiles([*one, *other], max_budget=1e13)] == [256]


def test_rates_over_the_width_are_a_recipe_and_of_those_with_five_sizes_the_better_one_is_fitted():
    alike = [size(layers, 6.0 - layers / 10) for layers in range(1, 8)]
    losses = {1: 5.0, 2: 4.6, 3: 4.4, 4: 4.5, 6: 4.7}
    rate = {1: 0.0312, 2: 0.0156, 3: 0.0104, 4: 0.00781, 6: 0.00521}  # 2 / width, to three digits
    by_width = [size(layers, loss, learning_rate=rate[layers]) for layers, loss in losses.items()]
    (profile,) = fitted_profiles([*alike, *by_width], max_budget=1e13)
    assert (profile.rates, str(profile.rates)) == (Rates(per_width=2.0), "2/width")
    assert (list(profile.losses.values()), profile.bracketed) == ([5.0, 4.6, 4.4, 4.5, 4.7], True)
    assert {layers: profile.rates.at(64 * layers) for layers in rate} == rate
    (few,) = fitted_profiles([*alike, *by_width[:4]], max_budget=1e13)
    assert few.rates == Rates(constant=1e-3)


def test_two_layers_of_one_width_are_no_profile_of_rates_over_the_width():
    found = profiles([size(1, 5.0), replace(size(1, 4.9), num_layers=2, parameters=98_304)])
    assert [each.rates for each in found] == [Rates(constant=1e-3)]
