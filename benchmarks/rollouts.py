"""The generation of a GRPO step: several samples of each prompt by our engine and by vLLM, from the same weights."""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import OURS, Case, Contender, Observation, Unavailable
from cs336.files import UserError
from cs336.generate.backend import Backend, Generation, SamplingParams
from cs336.generate.continuous import Engine
from cs336.generate.vllm import VllmEngine, require_vllm
from cs336.generate.weight_sync import check_logprobs
from cs336.model.huggingface import save_huggingface
from cs336.model.sizes import QWEN_2_5_1_5B
from cs336.model.transformer import ModelConfig, TransformerLM

TINY = ModelConfig(
    context_length=512, d_model=64, num_layers=2, num_heads=4, num_kv_heads=2, vocab_size=99, qkv_bias=True
)
SHAPES = {"qwen2.5-1.5b": QWEN_2_5_1_5B, "tiny": replace(TINY, rope_layout="half")}
NUM_CHECKED_PROMPTS, NUM_CHECKED_TOKENS = 4, 64


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the shape of the case `rollouts`; the defaults are the handout's rollout batch."""
    group = parser.add_argument_group("the case rollouts")
    group.add_argument("--rollout-shape", choices=tuple(SHAPES), default="qwen2.5-1.5b", help="(default %(default)s)")
    group.add_argument("--rollout-prompts", type=int, default=32, help="different ones (default %(default)s)")
    group.add_argument("--rollout-samples", type=int, default=8, help="of each prompt (default %(default)s)")
    group.add_argument("--rollout-tokens", type=int, default=1_024, help="of each sample (default %(default)s)")
    group.add_argument("--rollout-prompt-tokens", type=int, default=128, help="at most (default %(default)s)")
    group.add_argument(
        "--memory-share",
        type=float,
        default=0.4,
        help="of the GPU, for vLLM; ours stays beside it (default %(default)s)",
    )


def rollouts(options: argparse.Namespace, device: torch.device, codec: Any) -> Case:
    """The case: no token ends a text, so every sample has all its tokens.

    Besides the figure, a row says how far the contender's log-probabilities are from the trainer's, a forward pass of
    the same weights.

    Args:
        codec: a tokenizer whose end-of-text token never comes.
    """
    config = SHAPES[options.rollout_shape]
    if options.rollout_prompt_tokens + options.rollout_tokens > config.context_length:
        raise UserError(f"a context of {config.context_length} holds no {options.rollout_tokens} tokens more")
    on_gpu = device.type == "cuda"
    torch.manual_seed(0)
    model = TransformerLM(config, device=device, dtype=torch.bfloat16 if on_gpu else torch.float32).eval()
    if on_gpu:
        model.use_attention_kernel("fused").fuse()
    generator = random.Random(0)
    shortest = max(1, options.rollout_prompt_tokens // 4)
    prompts = [
        [
            generator.randrange(config.vocab_size)
            for _ in range(generator.randint(shortest, options.rollout_prompt_tokens))
        ]
        for _ in range(options.rollout_prompts)
    ]
    params = SamplingParams(n=options.rollout_samples, max_tokens=options.rollout_tokens)

    def contender(name: str, start: Callable[[], Backend], packages: tuple[str, ...]) -> Contender:
        work = _Work(model, start, prompts, params)
        return Contender(name=name, prepare=work.prepare, check=work.check, packages=packages)

    return Case(
        name="rollouts",
        amount=options.rollout_prompts * options.rollout_samples * options.rollout_tokens,
        unit="tokens/s",
        contenders=[
            contender(OURS, lambda: Engine(model, codec, owns_weights=False), ("torch", "triton")),
            contender("vllm", lambda: _vllm(model, options), ("torch", "vllm")),
        ],
        difference=_different_lengths,
        input={
            "prompts": len(prompts),
            "prompt_tokens": sum(map(len, prompts)),
            "bytes": sum(parameter.nbytes for parameter in model.parameters()),
            "sampling": asdict(params),
            "shape": asdict(config) | {"device": str(device), "dtype": str(model.lm_head.weight.dtype)},
        },
        device=device.type,
    )


class _Work:
    """One contender: started once, checked against the trainer, timed."""

    def __init__(
        self, model: TransformerLM, start: Callable[[], Backend], prompts: Sequence[list[int]], params: SamplingParams
    ):
        self._model, self._start, self._prompts, self._params = model, start, prompts, params
        self._details: dict[str, Any] = {}

    def prepare(self) -> Callable[[], Observation]:
        self._backend = self._start()
        return self._run

    def check(self) -> list[list[int]]:
        """Warms up with the whole batch, too: what a first call compiles or records is not timed."""
        few = replace(self._params, max_tokens=min(NUM_CHECKED_TOKENS, self._params.max_tokens))
        agreement = check_logprobs(self._model, self._backend, self._prompts[:NUM_CHECKED_PROMPTS], few)
        self._details = agreement.metrics()
        return _lengths(self._backend.generate(self._prompts, self._params))

    def _run(self) -> Observation:
        self._backend.reset_prefix_cache()
        start = time.perf_counter()
        generations = self._backend.generate(self._prompts, self._params)
        seconds = time.perf_counter() - start  # tokens are on the host, so the device is done
        return Observation(
            seconds={"": seconds}, peak_bytes=None, result=_lengths(generations), details=dict(self._details)
        )


def _vllm(model: TransformerLM, options: argparse.Namespace) -> VllmEngine:
    longest = options.rollout_prompt_tokens + options.rollout_tokens
    return start_vllm(model, memory_share=options.memory_share, max_model_len=longest)


def start_vllm(
    model: TransformerLM, *, memory_share: float, max_model_len: int, sleep_mode: bool = False
) -> VllmEngine:
    """vLLM with a model's weights and no tokenizer.

    Raises:
        Unavailable: it is not installed.
    """
    try:
        require_vllm()
    except UserError as error:
        raise Unavailable(str(error)) from None
    with tempfile.TemporaryDirectory() as folder:
        save_huggingface(model, Path(folder) / "model")
        return VllmEngine.start(
            Path(folder) / "model",
            memory_share=memory_share,
            max_model_len=max_model_len,
            skip_tokenizer_init=True,
            sleep_mode=sleep_mode,
        )


def _lengths(generations: Sequence[Generation]) -> list[list[int]]:
    return [[len(sample.token_ids) for sample in generation.samples] for generation in generations]


def _different_lengths(ours: list[list[int]], theirs: list[list[int]]) -> str | None:
    return None if ours == theirs else "not the same numbers of tokens"
