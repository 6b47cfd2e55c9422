"""Our own batched generation with a KV cache, and log-probabilities of given continuations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from cs336.generate.sampling import sample
from cs336.model.attention import KVCache
from cs336.model.logprobs import token_logprobs
from cs336.model.transformer import TransformerLM
from cs336.progress import Progress, silent

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int


class TextCodec(Protocol):
    """What generation needs of a tokenizer."""

    @property
    def end_of_text_id(self) -> int: ...

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...


@dataclass(frozen=True)
class Completion:
    """What a model wrote after a prompt.

    Attributes:
        text: without prompt, stop string and end-of-text token.
        finish: "stop" (a stop string), "end" (the end-of-text token) or "length".
        num_prompt_tokens: tokens of the prompt that the model saw.
        prompt_truncated: the prompt was too long and lost its beginning.
        num_tokens: tokens generated, the last one included.
    """

    text: str
    finish: str
    num_prompt_tokens: int
    prompt_truncated: bool
    num_tokens: int


@torch.inference_mode()
def generate(
    model: TransformerLM,
    tokenizer: TextCodec,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    stop: Sequence[str] = (),
    seed: int = 0,
    batch_size: int = 32,
    progress: Progress = silent,
) -> list[Completion]:
    """Continue each prompt until a stop string, the end-of-text token or `max_new_tokens`.

    Prompt and completion share the context: a prompt longer than `context_length - max_new_tokens`
    keeps its end, and says so. Each prompt has its own random stream, so neither the batch size nor
    its neighbours change what it gets.

    Raises:
        ValueError: no room for a prompt beside `max_new_tokens`.
    """
    room = model.config.context_length - max_new_tokens
    if room < 1:
        raise ValueError(
            f"max_new_tokens={max_new_tokens} leaves no room for a prompt in a context of"
            f" {model.config.context_length}; generate fewer"
        )
    encoded = [tokenizer.encode(prompt) or [tokenizer.end_of_text_id] for prompt in prompts]
    completions: list[Completion | None] = [None] * len(prompts)
    for batch in progress(_by_length(encoded, batch_size), unit="batches", label="generate"):
        rows = [_Row(ids=encoded[i][-room:], truncated=len(encoded[i]) > room) for i in batch]
        generators = [torch.Generator(model.lm_head.weight.device).manual_seed(seed * 1_000_003 + i) for i in batch]
        for logits in _decode_steps(model, rows, max_new_tokens):
            for row, row_logits, generator in zip(rows, logits, generators, strict=True):
                if row.finish is None:
                    token = sample(row_logits, temperature=temperature, top_p=top_p, generator=generator)
                    row.take(token, tokenizer, stop, max_new_tokens)
        for i, row in zip(batch, rows, strict=True):
            completions[i] = Completion(
                text=row.text,
                finish=row.finish or "length",
                num_prompt_tokens=len(row.ids),
                prompt_truncated=row.truncated,
                num_tokens=len(row.new_ids),
            )
    return [completion for completion in completions if completion is not None]


@torch.inference_mode()
def continuation_logprobs(
    model: TransformerLM,
    tokenizer: TextCodec,
    pairs: Sequence[tuple[str, str]],
    *,
    batch_size: int = 32,
    progress: Progress = silent,
) -> list[float]:
    """Log-probability in nats of each continuation after its prompt, summed over its tokens.

    Prompt and continuation are tokenized apart, so all continuations of a prompt share its tokens.
    What exceeds the context is cut from the left.

    Raises:
        ValueError: a continuation without tokens, or one that leaves no room for a prompt token.
    """
    device = model.lm_head.weight.device
    limit = model.config.context_length
    rows = []
    for prompt, continuation in pairs:
        answer = tokenizer.encode(continuation)
        if not 0 < len(answer) < limit:
            raise ValueError(f"a continuation needs 1 to {limit - 1} tokens, got {len(answer)}: {continuation[:40]!r}")
        head = tokenizer.encode(prompt) or [tokenizer.end_of_text_id]
        rows.append((head[-(limit + 1 - len(answer)) :] + answer, len(answer)))
    results = [0.0] * len(rows)
    for batch in progress(_by_length([ids for ids, _ in rows], batch_size), unit="batches", label="score choices"):
        longest = max(len(rows[i][0]) for i in batch)
        # Padding stands on the right, where causal attention never looks at it.
        ids = torch.tensor([rows[i][0] + [0] * (longest - len(rows[i][0])) for i in batch], device=device)
        logprobs = token_logprobs(model(ids[:, :-1]).float(), ids[:, 1:])
        for i, row_logprobs in zip(batch, logprobs, strict=True):
            sequence, num_answer = rows[i]
            results[i] = float(row_logprobs[len(sequence) - 1 - num_answer : len(sequence) - 1].sum())
    return results


class _Row:
    """One sequence on its way."""

    def __init__(self, ids: list[int], truncated: bool):
        self.ids = ids
        self.truncated = truncated
        self.new_ids: list[int] = []
        self.text = ""
        self.finish: str | None = None

    def take(self, token: int, tokenizer: TextCodec, stop: Sequence[str], max_new_tokens: int) -> None:
        self.new_ids.append(token)
        if token == tokenizer.end_of_text_id:
            self.finish = "end"
            return
        self.text = tokenizer.decode(self.new_ids)
        cuts = [self.text.find(string) for string in stop if string in self.text]
        if cuts:
            self.text = self.text[: min(cuts)]
            self.finish = "stop"
        elif len(self.new_ids) == max_new_tokens:
            self.finish = "length"


def _decode_steps(
    model: TransformerLM, rows: list[_Row], max_new_tokens: int
) -> Iterator[Float[Tensor, "batch vocab"]]:
    """Logits of each next token; the caller appends what it chose to the rows."""
    device = model.lm_head.weight.device
    longest = max(len(row.ids) for row in rows)
    padding = torch.tensor([longest - len(row.ids) for row in rows], device=device)
    ids = torch.tensor([[0] * (longest - len(row.ids)) + row.ids for row in rows], device=device)
    caches = [KVCache() for _ in model.layers]
    start = 0
    for _ in range(max_new_tokens):
        positions, mask = _left_padded(padding, start, ids.shape[1])
        logits = model(ids, token_positions=positions, mask=mask, caches=caches)
        yield logits[:, -1]
        if all(row.finish is not None for row in rows):
            return
        start += ids.shape[1]
        ids = torch.tensor([[row.new_ids[-1]] for row in rows], device=device)


def _left_padded(
    padding: Int[Tensor, " batch"], start: int, num_queries: int
) -> tuple[Int[Tensor, "batch queries"], Bool[Tensor, "batch 1 queries keys"]]:
    """Positions and mask of sequences whose padding stands on the left."""
    places = torch.arange(start, start + num_queries, device=padding.device)
    keys = torch.arange(start + num_queries, device=padding.device)
    positions = (places[None, :] - padding[:, None]).clamp(min=0)
    real = keys[None, None, :] >= padding[:, None, None]
    # A padded query sees itself, so that its softmax has something to normalise; nobody reads it.
    mask = (keys[None, None, :] <= places[None, :, None]) & (real | (keys[None, None, :] == places[None, :, None]))
    return positions, mask.unsqueeze(1)


def _by_length(encoded: Sequence[Sequence[int]], batch_size: int) -> list[list[int]]:
    """Indices in batches of similar length, so that little is padding."""
    order = sorted(range(len(encoded)), key=lambda i: (len(encoded[i]), i))
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
