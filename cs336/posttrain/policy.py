"""Models that are trained further: ours, or transformers'; where they are and how they are kept."""

from __future__ import annotations

import hashlib
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from cs336.hardware import device_of
from cs336.model.transformer import TransformerLM, save_model

_MARKED_NUMBERS = 8  # of the beginning and of the end of each weight


def use_gpu_kernels(model: nn.Module) -> None:
    """Let a model of ours compute on a GPU attention by PyTorch's kernel, norms, rotations and gates by ours.

    The reference holds all scores, in fp32; and steps of a small model take as long as its kernels take to launch.
    """
    if isinstance(model, TransformerLM) and device_of(model).type == "cuda":
        model.use_attention_kernel("fused").fuse()


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """Around forward passes: matrix products in bf16 for "bfloat16", as the weights are for "float32"."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bfloat16" else nullcontext()


def longest_row(model: nn.Module) -> int | None:
    """The most tokens of a text to train on, the last of which is a label alone; None if the model does not say."""
    return model.config.context_length + 1 if isinstance(model, TransformerLM) else None


def save_policy(model: nn.Module, tokenizer: Any, folder: Path) -> None:
    """Write model and tokenizer to one folder, each in its own form; no tokenizer where that is None.

    Of ours, `load_model` and `Tokenizer.load` read it; of transformers', `from_pretrained`.
    """
    if isinstance(model, TransformerLM):
        save_model(model, folder)
    else:
        model.save_pretrained(folder)  # type: ignore[operator]
    if hasattr(tokenizer, "save_pretrained"):
        tokenizer.save_pretrained(folder)
    elif tokenizer is not None:
        tokenizer.save(folder)


def mark_of_weights(model: nn.Module) -> str:
    """What tells one model from another: names, shapes and types of its weights, and some of their numbers."""
    digest = hashlib.sha256()
    for name, weight in model.state_dict().items():
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        flat = weight.detach().flatten()
        for part in (flat[:_MARKED_NUMBERS], flat[-_MARKED_NUMBERS:]):
            digest.update(part.to("cpu", torch.float64).numpy().tobytes())
    return digest.hexdigest()[:16]


def mark_of_rows(rows: list[list[int]]) -> str:
    """What tells one list of texts, as ids, from another."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(np.array([len(row), *row], np.int64).tobytes())
    return f"{len(rows)} rows {digest.hexdigest()[:16]}"
