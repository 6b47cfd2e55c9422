"""FlashAttention-2 in Triton: exact attention, causal or full, forward and backward.

Source    Dao 2023, arXiv:2307.08691, algorithms 1 and 2; grouped queries: Ainslie et al. 2023, arXiv:2305.13245.
Layout    (batch, heads, seq, d_head), or (batch, seq, d_head) with heads folded into the batch; any strides but the
          last, which is 1. Keys and values may have fewer heads, each for a group of queries' heads.
Numerics  bf16, fp16, fp32 in; softmax statistics and sums in fp32, weights in the inputs' type where they meet V.
Accepts   d_head a multiple of 16 up to 128; any number of queries and keys; else ValueError.
Twin      tiled_attention.py: the same tiles and names in plain PyTorch, on any device.
Backward  two passes without atomics, so equal inputs give equal gradients: one over tiles of keys for dK and dV, one
          over tiles of queries for dQ. Both make the weights again from the saved logsumexp.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float

MAX_D_HEAD = 128
_LOG2_E = math.log2(math.e)


class Tiles(NamedTuple):
    """Launch parameters of one kernel."""

    queries: int
    keys: int
    num_warps: int
    num_stages: int


# By kernel, then by the padded d_head; fp32 needs twice the shared memory, so half the tile.
_TILES = {
    "forward": {64: Tiles(128, 64, 4, 3), 128: Tiles(128, 64, 8, 3)},
    "dk_dv": {64: Tiles(64, 128, 8, 2), 128: Tiles(64, 128, 8, 2)},
    "dq": {64: Tiles(128, 64, 8, 2), 128: Tiles(128, 64, 8, 2)},
}


def flash_attention(
    q: Float[Tensor, "batch heads queries d_head"],
    k: Float[Tensor, "batch kv_heads keys d_head"],
    v: Float[Tensor, "batch kv_heads keys d_head"],
    *,
    causal: bool,
) -> Float[Tensor, "batch heads queries d_head"]:
    """`softmax(Q Kᵀ / √d_head) V` without the matrix of scores.

    Args:
        k, v: their heads divide those of q; head h of q reads head `h // (heads / kv_heads)`.
        causal: query i sees the keys up to i.

    Raises:
        ValueError: shapes, types or d_head that the kernel does not take.
    """
    _validate(q, k, v)
    return FlashAttention.apply(q, k, v, causal)


class FlashAttention(torch.autograd.Function):
    """The kernels as the handout calls them: `FlashAttention.apply(q, k, v, is_causal)`, of 3 or 4 dimensions.

    Saves q, k, v, o and `logsumexp`, natural log, scale included: (batch, queries) or (batch, heads, queries).
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, is_causal: bool = False) -> Tensor:
        """Attention of every tile of queries."""
        _validate(q, k, v)
        o = torch.empty_like(q)
        logsumexp = torch.empty(q.shape[:-1], dtype=torch.float32, device=q.device)
        _launch_forward(_with_heads(q), _with_heads(k), _with_heads(v), _with_heads(o), logsumexp, is_causal)
        ctx.save_for_backward(q, k, v, o, logsumexp)
        ctx.is_causal = is_causal
        return o

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """Gradients of q, k and v."""
        q, k, v, o, logsumexp = ctx.saved_tensors
        grad_o = grads[0]
        if grad_o.stride(-1) != 1:  # as of o.sum(), whose gradient is one number stretched
            grad_o = grad_o.contiguous()
        grad_q, grad_k, grad_v = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        inputs = [_with_heads(each) for each in (q, k, v, o, grad_o)]
        _launch_backward(inputs, [_with_heads(each) for each in (grad_q, grad_k, grad_v)], logsumexp, ctx.is_causal)
        return grad_q, grad_k, grad_v, None


def _validate(q: Tensor, k: Tensor, v: Tensor) -> None:
    shapes = f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
    if k.shape != v.shape or q.ndim != k.ndim or q.ndim not in (3, 4):
        raise ValueError(f"need q, k and v of 3 or 4 dimensions, k and v of one shape; got {shapes}")
    if q.shape[0] != k.shape[0] or q.shape[-1] != k.shape[-1]:
        raise ValueError(f"batch and d_head of queries and keys differ: {shapes}")
    if q.ndim == 4 and q.shape[1] % k.shape[1]:
        raise ValueError(f"{k.shape[1]} heads of keys do not divide {q.shape[1]} of queries")
    if q.shape[-1] % 16 or q.shape[-1] > MAX_D_HEAD:
        raise ValueError(f"d_head {q.shape[-1]} is not a multiple of 16 up to {MAX_D_HEAD}")
    if not q.dtype == k.dtype == v.dtype or q.dtype not in (torch.bfloat16, torch.float16, torch.float32):
        raise ValueError(f"need one of bf16, fp16, fp32 for all three, got {q.dtype}, {k.dtype}, {v.dtype}")
    if any(each.stride(-1) != 1 for each in (q, k, v)):
        raise ValueError("the elements of a head must lie side by side; call .contiguous() first")
    if 0 in q.shape or 0 in k.shape:
        raise ValueError(f"nothing to attend to: {shapes}")


def _with_heads(tensor: Tensor) -> Tensor:
    return tensor if tensor.ndim == 4 else tensor.unsqueeze(1)


def _tiles(kernel: str, q: Tensor, padded: int) -> Tiles:
    tiles = _TILES[kernel][64 if padded <= 64 else 128]
    if q.dtype == torch.float32:
        tiles = tiles._replace(queries=max(32, tiles.queries // 2), keys=max(32, tiles.keys // 2), num_stages=2)
    return tiles


def _launch_forward(q: Tensor, k: Tensor, v: Tensor, o: Tensor, logsumexp: Tensor, is_causal: bool) -> None:
    batch, heads, num_queries, d_head = q.shape
    padded = triton.next_power_of_2(d_head)
    tiles = _tiles("forward", q, padded)
    _forward_kernel[(triton.cdiv(num_queries, tiles.queries), batch * heads)](
        q,
        k,
        v,
        o,
        logsumexp,
        *q.stride()[:3],
        *k.stride()[:3],
        *v.stride()[:3],
        *o.stride()[:3],
        heads,
        heads // k.shape[1],
        num_queries,
        k.shape[2],
        scale=_LOG2_E / math.sqrt(d_head),
        D=d_head,
        PADDED_D=padded,
        QUERY_TILE=tiles.queries,
        KEY_TILE=tiles.keys,
        IS_CAUSAL=is_causal,
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
    )


def _launch_backward(inputs: list[Tensor], grads: list[Tensor], logsumexp: Tensor, is_causal: bool) -> None:
    """Fill the gradients of q, k and v.

    Args:
        inputs: q, k, v, o and the gradient of o.
    """
    q, k, v, o, grad_o = inputs
    grad_q, grad_k, grad_v = grads
    batch, heads, num_queries, d_head = q.shape
    kv_heads, num_keys = k.shape[1:3]
    padded = triton.next_power_of_2(d_head)
    delta = torch.empty_like(logsumexp)
    delta_rows = 64
    _backward_delta_kernel[(triton.cdiv(num_queries, delta_rows), batch * heads)](
        o,
        grad_o,
        delta,
        *o.stride()[:3],
        *grad_o.stride()[:3],
        heads,
        num_queries,
        D=d_head,
        PADDED_D=padded,
        ROWS=delta_rows,
    )
    shared = (
        *q.stride()[:3],
        *k.stride()[:3],
        *v.stride()[:3],
        *grad_o.stride()[:3],
    )
    sizes = (heads, heads // kv_heads, num_queries, num_keys)
    constants = {"D": d_head, "PADDED_D": padded, "IS_CAUSAL": is_causal, "scale": 1 / math.sqrt(d_head)}
    tiles = _tiles("dk_dv", q, padded)
    _backward_dk_dv_kernel[(triton.cdiv(num_keys, tiles.keys), batch * kv_heads)](
        q,
        k,
        v,
        grad_o,
        grad_k,
        grad_v,
        logsumexp,
        delta,
        *shared,
        *grad_k.stride()[:3],
        *grad_v.stride()[:3],
        *sizes,
        **constants,
        QUERY_TILE=tiles.queries,
        KEY_TILE=tiles.keys,
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
    )
    tiles = _tiles("dq", q, padded)
    _backward_dq_kernel[(triton.cdiv(num_queries, tiles.queries), batch * heads)](
        q,
        k,
        v,
        grad_o,
        grad_q,
        logsumexp,
        delta,
        *shared,
        *grad_q.stride()[:3],
        *sizes,
        **constants,
        QUERY_TILE=tiles.queries,
        KEY_TILE=tiles.keys,
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
    )


@triton.jit
def _load(base, rows, stride, num_rows, D: tl.constexpr, PADDED_D: tl.constexpr, WHOLE: tl.constexpr):
    """A tile (rows, PADDED_D); rows at or beyond `num_rows` and columns beyond D are 0. WHOLE: no row is beyond."""
    columns = tl.arange(0, PADDED_D)
    pointers = base + rows[:, None] * stride + columns[None, :]
    if WHOLE and D == PADDED_D:
        return tl.load(pointers)
    if WHOLE:
        return tl.load(pointers, mask=(columns < D)[None, :], other=0.0)
    return tl.load(pointers, mask=(rows < num_rows)[:, None] & (columns < D)[None, :], other=0.0)


@triton.jit
def _store(base, tile, rows, stride, num_rows, D: tl.constexpr, PADDED_D: tl.constexpr):
    """Store a tile (rows, PADDED_D), without what is beyond."""
    columns = tl.arange(0, PADDED_D)
    pointers = base + rows[:, None] * stride + columns[None, :]
    tl.store(pointers, tile.to(base.dtype.element_ty), mask=(rows < num_rows)[:, None] & (columns < D)[None, :])


@triton.jit
def _keys_of_tile(
    acc,
    running_max,
    running_sum,
    q,
    k_base,
    v_base,
    k_stride,
    v_stride,
    queries,
    first,
    last,
    num_keys,
    scale,
    D: tl.constexpr,
    PADDED_D: tl.constexpr,
    KEY_TILE: tl.constexpr,
    MASKED: tl.constexpr,
    IS_CAUSAL: tl.constexpr,
):
    """Attend to the keys of [first, last); MASKED where some are beyond the end or the diagonal."""
    for start in range(first, last, KEY_TILE):
        keys = start + tl.arange(0, KEY_TILE)
        k = _load(k_base, keys, k_stride, num_keys, D, PADDED_D, not MASKED)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale  # in powers of two
        if MASKED:
            seen = (keys < num_keys)[None, :]
            if IS_CAUSAL:
                seen = seen & (keys[None, :] <= queries[:, None])
            scores = tl.where(seen, scores, float("-inf"))
        new_max = tl.maximum(running_max, tl.max(scores, 1))
        weights = tl.exp2(scores - new_max[:, None])
        shrink = tl.exp2(running_max - new_max)
        running_sum = shrink * running_sum + tl.sum(weights, 1)
        v = _load(v_base, keys, v_stride, num_keys, D, PADDED_D, not MASKED)
        acc = tl.dot(weights.to(v.dtype), v, acc * shrink[:, None], input_precision="ieee")
        running_max = new_max
    return acc, running_max, running_sum


@triton.jit
def _forward_kernel(
    q_base,
    k_base,
    v_base,
    o_base,
    logsumexp_base,
    q_batch,
    q_head,
    q_row,
    k_batch,
    k_head,
    k_row,
    v_batch,
    v_head,
    v_row,
    o_batch,
    o_head,
    o_row,
    heads,
    group,
    num_queries,
    num_keys,
    scale,
    D: tl.constexpr,
    PADDED_D: tl.constexpr,
    QUERY_TILE: tl.constexpr,
    KEY_TILE: tl.constexpr,
    IS_CAUSAL: tl.constexpr,
):
    """One tile of queries of one head. The tiles with the most keys start first, so that none is left over alone."""
    tile = tl.num_programs(0) - 1 - tl.program_id(0) if IS_CAUSAL else tl.program_id(0)
    batch, head = (tl.program_id(1) // heads).to(tl.int64), (tl.program_id(1) % heads).to(tl.int64)
    q_base += batch * q_batch + head * q_head
    k_base += batch * k_batch + head // group * k_head
    v_base += batch * v_batch + head // group * v_head
    queries = tile * QUERY_TILE + tl.arange(0, QUERY_TILE)
    q = _load(q_base, queries, q_row, num_queries, D, PADDED_D, False)
    acc = tl.zeros((QUERY_TILE, PADDED_D), tl.float32)
    running_max = tl.full((QUERY_TILE,), float("-inf"), tl.float32)
    running_sum = tl.zeros((QUERY_TILE,), tl.float32)

    whole = num_keys // KEY_TILE * KEY_TILE  # keys before it stand in whole tiles
    last = num_keys
    if IS_CAUSAL:
        whole = tl.minimum(whole, tile * QUERY_TILE // KEY_TILE * KEY_TILE)
        last = tl.minimum(last, (tile + 1) * QUERY_TILE)
    for stage in tl.static_range(2):
        first_key = 0 if stage == 0 else whole
        last_key = whole if stage == 0 else last
        acc, running_max, running_sum = _keys_of_tile(
            acc,
            running_max,
            running_sum,
            q,
            k_base,
            v_base,
            k_row,
            v_row,
            queries,
            first_key,
            last_key,
            num_keys,
            scale,
            D,
            PADDED_D,
            KEY_TILE,
            stage == 1,
            IS_CAUSAL,
        )
    o_base += batch * o_batch + head * o_head
    _store(o_base, acc / running_sum[:, None], queries, o_row, num_queries, D, PADDED_D)
    logsumexp = (running_max + tl.log2(running_sum)) / 1.4426950408889634  # natural, from powers of two
    tl.store(logsumexp_base + (batch * heads + head) * num_queries + queries, logsumexp, mask=queries < num_queries)


@triton.jit
def _backward_delta_kernel(
    o_base,
    grad_o_base,
    delta_base,
    o_batch,
    o_head,
    o_row,
    grad_o_batch,
    grad_o_head,
    grad_o_row,
    heads,
    num_queries,
    D: tl.constexpr,
    PADDED_D: tl.constexpr,
    ROWS: tl.constexpr,
):
    """rowsum(O * dO): what every score's gradient subtracts."""
    batch, head = (tl.program_id(1) // heads).to(tl.int64), (tl.program_id(1) % heads).to(tl.int64)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    o = _load(o_base + batch * o_batch + head * o_head, rows, o_row, num_queries, D, PADDED_D, False)
    grad_o_base += batch * grad_o_batch + head * grad_o_head
    grad_o = _load(grad_o_base, rows, grad_o_row, num_queries, D, PADDED_D, False)
    delta = tl.sum(o.to(tl.float32) * grad_o.to(tl.float32), 1)
    tl.store(delta_base + (batch * heads + head) * num_queries + rows, delta, mask=rows < num_queries)


@triton.jit
def _backward_dk_dv_kernel(
    q_base,
    k_base,
    v_base,
    grad_o_base,
    grad_k_base,
    grad_v_base,
    logsumexp_base,
    delta_base,
    q_batch,
    q_head,
    q_row,
    k_batch,
    k_head,
    k_row,
    v_batch,
    v_head,
    v_row,
    grad_o_batch,
    grad_o_head,
    grad_o_row,
    grad_k_batch,
    grad_k_head,
    grad_k_row,
    grad_v_batch,
    grad_v_head,
    grad_v_row,
    heads,
    group,
    num_queries,
    num_keys,
    scale,
    D: tl.constexpr,
    PADDED_D: tl.constexpr,
    QUERY_TILE: tl.constexpr,
    KEY_TILE: tl.constexpr,
    IS_CAUSAL: tl.constexpr,
):
    """One tile of keys of one head, over all queries of the heads that read it."""
    kv_heads = heads // group
    batch, kv_head = (tl.program_id(1) // kv_heads).to(tl.int64), (tl.program_id(1) % kv_heads).to(tl.int64)
    first_key = tl.program_id(0) * KEY_TILE
    keys = first_key + tl.arange(0, KEY_TILE)
    k = _load(k_base + batch * k_batch + kv_head * k_head, keys, k_row, num_keys, D, PADDED_D, False)
    v = _load(v_base + batch * v_batch + kv_head * v_head, keys, v_row, num_keys, D, PADDED_D, False)
    grad_k = tl.zeros((KEY_TILE, PADDED_D), tl.float32)
    grad_v = tl.zeros((KEY_TILE, PADDED_D), tl.float32)
    first = first_key // QUERY_TILE * QUERY_TILE if IS_CAUSAL else 0  # earlier queries see none of these keys
    for member in range(group):
        head = kv_head * group + member
        q_head_base = q_base + batch * q_batch + head * q_head
        grad_o_head_base = grad_o_base + batch * grad_o_batch + head * grad_o_head
        row_base = (batch * heads + head) * num_queries
        for start in range(first, num_queries, QUERY_TILE):
            queries = start + tl.arange(0, QUERY_TILE)
            is_query = queries < num_queries
            q = _load(q_head_base, queries, q_row, num_queries, D, PADDED_D, False)
            logsumexp = tl.load(logsumexp_base + row_base + queries, mask=is_query, other=0.0)
            scores = tl.dot(k, tl.trans(q), input_precision="ieee") * (scale * 1.4426950408889634)
            weights = tl.exp2(scores - (logsumexp * 1.4426950408889634)[None, :])
            seen = is_query[None, :]  # keys beyond the end are not stored
            if IS_CAUSAL:
                seen = seen & (keys[:, None] <= queries[None, :])
            weights = tl.where(seen, weights, 0.0)
            grad_o = _load(grad_o_head_base, queries, grad_o_row, num_queries, D, PADDED_D, False)
            grad_v = tl.dot(weights.to(grad_o.dtype), grad_o, grad_v, input_precision="ieee")
            delta = tl.load(delta_base + row_base + queries, mask=is_query, other=0.0)
            grad_weights = tl.dot(v, tl.trans(grad_o), input_precision="ieee")
            grad_scores = weights * (grad_weights - delta[None, :])
            grad_k = tl.dot(grad_scores.to(q.dtype), q, grad_k, input_precision="ieee")
    grad_k_base += batch * grad_k_batch + kv_head * grad_k_head
    grad_v_base += batch * grad_v_batch + kv_head * grad_v_head
    _store(grad_k_base, grad_k * scale, keys, grad_k_row, num_keys, D, PADDED_D)
    _store(grad_v_base, grad_v, keys, grad_v_row, num_keys, D, PADDED_D)


@triton.jit
def _backward_dq_kernel(
    q_base,
    k_base,
    v_base,
    grad_o_base,
    grad_q_base,
    logsumexp_base,
    delta_base,
    q_batch,
    q_head,
    q_row,
    k_batch,
    k_head,
    k_row,
    v_batch,
    v_head,
    v_row,
    grad_o_batch,
    grad_o_head,
    grad_o_row,
    grad_q_batch,
    grad_q_head,
    grad_q_row,
    heads,
    group,
    num_queries,
    num_keys,
    scale,
    D: tl.constexpr,
    PADDED_D: tl.constexpr,
    QUERY_TILE: tl.constexpr,
    KEY_TILE: tl.constexpr,
    IS_CAUSAL: tl.constexpr,
):
    """One tile of queries of one head, over all keys that it sees."""
    tile = tl.num_programs(0) - 1 - tl.program_id(0) if IS_CAUSAL else tl.program_id(0)
    batch, head = (tl.program_id(1) // heads).to(tl.int64), (tl.program_id(1) % heads).to(tl.int64)
    k_base += batch * k_batch + head // group * k_head
    v_base += batch * v_batch + head // group * v_head
    queries = tile * QUERY_TILE + tl.arange(0, QUERY_TILE)
    is_query = queries < num_queries
    q = _load(q_base + batch * q_batch + head * q_head, queries, q_row, num_queries, D, PADDED_D, False)
    grad_o_base += batch * grad_o_batch + head * grad_o_head
    grad_o = _load(grad_o_base, queries, grad_o_row, num_queries, D, PADDED_D, False)
    row_base = (batch * heads + head) * num_queries
    logsumexp = tl.load(logsumexp_base + row_base + queries, mask=is_query, other=0.0) * 1.4426950408889634
    delta = tl.load(delta_base + row_base + queries, mask=is_query, other=0.0)
    grad_q = tl.zeros((QUERY_TILE, PADDED_D), tl.float32)
    last = tl.minimum(num_keys, (tile + 1) * QUERY_TILE) if IS_CAUSAL else num_keys
    for start in range(0, last, KEY_TILE):
        keys = start + tl.arange(0, KEY_TILE)
        k = _load(k_base, keys, k_row, num_keys, D, PADDED_D, False)
        v = _load(v_base, keys, v_row, num_keys, D, PADDED_D, False)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * (scale * 1.4426950408889634)
        seen = (keys < num_keys)[None, :]
        if IS_CAUSAL:
            seen = seen & (keys[None, :] <= queries[:, None])
        weights = tl.where(seen, tl.exp2(scores - logsumexp[:, None]), 0.0)
        grad_weights = tl.dot(grad_o, tl.trans(v), input_precision="ieee")
        grad_scores = weights * (grad_weights - delta[:, None])
        grad_q = tl.dot(grad_scores.to(k.dtype), k, grad_q, input_precision="ieee")
    grad_q_base += batch * grad_q_batch + head * grad_q_head
    _store(grad_q_base, grad_q * scale, queries, grad_q_row, num_queries, D, PADDED_D)
