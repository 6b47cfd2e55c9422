"""Our engine behind the interface of `backend.py`: a queue of sequences over slots that are filled again at once."""

from __future__ import annotations

import contextlib
import math
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from cs336.generate.backend import Generation, Prompt, Sample, SamplingParams, numbers_of
from cs336.generate.sampling import in_usual_forms, uniforms_of
from cs336.generate.slots import Look, Prefixes, Slots, StepSettings, bytes_of_slot, read_prompts, width_of_step
from cs336.generate.text import TextStream
from cs336.model.huggingface import load_huggingface_weights
from cs336.model.transformer import TransformerLM
from cs336.progress import Progress, silent

if TYPE_CHECKING:
    from cs336.generate.engine import TextCodec

# Sequences at once, unless their memory is too much.
_SLOTS_ON_GPU, _SLOTS_ELSEWHERE = 256, 32
_SHARE_OF_FREE_MEMORY = 0.8
# Positions of prompts that are read in one pass.
_PROMPT_TOKENS_ON_GPU, _PROMPT_TOKENS_ELSEWHERE = 16_384, 4_096
# On a GPU the host looks at the tokens once in so many steps, at those of the round before: it reads while the next
# round runs. A slot stands still for a round at most before its next sequence comes.
_STEPS_BETWEEN_LOOKS = 8
_ROUND_UP = 64  # capacities, so that calls of about the same length keep the memory that they have


class Engine:
    """Generates from one of our models, imported checkpoints among them (`cs336.model.huggingface.load_huggingface`).

    Samples of one prompt share its reading. Prompts read before are remembered until the weights change or too many
    tokens are held. What a prompt gets does not depend on what else is in the batch, but for rounding: sums over a
    batch of another shape may differ in their last bits, which shows only where two tokens are that close.

    On a GPU, give the model's fused kernels before (`model.use_attention_kernel("fused").fuse()`): the engine runs it
    as it is.

    Args:
        model: moved and converted before. Its weights may be a trainer's own; then `owns_weights` is False.
        tokenizer: ours, or `HuggingFaceCodec`.
        num_slots: sequences at once; 0 takes 256 on a GPU and 32 elsewhere, or what fits into 80 % of its free memory.
        end_ids: tokens that end a text; the tokenizer's by default. Some checkpoints name several, in
            `generation_config.json`.
        prefix_cache_tokens: positions of prompts that are remembered.
        owns_weights: `sleep` may take them off the device.
    """

    def __init__(
        self,
        model: TransformerLM,
        tokenizer: TextCodec,
        *,
        num_slots: int = 0,
        end_ids: Sequence[int] | None = None,
        prefix_cache_tokens: int = 32_768,
        owns_weights: bool = True,
    ):
        if num_slots < 0 or prefix_cache_tokens < 0:
            raise ValueError(
                f"num_slots and prefix_cache_tokens are 0 or more, got {num_slots} and {prefix_cache_tokens}"
            )
        self.model = model
        self.tokenizer = tokenizer
        self._end_ids = frozenset([tokenizer.end_of_text_id] if end_ids is None else end_ids)
        self._num_slots = num_slots
        self._prefix_cache_tokens = prefix_cache_tokens
        self._owns_weights = owns_weights
        self._slots: Slots | None = None
        self._fitting = 0  # slots, where memory is too little for more
        self._prefixes: OrderedDict[tuple[int, ...], tuple[Prefixes, int]] = OrderedDict()
        self._on_host: dict[str, Tensor] = {}
        self._state = "awake"  # "asleep", or "without weights"

    # ---- generation

    def generate(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams,
        *,
        numbers: Sequence[int] | None = None,
        progress: Progress = silent,
    ) -> list[Generation]:
        """As `Backend.generate`."""
        if self._state != "awake":
            remedy = "call wake()" if self._state == "asleep" else "call load_weights()"
            raise ValueError(f"the engine is {self._state}; {remedy} first")
        encoded = [tuple(self._encode(prompt)) for prompt in prompts]
        rows = [
            _Row(ids, self._limit(ids, params), number, sample_number)
            for ids, number in zip(encoded, numbers_of(prompts, numbers), strict=True)
            for sample_number in range(params.n)
        ]
        if rows:
            try:
                with torch.inference_mode(), in_usual_forms(), _on_its_device(self.model), _evaluating(self.model):
                    ticks = iter(progress(range(len(rows)), unit="samples", label="generate"))
                    next(ticks)  # a bar is there before the first sample is done
                    self._run(rows, params, ticks)
            except BaseException:
                self._slots = None  # after damaged weights they hold NaN, which no mask hides
                raise
        return [
            Generation(list(ids), [row.sample for row in rows[i * params.n : (i + 1) * params.n] if row.sample])
            for i, ids in enumerate(encoded)
        ]

    def _encode(self, prompt: Prompt) -> Sequence[int]:
        ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
        return ids or [self.tokenizer.end_of_text_id]

    def _limit(self, ids: Sequence[int], params: SamplingParams) -> int:
        room = self.model.config.context_length - len(ids)
        if room < 1:
            raise ValueError(
                f"a prompt of {len(ids)} tokens leaves no room in a context of {self.model.config.context_length};"
                " shorten it"
            )
        return min(room, params.max_tokens)

    def _run(self, rows: Sequence[_Row], params: SamplingParams, ticks: Iterator[int]) -> None:
        slots = self._slots_for(rows)
        slots.begin(StepSettings(params.sampling, params.min_tokens, params.logprobs))
        waiting, seated = deque(rows), list[_Row]()
        earlier: tuple[Look, list[_Row]] | None = None
        while True:
            self._seat(slots, seated, waiting, params)
            if all(row.sample for row in seated):
                break
            for _ in range(_STEPS_BETWEEN_LOOKS if slots.static else 1):
                slots.step(slots.width_for(len(seated)))
            reading: tuple[Look, list[_Row]] | None = slots.look(len(seated)), list(seated)
            if slots.static:
                earlier, reading = reading, earlier
            if reading is not None:
                for _ in range(self._read(*reading, params)):
                    next(ticks, None)
        for _ in ticks:
            pass

    def _seat(self, slots: Slots, seated: list[_Row], waiting: deque[_Row], params: SamplingParams) -> None:
        """Give free slots to waiting sequences; with none waiting, close ranks where that makes steps cheaper."""
        free = [place for place, row in enumerate(seated) if row.sample] + list(range(len(seated), slots.num_slots))
        by_prompt: dict[tuple[int, ...], list[tuple[int, _Row]]] = {}
        for place, row in zip(free, [waiting.popleft() for _ in range(min(len(free), len(waiting)))], strict=False):
            seated[place : place + 1] = [row]
            by_prompt.setdefault(row.prompt, []).append((place, row))
        for prefixes, prompts in self._read_prompts(list(by_prompt)):
            places = [(place, row, which) for prompt, which in prompts for place, row in by_prompt[prompt]]
            uniforms = np.zeros((len(places), 1))
            if params.temperature:
                uniforms = np.stack([row.uniforms(params.seed, slots.max_new_tokens) for _, row, _ in places])
            slots.seat(
                [place for place, _, _ in places],
                prefixes,
                [which for _, _, which in places],
                limits=[row.limit for _, row, _ in places],
                uniforms=torch.from_numpy(uniforms),
            )
        running = [place for place, row in enumerate(seated) if not row.sample]
        if not running or slots.width_for(len(running)) == slots.width_for(len(seated)):
            return
        holes = [place for place in range(len(running)) if seated[place].sample]
        movers = running[len(running) - len(holes) :]
        if holes:
            slots.move(movers, holes)
        for mover, hole in zip(movers, holes, strict=True):
            seated[hole] = seated[mover]
        del seated[len(running) :]

    def _read_prompts(
        self, prompts: Sequence[tuple[int, ...]]
    ) -> Iterator[tuple[Prefixes, list[tuple[tuple[int, ...], int]]]]:
        """What has been read of each prompt, several at a time: with each, its place there."""
        known: dict[int, tuple[Prefixes, list[tuple[tuple[int, ...], int]]]] = {}
        for prompt in prompts:
            if prompt in self._prefixes:
                prefixes, which = self._prefixes[prompt]
                known.setdefault(id(prefixes), (prefixes, []))[1].append((prompt, which))
        yield from known.values()
        on_gpu = self.model.lm_head.weight.device.type == "cuda"
        most = _PROMPT_TOKENS_ON_GPU if on_gpu else _PROMPT_TOKENS_ELSEWHERE
        unread = sorted((prompt for prompt in prompts if prompt not in self._prefixes), key=len)
        while unread:
            longest = len(unread[-1])
            batch = unread[-max(1, most // longest) :]
            del unread[-len(batch) :]
            prefixes = read_prompts(self.model, batch)
            placed = [(prompt, which) for which, prompt in enumerate(batch)]
            yield prefixes, placed
            self._remember(prefixes, placed)

    def _remember(self, prefixes: Prefixes, placed: Sequence[tuple[tuple[int, ...], int]]) -> None:
        """Keep what was read, and forget the oldest if that is too much; a batch's memory goes with its last prompt."""
        if prefixes.num_tokens > self._prefix_cache_tokens:
            return
        self._prefixes.update({prompt: (prefixes, which) for prompt, which in placed})
        held = {id(each): each for each, _ in self._prefixes.values()}
        total = sum(each.num_tokens for each in held.values())
        while total > self._prefix_cache_tokens:
            oldest = next(iter(self._prefixes.values()))[0]
            for prompt in [prompt for prompt, (each, _) in self._prefixes.items() if each is oldest]:
                del self._prefixes[prompt]
            total -= oldest.num_tokens

    def _read(self, look: Look, seated: Sequence[_Row], params: SamplingParams) -> int:
        """Take new tokens from the device; returns how many sequences ended."""
        look.wait()
        made, ended = look.made.tolist(), look.ended.tolist()
        num_finished = 0
        for place, row in enumerate(seated):
            if row.sample or not (ended[place] or params.stop):
                continue
            new = look.tokens[place, row.num_read : made[place]].tolist()
            if row.read(new, ended[place], self.tokenizer, self._end_ids, params):
                logprobs = look.logprobs[place, : len(row.tokens)].tolist() if params.logprobs else None
                row.sample = Sample(row.text(self.tokenizer, self._end_ids), row.tokens, logprobs, row.finish)
                num_finished += 1
        return num_finished

    def _slots_for(self, rows: Sequence[_Row]) -> Slots:
        """The slots of the call before, or new ones if they are too few or too short."""
        device = self.model.lm_head.weight.device
        longest = max(len(row.prompt) + row.limit for row in rows)
        capacity = min(-(-longest // _ROUND_UP) * _ROUND_UP, self.model.config.context_length)
        max_new_tokens = max(row.limit for row in rows)
        wanted = self._num_slots or (_SLOTS_ON_GPU if device.type == "cuda" else _SLOTS_ELSEWHERE)
        num_slots = width_of_step(len(rows), wanted, device)
        slots = self._slots
        if (
            slots is None
            or slots.num_slots < min(num_slots, self._fitting or num_slots)
            or slots.capacity < capacity
            or slots.max_new_tokens < max_new_tokens
        ):
            self._slots, slots, self._fitting = None, None, 0  # before the new ones are taken
            free = _free_bytes(device)
            room = int(min(num_slots, _SHARE_OF_FREE_MEMORY * free / bytes_of_slot(self.model, capacity)))
            if not room:
                raise ValueError(f"{free / 1e9:.1f} GB are free on {device}, too little for one text of {capacity}")
            if room < num_slots:
                num_slots = self._fitting = room
            self._slots = slots = Slots(
                self.model,
                num_slots=num_slots,
                capacity=capacity,
                max_new_tokens=max_new_tokens,
                end_ids=sorted(self._end_ids),
            )
        return slots

    # ---- weights and memory

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """As `Backend.load_weights`."""
        if self._state == "asleep":
            raise ValueError("the engine is asleep; call wake() first")
        load_huggingface_weights(self.model, weights)
        self._state = "awake"
        self.reset_prefix_cache()

    def reset_prefix_cache(self) -> None:
        """As `Backend.reset_prefix_cache`."""
        self._prefixes.clear()

    def sleep(self, level: int = 1) -> None:
        """As `Backend.sleep`; weights that are a trainer's stay where they are, at either level."""
        if level not in (1, 2):
            raise ValueError(f"level is 1 (weights to the host) or 2 (weights dropped), got {level}")
        if self._state == "asleep":
            return
        self._slots = None
        self.reset_prefix_cache()
        if self._owns_weights:
            self._take_weights_off(keep=level == 1 and self._state == "awake")
        self._state = "asleep"
        if self.model.lm_head.weight.device.type == "cuda":
            torch.cuda.empty_cache()

    def wake(self) -> None:
        """As `Backend.wake`."""
        if self._state != "asleep":
            return
        self._state = "awake"
        if not self._owns_weights:
            return
        with torch.no_grad():
            for name, weight in self.model.named_parameters():
                weight.untyped_storage().resize_(weight.nbytes)
                if self._on_host:
                    weight.copy_(self._on_host[name], non_blocking=True)
        if not self._on_host:
            self._state = "without weights"

    def _take_weights_off(self, *, keep: bool) -> None:
        """Empty the weights' memory; tensors keep their shapes, so that nobody who holds them notices."""
        pinned = self.model.lm_head.weight.device.type == "cuda"
        if not keep:
            self._on_host = {}
        with torch.no_grad():
            for name, weight in self.model.named_parameters():
                if keep:
                    if name not in self._on_host:  # host memory is slow to pin; it stays for the next time
                        self._on_host[name] = torch.empty(weight.shape, dtype=weight.dtype, pin_memory=pinned)
                    self._on_host[name].copy_(weight)
                weight.untyped_storage().resize_(0)


@dataclass(eq=False)
class _Row:
    """One sequence, as the host sees it."""

    prompt: tuple[int, ...]
    limit: int
    number: int
    sample_number: int
    sample: Sample | None = None  # once it has ended
    finish: str = ""

    def __post_init__(self) -> None:
        self.tokens: list[int] = []
        self._stream: TextStream | None = None
        self._pieces: list[str] = []

    @property
    def num_read(self) -> int:
        """Tokens that the host has taken."""
        return len(self.tokens)

    def uniforms(self, seed: int, count: int) -> np.ndarray:
        """Random numbers, one a token; as many as all rows have, though the text may be shorter."""
        return uniforms_of(seed, self.number, count, sample_number=self.sample_number)

    def read(
        self, new: list[int], ended: bool, tokenizer: TextCodec, end_ids: frozenset[int], params: SamplingParams
    ) -> bool:
        """Take tokens, up to a stop string; whether the sequence has ended."""
        at_end = ended and bool(new) and new[-1] in end_ids
        if params.stop:
            if self._stream is None:
                self._stream = TextStream(tokenizer.decode, params.stop, keep_stop=params.include_stop_str_in_output)
            texts = new[:-1] if at_end else new
            early = max(0, min(len(texts), params.min_tokens - len(self.tokens)))
            taken = 0
            for part, may_stop in ((texts[:early], False), (texts[early:], True)):
                piece, count = self._stream.read(part, may_stop=may_stop)
                self._pieces.append(piece)
                taken += count
            if self._stream.stopped:
                new, at_end = texts[:taken], False
            elif ended:
                self._pieces.append(self._stream.finish(may_stop=len(self.tokens) + len(texts) > params.min_tokens))
            ended |= self._stream.stopped
        self.tokens += new
        if ended:
            stopped = self._stream is not None and self._stream.stopped
            self.finish = "stop" if stopped else "end" if at_end else "length"
        return ended

    def text(self, tokenizer: TextCodec, end_ids: frozenset[int]) -> str:
        """What was written."""
        if self._stream is not None:
            return "".join(self._pieces)
        return tokenizer.decode(self.tokens[:-1] if self.finish == "end" else self.tokens)


def _free_bytes(device: torch.device) -> float:
    """What a GPU has left, and what PyTorch holds of it unused; nothing is counted on a host."""
    if device.type != "cuda":
        return math.inf
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused


def _on_its_device(model: TransformerLM) -> contextlib.AbstractContextManager[object]:
    """Triton starts kernels on the current GPU, which with a trainer on another is not this one."""
    device = model.lm_head.weight.device
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


@contextlib.contextmanager
def _evaluating(model: TransformerLM) -> Iterator[None]:
    """Without dropout, as a model shared with a trainer would have it."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
