"""Places in which sequences are continued together, each at its own length, as the device sees them.

A sequence sits in one slot until it ends; then the slot takes the next one, whose prompt has been read apart. On a GPU
a step is recorded once and played again: starting its few hundred kernels one by one takes longer than they run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cs336.generate.sampling import Sampling, sample
from cs336.hardware import recording_stream
from cs336.model.attention import KVCache, decode_attention, has_decode_kernel, masked_decode_attention
from cs336.model.logprobs import token_logprobs
from cs336.model.transformer import TransformerLM

if TYPE_CHECKING:
    from jaxtyping import Float, Int

_FEWEST_RECORDED = 8  # rows of the narrowest recorded step


@dataclass(frozen=True)
class StepSettings:
    """What is the same for all slots; a recorded step belongs to one of these.

    Attributes:
        sampling: how tokens are drawn.
        min_tokens: so many tokens come before one that ends a text may.
        with_logprobs: keep the log-probability of each token.
    """

    sampling: Sampling
    min_tokens: int
    with_logprobs: bool


@dataclass(frozen=True)
class Prefixes:
    """Prompts that have been read: what their continuations start from.

    Attributes:
        keys, values: of each layer, (prompts, kv_heads, longest, d); beyond a prompt's end they mean nothing.
        lengths: tokens of each prompt.
        logits: of the token after each prompt.
    """

    keys: list[Tensor]
    values: list[Tensor]
    lengths: Int[Tensor, " prompts"]
    logits: Float[Tensor, "prompts vocab"]

    @property
    def num_tokens(self) -> int:
        """Positions held, padding included."""
        return self.keys[0].shape[0] * self.keys[0].shape[2]


@dataclass(frozen=True)
class Look:
    """The slots as they were after a step, on their way to the host.

    Attributes:
        made: tokens generated in each slot.
        ended: whether an end-of-text token or the limit was reached.
        tokens, logprobs: all generated in each slot so far.
        unsound: some were drawn from logits that are NaN or infinite.
    """

    made: Tensor
    ended: Tensor
    tokens: Tensor
    logprobs: Tensor
    unsound: Tensor
    arrived: torch.cuda.Event | None = None

    def copied(self, *, later: bool) -> Look:
        """The same on the host; if it is read later only, as it is now, and without waiting for the device."""
        on_gpu = self.made.device.type == "cuda"

        def copy(state: Tensor) -> Tensor:
            if later and on_gpu:
                return torch.empty(state.shape, dtype=state.dtype, pin_memory=True).copy_(state, non_blocking=True)
            return state.clone() if later else state.cpu()  # on a CPU that is no copy

        tokens, logprobs = copy(self.tokens), copy(self.logprobs)
        made, ended, unsound = copy(self.made), copy(self.ended), copy(self.unsound)
        arrived = None
        if later and on_gpu:
            arrived = torch.cuda.Event()
            arrived.record()
        return Look(made, ended, tokens, logprobs, unsound, arrived)

    def wait(self) -> None:
        """Until the host may read.

        Raises:
            ValueError: the logits were NaN or infinite.
        """
        if self.arrived is not None:
            self.arrived.synchronize()
        if self.unsound:
            raise ValueError(
                "the model's logits are NaN or infinite, so there is no next token; its weights are"
                " damaged or overflow in their number format"
            )


@dataclass
class _Places:
    """Where all layers write, behind what they read, in the step that runs."""

    lengths: Tensor  # cached positions of each slot
    rows: Tensor  # 0, 1, 2, ...
    num_rows: int = 0
    num_visible: int = 0


class SlotCache(KVCache):
    """One layer's keys and values of all slots: one new token in each of the first rows, wherever it stands there."""

    def __init__(self, places: _Places, keys: Tensor, values: Tensor, *, by_kernel: bool):
        super().__init__(keys, values)
        self._places = places
        self._by_kernel = by_kernel

    def attend(
        self,
        kernel: Callable[..., Tensor],
        queries: Float[Tensor, "batch heads 1 d"],
        keys: Float[Tensor, "batch kv_heads 1 d"],
        values: Float[Tensor, "batch kv_heads 1 d"],
        mask: Tensor | None,
        dropout_rate: float,
    ) -> Float[Tensor, "batch heads 1 d"]:
        """Each slot's newest token to all of that slot; the mask is made here."""
        assert self.keys is not None and self.values is not None and mask is None
        rows = self._places.num_rows
        lengths = self._places.lengths[:rows]
        stored_keys, stored_values = self.keys[:rows], self.values[:rows]
        if self._by_kernel:
            queries = queries.to(stored_keys.dtype)
            return decode_attention(queries, keys, values, stored_keys, stored_values, lengths)
        stored_keys[self._places.rows[:rows], :, lengths] = keys[:, :, 0].to(stored_keys.dtype)
        stored_values[self._places.rows[:rows], :, lengths] = values[:, :, 0].to(stored_values.dtype)
        visible = self._places.num_visible
        return masked_decode_attention(
            queries, stored_keys[:, :, :visible], stored_values[:, :, :visible], lengths + 1, kernel=kernel
        )


@torch.inference_mode()
def read_prompts(model: TransformerLM, prompts: Sequence[Sequence[int]]) -> Prefixes:
    """One pass over prompts of about the same length."""
    device = model.lm_head.weight.device
    longest = max(map(len, prompts))
    # Padding stands on the right, where causal attention never looks at it.
    ids = torch.tensor([[*prompt, *[0] * (longest - len(prompt))] for prompt in prompts], device=device)
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    caches = [KVCache() for _ in model.layers]
    hidden = model.hidden_states(ids, caches=caches)
    logits = model.lm_head(hidden[torch.arange(len(prompts), device=device), lengths - 1])
    keys = [cache.keys for cache in caches if cache.keys is not None]
    values = [cache.values for cache in caches if cache.values is not None]
    return Prefixes(keys=keys, values=values, lengths=lengths, logits=logits)


def bytes_of_slot(model: TransformerLM, capacity: int) -> int:
    """Memory of one slot's keys and values."""
    config = model.config
    numbers = 2 * config.num_layers * config.kv_heads * config.features_per_head * capacity
    return numbers * model.lm_head.weight.element_size()


def width_of_step(num_rows: int, most: int, device: torch.device) -> int:
    """Rows of a step for so many sequences: a power of two where steps are recorded, so that they are few.

    It does not depend on what was generated before, nor then do the last bits of a row.
    """
    if not _is_static(device):
        return min(most, num_rows)
    return min(most, max(_FEWEST_RECORDED, 1 << (num_rows - 1).bit_length()))


class Slots:
    """The state of all slots on the device.

    Args:
        capacity: positions of one slot, prompt and continuation.
        max_new_tokens: of one continuation.
        end_ids: tokens that end a text.

    Attributes:
        static: shapes never change with lengths, and the host learns of tokens a round later, as a GPU needs it.
    """

    @torch.inference_mode()
    def __init__(
        self, model: TransformerLM, *, num_slots: int, capacity: int, max_new_tokens: int, end_ids: Sequence[int]
    ):
        config, device = model.config, model.lm_head.weight.device
        self.num_slots, self.capacity, self.max_new_tokens = num_slots, capacity, max_new_tokens
        self.device, self.static = device, _is_static(device)
        self._model = model
        self._settings = StepSettings(Sampling(), 0, False)
        self._places = _Places(
            lengths=torch.zeros(num_slots, dtype=torch.int64, device=device),
            rows=torch.arange(num_slots, device=device),
        )
        shape = num_slots, config.kv_heads, capacity, config.features_per_head
        by_kernel = has_decode_kernel(device, config.features_per_head)
        self._chooses_by_kernel = _chooses_by_kernel(device)
        # Zeros, not what lay there: hidden positions have weight zero, but zero times NaN is NaN.
        self._caches = [
            SlotCache(
                self._places,
                *(torch.zeros(shape, dtype=model.lm_head.weight.dtype, device=device) for _ in range(2)),
                by_kernel=by_kernel,
            )
            for _ in model.layers
        ]
        self._newest = torch.zeros(num_slots, dtype=torch.int64, device=device)
        self._made = torch.zeros(num_slots, dtype=torch.int64, device=device)
        self._limits = torch.zeros(num_slots, dtype=torch.int64, device=device)
        self._ended = torch.ones(num_slots, dtype=torch.bool, device=device)
        self._tokens = torch.zeros(num_slots, max_new_tokens, dtype=torch.int64, device=device)
        self._logprobs = torch.zeros(num_slots, max_new_tokens, device=device)
        wide = torch.float32 if device.type == "mps" else torch.float64
        self._uniforms = torch.zeros(num_slots, max_new_tokens, dtype=wide, device=device)
        self._unsound = torch.zeros((), dtype=torch.bool, device=device)
        self._is_end = torch.zeros(config.vocab_size, dtype=torch.bool, device=device)
        known_ends = [token for token in end_ids if 0 <= token < config.vocab_size]
        self._is_end[torch.tensor(known_ends, dtype=torch.int64, device=device)] = True
        self._pool: Any = None
        self._graphs: dict[tuple[int, StepSettings], torch.cuda.CUDAGraph | None] = {}

    def begin(self, settings: StepSettings) -> None:
        """Empty all slots; the coming steps are of these settings."""
        self._settings = settings
        self._ended.fill_(True)
        self._unsound.fill_(False)

    def width_for(self, num_rows: int) -> int:
        """Rows of a step for so many sequences."""
        return width_of_step(num_rows, self.num_slots, self.device)

    @torch.inference_mode()
    def seat(
        self,
        slots: Sequence[int],
        prefixes: Prefixes,
        which: Sequence[int],
        *,
        limits: Sequence[int],
        uniforms: Float[Tensor, "slots max_new"],
    ) -> None:
        """Start a continuation of prompt `which[i]` in `slots[i]`, and choose its first token.

        Args:
            limits: the most tokens of each.
            uniforms: random numbers of each, one a token.
        """
        rows, prompts = (torch.tensor(each, device=self.device) for each in (slots, which))
        longest = prefixes.keys[0].shape[2]
        for cache, keys, values in zip(self._caches, prefixes.keys, prefixes.values, strict=True):
            assert cache.keys is not None and cache.values is not None
            cache.keys[rows, :, :longest] = keys[prompts]
            cache.values[rows, :, :longest] = values[prompts]
        self._places.lengths[rows] = prefixes.lengths[prompts]
        self._made[rows], self._ended[rows] = 0, False
        self._limits[rows] = torch.tensor(limits, device=self.device)
        self._uniforms[rows, : uniforms.shape[1]] = uniforms.to(self.device, self._uniforms.dtype)
        self._choose(rows, prefixes.logits[prompts])

    @torch.inference_mode()
    def step(self, num_rows: int) -> None:
        """One more token in each of the first rows; those that have ended stay as they are."""
        if self.device.type != "cuda":
            visible = self.capacity if self.static else int(self._places.lengths[:num_rows].max()) + 1
            self._step(num_rows, visible)
            return
        key = num_rows, self._settings
        if key not in self._graphs:
            self._graphs[key] = None
            self._step(num_rows, self.capacity)  # warms up what must not happen while recording
            return
        graph = self._graphs[key]
        if graph is None:
            graph = self._graphs[key] = torch.cuda.CUDAGraph()
            # One pool for all: no two of them ever run at once.
            self._pool = self._pool or torch.cuda.graph_pool_handle()
            with torch.cuda.graph(graph, pool=self._pool, stream=recording_stream(self.device)):
                self._step(num_rows, self.capacity)
        graph.replay()

    @torch.inference_mode()
    def move(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Put sequences into other slots, whose own are forgotten."""
        old, new = (torch.tensor(each, device=self.device) for each in (sources, targets))
        states = [self._places.lengths, self._newest, self._made, self._limits, self._ended]
        for state in [*states, self._tokens, self._logprobs, self._uniforms]:
            state[new] = state[old]
        for cache in self._caches:
            assert cache.keys is not None and cache.values is not None
            cache.keys[new], cache.values[new] = cache.keys[old], cache.values[old]
        self._ended[old] = True

    def look(self, num_rows: int) -> Look:
        """What the host wants to know of the first rows; on a GPU it arrives while later steps run."""
        look = Look(
            made=self._made[:num_rows],
            ended=self._ended[:num_rows],
            tokens=self._tokens[:num_rows],
            logprobs=self._logprobs[:num_rows],
            unsound=self._unsound,
        )
        return look.copied(later=self.static)

    def _step(self, num_rows: int, num_visible: int) -> None:
        self._places.num_rows, self._places.num_visible = num_rows, num_visible
        lengths = self._places.lengths[:num_rows]
        logits = self._model(
            self._newest[:num_rows, None],
            token_positions=lengths[:, None],
            caches=self._caches,
        )[:, -1]
        lengths += ~self._ended[:num_rows]
        self._choose(self._places.rows[:num_rows], logits)

    def _choose(self, rows: Int[Tensor, " rows"], logits: Float[Tensor, "rows vocab"]) -> None:
        """Draw a token for each of these slots and note it where the sequence has not ended."""
        settings = self._settings
        if self._chooses_by_kernel and settings.sampling.needs_no_order:
            from cs336.kernels.next_token import take_next_token

            take_next_token(
                logits,
                rows,
                temperature=settings.sampling.temperature,
                min_tokens=settings.min_tokens,
                with_logprobs=settings.with_logprobs,
                uniforms=self._uniforms,
                is_end=self._is_end,
                limits=self._limits,
                tokens=self._tokens,
                logprobs=self._logprobs,
                newest=self._newest,
                made=self._made,
                ended=self._ended,
                unsound=self._unsound,
            )
            return
        logits = logits.float()
        made, running = self._made[rows], ~self._ended[rows]
        self._unsound |= (~logits.amax(dim=-1).isfinite() & running).any()
        column = made.clamp(max=self.max_new_tokens - 1)
        allowed = logits
        if settings.min_tokens:
            too_early = (made < settings.min_tokens)[:, None] & self._is_end
            allowed = logits.masked_fill(too_early, float("-inf"))
        chosen = sample(allowed, self._uniforms[rows, column], settings.sampling)
        self._tokens[rows, column] = torch.where(running, chosen, self._tokens[rows, column])
        if settings.with_logprobs:
            logprobs = token_logprobs(logits, chosen)
            self._logprobs[rows, column] = torch.where(running, logprobs, self._logprobs[rows, column])
        self._newest[rows] = torch.where(running, chosen, self._newest[rows])
        made = made + running
        self._made[rows] = made
        self._ended[rows] = ~running | self._is_end[chosen] | (made >= self._limits[rows])


def _chooses_by_kernel(device: torch.device) -> bool:
    return device.type == "cuda"


def _is_static(device: torch.device) -> bool:
    return device.type == "cuda"
