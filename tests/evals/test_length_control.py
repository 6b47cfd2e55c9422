"""Win rates: by hand, on made preferences whose truth is known, and on stored ones."""

from __future__ import annotations

import numpy as np
import pytest

from cs336.evals.length_control import fit_difficulty, length_controlled_win_rate, win_rate
from cs336.evals.report import wilson_interval
from cs336.files import read_jsonl


def test_win_rate_by_hand():
    result = win_rate([1.0, 2.0, 1.5, 0, 1.0, 1.25])
    assert result["win_rate"] == pytest.approx((0 + 1 + 0.5 + 0.5 + 0 + 0.25) / 6)
    assert (result["num_wins"], result["num_draws"]) == (1, 2)
    spread = np.std([0, 1, 0.5, 0.5, 0, 0.25], ddof=1) / 6**0.5
    assert result["win_rate_high"] - result["win_rate"] == pytest.approx(1.959964 * spread, rel=1e-5)


def test_where_every_pair_was_lost_the_interval_is_not_empty():
    result = win_rate([1.0] * 20)
    assert result["win_rate"] == 0.0
    assert (result["win_rate_low"], result["win_rate_high"]) == wilson_interval(0, 20)


@pytest.mark.parametrize("preferences", [[], [2.5], [0.5], [float("nan")]])
def test_preferences_outside_their_range_are_errors(preferences):
    with pytest.raises(ValueError, match="not all between 1 and 2"):
        win_rate(preferences)
    with pytest.raises(ValueError, match="not all between 1 and 2"):
        length_controlled_win_rate(preferences, [1] * len(preferences), [1] * len(preferences))


def made_up(*, quality, length_weight, seed, count=4_000, difficulty=None):
    """Preferences of a judge who likes long outputs, and the lengths that made them."""
    rng = np.random.default_rng(seed)
    reference = rng.integers(500, 1_500, size=count)
    output = reference + rng.normal(300, 400, size=count).astype(int)
    difference = (output - reference).astype(float)
    logits = quality + length_weight * np.tanh(difference / difference.std(ddof=1))
    logits = logits + (0 if difficulty is None else difficulty)
    return 1 + (rng.random(count) < 1 / (1 + np.exp(-logits))), output, reference


def test_the_share_of_length_is_taken_out_again():
    preferences, output, reference = made_up(quality=-0.5, length_weight=2.0, seed=0)
    true_rate = 1 / (1 + np.exp(0.5))
    assert win_rate(preferences)["win_rate"] > true_rate + 0.1
    result = length_controlled_win_rate(preferences, output, reference)
    assert result["lc_win_rate"] == pytest.approx(true_rate, abs=0.03)
    assert result["lc_win_rate_low"] < true_rate < result["lc_win_rate_high"]
    assert result["length_weight"] == pytest.approx(2.0, abs=0.2)
    assert result == length_controlled_win_rate(preferences, output, reference)


def test_equal_lengths_leave_the_win_rate_as_it_is():
    preferences = [2.0] * 30 + [1.0] * 70
    assert length_controlled_win_rate(preferences, [7] * 100, [9] * 100)["lc_win_rate"] == pytest.approx(0.3, abs=1e-4)


def test_a_model_that_always_wins_is_no_error():
    result = length_controlled_win_rate([2.0] * 40, range(40), [9] * 40)
    assert result["lc_win_rate"] > 0.999


def test_difficulties_are_found_from_several_models():
    rng = np.random.default_rng(3)
    true = rng.normal(0, 1.5, size=200)
    annotations = {
        f"model {i}": made_up(quality=0.2 * i, length_weight=1.0, seed=10 + i, count=200, difficulty=true)
        for i in range(8)
    }
    found = fit_difficulty(annotations)
    assert np.corrcoef(found, true)[0, 1] > 0.8
    with pytest.raises(ValueError, match="two or more on the same"):
        fit_difficulty(dict(list(annotations.items())[:1]))
    with pytest.raises(ValueError, match="give one each"):
        length_controlled_win_rate([1.0, 2.0], [1, 2], [1, 2], difficulty=[0.0])


def test_stored_preferences_give_the_published_rates(shared_data):
    """The public leaderboard of AlpacaEval 2: plain rates to the second digit, controlled ones nearly."""
    published = {"claude-instant-1.2": (16.13, 25.6), "OpenHermes-2.5-Mistral-7B": (10.34, 16.3)}
    annotations = {}
    for model in (*published, "gemma-7b-it", "vicuna-7b-v1.5"):
        rows = list(read_jsonl(shared_data / f"preference/alpaca_eval_{model}.jsonl.gz"))
        annotations[model] = (
            [row["preference"] for row in rows],
            [len(row["output_2"]) for row in rows],
            [len(row["output_1"]) for row in rows],
        )
    difficulty = fit_difficulty(annotations)
    for model, (plain, controlled) in published.items():
        preferences, output, reference = annotations[model]
        assert 100 * win_rate(preferences)["win_rate"] == pytest.approx(plain, abs=0.01)
        result = length_controlled_win_rate(preferences, output, reference, difficulty=difficulty)
        assert 100 * result["lc_win_rate"] == pytest.approx(controlled, abs=1.5)
