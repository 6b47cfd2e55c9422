"""How well a score tells two classes apart, and what probability it stands for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

Scored = tuple[bool, float]  # is it of the positive class, and the score it got


class Threshold(NamedTuple):
    """Held-out figures when texts with at least this score count as positive.

    A precision of None: no text reached the threshold.
    """

    threshold: float
    precision: float | None
    recall: float


class Calibration(NamedTuple):
    """From a score to a probability: `sigmoid(slope x logit(score) + offset)`; by default the score itself.

    Source: Platt 1999, "Probabilistic outputs for support vector machines", on log-odds.
    """

    slope: float = 1.0
    offset: float = 0.0

    def apply(self, score: float) -> float:
        """The probability, in (0, 1), of a score in [0, 1]."""
        return 1.0 / (1.0 + math.exp(-(self.slope * _logit(score) + self.offset)))


_EDGE = 1e-6  # scores nearer to 0 or 1 than this count as this far: their log-odds would be infinite


def _logit(score: float) -> float:
    score = min(1 - _EDGE, max(_EDGE, score))
    return math.log(score / (1 - score))


def fit_calibration(scored: Sequence[Scored]) -> Calibration:
    """The calibration under which the labels are likeliest, by Newton's method on Platt's smoothed targets.

    Falls back to the score itself where a class is missing, or where a higher score does not mean a
    likelier positive: there is nothing to calibrate then.
    """
    labels = np.array([label for label, _ in scored], dtype=bool)
    num_positive, num_negative = int(labels.sum()), int((~labels).sum())
    if not num_positive or not num_negative:
        return Calibration()
    logits = np.array([_logit(score) for _, score in scored])
    features = np.stack([logits, np.ones_like(logits)], axis=1)
    # Targets short of 0 and 1, so that perfectly separated classes do not ask for an infinite slope.
    targets = np.where(labels, (num_positive + 1) / (num_positive + 2), 1 / (num_negative + 2))
    weights = np.array([1.0, 0.0])
    for _ in range(100):
        chances = 1 / (1 + np.exp(-np.clip(features @ weights, -30, 30)))
        gradient = features.T @ (chances - targets)
        curvature = (features.T * (chances * (1 - chances))) @ features + 1e-6 * np.eye(2)
        step = np.linalg.solve(curvature, gradient)
        # Far from the optimum Newton's step overshoots.
        weights = weights - step / max(1.0, float(np.abs(step).max()))
        if float(np.abs(step).max()) < 1e-9:
            break
    slope, offset = map(float, weights)
    return Calibration(slope, offset) if slope > 0 else Calibration()


def thresholds(scored: Sequence[Scored], at: Sequence[float]) -> tuple[Threshold, ...]:
    """Precision and recall at each of these thresholds."""
    num_positives = sum(label for label, _ in scored)
    rows = []
    for threshold in at:
        taken = [label for label, score in scored if score >= threshold]
        right = sum(taken)
        precision = right / len(taken) if taken else None
        rows.append(Threshold(threshold, precision, right / num_positives if num_positives else 0.0))
    return tuple(rows)


def average_precision(scored: Sequence[Scored]) -> float | None:
    """Area under the precision-recall curve; texts of one score enter together. None without positives.

    Chance level is the share of positives.
    """
    num_positives = sum(label for label, _ in scored)
    if not num_positives:
        return None
    area, taken, right = 0.0, 0, 0
    by_score: dict[float, list[bool]] = {}
    for label, score in scored:
        by_score.setdefault(score, []).append(label)
    for score in sorted(by_score, reverse=True):
        found = sum(by_score[score])
        taken, right = taken + len(by_score[score]), right + found
        area += right / taken * found / num_positives
    return area


def calibration_error(scored: Sequence[Scored], num_bins: int = 10) -> float | None:
    """By how much probabilities miss the observed shares, on average over the texts (0 is perfect).

    Source: expected calibration error, Naeini et al. 2015; equal-width bins. None without texts.
    """
    if not scored:
        return None
    bins: dict[int, list[Scored]] = {}
    for label, score in scored:
        bins.setdefault(min(num_bins - 1, int(score * num_bins)), []).append((label, score))
    gaps = [abs(sum(label - score for label, score in rows)) for rows in bins.values()]
    return sum(gaps) / len(scored)
