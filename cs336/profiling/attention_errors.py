"""Errors of every attention of ours against fp64, output and gradients: what must hold before any is timed."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from cs336.kernels.tiled_attention import TiledAttention
from cs336.model.attention import KERNELS, causal_mask
from cs336.profiling.cells import FAILURE, Cell, Row
from cs336.profiling.config import ProfilingConfig
from cs336.profiling.pages import Page, Table

# The largest error allowed of an element, output or gradient, of inputs drawn from N(0, 1); what is wrong is off by
# more. The handout's own tolerance for its tests in fp32 is 1e-2.
MAX_ERROR = {"float32": 1e-3, "bfloat16": 0.1}
TILED, TRITON = "tiled", "triton"
IN_TRITON = {TRITON, "flash"}
LENGTH, WIDTH, BATCH = 512, 64, 2
INTERPRETED_LENGTH = 128  # Triton's interpreter takes seconds for more

Attention = Callable[[Tensor, Tensor, Tensor, bool], Tensor]


def error_cells(config: ProfilingConfig, sizes: Sequence[str], device: torch.device, folder: Path) -> list[Cell]:
    """Implementations x causal or full x types; those in Triton where it can run."""
    names = [name for name in (*KERNELS, TILED, TRITON) if name not in IN_TRITON or triton_runs(device)]
    return [
        Cell(
            name=f"errors, {name}, {dtype}, {'causal' if causal else 'full'}",
            settings={"kind": "errors", "implementation": name, "dtype": dtype, "causal": causal},
            measure=partial(largest_errors, name, getattr(torch, dtype), causal, device),
        )
        for name in names
        for dtype in MAX_ERROR
        for causal in (True, False)
        # The interpreter computes bf16 wrongly.
        if not (name in IN_TRITON and device.type != "cuda" and dtype == "bfloat16")
    ]


def triton_runs(device: torch.device) -> bool:
    """Whether Triton's kernels run: on a GPU, or in the interpreter."""
    return device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"


def largest_errors(name: str, dtype: torch.dtype, causal: bool, device: torch.device) -> Row:
    """The largest absolute errors of output and gradients against the formula in fp64."""
    length = INTERPRETED_LENGTH if name in IN_TRITON and device.type != "cuda" else LENGTH
    generator = torch.Generator(device).manual_seed(0)
    drawn = [torch.randn(BATCH, length, WIDTH, generator=generator, device=device) for _ in range(4)]
    inputs = [each.to(dtype).requires_grad_() for each in drawn[:3]]
    exact = [each.detach().double().requires_grad_() for each in inputs]
    grad = drawn[3].to(dtype)
    output = _attention(name)(inputs[0], inputs[1], inputs[2], causal)
    expected = _formula(exact[0], exact[1], exact[2], causal)
    ours = [output, *torch.autograd.grad(output, inputs, grad)]
    theirs = [expected, *torch.autograd.grad(expected, exact, grad.double())]
    parts = ("output", "grad_q", "grad_k", "grad_v")
    return {
        part: (one.double() - other).abs().max().item() for part, one, other in zip(parts, ours, theirs, strict=True)
    }


def _attention(name: str) -> Attention:
    """An implementation of (batch, length, width) without a head axis."""
    if name == TILED:
        return TiledAttention.apply
    if name == TRITON:
        from cs336.kernels.flash_attention import FlashAttention

        return FlashAttention.apply

    def with_head(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
        # Without a mask these are causal.
        mask = None if causal else torch.ones(q.shape[1], k.shape[1], dtype=torch.bool, device=q.device)
        return KERNELS[name](q.unsqueeze(1), k.unsqueeze(1), v.unsqueeze(1), mask, 0.0).squeeze(1)

    return with_head


def _formula(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    scores = q @ k.mT / q.shape[-1] ** 0.5
    if causal:
        scores = scores.masked_fill(~causal_mask(q.shape[1], k.shape[1], device=q.device), float("-inf"))
    return scores.softmax(-1) @ v


def is_exact(row: Row) -> bool:
    """Whether a row's errors are within what its type allows."""
    parts = ("output", "grad_q", "grad_k", "grad_v")
    return FAILURE not in row and all(row[part] <= MAX_ERROR[row["settings"]["dtype"]] for part in parts)


def error_page(config: ProfilingConfig, sizes: Sequence[str], rows: Sequence[Row]) -> Page:
    """All errors as one table."""
    chosen = [row for row in rows if row["settings"]["kind"] == "errors"]
    wrong = [row["case"] for row in chosen if not is_exact(row)]
    lines = [
        row["settings"]
        | row
        | {"exact": is_exact(row), "limit": MAX_ERROR[row["settings"]["dtype"]]}
        | ({"output": row[FAILURE]} if FAILURE in row else {})
        for row in chosen
    ]
    return Page(
        text=f"Not within the limits: {'; '.join(wrong)}." if wrong else "All errors are within the limits.",
        tables=[
            Table(
                lines,
                {"implementation": "attention", "dtype": "type", "causal": "causal", "output": "output"}
                | {"grad_q": "dQ", "grad_k": "dK", "grad_v": "dV", "limit": "limit", "exact": "within"},
                "Largest absolute error against fp64",
            )
        ],
    )
