"""Activation checkpointing: keep what enters a segment of layers, and run the segment again in the backward pass.

With N layers of equal cost in segments of k, a training step holds N / k inputs of segments and what one segment of
k layers saves; it runs every layer's forward pass twice.

Source: Chen et al. 2016, arXiv:1604.06174.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor
from torch.utils.checkpoint import checkpoint


def run_in_segments(layers: Sequence[Callable[[Tensor], Tensor]], x: Tensor, layers_per_segment: int) -> Tensor:
    """Apply layers one after the other; only what enters each segment is kept for the backward pass.

    Args:
        layers_per_segment: the last segment may be shorter.

    Raises:
        ValueError: a segment of no layers.
    """
    if layers_per_segment < 1:
        raise ValueError(f"a segment has at least one layer, got {layers_per_segment}")

    def run(segment: Sequence[Callable[[Tensor], Tensor]], x: Tensor) -> Tensor:
        for layer in segment:
            x = layer(x)
        return x

    for start in range(0, len(layers), layers_per_segment):
        segment = layers[start : start + layers_per_segment]
        x = checkpoint(run, segment, x, use_reentrant=False)
    return x
