"""Masked sums and means: by hand, along every dimension, and NaN where nothing is selected."""

import math

import pytest
import torch

from cs336.posttrain.masked import masked_mean, masked_normalize

VALUES = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
MASK = torch.tensor([[True, False, True], [False, False, True]])


@pytest.mark.parametrize("mask", [MASK, MASK.long(), MASK.float()], ids=["bool", "int", "float"])
def test_sums_and_means_by_hand(mask):
    nan = math.nan
    cases = {
        None: (torch.tensor(10.0), torch.tensor(10 / 3)),
        0: (torch.tensor([1.0, 0.0, 9.0]), torch.tensor([1.0, nan, 4.5])),
        1: (torch.tensor([4.0, 6.0]), torch.tensor([2.0, 6.0])),
        -1: (torch.tensor([4.0, 6.0]), torch.tensor([2.0, 6.0])),
    }
    for dim, (total, mean) in cases.items():
        actual = masked_normalize(VALUES, mask, normalize_constant=4.0, dim=dim)
        assert actual.dtype == torch.float32
        torch.testing.assert_close(actual, total / 4)
        torch.testing.assert_close(masked_mean(VALUES, mask, dim=dim), mean, equal_nan=True)
    torch.testing.assert_close(masked_normalize(VALUES, mask, 4.0), torch.tensor(2.5))
    torch.testing.assert_close(masked_mean(VALUES, mask), torch.tensor(10 / 3))


def test_nothing_selected_is_nan_for_the_mean_and_zero_for_the_sum():
    nothing = torch.zeros_like(MASK)
    assert masked_mean(VALUES, nothing).isnan()
    assert masked_mean(VALUES, nothing, dim=1).isnan().all()
    assert torch.equal(masked_normalize(VALUES, nothing, 2.0, dim=1), torch.zeros(2))


def test_what_is_not_selected_may_be_infinite_and_gets_no_gradient():
    values = torch.tensor([[1.0, -math.inf, 2.0], [math.nan, 4.0, math.inf]], requires_grad=True)
    mask = torch.tensor([[1, 0, 1], [0, 1, 0]])
    assert torch.equal(masked_normalize(values, mask, 1.0, dim=1), torch.tensor([3.0, 4.0]))
    masked_mean(values, mask).backward()
    torch.testing.assert_close(values.grad, mask / 3)


def test_any_dimension_of_a_larger_tensor():
    values = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    mask = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(1)) < 0.6
    for dim in range(-4, 4):
        torch.testing.assert_close(masked_normalize(values, mask, 3.0, dim), (values * mask).sum(dim) / 3)
        mean = (values * mask).sum(dim) / mask.sum(dim)
        torch.testing.assert_close(masked_mean(values, mask, dim), mean, equal_nan=True)
