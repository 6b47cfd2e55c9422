"""Generation with a KV cache: beside transformers' generate, on the same random Llama of the first handout's shape;
and beside vLLM, on what a step of GRPO generates.

Cases:
  one      one prompt, greedy
  batch    prompts of different lengths together, greedy
  sampled  the same drawn with top-k and top-p; the texts differ (other random numbers), so only their
           lengths are compared
  rollouts 256 samples of 1,024 tokens from a random Qwen2.5-1.5B in bf16, by our engine and by vLLM; only when named

Greedy texts must be equal token for token. Weights of the first three are fp32; TF32 is off.

Example: python -m benchmarks generate --device cuda --num-prompts 64
         python -m benchmarks generate --device cuda --cases rollouts --repeats 3
"""

from __future__ import annotations

import argparse
import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from benchmarks.measure import OURS, Case, Contender
from benchmarks.peers import transformers_twin
from benchmarks.rollouts import add_arguments as add_rollout_arguments
from benchmarks.rollouts import rollouts
from cs336.files import UserError
from cs336.generate.engine import generate
from cs336.hardware import pick_device
from cs336.model.transformer import ModelConfig, TransformerLM

CASES = ("one", "batch", "sampled")
ROLLOUTS = "rollouts"
SAMPLED = {"temperature": 0.8, "top_k": 50, "top_p": 0.95}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the model's shape, --num-prompts, --tokens, --device and --cases."""
    parser.add_argument("--d-model", type=int, default=512, help="width (default %(default)s)")
    parser.add_argument("--num-layers", type=int, default=4, help="(default %(default)s)")
    parser.add_argument("--num-heads", type=int, default=16, help="(default %(default)s)")
    parser.add_argument("--vocab-size", type=int, default=10_000, help="(default %(default)s)")
    parser.add_argument("--context-length", type=int, default=256, help="(default %(default)s)")
    parser.add_argument("--tokens", type=int, default=128, help="new tokens for each prompt (default %(default)s)")
    parser.add_argument("--num-prompts", type=int, default=32, help="in a batch (default %(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default %(default)s)")
    parser.add_argument(
        "--cases",
        nargs="+",
        choices=(*CASES, ROLLOUTS),
        default=CASES,
        help="which to measure (default: the first three)",
    )
    add_rollout_arguments(parser)


def cases(options: argparse.Namespace) -> Iterator[Case]:
    """The chosen cases on one model."""
    longest = options.context_length - options.tokens
    if longest < 1:
        raise UserError(f"--tokens {options.tokens} leaves no room for a prompt in {options.context_length}")
    torch.backends.cuda.matmul.allow_tf32 = False
    device = pick_device(options.device)
    if ROLLOUTS in options.cases:
        yield rollouts(options, device, _Ids())
    names = [name for name in options.cases if name != ROLLOUTS]
    if not names:
        return
    config = ModelConfig(
        context_length=options.context_length,
        d_model=options.d_model,
        num_layers=options.num_layers,
        num_heads=options.num_heads,
        vocab_size=options.vocab_size,
    )
    torch.manual_seed(0)
    model = TransformerLM(config, device=device).eval()
    generator = random.Random(0)
    prompts = [
        [generator.randrange(config.vocab_size) for _ in range(generator.randint(max(1, longest // 4), longest))]
        for _ in range(options.num_prompts)
    ]
    for name in names:
        rows = prompts[:1] if name == "one" else prompts
        sampling: dict[str, Any] = SAMPLED if name == "sampled" else {}
        yield Case(
            name=name,
            amount=len(rows) * options.tokens,
            unit="tokens/s",
            contenders=[
                Contender(
                    name=OURS,
                    prepare=lambda rows=rows, sampling=sampling: _ours(model, rows, options.tokens, sampling),
                    packages=("torch",),
                ),
                Contender(
                    name="transformers",
                    prepare=lambda rows=rows, sampling=sampling: _transformers(model, rows, options.tokens, sampling),
                    packages=("torch", "transformers"),
                ),
            ],
            difference=_different_lengths if sampling else _different_ids,
            input={
                "prompt_tokens": sum(map(len, rows)),
                "prompts": len(rows),
                "new_tokens_each": options.tokens,
                "bytes": sum(parameter.nbytes for parameter in model.parameters()),
                "sha256": hashlib.sha256(repr(rows).encode()).hexdigest(),
                "shape": vars(config) | {"device": str(device), "dtype": "float32"},
            },
            device=device.type,
        )


class _Ids:
    """A tokenizer whose text is its ids, a character each; no token ends a text."""

    end_of_text_id = -1

    def encode(self, text: str) -> list[int]:
        return [ord(character) - 0x10000 for character in text]  # beyond the surrogates

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(chr(0x10000 + token) for token in ids)


def _ours(
    model: TransformerLM, prompts: list[list[int]], num_tokens: int, sampling: dict[str, Any]
) -> Callable[[], list[list[int]]]:
    codec = _Ids()
    texts = [codec.decode(prompt) for prompt in prompts]

    def run() -> list[list[int]]:
        completions = generate(model, codec, texts, max_new_tokens=num_tokens, batch_size=len(texts), **sampling)
        return [codec.encode(completion.text) for completion in completions]

    return run


def _transformers(
    model: TransformerLM, prompts: list[list[int]], num_tokens: int, sampling: dict[str, Any]
) -> Callable[[], list[list[int]]]:
    device = model.lm_head.weight.device
    theirs = transformers_twin(model).eval()
    theirs.generation_config.pad_token_id, theirs.generation_config.eos_token_id = 0, None
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)

    def run() -> list[list[int]]:
        torch.manual_seed(0)
        with torch.inference_mode():
            out = theirs.generate(
                ids, attention_mask=mask, max_new_tokens=num_tokens, do_sample=bool(sampling), **sampling
            )
        return out[:, longest:].tolist()

    return run


def _different_ids(ours: list[list[int]], theirs: list[list[int]]) -> str | None:
    for number, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
        if mine != other:
            place = next(i for i, pair in enumerate(zip(mine, other, strict=True)) if pair[0] != pair[1])
            return f"prompt {number}: token {place} is {other[place]}, ours {mine[place]}"
    return None


def _different_lengths(ours: list[list[int]], theirs: list[list[int]]) -> str | None:
    if list(map(len, ours)) == list(map(len, theirs)):
        return None
    return "not the same number of tokens"
