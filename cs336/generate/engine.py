"""Our own batched generation with a KV cache, and log-probabilities of given continuations."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, get_args

import numpy as np
import torch
from torch import Tensor

from cs336.generate.cache import Columns, PreallocatedCache
from cs336.generate.sampling import Sampling, in_usual_forms, sample, uniforms_of
from cs336.generate.text import TextStream
from cs336.hardware import recording_stream
from cs336.model.logprobs import token_logprobs
from cs336.model.transformer import TransformerLM
from cs336.progress import Progress, silent
from cs336.tokens.codec import crop_prompt

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

# What happens when prompt and completion do not fit into the context together:
#   share  the prompt keeps its end, so that `max_new_tokens` fit after it
#   crop   the model sees the last `context_length` tokens at every step (the handout's rule); exact, so
#          from then on nothing is cached: each token costs a pass over the whole context
#   stop   the completion ends where the context does
Overflow = Literal["share", "crop", "stop"]

# Logits of a long prompt would fill gigabytes (tokens x vocabulary), so it is read in parts.
_PREFILL_TOKENS = 4_096
# On a GPU the host looks at the tokens once in so many steps; asking at each would stall the device.
# A text that ended in between loses what came after its end.
_STEPS_BETWEEN_LOOKS = 8


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
        finish: "stop" (a stop string), "end" (the end-of-text token), "length" (`max_new_tokens`) or
            "context" (the context is full; with overflow "stop" only).
        num_prompt_tokens: tokens of the prompt that the model saw.
        prompt_truncated: the prompt was too long and lost its beginning.
        num_tokens: tokens generated, the last one included.
    """

    text: str
    finish: str
    num_prompt_tokens: int
    prompt_truncated: bool
    num_tokens: int


def generate(
    model: TransformerLM,
    tokenizer: TextCodec,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    stop: Sequence[str] = (),
    seed: int = 0,
    overflow: Overflow = "share",
    batch_size: int = 32,
    progress: Progress = silent,
) -> list[Completion]:
    """Continue each prompt until a stop string, the end-of-text token or `max_new_tokens`.

    Each prompt has its own random numbers, from the seed and its place among the prompts, so neither
    the batch size nor its neighbours change what it gets (but for rounding: sums over a batch of
    another shape may differ in their last bits, which shows only where two tokens are that close).

    Args:
        temperature, top_k, top_p: as in `Sampling`; 0, the default, is greedy.
        stop: strings that end a text, cut where they begin; see `TextStream`.
        seed: 0 or more; prompt i draws its own stream from it.
        overflow: what happens when prompt and completion exceed the context; see `Overflow`.

    Raises:
        ValueError: no room for a prompt beside `max_new_tokens` (overflow "share"), a setting outside
            its range, or logits that are NaN or infinite.
    """
    plan = _Plan(
        max_new_tokens=max_new_tokens,
        sampling=Sampling(temperature=temperature, top_k=top_k, top_p=top_p),
        stop=tuple(stop),
        seed=seed,
        overflow=overflow,
    )
    rows = plan.rows(model, tokenizer, prompts)
    batches = _by_length([row.prompt_ids for row in rows], batch_size)
    for batch in progress(batches, unit="batches", label="generate"):
        for _ in _write(model, tokenizer, [rows[i] for i in batch], plan, live=False):
            pass
    return [row.completion() for row in rows]


def stream(
    model: TransformerLM,
    tokenizer: TextCodec,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    stop: Sequence[str] = (),
    seed: int = 0,
    overflow: Overflow = "share",
) -> Generator[tuple[int, str], None, list[Completion]]:
    """As `generate`, in one batch, with the text as it comes.

    Yields:
        The number of a prompt and the next piece of its text. A prompt's pieces joined are its
        completion's text; none ends within a character or holds the beginning of a stop string.

    Returns:
        The completions (the value of `yield from`).

    Raises:
        ValueError: as `generate`, with the first piece.
    """
    plan = _Plan(
        max_new_tokens=max_new_tokens,
        sampling=Sampling(temperature=temperature, top_k=top_k, top_p=top_p),
        stop=tuple(stop),
        seed=seed,
        overflow=overflow,
    )
    rows = plan.rows(model, tokenizer, prompts)
    if rows:
        yield from _write(model, tokenizer, rows, plan, live=True)
    return [row.completion() for row in rows]


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
    # Tokenizers of transformers may put a special token before a text, which has no place within one.
    encode_continuation = getattr(tokenizer, "encode_continuation", tokenizer.encode)
    rows = []
    for prompt, continuation in pairs:
        answer = encode_continuation(continuation)
        if not 0 < len(answer) < limit:
            raise ValueError(f"a continuation needs 1 to {limit - 1} tokens, got {len(answer)}: {continuation[:40]!r}")
        head = tokenizer.encode(prompt) or [tokenizer.end_of_text_id]
        rows.append((crop_prompt(tokenizer, head, limit + 1 - len(answer)) + answer, len(answer)))
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


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """The settings of one call, checked."""

    max_new_tokens: int
    sampling: Sampling
    stop: tuple[str, ...]
    seed: int
    overflow: Overflow

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens}; generate at least 1")
        if self.overflow not in get_args(Overflow):
            raise ValueError(f"overflow is one of {', '.join(get_args(Overflow))}, got {self.overflow!r}")

    def rows(self, model: TransformerLM, tokenizer: TextCodec, prompts: Sequence[str]) -> list[_Row]:
        context = model.config.context_length
        room = {"share": context - self.max_new_tokens, "crop": context, "stop": context - 1}[self.overflow]
        if room < 1:
            raise ValueError(
                f"max_new_tokens={self.max_new_tokens} leaves no room for a prompt in a context of"
                f" {context}; generate fewer"
            )
        rows = []
        for number, prompt in enumerate(prompts):
            ids = tokenizer.encode(prompt) or [tokenizer.end_of_text_id]
            seen = crop_prompt(tokenizer, ids, room)
            rows.append(
                _Row(
                    number=number,
                    prompt_ids=seen,
                    truncated=len(ids) > room,
                    limit=self.max_new_tokens
                    if self.overflow != "stop"
                    else min(self.max_new_tokens, context - len(seen)),
                    max_new_tokens=self.max_new_tokens,
                    end_of_text_id=tokenizer.end_of_text_id,
                    text=TextStream(tokenizer.decode, self.stop),
                )
            )
        return rows


class _Row:
    """One sequence on its way, as the host sees it."""

    def __init__(
        self,
        *,
        number: int,
        prompt_ids: list[int],
        truncated: bool,
        limit: int,
        max_new_tokens: int,
        end_of_text_id: int,
        text: TextStream,
    ):
        self.number = number
        self.prompt_ids = prompt_ids
        self.limit = limit
        self.num_tokens = 0
        self.finish = ""
        self._truncated = truncated
        self._at_limit = "length" if limit == max_new_tokens else "context"
        self._end_of_text_id = end_of_text_id
        self._text = text
        self._pieces: list[str] = []

    def read(self, new_ids: Sequence[int]) -> str:
        """Take generated tokens up to the end of the text; returns the text that is certain now."""
        pieces = []
        for token in new_ids:
            if self.finish:
                break
            self.num_tokens += 1
            if token == self._end_of_text_id:
                self.finish = "end"
            else:
                pieces.append(self._text.push(token))
                if not self._text.stopped and self.num_tokens == self.limit:
                    self.finish = self._at_limit
            if self.finish:
                pieces.append(self._text.finish())
            if self._text.stopped:  # by the last characters too, those that `finish` let go
                self.finish = "stop"
        piece = "".join(pieces)
        self._pieces.append(piece)
        return piece

    def completion(self) -> Completion:
        return Completion(
            text="".join(self._pieces),
            finish=self.finish,
            num_prompt_tokens=len(self.prompt_ids),
            prompt_truncated=self._truncated,
            num_tokens=self.num_tokens,
        )


@torch.inference_mode()
def _write(
    model: TransformerLM, tokenizer: TextCodec, rows: list[_Row], plan: _Plan, *, live: bool
) -> Iterator[tuple[int, str]]:
    """Run the rows to their ends, all in one batch; yields their text as it comes if `live`."""
    batch = _Batch(model, rows, plan)
    # Text is read token by token only for those who watch it or for a stop string in it.
    read_text = live or bool(plan.stop)
    num_steps = max(row.limit for row in rows)
    between_looks = 1 if live or batch.device.type == "cpu" else _STEPS_BETWEEN_LOOKS
    num_read = 0
    for num_written in range(1, num_steps + 1):
        batch.write_token()
        if num_written % between_looks and num_written < num_steps:
            continue
        new_ids = batch.new_ids(num_read, num_written)
        for place, row in enumerate(rows):
            ids = new_ids[place]
            if read_text:
                piece = row.read(ids.tolist())
            elif num_written >= row.limit or (ids == tokenizer.end_of_text_id).any():
                piece = row.read(batch.new_ids(0, num_written)[place].tolist())
            else:
                continue
            if live and piece:
                yield row.number, piece
        num_read = num_written
        alive = [place for place, row in enumerate(rows) if not row.finish]
        if not alive:
            return
        if len(alive) <= len(rows) // 2:
            rows = [rows[place] for place in alive]
            batch.keep(alive)


class _Batch:
    """Sequences that are continued together, as the device sees them: prompts end in the same column.

    Column c of a row whose prompt is `padding` columns short of the longest is its token number
    c - padding; columns before that are padding, which nothing attends to.
    """

    def __init__(self, model: TransformerLM, rows: Sequence[_Row], plan: _Plan):
        self.device = model.lm_head.weight.device
        self._model = model
        self._sampling = plan.sampling
        self._overflow = plan.overflow
        self._num_prompt_columns = self._width = max(len(row.prompt_ids) for row in rows)
        num_new = max(row.limit for row in rows)
        capacity = self._width + num_new
        tokens = np.zeros((len(rows), capacity), dtype=np.int64)
        for place, row in enumerate(rows):
            tokens[place, self._width - len(row.prompt_ids) : self._width] = row.prompt_ids
        self._tokens = torch.from_numpy(tokens).to(self.device)
        self._padding = torch.tensor([self._width - len(row.prompt_ids) for row in rows], device=self.device)
        self._least_padding = 0
        self._window_moves = False
        self._graph: torch.cuda.CUDAGraph | None = None
        self._any_padding = bool(self._padding.any())
        uniforms = torch.from_numpy(np.stack([uniforms_of(plan.seed, row.number, num_new) for row in rows]))
        self._uniforms = (uniforms.float() if self.device.type == "mps" else uniforms).to(self.device)
        self._unsound = torch.zeros((), dtype=torch.bool, device=self.device)
        self._num_cached = 0
        self._columns = Columns(capacity, torch.arange(0, device=self.device), 0)
        self._caches = [PreallocatedCache(self._columns) for _ in model.layers]

    @in_usual_forms()
    def write_token(self) -> None:
        """Choose the next token of every row, those that have ended included; nobody reads theirs."""
        if self._overflow == "crop" and self._width - self._least_padding > self._model.config.context_length:
            self._window_moves = True
        if self.device.type == "cuda" and self._num_cached and not self._window_moves:
            self._write_token_by_graph()
        else:
            step = self._width - self._num_prompt_columns
            self._tokens[:, self._width] = self._choose(self._next_logits(), self._uniforms[:, step])
        self._width += 1

    def _choose(self, logits: Float[Tensor, "batch vocab"], uniforms: Float[Tensor, " batch"]) -> Int[Tensor, " batch"]:
        self._unsound |= ~logits.amax(dim=-1).isfinite().all()
        return sample(logits, uniforms, self._sampling)

    def _write_token_by_graph(self) -> None:
        """One recorded step, played again: starting its few hundred kernels one by one takes longer than they run."""
        if self._columns.num_visible < self._columns.capacity:  # the step before read the prompts
            self._columns.places = torch.tensor([self._width - 1], device=self.device)
            self._columns.num_visible = self._columns.capacity
            self._step_with_fixed_shapes()  # warms up what must not happen while recording
            return
        if self._graph is None:
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph, stream=recording_stream(self.device)):
                self._step_with_fixed_shapes()
        self._graph.replay()

    def _step_with_fixed_shapes(self) -> None:
        """Feed the newest column and write the next; where that is stands on the device, so all steps look alike."""
        place = self._columns.places
        columns = torch.arange(self._columns.capacity, device=self.device)
        positions = (place - self._padding).clamp(0, self._model.config.context_length - 1)[:, None]
        mask = (columns <= place) & (columns >= self._padding[:, None])
        logits = self._model(
            self._tokens.index_select(1, place),
            token_positions=positions,
            mask=mask[:, None, None, :],
            caches=self._caches,
        )[:, -1]
        uniforms = self._uniforms.index_select(1, place + 1 - self._num_prompt_columns)[:, 0]
        self._tokens.index_copy_(1, place + 1, self._choose(logits, uniforms)[:, None])
        place += 1

    def new_ids(self, start: int, end: int) -> np.ndarray:
        """Generated tokens number `start` to `end` of each row.

        Raises:
            ValueError: they were drawn from logits that are NaN or infinite.
        """
        if self._unsound:
            raise ValueError(
                "the model's logits are NaN or infinite, so there is no next token; its weights are"
                " damaged or overflow in their number format"
            )
        columns = slice(self._num_prompt_columns + start, self._num_prompt_columns + end)
        return self._tokens[:, columns].cpu().numpy()

    def keep(self, rows: list[int]) -> None:
        """Go on with these rows alone."""
        chosen = torch.tensor(rows, device=self.device)
        self._tokens, self._uniforms = self._tokens[chosen], self._uniforms[chosen]
        self._padding = self._padding[chosen]
        self._least_padding = int(self._padding.min())
        for cache in self._caches:
            cache.keep(chosen)
        self._graph = None  # it holds the addresses of what has just been replaced

    def _next_logits(self) -> Float[Tensor, "batch vocab"]:
        context = self._model.config.context_length
        if self._window_moves:
            # Every cached key was computed from tokens that the model no longer sees.
            first = max(0, self._width - context)
            positions, mask = _left_padded((self._padding - first).clamp(min=0), 0, self._width - first)
            return self._model(self._tokens[:, first : self._width], token_positions=positions, mask=mask)[:, -1]
        columns_per_pass = max(1, _PREFILL_TOKENS // len(self._padding))
        while self._num_cached < self._width:
            first, self._num_cached = self._num_cached, min(self._num_cached + columns_per_pass, self._width)
            self._columns.places = torch.arange(first, self._num_cached, device=self.device)
            self._columns.num_visible = self._num_cached
            positions, mask = _left_padded(self._padding, first, self._num_cached - first)
            logits = self._model(
                self._tokens[:, first : self._num_cached],
                token_positions=positions.clamp(max=context - 1),  # a row that has ended may be past it
                mask=mask if self._any_padding else None,
                caches=self._caches,
            )
        return logits[:, -1]


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
