"""Activation checkpointing: keep what enters a segment of layers, and run the segment again in the backward pass.

With N layers of equal cost in segments of k, a training step holds N / k inputs of segments and what one segment of
k layers saves; it runs every layer's forward pass twice. All but attention, if its outputs are kept, which takes as
much again as the inputs of single layers, and saves what grows with the square of the length.

Source: Chen et al. 2016, arXiv:1604.06174; keeping some outputs: Korthikanti et al. 2022, arXiv:2205.05198.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

# What computes attention in one operator: ours, and PyTorch's on GPUs and CPUs.
_ATTENTION = {"cs336::flash_forward"} | {
    f"aten::_scaled_dot_product_{kind}" for kind in ("flash_attention", "flash_attention_for_cpu")
}
_ATTENTION |= {f"aten::_scaled_dot_product_{kind}_attention" for kind in ("efficient", "cudnn")}


def run_in_segments(
    layers: Sequence[Callable[[Tensor], Tensor]], x: Tensor, layers_per_segment: int, *, keep_attention: bool = False
) -> Tensor:
    """Apply layers one after the other; only what enters each segment is kept for the backward pass.

    Args:
        layers_per_segment: the last segment may be shorter.
        keep_attention: keep the outputs of attention, too, where one operator computes it, and do not run it again.

    Raises:
        ValueError: a segment of no layers.
    """
    if layers_per_segment < 1:
        raise ValueError(f"a segment has at least one layer, got {layers_per_segment}")

    def run(segment: Sequence[Callable[[Tensor], Tensor]], x: Tensor) -> Tensor:
        for layer in segment:
            x = layer(x)
        return x

    options: dict[str, Any] = {}
    if keep_attention:
        options["context_fn"] = partial(create_selective_checkpoint_contexts, _policy)
    for start in range(0, len(layers), layers_per_segment):
        segment = layers[start : start + layers_per_segment]
        x = checkpoint(run, segment, x, use_reentrant=False, **options)
    return x


def _policy(context: Any, operator: torch._ops.OpOverload, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    kept = operator.name().partition(".")[0] in _ATTENTION
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE
