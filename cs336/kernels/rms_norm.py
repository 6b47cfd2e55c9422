"""RMSNorm in one pass forward and one backward, in Triton.

Source    Zhang and Sennrich 2019, arXiv:1910.07467.
Layout    (..., d), rows contiguous; a row is held by one block, so d is at most 16,384.
Numerics  bf16, fp16, fp32 in and out, whatever the weight is in; a row's arithmetic and the weight's gradient in fp32.
Saves     the input and one number a row. Plain PyTorch keeps several tensors of the input's size.
Backward  each block adds up the weight's gradient over its own rows, and PyTorch adds the blocks: no atomics.
Twin      model/layers.py, RMSNorm.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float

MAX_WIDTH = 16_384
_BLOCKS_PER_PROCESSOR = 4  # in the backward pass; more would leave more partial sums to add


def rms_norm(x: Float[Tensor, "... d"], weight: Float[Tensor, " d"], *, eps: float = 1e-5) -> Float[Tensor, "... d"]:
    """`x / sqrt(mean(x²) + eps) * weight` over the last dimension.

    Raises:
        ValueError: the weight does not fit, or rows are too long for one block.
    """
    if weight.shape != x.shape[-1:]:
        raise ValueError(f"weight of shape {tuple(weight.shape)} does not fit rows of {x.shape[-1]}")
    if x.shape[-1] > MAX_WIDTH:
        raise ValueError(f"rows of {x.shape[-1]} are longer than {MAX_WIDTH}; use model.layers.RMSNorm")
    return RMSNormFunction.apply(x, weight, eps)


class RMSNormFunction(torch.autograd.Function):
    """The kernels with their gradients: `RMSNormFunction.apply(x, weight, eps)`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Normed rows."""
        rows = x.reshape(-1, x.shape[-1]).contiguous()
        y = torch.empty_like(rows)
        inverse_rms = torch.empty(rows.shape[0], dtype=torch.float32, device=x.device)
        _forward_kernel[(rows.shape[0],)](rows, weight, y, inverse_rms, rows.shape[1], eps, **_options(rows))
        ctx.save_for_backward(rows, weight, inverse_rms)
        return y.view(x.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        """Gradients of x and weight."""
        rows, weight, inverse_rms = ctx.saved_tensors
        grad_y = grads[0].reshape(rows.shape).contiguous()
        grad_x = torch.empty_like(rows)
        num_blocks = min(rows.shape[0], _BLOCKS_PER_PROCESSOR * _num_processors(rows))
        partial = torch.empty(num_blocks, rows.shape[1], dtype=torch.float32, device=rows.device)
        _backward_kernel[(num_blocks,)](
            rows, weight, inverse_rms, grad_y, grad_x, partial, *rows.shape, **_options(rows)
        )
        return grad_x.view(grads[0].shape), partial.sum(0).to(weight.dtype), None


def _num_processors(tensor: Tensor) -> int:
    return torch.cuda.get_device_properties(tensor.device).multi_processor_count if tensor.is_cuda else 1


def _options(rows: Tensor) -> dict[str, int]:
    padded = triton.next_power_of_2(rows.shape[1])
    return {"PADDED": padded, "num_warps": min(16, max(1, padded // 512))}


@triton.jit
def _forward_kernel(x_base, weight_base, y_base, inverse_rms_base, width, eps, PADDED: tl.constexpr):
    """One row."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, PADDED)
    inside = columns < width
    x = tl.load(x_base + row * width + columns, mask=inside, other=0.0).to(tl.float32)
    inverse_rms = 1 / tl.sqrt(tl.sum(x * x, 0) / width + eps)
    weight = tl.load(weight_base + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(y_base + row * width + columns, (x * inverse_rms * weight).to(y_base.dtype.element_ty), mask=inside)
    tl.store(inverse_rms_base + row, inverse_rms)


@triton.jit
def _backward_kernel(
    x_base, weight_base, inverse_rms_base, grad_y_base, grad_x_base, partial_base, num_rows, width, PADDED: tl.constexpr
):
    """Every so manieth row, and the sum of what these rows add to the weight's gradient."""
    columns = tl.arange(0, PADDED)
    inside = columns < width
    weight = tl.load(weight_base + columns, mask=inside, other=0.0).to(tl.float32)
    grad_weight = tl.zeros((PADDED,), tl.float32)
    for index in range(tl.program_id(0), num_rows, tl.num_programs(0)):
        row = tl.cast(index, tl.int64)
        x = tl.load(x_base + row * width + columns, mask=inside, other=0.0).to(tl.float32)
        grad_y = tl.load(grad_y_base + row * width + columns, mask=inside, other=0.0).to(tl.float32)
        inverse_rms = tl.load(inverse_rms_base + row)
        normed = x * inverse_rms
        grad_weight += grad_y * normed
        grad_normed = grad_y * weight
        grad_x = inverse_rms * (grad_normed - normed * (tl.sum(grad_normed * normed, 0) / width))
        tl.store(grad_x_base + row * width + columns, grad_x.to(grad_x_base.dtype.element_ty), mask=inside)
    tl.store(partial_base + tl.program_id(0) * width + columns, grad_weight, mask=inside)
