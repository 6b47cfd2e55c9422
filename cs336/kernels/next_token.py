"""The next token of many sequences, and all that is noted of it, in Triton; for generation.

Written out in PyTorch this is some fifty kernels a token, most of them hardly longer than the pause before the next.

Layout    logits (rows, vocab), rows contiguous; the state of all slots, of which each row names its own.
Numerics  logits in bf16, fp16 or fp32; probabilities in fp32, and their running sums in fp64: in fp32 the ends of
          50,000 tokens are off by more than rare tokens are long.
Accepts   greedy or at a temperature; neither top-k nor top-p, which need the tokens in order.
Reads     a row three times, mostly from the cache; nothing of a row whose sequence has ended.
Twin      generate/slots.py, `Slots._choose`, with generate/sampling.py, `sample`. Numbers within rounding of the border
          between two tokens may fall on either side.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

_MAX_BLOCK = 4_096


def take_next_token(
    logits: Float[Tensor, "rows vocab"],
    slots: Int[Tensor, " rows"],
    *,
    temperature: float,
    min_tokens: int,
    with_logprobs: bool,
    uniforms: Float[Tensor, "slots max_new"],
    is_end: Bool[Tensor, " vocab"],
    limits: Int[Tensor, " slots"],
    tokens: Int[Tensor, "slots max_new"],
    logprobs: Float[Tensor, "slots max_new"],
    newest: Int[Tensor, " slots"],
    made: Int[Tensor, " slots"],
    ended: Bool[Tensor, " slots"],
    unsound: Bool[Tensor, ""],
) -> None:
    """Draw a token for each row whose sequence has not ended, and note it; the last six are changed in place.

    Args:
        slots: where each row's sequence has its state.
        temperature: 0 takes the most probable token.
        min_tokens: so many tokens come before one that ends a text may.
        with_logprobs: note its log-probability at temperature 1, every token allowed, in nats.
        uniforms: in [0, 1), one a token, in fp64.
        is_end: tokens that end a text.
        limits: the most tokens of each sequence.
        tokens, logprobs: one a token.
        newest: the token drawn.
        made: tokens so far.
        ended: whether a token that ends a text came, or the limit.
        unsound: becomes true where logits are NaN or infinite.

    Raises:
        ValueError: logits or state whose rows are not contiguous, or of other sizes.
    """
    wide = (uniforms, tokens, logprobs)
    if logits.ndim != 2 or logits.stride(1) != 1 or len(slots) != len(logits) or len(is_end) != logits.shape[1]:
        raise ValueError(f"logits {tuple(logits.shape)} do not fit {len(slots)} slots and {len(is_end)} tokens")
    if any(not each.is_contiguous() or each.shape != tokens.shape for each in wide):
        raise ValueError(f"need contiguous {tuple(tokens.shape)}, got {[tuple(each.shape) for each in wide]}")
    block = min(_MAX_BLOCK, triton.next_power_of_2(logits.shape[1]))
    _next_token_kernel[(len(slots),)](
        logits,
        slots,
        uniforms,
        is_end,
        limits,
        tokens,
        logprobs,
        newest,
        made,
        ended,
        unsound,
        logits.stride(0),
        logits.shape[1],
        tokens.shape[1],
        min_tokens,
        temperature,
        GREEDY=temperature == 0,
        WITH_LOGPROBS=with_logprobs,
        BLOCK=block,
        num_warps=min(16, max(1, block // 256)),
    )


@triton.jit
def _next_token_kernel(
    logits_base,
    slots_base,
    uniforms_base,
    is_end_base,
    limits_base,
    tokens_base,
    logprobs_base,
    newest_base,
    made_base,
    ended_base,
    unsound_base,
    stride_row,
    vocab,
    max_new,
    min_tokens,
    temperature,
    GREEDY: tl.constexpr,
    WITH_LOGPROBS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One row: its maximum in a first walk, its sums in a second, and the token in a third."""
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots_base + row)
    if tl.load(ended_base + slot) == 0:
        logits_base += row * stride_row
        made = tl.load(made_base + slot)
        too_early = made < min_tokens

        largest_of_all = tl.full((BLOCK,), float("-inf"), tl.float32)
        largest = tl.full((BLOCK,), float("-inf"), tl.float32)
        is_bad = tl.zeros((BLOCK,), tl.int32)
        for start in range(0, vocab, BLOCK):
            logits, allowed = _logits(logits_base, is_end_base, start, vocab, too_early, BLOCK)
            largest_of_all = tl.maximum(largest_of_all, logits)
            largest = tl.maximum(largest, allowed)
            is_bad |= ((logits != logits) | (logits == float("inf"))).to(tl.int32)
        most_of_all, most = tl.max(largest_of_all, 0), tl.max(largest, 0)
        if (tl.max(is_bad, 0) > 0) | (most_of_all == float("-inf")):
            tl.store(unsound_base, 1)

        total_of_all = tl.zeros((BLOCK,), tl.float32)
        total = tl.full((), 0.0, tl.float64)
        if not GREEDY or WITH_LOGPROBS:
            for start in range(0, vocab, BLOCK):
                logits, allowed = _logits(logits_base, is_end_base, start, vocab, too_early, BLOCK)
                total_of_all += tl.exp(logits - most_of_all)
                if not GREEDY:
                    total += tl.sum(tl.exp((allowed - most) / temperature).to(tl.float64), 0)

        # The tokens lie side by side on a line, each as long as it is probable; greedy, before the first largest one.
        place = tl.full((), 0.0, tl.float64)
        column = tl.minimum(made, max_new - 1)
        if not GREEDY:
            place = tl.load(uniforms_base + slot * max_new + column) * total
        chosen = vocab
        num_before = tl.zeros((BLOCK,), tl.int32)
        before = tl.full((), 0.0, tl.float64)
        for start in range(0, vocab, BLOCK):
            logits, allowed = _logits(logits_base, is_end_base, start, vocab, too_early, BLOCK)
            columns = start + tl.arange(0, BLOCK)
            if GREEDY:
                chosen = tl.minimum(chosen, tl.min(tl.where((allowed == most) & (columns < vocab), columns, vocab), 0))
            else:
                lengths = tl.exp((allowed - most) / temperature).to(tl.float64)
                num_before += ((before + tl.cumsum(lengths, 0) <= place) & (columns < vocab)).to(tl.int32)
                before += tl.sum(lengths, 0)
        if not GREEDY:
            chosen = tl.sum(num_before, 0)
        chosen = tl.minimum(chosen, vocab - 1)

        tl.store(tokens_base + slot * max_new + column, chosen)
        if WITH_LOGPROBS:
            logprob = tl.load(logits_base + chosen).to(tl.float32) - most_of_all - tl.log(tl.sum(total_of_all, 0))
            tl.store(logprobs_base + slot * max_new + column, logprob)
        tl.store(newest_base + slot, chosen)
        tl.store(made_base + slot, made + 1)
        is_last = made + 1 >= tl.load(limits_base + slot)
        tl.store(ended_base + slot, is_last | (tl.load(is_end_base + chosen) != 0))


@triton.jit
def _logits(logits_base, is_end_base, start, vocab, too_early, BLOCK: tl.constexpr):
    """Some of a row, -inf beyond its end, and the same with -inf for what may not come yet."""
    columns = start + tl.arange(0, BLOCK)
    inside = columns < vocab
    logits = tl.load(logits_base + columns, mask=inside, other=float("-inf")).to(tl.float32)
    is_end = tl.load(is_end_base + columns, mask=inside & too_early, other=0) != 0
    return logits, tl.where(is_end, float("-inf"), logits)
