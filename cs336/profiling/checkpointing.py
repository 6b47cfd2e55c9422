"""Activation checkpointing: what is kept without it, the least that can be kept, and one level of it measured.

Source: Chen et al. 2016, arXiv:1604.06174; recursive halving: Griewank and Walther 2000, doi:10.1145/347837.347846.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from cs336.model.accounting import count_parameters
from cs336.model.layers import RMSNorm, RotaryPositionalEmbedding
from cs336.model.transformer import ModelConfig, TransformerBlock
from cs336.profiling.saved_tensors import largest_contributors, saved_tensors

BYTES_FP32 = 4


# ---- what one norm and one block keep


def norm_saves(
    batch_size: int, length: int, d_model: int, device: torch.device, *, compiled: bool
) -> list[dict[str, Any]]:
    """Tensors that RMSNorm alone keeps for its backward pass, its input included and its gain left out."""
    norm = RMSNorm(d_model, device=device)
    x = torch.randn(batch_size, length, d_model, device=device, requires_grad=True)
    run = torch.compile(norm, dynamic=False) if compiled else norm
    return [dataclasses.asdict(each) for each in saved_tensors(lambda: run(x), excluded=norm.parameters())]


def block_memory(
    shape: ModelConfig, batch_size: int, *, device: torch.device, compiled: bool = False, precision: str = "float32"
) -> dict[str, Any]:
    """What one block keeps for its backward pass, and the gradients that this pass leaves in its parameters.

    Args:
        device: "meta" computes nothing and so tells of any size; compiled code needs a real one.

    Returns:
        `saved_bytes` (parameters and the tables of positions left out, the input counted), the five lines that keep
        most as `largest`, `residual_bytes` of one tensor of the residual stream, `gradient_bytes` and, by the closed
        form, `expected_gradient_bytes`.
    """
    rope = RotaryPositionalEmbedding(shape.rope_theta, shape.features_per_head, shape.context_length, device=device)
    block = TransformerBlock(shape, rope=rope, device=device)
    x = torch.randn(batch_size, shape.context_length, shape.d_model, device=device, requires_grad=True)
    run = torch.compile(block, dynamic=False) if compiled else block
    outputs: list[Tensor] = []

    def forward() -> None:
        autocast = contextlib.nullcontext() if precision == "float32" else torch.autocast(device.type, torch.bfloat16)
        with autocast:
            outputs.append(run(x))

    excluded = [*block.parameters(), rope.cos, rope.sin]
    saved = saved_tensors(forward, excluded=excluded)
    outputs[0].backward(torch.ones_like(outputs[0]))
    gradients = [parameter.grad for parameter in block.parameters() if parameter.grad is not None]
    counted = count_parameters(dataclasses.replace(shape, num_layers=1))
    return {
        "saved_bytes": sum(each.num_bytes for each in saved),
        "num_saved": len(saved),
        "largest": largest_contributors(saved),
        "residual_bytes": x.numel() * x.element_size(),
        "gradient_bytes": sum(each.numel() * each.element_size() for each in gradients),
        "expected_gradient_bytes": BYTES_FP32 * (counted.attention + counted.feed_forward + 2 * shape.d_model),
    }


# ---- the least memory: recursive halving


@dataclass(frozen=True)
class HalvingCosts:
    """What recursive halving of N blocks costs.

    Attributes:
        checkpoints: inputs of blocks that are held at the worst time, that of the whole included.
        residuals: blocks whose residuals are held at that time.
        block_runs: forward passes of single blocks, in the forward and the backward pass together.
    """

    checkpoints: int
    residuals: int
    block_runs: int


def halving_costs(num_blocks: int) -> HalvingCosts:
    """Costs by walking through it; of a power of two `log2 N + 1` checkpoints and `N (log2 N + 1)` runs.

    The forward pass keeps what enters each half. The backward pass of a half runs it again, keeping what enters each
    of *its* halves, and so on down to one block, whose residuals alone are made. The second half comes first; when it
    is done, what entered it is dropped.

    Raises:
        ValueError: no block.
    """
    if num_blocks < 1:
        raise ValueError(f"there is at least one block, got {num_blocks}")

    def halves(size: int, held: int) -> tuple[int, int]:
        """(most inputs held, block runs) of the backward pass of a stretch whose own input is among `held`."""
        if size == 1:
            return held, 0
        first = size // 2
        later, later_runs = halves(size - first, held + 1)  # with what enters the second half
        earlier, earlier_runs = halves(first, held)
        return max(later, earlier), size + later_runs + earlier_runs  # each half is run again, from what entered it

    most, runs = halves(num_blocks, 1)
    return HalvingCosts(checkpoints=most, residuals=1, block_runs=num_blocks + runs)


def run_by_halving(layers: Sequence[Callable[[Tensor], Tensor]], x: Tensor) -> Tensor:
    """Apply layers one after the other, each half of them, and each half of a half, checkpointed."""
    if len(layers) == 1:
        return layers[0](x)
    for half in (layers[: len(layers) // 2], layers[len(layers) // 2 :]):
        x = cast(Tensor, checkpoint(run_by_halving, half, x, use_reentrant=False))
    return x


def halving_answer() -> str:
    """The handout's question (a), with figures by `halving_costs`."""
    shown = ", ".join(
        f"N = {count}: {costs.checkpoints} checkpoints, {costs.block_runs} runs"
        for count in (8, 32, 128)
        for costs in [halving_costs(count)]
    )
    return (
        "**(a) Least peak memory for N blocks, compute ignored.** Halve recursively: checkpoint both halves, and inside"
        " the recomputation of each half its halves, down to one block. At any time the residuals of one block are held"
        " and one checkpoint a level: O(log N) residual-stream tensors beside O(1) blocks of residuals. Every level"
        f" runs each block at most once more: O(N log N) forward compute ({shown}).\n\n"
        "```python\n"
        "def run(layers, x):\n"
        "    if len(layers) == 1:\n"
        "        return layers[0](x)\n"
        "    for half in (layers[: len(layers) // 2], layers[len(layers) // 2 :]):\n"
        "        x = checkpoint(run, half, x, use_reentrant=False)\n"
        "    return x\n"
        "```"
    )


# ---- one level


def segment_bytes(num_layers: int, layers_per_segment: int, *, residual_bytes: int, block_bytes: int) -> int:
    """Peak of activations with one level of checkpoints: `ceil(N / k)` inputs of segments and k blocks' residuals.

    Source: the handout's problem on gradient checkpointing; weights, gradients and logits come on top.
    """
    return math.ceil(num_layers / layers_per_segment) * residual_bytes + layers_per_segment * block_bytes


def best_segment(num_layers: int, *, residual_bytes: int, block_bytes: int) -> int:
    """The number of layers a segment with the least peak; `sqrt(N · residual / block)`, at least 1."""
    return min(
        range(1, num_layers + 1),
        key=lambda size: segment_bytes(num_layers, size, residual_bytes=residual_bytes, block_bytes=block_bytes),
    )
