"""The largest batch that a training step fits into a GPU's memory."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace

import torch

from cs336.model.transformer import ModelConfig
from cs336.train.loop import TrainConfig, training_step

_KEPT_FREE = 0.03  # of the memory: allocators round, and a compiled step may take more than an eager one
_GRAIN = 16  # batch sizes are multiples of this


def largest_batch_size(
    model_config: ModelConfig, config: TrainConfig, *, device: torch.device, max_batch_size: int
) -> tuple[int, int]:
    """The largest batch whose step fits, up to `max_batch_size`, and its peak memory in bytes.

    Doubles until a step runs out of memory, then halves the gap. Without a GPU nothing is tried: memory
    runs out there by swapping and by the kernel's choice of a victim, so the limit is `max_batch_size`.
    """
    if device.type != "cuda":
        return max_batch_size, 0
    room = (1 - _KEPT_FREE) * torch.cuda.mem_get_info(device)[1]

    def peak_of(batch_size: int) -> int | None:
        peak = _peak_bytes(training_step(model_config, replace(config, batch_size=batch_size), device), device)
        return peak if peak is not None and peak <= room else None

    fits, peak, size = 0, 0, _GRAIN
    while size <= max_batch_size and (needed := peak_of(size)) is not None:
        fits, peak, size = size, needed, 2 * size
    low, high = fits, min(size, max_batch_size + _GRAIN)
    while high - low > max(_GRAIN, low // 32):
        middle = (low + high) // (2 * _GRAIN) * _GRAIN
        needed = peak_of(middle)
        if needed is None:
            high = middle
        else:
            low, peak = middle, needed
    return low, peak


def _peak_bytes(step: Callable[[], None], device: torch.device) -> int | None:
    """The most memory that two steps hold (the second has the optimizer's state); None if it is not there."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    try:
        step()
        step()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_reserved(device)
    except torch.cuda.OutOfMemoryError:
        return None
