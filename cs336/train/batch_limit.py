"""The largest batch that a training step fits into a GPU's memory."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace

import torch

from cs336.model.transformer import ModelConfig
from cs336.train.loop import TrainConfig, training_step

_KEPT_FREE = 0.03  # of the memory: allocators round, and a compiled step may take more than an eager one


def largest_batch_size(
    model_config: ModelConfig, config: TrainConfig, *, device: torch.device, max_batch_size: int
) -> tuple[int, int]:
    """The largest batch whose step fits, up to `max_batch_size`, and its peak memory in bytes.

    Without a GPU nothing is tried: there memory runs out by swapping and by the system's choice of a
    victim. The limit is then `max_batch_size`, and the peak 0.
    """
    if device.type != "cuda":
        return max_batch_size, 0
    room = (1 - _KEPT_FREE) * torch.cuda.mem_get_info(device)[0]
    peaks: dict[int, int] = {}

    def fits(batch_size: int) -> bool:
        _, step = training_step(model_config, replace(config, batch_size=batch_size), device)
        shape = (batch_size, model_config.context_length)
        inputs, targets = (torch.randint(model_config.vocab_size, shape, device=device) for _ in range(2))
        peak = _peak_bytes(lambda: step(inputs, targets), device)
        if peak is None or peak > room:
            return False
        peaks[batch_size] = peak
        return True

    try:
        largest = largest_that_fits(fits, max_batch_size)
    finally:  # whoever trains next needs what the tries have taken
        gc.collect()
        torch.cuda.empty_cache()
    return largest, peaks.get(largest, 0)


def largest_that_fits(fits: Callable[[int], bool], limit: int) -> int:
    """The greatest number up to `limit` that fits, within a thirty-second below it; 0 if not even 1 does.

    Doubles until something does not fit, then halves the gap.

    Args:
        fits: true up to some number, false from there on.
    """
    low, high = 0, 1
    while high < limit and fits(high):
        low, high = high, min(2 * high, limit)
    if high == limit and fits(limit):
        return limit
    while high - low > max(1, low // 32):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _peak_bytes(step: Callable[[], object], device: torch.device) -> int | None:
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
