"""Tiles that were measured to be the fastest on a GPU, by `python -m benchmarks.attention_tiles`."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

TILES_FILE = Path(__file__).with_name("attention_tiles.json")


def tuned_tiles(kernel: str, tensor: Tensor) -> Any:
    """The tiles of a kernel for the GPU that a tensor lies on; None where none were measured there."""
    if not tensor.is_cuda:
        return None
    entry = _all_tiles().get(torch.cuda.get_device_name(tensor.device), {}).get(kernel)
    return tuple(entry["tiles"]) if entry else None


@functools.cache
def _all_tiles() -> dict[str, Any]:
    return json.loads(TILES_FILE.read_text(encoding="utf-8")) if TILES_FILE.exists() else {}
