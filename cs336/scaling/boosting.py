"""Gradient boosting of squared error: ridge on squares and products first, then small trees on what it leaves.

Written here, for it is a hundred lines of NumPy on a few hundred rows: scikit-learn or XGBoost would be by far the
heaviest thing that the service loads, and their trees change with their versions, while a served loss must not.
Friedman 2001, "Greedy function approximation: a gradient boosting machine".

Beyond the rows' box the correction is what it is at the box's edge: features are clipped before anything else.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

RIDGES = (np.inf, 10.0, 1.0, 0.1)  # tried: penalties on standardized columns; infinity leaves ridge out
MAX_TREES = 400
SHRINKAGE = 0.1  # of each tree
_MIN_ROWS = 4  # of a leaf
_THRESHOLDS = 15  # of a feature at most


@dataclass(frozen=True)
class Correction:
    """A fitted sum; call it with features.

    Attributes:
        low, high: (features,) the rows' box.
        centre, scale: (columns,) of ridge's columns.
        weights: (1 + columns,) ridge's, the constant first.
        features, thresholds: (questions,) "is feature f above t?", which the trees ask.
        splits: (trees, 3) a question of the root, of those below it, and of those above it.
        leaves: (trees, 4) what is added: no-no, no-yes, yes-no, yes-yes.
    """

    low: Array
    high: Array
    centre: Array
    scale: Array
    weights: Array
    features: NDArray[np.intp]
    thresholds: Array
    splits: NDArray[np.intp]
    leaves: Array

    def __call__(self, features: Array) -> Array:
        """(rows, features) -> (rows,)."""
        clipped = np.clip(features, self.low, self.high)
        answers = clipped[:, self.features] > self.thresholds
        ridge = self.weights[0] + ((_columns(clipped) - self.centre) / self.scale) @ self.weights[1:]
        if not len(self.splits):
            return ridge
        first = answers[:, self.splits[:, 0]]
        second = np.where(first, answers[:, self.splits[:, 2]], answers[:, self.splits[:, 1]])
        return ridge + self.leaves[np.arange(len(self.leaves)), 2 * first + second].sum(axis=1)


def fit_correction(features: Array, targets: Array, *, ridge: float, num_trees: int) -> Correction:
    """Fit both; deterministic.

    Args:
        features: (rows, features), finite.
        targets: (rows,)
        ridge: penalty; infinity leaves only the mean.
        num_trees: 0 for none.
    """
    columns = _columns(features)
    centre, scale = columns.mean(axis=0), columns.std(axis=0)
    scale[scale <= 1e-9 * (1 + np.abs(centre))] = np.inf  # a column of one value says nothing
    weights = np.concatenate([[targets.mean()], np.zeros(columns.shape[1])])
    standard = (columns - centre) / scale
    if np.isfinite(ridge):
        gram = standard.T @ standard + ridge * np.eye(columns.shape[1])
        weights[1:] = np.linalg.solve(gram, standard.T @ (targets - weights[0]))
    questions = _questions(features)
    residuals = targets - weights[0] - standard @ weights[1:]
    splits, leaves = _fit_trees(features[:, questions[0]] > questions[1], residuals, num_trees)
    return Correction(features.min(axis=0), features.max(axis=0), centre, scale, weights, *questions, splits, leaves)


def staged_errors(correction: Correction, features: Array, targets: Array) -> Array:
    """(trees + 1, rows): what is left of the targets after ridge, and after each further tree."""
    none = Correction(**(correction.__dict__ | {"splits": correction.splits[:0], "leaves": correction.leaves[:0]}))
    left = [targets - none(features)]
    answers = np.clip(features, correction.low, correction.high)[:, correction.features] > correction.thresholds
    for split, leaf in zip(correction.splits, correction.leaves, strict=True):
        first = answers[:, split[0]]
        left.append(left[-1] - leaf[2 * first + np.where(first, answers[:, split[2]], answers[:, split[1]])])
    return np.stack(left)


def _columns(features: Array) -> Array:
    """The features, and the products of each two of them, their squares included."""
    first, second = np.triu_indices(features.shape[1])
    return np.concatenate([features, features[:, first] * features[:, second]], axis=1)


def _questions(features: Array) -> tuple[NDArray[np.intp], Array]:
    """Thresholds half-way between values that the rows have, as evenly over the rows as may be."""
    asked, thresholds = [], []
    for place, column in enumerate(features.T):
        values = np.unique(column)
        between = (values[1:] + values[:-1]) / 2
        if len(between) > _THRESHOLDS:
            wanted = np.quantile(column, np.linspace(0, 1, _THRESHOLDS + 2)[1:-1])
            between = np.unique(between[np.abs(between[:, None] - wanted).argmin(axis=0)])
        asked += [place] * len(between)
        thresholds += list(between)
    return np.array(asked, dtype=np.intp), np.array(thresholds)


def _fit_trees(answers: NDArray[np.bool_], residuals: Array, num_trees: int) -> tuple[NDArray[np.intp], Array]:
    """Each tree: the question that takes most of the squares away, then such a one on either side."""
    splits, leaves = [], []
    yes = answers.astype(np.float64)
    left = residuals.copy()
    everyone = np.ones((1, len(left)), dtype=bool)
    for _ in range(num_trees if answers.shape[1] else 0):
        (root,) = _best_questions(yes, left, everyone)
        if root is None:
            break
        first = answers[:, root]
        below, above = _best_questions(yes, left, np.stack([~first, first]))
        split = (root, root if below is None else below, root if above is None else above)  # root again parts nobody
        leaf = 2 * first + np.where(first, answers[:, split[2]], answers[:, split[1]])
        values = SHRINKAGE * np.bincount(leaf, left, minlength=4) / np.maximum(np.bincount(leaf, minlength=4), 1)
        splits.append(split)
        leaves.append(values)
        left -= values[leaf]
    return np.array(splits, dtype=np.intp).reshape(-1, 3), np.array(leaves).reshape(-1, 4)


def _best_questions(yes: Array, left: Array, groups: NDArray[np.bool_]) -> list[int | None]:
    """Of each group of rows, the question that takes most of its squares away; None if all leave a side too small."""
    sums = np.concatenate([groups, groups * left]) @ yes
    num_yes, sum_yes = sums[: len(groups)], sums[len(groups) :]
    num_no = groups.sum(axis=1, keepdims=True) - num_yes
    sum_no = (groups @ left)[:, None] - sum_yes
    gains = sum_yes**2 / np.maximum(num_yes, 1) + sum_no**2 / np.maximum(num_no, 1)
    gains[(num_yes < _MIN_ROWS) | (num_no < _MIN_ROWS)] = -np.inf
    best = gains.argmax(axis=1)
    return [int(place) if of_group[place] > -np.inf else None for place, of_group in zip(best, gains, strict=True)]
