"""The handout's example of what a response's loss is divided by."""

import pytest

from cs336.posttrain.length_normalization import example


def test_the_handouts_example():
    """Lengths 4 and 7, advantage 2, ratio 1: the figures of its section on length normalisation."""
    mean, constant = example(None), example(7.0)
    assert mean.losses == (2.0, 2.0) and mean.token_gradients == pytest.approx((0.25, 1 / 7))
    assert constant.losses == pytest.approx((8 / 7, 2.0)) and constant.token_gradients == pytest.approx((1 / 7, 1 / 7))
