"""Rotary positions in one pass, in Triton; the backward pass turns the other way.

Source    Su et al. 2021, arXiv:2104.09864.
Layout    (batch, heads, seq, d) of any strides but the last, which is 1; the result is contiguous in the same order
          of axes as the input, so that what a projection left as (batch, seq, heads, d) stays so.
Numerics  bf16, fp16, fp32 in and out; arithmetic in fp32.
Saves     nothing but the tables.
Twin      model/layers.py, RotaryPositionalEmbedding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float

_ROWS = 32


def rotate(
    x: Float[Tensor, "batch heads seq d"],
    cos: Float[Tensor, "seq half"],
    sin: Float[Tensor, "seq half"],
    *,
    interleaved: bool,
) -> Float[Tensor, "batch heads seq d"]:
    """Turn pairs of features by the angles of their position.

    Args:
        cos, sin: fp32, contiguous, of each position in the sequence and each pair.
        interleaved: pairs are (2k, 2k + 1); else (k, k + d / 2).

    Raises:
        ValueError: tables that do not fit.
    """
    if x.ndim != 4 or cos.shape != sin.shape or cos.shape != (x.shape[2], x.shape[3] // 2) or x.shape[3] % 2:
        raise ValueError(f"x {tuple(x.shape)} and tables {tuple(cos.shape)}, {tuple(sin.shape)} do not fit")
    return Rotation.apply(x, cos, sin, interleaved)


class Rotation(torch.autograd.Function):
    """The kernel with its gradient: `Rotation.apply(x, cos, sin, interleaved)`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
        """Turned features."""
        ctx.save_for_backward(cos, sin)
        ctx.interleaved = interleaved
        return _rotate(x, cos, sin, interleaved, False)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        """The gradient, turned back."""
        cos, sin = ctx.saved_tensors
        return _rotate(grads[0], cos, sin, ctx.interleaved, True), None, None, None


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool, backwards: bool) -> Tensor:
    if x.stride(-1) != 1:
        x = x.contiguous()
    y = torch.empty_like(x)  # keeps the order of the axes, and closes gaps
    batch, heads, seq, d = x.shape
    _rotate_kernel[(triton.cdiv(seq, _ROWS), batch * heads)](
        x,
        y,
        cos,
        sin,
        *x.stride()[:3],
        *y.stride()[:3],
        heads,
        seq,
        HALF=d // 2,
        PADDED=triton.next_power_of_2(d // 2),
        INTERLEAVED=interleaved,
        BACKWARDS=backwards,
        ROWS=_ROWS,
    )
    return y


@triton.jit
def _rotate_kernel(
    x_base,
    y_base,
    cos_base,
    sin_base,
    x_batch,
    x_head,
    x_row,
    y_batch,
    y_head,
    y_row,
    heads,
    seq,
    HALF: tl.constexpr,
    PADDED: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    BACKWARDS: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Some positions of one head."""
    rows = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None].to(tl.int64)
    batch, head = (tl.program_id(1) // heads).to(tl.int64), (tl.program_id(1) % heads).to(tl.int64)
    x_base += batch * x_batch + head * x_head + rows * x_row
    y_base += batch * y_batch + head * y_head + rows * y_row
    pairs = tl.arange(0, PADDED)[None, :]
    inside = (rows < seq) & (pairs < HALF)
    cos = tl.load(cos_base + rows * HALF + pairs, mask=inside, other=0.0)
    sin = tl.load(sin_base + rows * HALF + pairs, mask=inside, other=0.0)
    if BACKWARDS:
        sin = -sin
    if INTERLEAVED:  # side by side in memory: read as one run
        columns = tl.arange(0, 2 * PADDED)[None, :]
        both_inside = (rows < seq) & (columns < 2 * HALF)
        both = tl.load(x_base + columns, mask=both_inside, other=0.0).to(tl.float32)
        first, second = tl.split(tl.reshape(both, (ROWS, PADDED, 2)))
        turned = tl.join(first * cos - second * sin, first * sin + second * cos)
        turned = tl.reshape(turned, (ROWS, 2 * PADDED)).to(y_base.dtype.element_ty)
        tl.store(y_base + columns, turned, mask=both_inside)
    else:
        first = tl.load(x_base + pairs, mask=inside, other=0.0).to(tl.float32)
        second = tl.load(x_base + HALF + pairs, mask=inside, other=0.0).to(tl.float32)
        tl.store(y_base + pairs, (first * cos - second * sin).to(y_base.dtype.element_ty), mask=inside)
        tl.store(y_base + HALF + pairs, (first * sin + second * cos).to(y_base.dtype.element_ty), mask=inside)
