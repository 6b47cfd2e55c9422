"""The gate of SwiGLU, `silu(gate) * up`, in one pass forward and one backward, in Triton.

Source    Shazeer 2020, arXiv:2002.05202.
Layout    both of one shape; not contiguous ones are copied.
Numerics  bf16, fp16, fp32 in and out; arithmetic in fp32.
Saves     its two inputs; silu is computed again in the backward pass.
Twin      model/layers.py, SwiGLU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float

_BLOCK = 2_048


def swiglu(gate: Float[Tensor, "... d"], up: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
    """`silu(gate) * up`, elementwise.

    Raises:
        ValueError: shapes or types that differ.
    """
    if gate.shape != up.shape or gate.dtype != up.dtype:
        raise ValueError(f"gate {tuple(gate.shape)} {gate.dtype} and up {tuple(up.shape)} {up.dtype} differ")
    return SwiGLUFunction.apply(gate, up)


class SwiGLUFunction(torch.autograd.Function):
    """The kernels with their gradients: `SwiGLUFunction.apply(gate, up)`."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        """The product."""
        gate, up = gate.contiguous(), up.contiguous()
        y = torch.empty_like(gate)
        _forward_kernel[(triton.cdiv(y.numel(), _BLOCK),)](gate, up, y, y.numel(), BLOCK=_BLOCK)
        ctx.save_for_backward(gate, up)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of gate and up."""
        gate, up = ctx.saved_tensors
        grad_gate, grad_up = torch.empty_like(gate), torch.empty_like(up)
        size = gate.numel()
        _backward_kernel[(triton.cdiv(size, _BLOCK),)](
            gate, up, grads[0].contiguous(), grad_gate, grad_up, size, BLOCK=_BLOCK
        )
        return grad_gate, grad_up


@triton.jit
def _forward_kernel(gate_base, up_base, y_base, size, BLOCK: tl.constexpr):
    """One block of elements."""
    places = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = places < size
    gate = tl.load(gate_base + places, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(up_base + places, mask=inside, other=0.0).to(tl.float32)
    tl.store(y_base + places, (gate * tl.sigmoid(gate) * up).to(y_base.dtype.element_ty), mask=inside)


@triton.jit
def _backward_kernel(gate_base, up_base, grad_y_base, grad_gate_base, grad_up_base, size, BLOCK: tl.constexpr):
    """One block of elements."""
    places = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = places < size
    gate = tl.load(gate_base + places, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(up_base + places, mask=inside, other=0.0).to(tl.float32)
    grad_y = tl.load(grad_y_base + places, mask=inside, other=0.0).to(tl.float32)
    sigmoid = tl.sigmoid(gate)
    silu = gate * sigmoid
    grad_gate = grad_y * up * sigmoid * (1 + gate - silu)
    tl.store(grad_gate_base + places, grad_gate.to(grad_gate_base.dtype.element_ty), mask=inside)
    tl.store(grad_up_base + places, (grad_y * silu).to(grad_up_base.dtype.element_ty), mask=inside)
