"""Precision, recall and calibration, by hand and by property."""

import random

import pytest

from cs336.filters.curves import (
    Calibration,
    Threshold,
    average_precision,
    calibration_error,
    fit_calibration,
    thresholds,
)

SCORED = [(True, 0.9), (False, 0.8), (True, 0.6), (False, 0.1)]


def test_precision_and_recall_by_hand():
    assert thresholds(SCORED, [0.5, 0.85, 0.95]) == (
        Threshold(0.5, 2 / 3, 1.0),
        Threshold(0.85, 1.0, 0.5),
        Threshold(0.95, None, 0.0),
    )


def test_average_precision_by_hand():
    assert average_precision(SCORED) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert average_precision([(True, 0.5), (False, 0.5)]) == 0.5  # a tie is no order
    assert average_precision([(False, 0.5)]) is None


def test_calibration_error_by_hand():
    # Two bins: 0.9 promised and one of two true; 0.1 promised and none of one true.
    assert calibration_error([(True, 0.95), (False, 0.95), (False, 0.1)]) == pytest.approx((0.9 + 0.1) / 3)
    assert calibration_error([]) is None


def test_overconfident_scores_are_pulled_back_to_what_they_are_worth():
    generator = random.Random(0)
    chances = [generator.random() for _ in range(20_000)]
    # The score is the log-odds times three and moved by one.
    scored = [(generator.random() < chance, Calibration(3.0, 1.0).apply(chance)) for chance in chances]
    slope, offset = fit_calibration(scored)
    assert slope == pytest.approx(1 / 3, rel=0.05)
    assert offset == pytest.approx(-1 / 3, abs=0.05)
    fixed = [(label, Calibration(slope, offset).apply(score)) for label, score in scored]
    raw_error, error = calibration_error(scored), calibration_error(fixed)
    assert raw_error is not None and error is not None
    assert error < 0.02 < 0.1 < raw_error


def test_classes_that_are_perfectly_apart_give_finite_numbers():
    calibration = fit_calibration([(True, 1.0)] * 20 + [(False, 0.0)] * 20)
    assert 0.9 < calibration.apply(1.0) < 1.0
    assert 0.0 < calibration.apply(0.0) < 0.1


@pytest.mark.parametrize("scored", [[(True, 0.4)], [], [(True, 0.1), (False, 0.9)] * 10])
def test_without_two_classes_or_against_the_labels_the_score_stays(scored):
    assert fit_calibration(scored) == Calibration()
    assert Calibration().apply(0.3) == pytest.approx(0.3)
