"""Ridge and trees by hand, by property, and ridge against NumPy's least squares."""

import numpy as np
import pytest

from cs336.scaling.boosting import SHRINKAGE, fit_correction, staged_errors


@pytest.fixture
def drawn():
    draw = np.random.default_rng(0)
    features = draw.normal(size=(200, 3))
    return features, draw


def test_without_ridge_and_trees_it_is_the_mean(drawn):
    features, draw = drawn
    targets = draw.normal(size=200)
    correction = fit_correction(features, targets, ridge=np.inf, num_trees=0)
    np.testing.assert_allclose(correction(features), targets.mean())


def test_a_step_by_hand():
    """One tree on a step between 1 and 2: each side moves its share of the way to its own mean."""
    features = np.repeat([[0.0], [1.0], [2.0], [3.0]], 5, axis=0)
    targets = np.where(features[:, 0] > 1.5, 1.0, -1.0)
    correction = fit_correction(features, targets, ridge=np.inf, num_trees=1)
    np.testing.assert_allclose(correction(features), SHRINKAGE * targets)
    np.testing.assert_allclose(correction(np.array([[1.4], [1.6]])), [-SHRINKAGE, SHRINKAGE])


def test_many_trees_learn_what_two_features_do_together(drawn):
    features = np.round(drawn[0])  # few values, so that every threshold is tried
    targets = (features[:, 0] > 0) * (features[:, 1] > 0) * 1.0
    correction = fit_correction(features, targets, ridge=np.inf, num_trees=300)
    assert np.sqrt(np.mean((correction(features) - targets) ** 2)) < 0.02


def test_ridge_finds_a_quadratic_and_shrinks_with_its_penalty(drawn):
    features, _ = drawn
    targets = 1 + features[:, 0] - 0.5 * features[:, 1] ** 2 + 0.3 * features[:, 0] * features[:, 2]
    inside = features * 0.5  # nothing is clipped
    close = fit_correction(features, targets, ridge=1e-6, num_trees=0)
    wanted = 1 + inside[:, 0] - 0.5 * inside[:, 1] ** 2 + 0.3 * inside[:, 0] * inside[:, 2]
    np.testing.assert_allclose(close(inside), wanted, atol=1e-6)
    spread = [fit_correction(features, targets, ridge=r, num_trees=0)(features).std() for r in (1e-6, 10, 1e3, 1e6)]
    assert spread == sorted(spread, reverse=True) and spread[-1] < 0.01


def test_ridge_is_numpys_least_squares_with_rows_for_the_penalty(drawn):
    features, draw = drawn
    targets = draw.normal(size=200)
    products = [features[:, i] * features[:, j] for i in range(3) for j in range(i, 3)]
    columns = np.column_stack([features, *products])
    standard = (columns - columns.mean(axis=0)) / columns.std(axis=0)
    stacked = np.vstack([standard, np.sqrt(5.0) * np.eye(9)])
    weights = np.linalg.lstsq(stacked, np.concatenate([targets - targets.mean(), np.zeros(9)]))[0]
    expected = targets.mean() + standard @ weights
    np.testing.assert_allclose(fit_correction(features, targets, ridge=5.0, num_trees=0)(features), expected)


@pytest.mark.parametrize("ridge", [np.inf, 0.1])
def test_beyond_the_rows_nothing_changes_any_more(drawn, ridge):
    features, draw = drawn
    correction = fit_correction(features, features @ [1, 2, 3] + draw.normal(size=200), ridge=ridge, num_trees=50)
    edge = features.max(axis=0)
    np.testing.assert_array_equal(correction(edge[None]), correction(edge[None] + [[5.0, 100.0, 1e6]]))


def test_each_tree_lowers_the_error_where_it_was_fitted(drawn):
    features, draw = drawn
    targets = np.sin(2 * features[:, 0]) + 0.1 * draw.normal(size=200)
    correction = fit_correction(features, targets, ridge=np.inf, num_trees=100)
    squares = (staged_errors(correction, features, targets) ** 2).mean(axis=1)
    assert len(squares) == 101 and (np.diff(squares) <= 1e-12).all()
    assert squares[-1] < 0.1 * squares[0]


def test_stages_are_what_fewer_trees_would_leave(drawn):
    features, draw = drawn
    targets = features[:, 0] ** 3 + draw.normal(size=200)
    stages = staged_errors(fit_correction(features, targets, ridge=1.0, num_trees=30), features, targets)
    for num_trees in (0, 7, 30):
        fewer = fit_correction(features, targets, ridge=1.0, num_trees=num_trees)
        np.testing.assert_allclose(stages[num_trees], targets - fewer(features), atol=1e-12)


@pytest.mark.parametrize("rows", [1, 3, 7])
def test_too_few_rows_for_two_leaves_give_no_tree(rows):
    features = np.arange(rows, dtype=float)[:, None]
    correction = fit_correction(features, np.arange(rows, dtype=float), ridge=np.inf, num_trees=10)
    assert len(correction.splits) == 0
    np.testing.assert_allclose(correction(features), np.arange(rows).mean())


def test_a_column_of_one_value_is_no_trouble():
    features = np.column_stack([np.full(50, 0.3), np.linspace(0, 1, 50)])
    correction = fit_correction(features, features[:, 1], ridge=0.01, num_trees=20)
    np.testing.assert_allclose(correction(features), features[:, 1], atol=0.02)
