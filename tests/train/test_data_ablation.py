"""Comparing variants of the data: which runs are made, and what their losses say."""

import dataclasses

import pytest

from cs336.presets import TINY
from cs336.train.data_ablation import (
    DataAblationConfig,
    Difference,
    _t_95,
    comment_on_data,
    data_ablation_runs,
    losses_by_seed,
    paired_difference,
)


def test_runs_of_a_seed_differ_in_the_variant_alone():
    runs = data_ablation_runs(TINY.model, TINY.train, DataAblationConfig(num_tokens=204_800, num_seeds=2))
    assert list(runs)[:3] == ["unfiltered-seed-0", "unfiltered-seed-1", "filtered-seed-0"] and len(runs) == 6
    alike = {dataclasses.replace(run, variant="", seed=0) for run in runs.values()}
    assert len(alike) == 1
    run = runs["deduplicated-seed-1"]
    assert (run.variant, run.seed, run.train.num_steps) == ("deduplicated", 1, 100)
    assert run.train.num_steps * run.train.batch_size * run.model.context_length == 204_800


def test_the_interval_is_students_by_hand():
    before, after = {0: 5.0, 1: 5.1, 2: 5.2}, {0: 4.9, 1: 4.9, 2: 4.9}  # differences -0.1, -0.2, -0.3
    each = paired_difference(before, after)
    assert each.mean == pytest.approx(-0.2) and each.num_seeds == 3
    assert each.half_width == pytest.approx(4.303 * 0.1 / 3**0.5, rel=1e-4)
    assert not each.is_told_from_chance
    assert paired_difference(before, {seed: loss - 0.2 for seed, loss in before.items()}).is_told_from_chance


def test_pairs_share_their_seed_and_one_pair_has_no_interval():
    each = paired_difference({0: 5.0, 1: 7.0}, {1: 6.0, 2: 1.0})
    assert each == Difference(-1.0, None, 1) and not each.is_told_from_chance
    with pytest.raises(ValueError, match="no seed in common"):
        paired_difference({0: 5.0}, {1: 5.0})


@pytest.mark.parametrize(("freedom", "quantile"), [(1, 12.706), (2, 4.303), (10, 2.228), (11, 2.201), (30, 2.042)])
def test_quantiles_are_those_of_the_tables(freedom, quantile):
    assert _t_95(freedom) == pytest.approx(quantile, rel=1e-3)


def test_a_run_that_diverged_counts_for_nothing():
    outcomes = {
        f"filtered-seed-{seed}": {"seed": seed, "valid_loss": 4.0 + seed, "diverged": "it rose" * (seed == 1)}
        for seed in range(3)
    }
    assert losses_by_seed(outcomes, "filtered") == {0: 4.0, 2: 6.0}
    assert losses_by_seed(outcomes, "unfiltered") == {}


def test_the_comment_says_repeats_language_and_what_chance_explains():
    variant = {"epochs": 0.5, "share_of_english": 0.48, "num_languages": 80}
    variants = {"unfiltered": variant, "filtered": variant | {"epochs": 1.25}}
    differences = {
        ("unfiltered", "filtered"): Difference(-0.3, 0.01, 3),
        ("filtered", "deduplicated"): Difference(0.002, 0.01, 3),
    }
    page = comment_on_data(variants, differences, 1_000)
    assert "1,000 tokens" in page and "filtered 1.25 times" in page and "48%" in page and "79 other languages" in page
    assert "From unfiltered to filtered: lowers the loss by 0.3000 ± 0.0100 nats, told from chance" in page
    assert "raises the loss by 0.0020 ± 0.0100 nats, not told from chance" in page


def test_at_least_one_seed():
    with pytest.raises(ValueError, match="num_seeds"):
        DataAblationConfig(num_tokens=1, num_seeds=0)
