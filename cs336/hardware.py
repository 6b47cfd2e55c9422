"""What this machine has: device, cores, memory."""

from __future__ import annotations

import os
import resource
import sys

import torch

from cs336.files import UserError


def pick_device(name: str = "auto") -> torch.device:
    """The device to compute on; "auto" is a GPU where there is one, else the CPU.

    Raises:
        UserError: the device is not there, or its name is none.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"device {name!r} is none; use auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError("device cuda: this machine has no usable GPU; use CS336_DEVICE=cpu")
    return device


def available_cores() -> int:
    """Cores that this process may use (containers and `taskset` may give fewer than there are)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def peak_bytes() -> int:
    """The most memory held so far: the GPU's when one is in use, else this process's."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
