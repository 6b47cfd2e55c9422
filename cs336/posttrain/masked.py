"""Sums and means over the tokens that a mask selects."""

from __future__ import annotations

import torch
from torch import Tensor


def masked_normalize(tensor: Tensor, mask: Tensor, normalize_constant: float, dim: int | None = None) -> Tensor:
    """Sum of the selected elements over `dim`, or over all for None, divided by a constant.

    What is not selected may be anything, infinite too.

    Args:
        mask: of the tensor's shape; 1 or True selects.
    """
    return _masked_sum(tensor, mask, dim) / normalize_constant


def masked_mean(tensor: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Mean of the selected elements over `dim`, or over all for None; NaN where nothing is selected.

    NaN, not 0: a response without tokens is a mistake of whoever sampled it, and has no mean.

    Args:
        mask: of the tensor's shape; 1 or True selects.
    """
    return _masked_sum(tensor, mask, dim) / (mask.sum() if dim is None else mask.sum(dim))


def _masked_sum(tensor: Tensor, mask: Tensor, dim: int | None) -> Tensor:
    # Not the product alone: 0 times the infinite log-probability of a padding token would be NaN.
    chosen = torch.where(mask != 0, tensor * mask, 0)
    return chosen.sum() if dim is None else chosen.sum(dim)
