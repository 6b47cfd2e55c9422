"""What generates for a policy in training: our engine over its weights or a copy of them, or vLLM."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cs336.generate.backend import Backend, HuggingFaceCodec
from cs336.generate.continuous import Engine
from cs336.generate.vllm import VllmEngine, require_vllm
from cs336.model.huggingface import save_huggingface
from cs336.model.transformer import TransformerLM
from cs336.posttrain.policy import device_of
from cs336.tokens.codec import is_huggingface

GENERATORS = ("ours", "vllm")


def generator_for(
    policy: nn.Module,
    tokenizer: Any,
    kind: str = "ours",
    *,
    device: torch.device | str | None = None,
    memory_share: float = 0.85,
    **options: Any,
) -> Backend:
    """A generator of the policy's shape; `cs336.generate.weight_sync` gives it the weights of each step.

    Ours runs the policy itself on a CPU, and on a GPU a copy in bf16 with the kernels for generation.

    Args:
        kind: one of `GENERATORS`.
        device: of the generator, where that is another than the policy's; vLLM takes the first that it sees.
        memory_share: of the device, for vLLM's weights and cache; the handout's.
        options: for `vllm.LLM`, such as `max_model_len`.

    Raises:
        ValueError: no such kind, or a policy that is not our `TransformerLM` (import checkpoints with
            `cs336.model.huggingface.load_huggingface`).
        UserError: vLLM is asked for and not installed.
    """
    if kind not in GENERATORS:
        raise ValueError(f"a generator is {' or '.join(GENERATORS)}, got {kind!r}")
    if not isinstance(policy, TransformerLM):
        raise ValueError(f"the policy is a {type(policy).__name__}; load its checkpoint with load_huggingface")
    if kind == "vllm":
        return _vllm(policy, tokenizer, memory_share=memory_share, **options)
    codec = HuggingFaceCodec(tokenizer) if is_huggingface(tokenizer) else tokenizer
    target = torch.device(device) if device is not None else device_of(policy)
    if target.type != "cuda":
        return Engine(policy, codec, owns_weights=False)
    copy = TransformerLM(policy.config, device=target, dtype=torch.bfloat16).eval()
    copy.use_attention_kernel("fused").fuse()
    return Engine(copy, codec)


def _vllm(policy: TransformerLM, tokenizer: Any, **options: Any) -> Backend:
    require_vllm()
    with tempfile.TemporaryDirectory() as parent:  # vLLM has read it all once it is there
        folder = Path(parent) / "model"
        theirs = is_huggingface(tokenizer)
        save_huggingface(policy, folder, tokenizer=None if theirs else tokenizer)
        if theirs:
            tokenizer.save_pretrained(folder)
        return VllmEngine.start(folder, **options)
