"""Intervals and score tables."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cs336.evals.report import (
    Z_95,
    Share,
    difference,
    format_score,
    markdown_table,
    score_rows,
    text_table,
    wilson_interval,
)

METRICS = {"accuracy": 0.25, "accuracy_low": 0.158, "accuracy_high": 0.372, "num_examples": 60, "generate_seconds": 3.0}


def test_the_interval_of_one_in_two_by_hand():
    # p = 1/2, n = 2, z = 1: centre (1/2 + 1/4) / (3/2) = 1/2, half width sqrt(1/8 + 1/16) / (3/2)
    half = math.sqrt(3 / 16) / 1.5
    assert wilson_interval(1, 2, z=1.0) == pytest.approx((0.5 - half, 0.5 + half))


def test_no_success_in_ten_gives_a_known_interval():
    low, high = wilson_interval(0, 10)
    assert low == 0.0
    assert high == pytest.approx(Z_95**2 / (10 + Z_95**2))  # closed form at zero successes: 0.2775
    assert high == pytest.approx(0.2775, abs=1e-4)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_ends_of_the_interval_solve_the_defining_equation(counts):
    num_correct, n = counts
    share = num_correct / n
    low, high = wilson_interval(num_correct, n)
    assert 0.0 <= low <= share <= high <= 1.0
    for end in (low, high):  # (share - end)^2 = z^2 end (1 - end) / n
        assert (share - end) ** 2 == pytest.approx(Z_95**2 * end * (1 - end) / n, abs=1e-12)


@pytest.mark.parametrize(("num_correct", "n"), [(0, 0), (3, 2), (-1, 4)])
def test_impossible_counts_are_errors(num_correct, n):
    with pytest.raises(ValueError, match=r"example|correct"):
        wilson_interval(num_correct, n)


def test_shares_are_shown_in_percent_and_bits_as_they_are():
    assert format_score("accuracy", 0.25, low=0.158, high=0.3721) == "25.0% (15.8–37.2%)"
    assert format_score("bits_per_byte", 2.34567) == "2.346"
    assert format_score("perplexity", 1234.5) == "1,234.50"


def test_a_tables_rows_say_preset_model_set_count_and_where():
    rows = score_rows(METRICS, preset="tiny", model="base", task="mmlu", set_name="mmlu sample")
    rows += score_rows(
        {"bits_per_byte": 2.5, "perplexity": 40.0, "num_predicted": 12_345},
        preset="tiny", model="base|2", task="perplexity", set_name="held-out", measured="1 x H100",
    )  # fmt: skip
    assert text_table(rows).splitlines() == [
        "preset  model   task        set          metric               score  95% interval       n  measured",
        "------  ------  ----------  -----------  -------------------  -----  ------------  ------  --------",
        "tiny    base    mmlu        mmlu sample  accuracy, generated  25.0%    15.8–37.2%      60  here",
        "tiny    base|2  perplexity  held-out     bits per byte        2.500                12,345  1 x H100",
        "tiny    base|2  perplexity  held-out     perplexity           40.00                12,345  1 x H100",
    ]
    lines = markdown_table(rows).splitlines()
    assert lines[0] == "| preset | model | task | set | metric | score | 95% interval | n | measured |"
    assert lines[3] == "| tiny | base\\|2 | perplexity | held-out | bits per byte | 2.500 |  | 12,345 | 1 x H100 |"


def test_no_scores_is_said_in_words():
    assert text_table([]) == markdown_table([]) == "no scores yet"


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ((56, 70), (48, 80), (0.2000, 0.0524, 0.3339)),  # Newcombe's own examples, method 10
        ((9, 10), (3, 10), (0.6000, 0.1705, 0.8090)),
        ((5, 56), (0, 29), (0.0893, -0.0381, 0.1926)),
        ((10, 10), (0, 20), (1.0000, 0.6791, 1.0000)),
    ],
)
def test_a_difference_of_shares_as_published(first, second, expected):
    shares = [Share(right / count, *wilson_interval(right, count)) for right, count in (first, second)]
    assert difference(*shares) == pytest.approx(expected, abs=5e-5)
    backwards = difference(*reversed(shares))
    assert backwards == pytest.approx((-expected[0], -expected[2], -expected[1]), abs=5e-5)


def test_a_share_as_people_read_it():
    assert str(Share(0.5, 0.25, 0.755)) == "50.0% (25.0% to 75.5%)"
