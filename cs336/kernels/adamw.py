"""AdamW's update of many tensors in one pass and one launch, in Triton.

Source    Loshchilov and Hutter 2019, arXiv:1711.05101, algorithm 2, in the handout's order.
Layout    tensors of any shapes, contiguous, of one dtype; their addresses travel as a table.
Numerics  parameters and moments in fp32 or bf16, each as it is stored; arithmetic in fp32.
Traffic   28 bytes an element in fp32: four reads and three writes. PyTorch's lists of tensors take three times that.
Twin      train/optimizer.py, AdamW.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 1_024
_MIN_BLOCKS = 4  # that a program goes over
_PROGRAMS = 8_192  # about so many, to keep every GPU busy with short tables


def adamw_step(
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    m: Sequence[Tensor],
    v: Sequence[Tensor],
    *,
    t: int,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> None:
    """Update parameters and moments in place.

    Args:
        m, v: first and second moments, of the parameters' shapes.
        t: number of the step, from 1.

    Raises:
        ValueError: tensors that are not contiguous, or of several dtypes or devices.
    """
    if not parameters:
        return
    first = parameters[0]
    for one, *others in zip(parameters, gradients, m, v, strict=True):
        if any(each.shape != one.shape or not each.is_contiguous() for each in (one, *others)):
            raise ValueError(f"a parameter {tuple(one.shape)}, its gradient or a moment is not contiguous, or differs")
        if any((each.dtype, each.device) != (first.dtype, first.device) for each in (one, *others)):
            raise ValueError("parameters, gradients and moments of one call are of one dtype and device")
    addresses = [[each.data_ptr() for each in group] for group in zip(parameters, gradients, m, v, strict=True)]
    places, blocks = _chunks(tuple(parameter.numel() for parameter in parameters), first.device)
    beta1, beta2 = betas
    _adamw_kernel[(len(places),)](
        torch.tensor(addresses).to(first.device, non_blocking=True),
        places,
        first.new_empty(0),
        blocks,
        lr * math.sqrt(1 - beta2**t) / (1 - beta1**t),
        1 - beta1,  # here, in fp64: of betas rounded to fp32 it would be off by 1e-5 of itself
        1 - beta2,
        eps,
        1 - lr * weight_decay,
        BLOCK=_BLOCK,
        ALIGNED=all(address % 16 == 0 for row in addresses for address in row),
    )


@functools.lru_cache(maxsize=16)
def _chunks(sizes: tuple[int, ...], device: torch.device) -> tuple[Tensor, int]:
    """For each program its tensor, the first element and the tensor's size; and how many blocks it goes over."""
    blocks = max(_MIN_BLOCKS, math.ceil(sum(sizes) / (_BLOCK * _PROGRAMS)))
    chunks = [[index, start, size] for index, size in enumerate(sizes) for start in range(0, size, blocks * _BLOCK)]
    return torch.tensor(chunks).to(device), blocks


@triton.jit
def _adamw_kernel(
    table, places, example, blocks, step_size, rest1, rest2, eps, kept, BLOCK: tl.constexpr, ALIGNED: tl.constexpr
):
    """Some blocks of one tensor."""
    places += tl.program_id(0) * 3
    table += tl.load(places) * 4
    start, size = tl.multiple_of(tl.load(places + 1), 16), tl.load(places + 2)
    parameters = _pointer(table, example, ALIGNED)
    gradients = _pointer(table + 1, example, ALIGNED)
    m_base = _pointer(table + 2, example, ALIGNED)
    v_base = _pointer(table + 3, example, ALIGNED)
    for block in range(blocks):
        first = start + block * BLOCK
        elements = first + tl.arange(0, BLOCK)
        if first + BLOCK <= size:  # a mask would break wide reads up
            _update(parameters, gradients, m_base, v_base, elements, None, step_size, rest1, rest2, eps, kept)
        else:
            inside = elements < size
            _update(parameters, gradients, m_base, v_base, elements, inside, step_size, rest1, rest2, eps, kept)


@triton.jit
def _update(parameters, gradients, m_base, v_base, elements, inside, step_size, rest1, rest2, eps, kept):
    """One block, as algorithm 2 has it."""
    gradient = tl.load(gradients + elements, mask=inside).to(tl.float32)
    m = tl.load(m_base + elements, mask=inside).to(tl.float32)
    v = tl.load(v_base + elements, mask=inside).to(tl.float32)
    m += rest1 * (gradient - m)  # beta m + (1 - beta) g
    v += rest2 * (gradient * gradient - v)
    parameter = tl.load(parameters + elements, mask=inside).to(tl.float32)
    parameter = (parameter - step_size * m / (tl.sqrt(v) + eps)) * kept
    tl.store(m_base + elements, m.to(m_base.dtype.element_ty), mask=inside)
    tl.store(v_base + elements, v.to(v_base.dtype.element_ty), mask=inside)
    tl.store(parameters + elements, parameter.to(parameters.dtype.element_ty), mask=inside)


@triton.jit
def _pointer(address, example, ALIGNED: tl.constexpr):
    """An address of the table as a pointer to what `example` points to; aligned ones are read in wide pieces."""
    pointer = tl.load(address).to(example.dtype)
    if ALIGNED:
        pointer = tl.multiple_of(pointer, 16)
    return pointer
