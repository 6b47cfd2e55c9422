"""What generates for a policy in training: our engine over its weights or a copy of them, or vLLM."""

from __future__ import annotations

import contextlib
import gc
import os
import socket
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cs336.generate.backend import Backend, codec_of
from cs336.generate.continuous import Engine
from cs336.generate.vllm import VllmEngine, require_vllm
from cs336.generate.vllm_server import serving
from cs336.hardware import device_of
from cs336.model.huggingface import save_huggingface
from cs336.model.transformer import TransformerLM

GENERATORS = ("ours", "vllm")


@contextlib.contextmanager
def opened_generator(
    policy: nn.Module,
    tokenizer: Any,
    kind: str = "ours",
    *,
    device: torch.device | str | None = None,
    memory_share: float = 0.85,
    options: Sequence[str] = (),
) -> Iterator[Backend]:
    """The same as `generator_for`, on any device.

    vLLM on another GPU than the policy's is a server of its own there, which ends with the `with`; weights go to it
    through shared memory.

    Args:
        options: of that server; see `cs336.generate.vllm_server.serving`.

    Raises:
        ValueError: as of `generator_for`.
        UserError: vLLM is asked for and not installed, or its server did not start.
    """
    if kind == "vllm" and device is not None and not is_same_device(device, device_of(policy)):
        require_vllm()
        share = ("--gpu-memory-utilization", str(memory_share))
        with (
            _exported(_checked(policy), tokenizer) as folder,
            serving(folder, port=_free_port(), devices=_visible(device), options=(*share, *options)) as server,
        ):
            yield server
        return
    if kind == "vllm":
        gc.collect()  # one before it, whose memory is free only when nothing refers to it
    yield generator_for(policy, tokenizer, kind, device=device, memory_share=memory_share)


def generator_for(
    policy: nn.Module,
    tokenizer: Any,
    kind: str = "ours",
    *,
    device: torch.device | str | None = None,
    memory_share: float = 0.85,
    **options: Any,
) -> Backend:
    """A generator with the policy's weights; `cs336.generate.weight_sync` gives it those of each later step.

    Ours runs the policy itself on a CPU, and on a GPU a copy in bf16 with the kernels for generation.

    Args:
        kind: one of `GENERATORS`.
        device: of ours, where that is another than the policy's; vLLM takes the first GPU that it sees.
        memory_share: of the device, for vLLM's weights and cache; the handout's.
        options: for `vllm.LLM`, such as `max_model_len`.

    Raises:
        ValueError: no such kind, or a policy that is not our `TransformerLM` (import checkpoints with
            `cs336.model.huggingface.load_huggingface`).
        UserError: vLLM is asked for and not installed.
    """
    if kind not in GENERATORS:
        raise ValueError(f"a generator is {' or '.join(GENERATORS)}, got {kind!r}")
    policy = _checked(policy)
    if kind == "vllm":
        require_vllm()
        with _exported(policy, tokenizer) as folder:  # vLLM has read it all once it is there
            return VllmEngine.start(folder, memory_share=memory_share, **options)
    codec = codec_of(tokenizer)
    target = torch.device(device) if device is not None else device_of(policy)
    if target.type != "cuda":
        return Engine(policy, codec, owns_weights=False)
    return Engine(_copy_for_generation(policy, target), codec)


def _copy_for_generation(policy: TransformerLM, device: torch.device) -> TransformerLM:
    """With the policy's weights from the start: whoever only generates never syncs them."""
    copy = TransformerLM(policy.config, device=device, dtype=torch.bfloat16).eval()
    copy.load_state_dict(policy.state_dict())
    return copy.use_attention_kernel("fused").fuse()


def is_same_device(one: torch.device | str, other: torch.device | str) -> bool:
    """Whether two names mean one device; "cuda" is its first."""
    first, second = torch.device(one), torch.device(other)
    return (first.type, first.index or 0) == (second.type, second.index or 0)


def _checked(policy: nn.Module) -> TransformerLM:
    if not isinstance(policy, TransformerLM):
        raise ValueError(f"the policy is a {type(policy).__name__}; load its checkpoint with load_huggingface")
    return policy


@contextlib.contextmanager
def _exported(policy: TransformerLM, tokenizer: Any) -> Iterator[Path]:
    """The policy as a checkpoint, for the while that it takes to read it."""
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "model"
        save_huggingface(policy, folder, tokenizer=tokenizer)
        yield folder


def _visible(device: torch.device | str) -> str:
    """A GPU by its place among those of this process, as `CUDA_VISIBLE_DEVICES` names it."""
    place = torch.device(device).index or 0
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",")[place] if visible else str(place)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]
