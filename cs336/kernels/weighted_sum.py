"""The warm-up kernel of the handout: weighted sums of rows, forward and backward, in Triton.

Source    CS336 assignment 2, section on Triton.
Layout    (..., d), rows contiguous; any number of rows and columns (ends are masked).
Numerics  bf16, fp16, fp32 in; sums in fp32.
Backward  a tile of rows adds up its own part of the weight's gradient, and PyTorch adds the tiles: no atomics.
Twin      `(weight * x).sum(-1)`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float

_ROWS, _COLUMNS = 16, 128


def weighted_sum(x: Float[Tensor, "... d"], weight: Float[Tensor, " d"]) -> Float[Tensor, "..."]:
    """`(weight * x).sum(-1)`.

    Raises:
        ValueError: the weight does not fit.
    """
    if weight.shape != x.shape[-1:]:
        raise ValueError(f"weight of shape {tuple(weight.shape)} does not fit rows of {x.shape[-1]}")
    return WeightedSum.apply(x, weight)


class WeightedSum(torch.autograd.Function):
    """The kernels with their gradients: `WeightedSum.apply(x, weight)`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        """One number a row."""
        rows = x.reshape(-1, x.shape[-1]).contiguous()
        y = torch.empty(rows.shape[0], dtype=x.dtype, device=x.device)
        grid = (triton.cdiv(rows.shape[0], _ROWS),)
        _forward_kernel[grid](rows, weight, y, *rows.shape, ROWS=_ROWS, COLUMNS=_COLUMNS)
        ctx.save_for_backward(rows, weight)
        return y.view(x.shape[:-1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of x and weight."""
        rows, weight = ctx.saved_tensors
        grad_y = grads[0].reshape(-1).contiguous()
        grad_x = torch.empty_like(rows)
        grid = (triton.cdiv(rows.shape[0], _ROWS),)
        partial = torch.empty(grid[0], rows.shape[1], dtype=torch.float32, device=rows.device)
        _backward_kernel[grid](rows, weight, grad_y, grad_x, partial, *rows.shape, ROWS=_ROWS, COLUMNS=_COLUMNS)
        return grad_x.view(*grads[0].shape, -1), partial.sum(0).to(weight.dtype)


@triton.jit
def _forward_kernel(x_base, weight_base, y_base, num_rows, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Some rows, a tile of columns after the other."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    is_row = rows < num_rows
    total = tl.zeros((ROWS,), tl.float32)
    for start in range(0, width, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        inside = is_row[:, None] & (columns < width)[None, :]
        x = tl.load(x_base + rows[:, None] * width + columns[None, :], mask=inside, other=0.0).to(tl.float32)
        weight = tl.load(weight_base + columns, mask=columns < width, other=0.0).to(tl.float32)
        total += tl.sum(x * weight[None, :], 1)
    tl.store(y_base + rows, total.to(y_base.dtype.element_ty), mask=is_row)


@triton.jit
def _backward_kernel(
    x_base,
    weight_base,
    grad_y_base,
    grad_x_base,
    partial_base,
    num_rows,
    width,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """The gradient of some rows, and what they add to the weight's."""
    tile = tl.program_id(0).to(tl.int64)
    rows = tile * ROWS + tl.arange(0, ROWS)
    is_row = rows < num_rows
    grad_y = tl.load(grad_y_base + rows, mask=is_row, other=0.0).to(tl.float32)
    for start in range(0, width, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        is_column = columns < width
        inside = is_row[:, None] & is_column[None, :]
        places = rows[:, None] * width + columns[None, :]
        x = tl.load(x_base + places, mask=inside, other=0.0).to(tl.float32)
        weight = tl.load(weight_base + columns, mask=is_column, other=0.0).to(tl.float32)
        tl.store(grad_x_base + places, (grad_y[:, None] * weight).to(grad_x_base.dtype.element_ty), mask=inside)
        tl.store(partial_base + tile * width + columns, tl.sum(grad_y[:, None] * x, 0), mask=is_column)
