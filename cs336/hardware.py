"""What this machine has: device, memory."""

from __future__ import annotations

import functools
import resource
import sys

import torch
from torch import nn

from cs336.files import UserError


def pick_device(name: str = "auto") -> torch.device:
    """The device to compute on; "auto" is a GPU where there is one, else the CPU.

    A GPU named by its number becomes this thread's current one: that is where Triton starts kernels and PyTorch opens
    streams, wherever the tensors lie.

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
    if device.type == "cuda" and device.index is not None:
        if device.index >= torch.cuda.device_count():
            raise UserError(f"device {name}: this machine has {torch.cuda.device_count()}, from cuda:0 on")
        torch.cuda.set_device(device)
    return device


def to_device(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor on a device; on its way to a GPU neither the host nor the work before it is waited for."""
    if device.type == "cuda" and values.device.type == "cpu":  # from pinned memory alone does the copy run beside
        values = values.pin_memory()
    return values.to(device, non_blocking=True)


@functools.cache
def recording_stream(device: torch.device) -> torch.cuda.Stream:
    """The stream on which this device's CUDA graphs are recorded, for `torch.cuda.graph(..., stream=...)`.

    PyTorch's own belongs to the GPU that recorded first in this process. Recorded on it, a step of another GPU is empty
    but for Triton's kernels, and what is played again never moves on.

    Args:
        device: with its number, as tensors have it.
    """
    return torch.cuda.Stream(device)


# Dense matrix products per second, from NVIDIA's data sheets: in bf16, and in TF32 (what fp32 training uses).
_PEAK_FLOPS = {
    "B200": (2_250e12, 1_125e12),
    "H200": (989e12, 494.5e12),
    "H100 80GB HBM3": (989e12, 494.5e12),
    "A100": (312e12, 156e12),
}


def device_of(model: nn.Module) -> torch.device:
    """Where a model takes its inputs."""
    return next(model.parameters()).device


def peak_flops_per_second(device: torch.device, precision: str) -> float | None:
    """What the device's matrix units can do at most; None where that is not known.

    Args:
        precision: "bfloat16", or "float32" for TF32.
    """
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    for known, (bf16, tf32) in _PEAK_FLOPS.items():
        if known in name:
            return bf16 if precision == "bfloat16" else tf32
    return None


def peak_bytes() -> int:
    """The most memory held so far: the GPU's when one is in use, else this process's."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
