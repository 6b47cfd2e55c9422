"""A model as tasks ask for it: what it writes after prompts, and how likely it finds continuations."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from cs336.generate.backend import Backend, SamplingParams
from cs336.generate.checkpoints import Checkpoint
from cs336.generate.continuous import Engine
from cs336.generate.engine import TextCodec, continuation_logprobs
from cs336.generate.generators import GENERATORS, generator_for
from cs336.generate.vllm import VllmEngine
from cs336.model.transformer import TransformerLM
from cs336.progress import Progress, silent
from cs336.tokens.codec import crop_prompt, encode_prompts


@dataclass(frozen=True)
class Answer:
    """What a model wrote; the `Completion` of tasks."""

    text: str
    finish: str
    prompt_truncated: bool


@dataclass(frozen=True, kw_only=True)
class Answerer:
    """A model behind the plain callables that tasks ask for.

    Attributes:
        backend: what generates.
        codec: its tokenizer, which measures prompts: one that leaves too little room loses its beginning.
        context_length: tokens of a prompt with its output.
        temperature, seed: 0 is greedy, as the handout's evaluations are except those that think.
        model: what scores continuations; None where only the backend has the weights.
        progress: wraps long loops.
    """

    backend: Backend
    codec: TextCodec
    context_length: int
    temperature: float = 0.0
    seed: int = 0
    model: TransformerLM | None = None
    progress: Progress = silent

    def sampling(self, *, temperature: float, seed: int) -> Answerer:
        """The same model, drawing other samples."""
        return replace(self, temperature=temperature, seed=seed)

    def generate(self, prompts: Sequence[str], *, max_new_tokens: int, stop: Sequence[str]) -> list[Answer]:
        """One output for each prompt; of one that is too long the end is seen.

        Raises:
            ValueError: `max_new_tokens` leaves no room for a prompt.
        """
        room = self.context_length - max_new_tokens
        if room < 1:
            raise ValueError(
                f"max_new_tokens={max_new_tokens} leaves no room for a prompt in a context of"
                f" {self.context_length}; generate fewer"
            )
        encoded = [ids or [self.codec.end_of_text_id] for ids in encode_prompts(self.codec, prompts)]
        params = SamplingParams(
            temperature=self.temperature, max_tokens=max_new_tokens, stop=tuple(stop), seed=self.seed
        )
        made = self.backend.generate(
            [crop_prompt(self.codec, ids, room) for ids in encoded], params, progress=self.progress
        )
        return [
            Answer(each.samples[0].text, each.samples[0].finish, len(ids) > room)
            for each, ids in zip(made, encoded, strict=True)
        ]

    def choose(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """Log-probabilities of continuations after their prompts, in nats.

        Raises:
            ValueError: only the backend has the weights.
        """
        if self.model is None:
            raise ValueError("this engine does not score continuations; take ours")
        return continuation_logprobs(self.model, self.codec, pairs, progress=self.progress)


@contextlib.contextmanager
def open_answerer(checkpoint: Checkpoint, *, engine: str = "ours", progress: Progress = silent) -> Iterator[Answerer]:
    """A model, ready to answer greedily.

    Args:
        engine: "ours", or "vllm", which needs its package and, for a model of ours, a moment to export it; it runs in
            a process of its own, which ends with the `with`.

    Raises:
        ValueError: no such engine.
        UserError: vLLM is not installed.
    """
    if engine not in GENERATORS:
        raise ValueError(f"engine is {' or '.join(GENERATORS)}, got {engine!r}")
    model, codec = checkpoint.model, checkpoint.codec
    context = model.config.context_length
    if engine == "ours":
        if model.lm_head.weight.device.type == "cuda":
            model.use_attention_kernel("fused").fuse()
        yield Answerer(
            backend=Engine(model, codec), codec=codec, context_length=context, model=model, progress=progress
        )
        return
    dtype = str(model.lm_head.weight.dtype).removeprefix("torch.")  # vLLM would take fp32 for bf16
    options: dict[str, Any] = {"max_model_len": context, "sleep_mode": False, "own_process": True, "dtype": dtype}
    model.to("cpu")  # vLLM takes the device's memory
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if checkpoint.is_huggingface:
        backend: Any = VllmEngine.start(checkpoint.folder, **options)
    else:
        backend = generator_for(model, checkpoint.tokenizer, "vllm", **options)
    with contextlib.closing(backend):
        yield Answerer(backend=backend, codec=codec, context_length=context, progress=progress)
