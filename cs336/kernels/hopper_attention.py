"""The kernels of flash_attention.py written for Hopper (H100, H200) in Gluon, Triton's lower level.

A block has one warp that only moves tiles into shared memory and two groups of four warps that only compute, 64 rows
each: while one group waits for its matrix products, the other takes exponentials. The forward pass also overlaps both
within a group: the product of the next scores runs during the softmax of these.

Source    Shah et al. 2024, arXiv:2407.08608 (FlashAttention-3), sections 3.1 and 3.2.
Layout    (batch, heads, seq, d_head), by descriptors of tiles, each of the four axes as long as it is.
Numerics  as in flash_attention.py: bf16 or fp16 in, statistics and sums in fp32.
Twin      flash_attention.py: the same passes and names, on any GPU and in Triton's interpreter. Gluon has none, so
          these are checked on a GPU only; without one they are compiled, and held to spill nothing (dK and dV of 128
          features a hundred bytes).
Barriers  `full` of a stage: its tiles have arrived. `empty`: both groups are done with them. Waiting for the phase
          before the first passes at once, so that the first round of stages is free.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
import triton
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from cs336.kernels.tuned import tuned_tiles

_LOG2_E = gl.constexpr(math.log2(math.e))
_ROWS = gl.constexpr(64)  # of one group: the height of a product of four warps
GROUPS = 2
TILE = GROUPS * 64  # rows of a block
# Rows of the tiles that stream past, and how many wait in shared memory, by kernel and padded d_head; better ones for
# a GPU come from attention_tiles.json.
STREAMED = {
    "forward": {64: (128, 2), 128: (128, 2)},
    "dq": {64: (128, 2), 128: (64, 2)},
    "dk_dv": {64: (64, 2), 128: (64, 2)},
}
CACHE_SHARE = 0.7  # of the second-level cache, for what the running blocks stream: two heads of 32,768 x 128
_REGISTERS = gl.constexpr((240, 24))  # a thread's: of the second computing group, of the moving warp


def forward(q: Tensor, k: Tensor, v: Tensor, o: Tensor, logsumexp: Tensor, is_causal: bool) -> None:
    """Fill output and logsumexp; all but the latter of 4 dimensions, addresses as descriptors take them."""
    batch, heads, num_queries, d_head = q.shape
    padded = max(64, triton.next_power_of_2(d_head))
    keys, stages = _streamed("forward", padded, q)
    _forward_kernel[(batch * heads * triton.cdiv(num_queries, TILE),)](
        *_descriptors(64, padded, q),
        *_descriptors(keys, padded, k, v),
        *_descriptors(64, padded, o),
        logsumexp,
        batch * heads,
        _heads_together(q.device, heads // k.shape[1], k, v),
        heads,
        heads // k.shape[1],
        num_queries,
        k.shape[2],
        scale=_LOG2_E.value / math.sqrt(d_head),
        D=padded,
        KEY_TILE=keys,
        STAGES=stages,
        IS_CAUSAL=is_causal,
        num_warps=4,
    )


def backward(inputs: list[Tensor], grads: list[Tensor], logsumexp: Tensor, rows: Tensor, is_causal: bool) -> None:
    """Fill the gradients of q, k and v.

    Args:
        inputs: q, k, v, o and the gradient of o.
        rows: (2, batch x heads, queries up to a multiple of a tile), zeros: what the first pass leaves for the second.
    """
    q, k, v, o, grad_o = inputs
    grad_q, grad_k, grad_v = grads
    batch, heads, num_queries, d_head = q.shape
    kv_heads, num_keys = k.shape[1:3]
    padded = max(64, triton.next_power_of_2(d_head))
    numbers = (heads, heads // kv_heads, num_queries, num_keys, rows.shape[-1])
    common: dict[str, Any] = {"scale": 1 / math.sqrt(d_head), "D": padded, "IS_CAUSAL": is_causal, "num_warps": 4}
    tile, stages = _streamed("dq", padded, q)
    _backward_dq_kernel[(batch * heads * triton.cdiv(num_queries, TILE),)](
        *_descriptors(64, padded, q),
        *_descriptors(tile, padded, k, v),
        *_descriptors(64, padded, o, grad_o, grad_q),
        logsumexp,
        rows,
        batch * heads,
        _heads_together(q.device, heads // kv_heads, k, v),
        *numbers,
        KEY_TILE=tile,
        STAGES=stages,
        **common,
    )
    tile, stages = _streamed("dk_dv", padded, q)
    of_rows = gl.NVMMASharedLayout(swizzle_byte_width=0, element_bitwidth=32, rank=1)
    _backward_dk_dv_kernel[(batch * kv_heads * triton.cdiv(num_keys, TILE),)](
        *_descriptors(tile, padded, q),
        *_descriptors(64, padded, k, v),
        *_descriptors(tile, padded, grad_o),
        *_descriptors(64, padded, grad_k, grad_v),
        TensorDescriptor(rows, [rows.numel()], [1], [tile], of_rows),
        batch * kv_heads,
        _heads_together(q.device, 1, q, grad_o),
        *numbers,
        QUERY_TILE=tile,
        STAGES=stages,
        **common,
    )


def _heads_together(device: torch.device, sharers: int, *streamed: Tensor) -> int:
    """How many heads' streams the second-level cache holds at once, `sharers` of them reading one; one at least.

    Blocks of more heads than these would each fetch from memory what others have just fetched.
    """
    of_head = sum(each.shape[2] * each.shape[3] * each.element_size() for each in streamed)
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    return max(1, int(cache * CACHE_SHARE * sharers / of_head))


def _streamed(kernel: str, padded: int, q: Tensor) -> tuple[int, int]:
    return tuned_tiles(f"hopper {kernel} {padded}", q) or STREAMED[kernel][padded]


def _descriptors(rows: int, d_head: int, *tensors: Tensor) -> list[TensorDescriptor]:
    block, layout = [1, 1, rows, d_head], _layout(rows, d_head, tensors[0].dtype)
    return [TensorDescriptor(each, list(each.shape), list(each.stride()), block, layout) for each in tensors]


@functools.cache  # at short contexts a step takes as long as the host takes to start it
def _layout(rows: int, d_head: int, dtype: torch.dtype) -> gl.NVMMASharedLayout:
    return gl.NVMMASharedLayout.get_default_for(
        [1, 1, rows, d_head], gl.bfloat16 if dtype == torch.bfloat16 else gl.float16
    )


@gluon.jit
def _fetch(tiles, batch, head, row, barrier, target):
    """Begin to fill a tile in shared memory; what lies beyond the sequence or the head arrives as 0."""
    shape: gl.constexpr = tiles.block_type.shape
    tma.async_copy_global_to_shared(
        tiles, [batch, head, row, 0], barrier, target._reinterpret(tiles.dtype, shape, tiles.layout)
    )


@gluon.jit
def _send(tiles, batch, head, row, source, values):
    """Store a tile by way of shared memory, without what lies beyond."""
    shape: gl.constexpr = tiles.block_type.shape
    source.store(values.to(tiles.dtype))
    fence_async_shared()
    tma.async_copy_shared_to_global(tiles, [batch, head, row, 0], source._reinterpret(tiles.dtype, shape, tiles.layout))


@gluon.jit
def _of_block(num_places, num_tiles, together, LAST_FIRST: gl.constexpr):
    """The head and the tile of this block: all tiles of some heads, the longest first, then those of the next heads."""
    block = gl.program_id(0)
    section = block // (together * num_tiles)
    within = block % (together * num_tiles)
    together_here = gl.minimum(together, num_places - section * together)
    tile = within // together_here
    if LAST_FIRST:
        tile = num_tiles - 1 - tile
    return section * together + within % together_here, tile


@gluon.jit
def _barriers(NUMBER: gl.constexpr, COUNT: gl.constexpr):
    """Barriers that so many arrivals complete."""
    barriers = gl.allocate_shared_memory(gl.int64, [NUMBER, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(NUMBER):
        mbarrier.init(barriers.index(i), count=COUNT)
    return barriers


@gluon.jit
def _key_tiles(first_query, num_keys, KEY_TILE: gl.constexpr, IS_CAUSAL: gl.constexpr):
    """Number of tiles of keys that a block of queries sees, and how many of the last need a mask: one at least."""
    last = num_keys
    num_whole = num_keys // KEY_TILE
    if IS_CAUSAL:
        last = gl.minimum(num_keys, first_query + 2 * _ROWS)
        num_whole = gl.minimum(num_keys, first_query + 1) // KEY_TILE
    num_tiles = gl.cdiv(last, KEY_TILE)
    return num_tiles, gl.maximum(1, num_tiles - num_whole)


@gluon.jit
def _stream_keys(
    k_tiles,
    v_tiles,
    k,
    v,
    k_full,
    k_empty,
    v_full,
    v_empty,
    batch,
    kv_head,
    num_tiles,
    KEY_TILE: gl.constexpr,
    STAGES: gl.constexpr,
):
    """Fetch all tiles of keys and values, the last first."""
    for i in range(num_tiles):
        stage = i % STAGES
        phase = (i // STAGES) & 1
        row = (num_tiles - 1 - i) * KEY_TILE
        mbarrier.wait(k_empty.index(stage), phase ^ 1)
        mbarrier.expect(k_full.index(stage), k_tiles.block_type.nbytes)
        _fetch(k_tiles, batch, kv_head, row, k_full.index(stage), k.index(stage))
        mbarrier.wait(v_empty.index(stage), phase ^ 1)
        mbarrier.expect(v_full.index(stage), v_tiles.block_type.nbytes)
        _fetch(v_tiles, batch, kv_head, row, v_full.index(stage), v.index(stage))


# ---- forward


@gluon.jit
def _forward_moves(
    q_tiles,
    k_tiles,
    v_tiles,
    q,
    k,
    v,
    q_full,
    k_full,
    k_empty,
    v_full,
    v_empty,
    batch,
    head,
    kv_head,
    first_query,
    num_tiles,
    KEY_TILE: gl.constexpr,
    STAGES: gl.constexpr,
):
    mbarrier.expect(q_full.index(0), 2 * q_tiles.block_type.nbytes)
    for group in gl.static_range(2):
        _fetch(q_tiles, batch, head, first_query + group * _ROWS, q_full.index(0), q.index(group))
    _stream_keys(k_tiles, v_tiles, k, v, k_full, k_empty, v_full, v_empty, batch, kv_head, num_tiles, KEY_TILE, STAGES)


@gluon.jit
def _softmax(
    scores,
    running_max,
    running_sum,
    scale,
    first_row,
    first_key,
    num_keys,
    MASKED: gl.constexpr,
    IS_CAUSAL: gl.constexpr,
    KEY_TILE: gl.constexpr,
    SCORES: gl.constexpr,
):
    """Weights of a tile, the new maximum and sum, and what the old sum and output shrink by; in powers of two."""
    if MASKED:
        queries = first_row + gl.arange(0, _ROWS, gl.SliceLayout(1, SCORES))
        keys = first_key + gl.arange(0, KEY_TILE, gl.SliceLayout(0, SCORES))
        seen = (keys < num_keys)[None, :]
        if IS_CAUSAL:
            seen = seen & (keys[None, :] <= queries[:, None])
        scores = gl.where(seen, scores, float("-inf"))
    new_max = gl.maximum(running_max, gl.max(scores, 1) * scale)
    subtracted = new_max
    if MASKED:  # the last tile may hold no key that a query sees
        subtracted = gl.where(new_max == float("-inf"), 0.0, new_max)
    weights = gl.exp2(scores * scale - subtracted[:, None])
    shrink = gl.exp2(running_max - subtracted)
    return weights, new_max, running_sum * shrink + gl.sum(weights, 1), shrink


@gluon.jit
def _forward_computes(
    group,
    q,
    k,
    v,
    q_full,
    k_full,
    k_empty,
    v_full,
    v_empty,
    o_tiles,
    logsumexp_base,
    batch,
    head,
    place,
    first_query,
    num_tiles,
    num_masked,
    num_queries,
    num_keys,
    scale,
    D: gl.constexpr,
    KEY_TILE: gl.constexpr,
    STAGES: gl.constexpr,
    IS_CAUSAL: gl.constexpr,
):
    """The output of one group's queries. The product of the next scores runs during the softmax of these."""
    SCORES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, KEY_TILE, 16])
    OUTPUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 16])
    WEIGHTS: gl.constexpr = gl.DotOperandLayout(0, OUTPUT, 2)
    first_row = first_query + group * _ROWS
    own_q = q.index(group)
    zeros = gl.zeros([_ROWS, KEY_TILE], gl.float32, SCORES)
    running_max = gl.full([_ROWS], float("-inf"), gl.float32, gl.SliceLayout(1, SCORES))
    running_sum = gl.zeros([_ROWS], gl.float32, gl.SliceLayout(1, SCORES))
    acc = gl.zeros([_ROWS, D], gl.float32, OUTPUT)

    mbarrier.wait(q_full.index(0), 0)
    mbarrier.wait(k_full.index(0), 0)
    scores = warpgroup_mma(own_q, k.index(0).permute((1, 0)), zeros, use_acc=False, is_async=True)
    scores = warpgroup_mma_wait(0, [scores])
    mbarrier.arrive(k_empty.index(0))
    first_key = (num_tiles - 1) * KEY_TILE
    weights, running_max, running_sum, shrink = _softmax(
        scores, running_max, running_sum, scale, first_row, first_key, num_keys, True, IS_CAUSAL, KEY_TILE, SCORES
    )
    operand = gl.convert_layout(weights.to(q.dtype), WEIGHTS)
    for MASKED in gl.static_range(1, -1, -1):
        first = 1 if MASKED else num_masked
        last = num_masked if MASKED else num_tiles
        for i in range(first, last):
            stage = i % STAGES
            before = (i - 1) % STAGES
            mbarrier.wait(k_full.index(stage), (i // STAGES) & 1)
            scores = warpgroup_mma(own_q, k.index(stage).permute((1, 0)), zeros, use_acc=False, is_async=True)
            mbarrier.wait(v_full.index(before), ((i - 1) // STAGES) & 1)
            acc = warpgroup_mma(operand, v.index(before), acc, is_async=True)
            scores = warpgroup_mma_wait(1, [scores])
            mbarrier.arrive(k_empty.index(stage))
            first_key = (num_tiles - 1 - i) * KEY_TILE
            weights, running_max, running_sum, shrink = _softmax(
                scores,
                running_max,
                running_sum,
                scale,
                first_row,
                first_key,
                num_keys,
                MASKED,
                IS_CAUSAL,
                KEY_TILE,
                SCORES,
            )
            acc = warpgroup_mma_wait(0, [acc])
            mbarrier.arrive(v_empty.index(before))
            acc = acc * gl.convert_layout(shrink, gl.SliceLayout(1, OUTPUT))[:, None]
            operand = gl.convert_layout(weights.to(q.dtype), WEIGHTS)
    stage = (num_tiles - 1) % STAGES
    mbarrier.wait(v_full.index(stage), ((num_tiles - 1) // STAGES) & 1)
    acc = warpgroup_mma(operand, v.index(stage), acc, is_async=True)
    acc = warpgroup_mma_wait(0, [acc])

    queries = first_row + gl.arange(0, _ROWS, gl.SliceLayout(1, SCORES))
    logsumexp = (running_max + gl.log2(running_sum)) / _LOG2_E
    gl.store(logsumexp_base + place * num_queries + queries, logsumexp, mask=queries < num_queries)
    acc = acc * gl.convert_layout(1 / running_sum, gl.SliceLayout(1, OUTPUT))[:, None]
    _send(o_tiles, batch, head, first_row, own_q, acc)  # in the place of the queries, which are not needed any more
    tma.store_wait(0)


@gluon.jit
def _forward_kernel(
    q_tiles,
    k_tiles,
    v_tiles,
    o_tiles,
    logsumexp_base,
    num_places,
    together,
    heads,
    group,
    num_queries,
    num_keys,
    scale,
    D: gl.constexpr,
    KEY_TILE: gl.constexpr,
    STAGES: gl.constexpr,
    IS_CAUSAL: gl.constexpr,
):
    """One tile of queries of one head. The tiles with the most keys start first, so that none is left over alone."""
    place, tile = _of_block(num_places, gl.cdiv(num_queries, 2 * _ROWS), together, LAST_FIRST=IS_CAUSAL)
    batch, head = place // heads, place % heads
    place = place.to(gl.int64)
    first_query = tile * 2 * _ROWS
    num_tiles, num_masked = _key_tiles(first_query, num_keys, KEY_TILE, IS_CAUSAL)
    layout: gl.constexpr = gl.NVMMASharedLayout.get_default_for([KEY_TILE, D], q_tiles.dtype)
    q = gl.allocate_shared_memory(q_tiles.dtype, [2, _ROWS, D], layout)
    k = gl.allocate_shared_memory(q_tiles.dtype, [STAGES, KEY_TILE, D], layout)
    v = gl.allocate_shared_memory(q_tiles.dtype, [STAGES, KEY_TILE, D], layout)
    q_full = _barriers(1, 1)
    k_full, k_empty = _barriers(STAGES, 1), _barriers(STAGES, 2)
    v_full, v_empty = _barriers(STAGES, 1), _barriers(STAGES, 2)
    fence_async_shared()
    # fmt: off
    gl.warp_specialize(
        [
            (_forward_computes, (
                0, q, k, v, q_full, k_full, k_empty, v_full, v_empty, o_tiles, logsumexp_base, batch, head, place,
                first_query, num_tiles, num_masked, num_queries, num_keys, scale, D, KEY_TILE, STAGES, IS_CAUSAL,
            )),
            (_forward_computes, (
                1, q, k, v, q_full, k_full, k_empty, v_full, v_empty, o_tiles, logsumexp_base, batch, head, place,
                first_query, num_tiles, num_masked, num_queries, num_keys, scale, D, KEY_TILE, STAGES, IS_CAUSAL,
            )),
            (_forward_moves, (
                q_tiles, k_tiles, v_tiles, q, k, v, q_full, k_full, k_empty, v_full, v_empty, batch, head,
                head // group, first_query, num_tiles, KEY_TILE, STAGES,
            )),
        ],
        [4, 1],
        _REGISTERS,
    )
    # fmt: on


# ---- backward: dQ


@gluon.jit
def _dq_moves(
    q_tiles,
    k_tiles,
    v_tiles,
    o_tiles,
    grad_o_tiles,
    q,
    o,
    grad_o,
    k,
    v,
    rows_full,
    k_full,
    k_empty,
    v_full,
    v_empty,
    batch,
    head,
    kv_head,
    first_query,
    num_tiles,
    KEY_TILE: gl.constexpr,
    STAGES: gl.constexpr,
):
    barrier = rows_full.index(0)
    mbarrier.expect(barrier, 6 * q_tiles.block_type.nbytes)
    for group in gl.static_range(2):
        row = first_query + group * _ROWS
        _fetch(o_tiles, batch, head, row, barrier, o.index(group))
        _fetch(grad_o_tiles, batch, head, row, barrier, grad_o.index(group))
        _fetch(q_tiles, batch, head, row, barrier, q.index(group))
    _stream_keys(k_tiles, v_tiles, k, v, k_full, k_empty, v_full, v_empty, batch, kv_head, num_tiles, KEY_TILE, STAGES)


@gluon.jit
def _dq_computes(
    group,
    q,
    o,
    grad_o,
    k,
    v,
    rows_full,
    k_full,
    k_empty,
    v_full,
    v_empty,
    grad_q_tiles,
    logsumexp_base,
    rows_base,
    batch,
    head,
    place,
    num_places,
    first_query,
    num_tiles,
    num_masked,
    num_queries,
    num_keys,
    padded_queries,
    scale,
    D: gl.constexpr,
    KEY_TILE: gl.constexpr,
    STAGES: gl.constexpr,
    IS_CAUSAL: gl.constexpr,
):
    """dQ of one group's queries; leaves their numbers for the second pass.

    No product is in flight from one turn of the loop to the next: ptxas would serialize all of them.
    """
    SCORES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, KEY_TILE, 16])
    OUTPUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 16])
    WEIGHTS: gl.constexpr = gl.DotOperandLayout(0, OUTPUT, 2)
    first_row = first_query + group * _ROWS
    queries = first_row + gl.arange(0, _ROWS, gl.SliceLayout(1, SCORES))
    is_query = queries < num_queries
    logsumexp = gl.load(logsumexp_base + place * num_queries + queries, mask=is_query, other=0.0) * _LOG2_E
    gl.store(rows_base + place * padded_queries + queries, logsumexp, mask=is_query)
    mbarrier.wait(rows_full.index(0), 0)
    own_q, own_o, own_grad_o = q.index(group), o.index(group), grad_o.index(group)
    delta = gl.sum(own_o.load(OUTPUT).to(gl.float32) * own_grad_o.load(OUTPUT).to(gl.float32), 1)
    delta = gl.convert_layout(delta, gl.SliceLayout(1, SCORES))
    gl.store(rows_base + (num_places + place) * padded_queries + queries, delta, mask=is_query)
    zeros = gl.zeros([_ROWS, KEY_TILE], gl.float32, SCORES)
    grad_q = gl.zeros([_ROWS, D], gl.float32, OUTPUT)
    for MASKED in gl.static_range(1, -1, -1):
        first = 0 if MASKED else num_masked
        last = num_masked if MASKED else num_tiles
        for i in range(first, last):
            stage = i % STAGES
            phase = (i // STAGES) & 1
            mbarrier.wait(k_full.index(stage), phase)
            scores = warpgroup_mma(own_q, k.index(stage).permute((1, 0)), zeros, use_acc=False, is_async=True)
            mbarrier.wait(v_full.index(stage), phase)
            grad_weights = warpgroup_mma(
                own_grad_o, v.index(stage).permute((1, 0)), zeros, use_acc=False, is_async=True
            )
            scores = warpgroup_mma_wait(1, [scores])
            weights = gl.exp2(scores * (scale * _LOG2_E) - logsumexp[:, None])
            if MASKED:
                keys = (num_tiles - 1 - i) * KEY_TILE + gl.arange(0, KEY_TILE, gl.SliceLayout(0, SCORES))
                seen = (keys < num_keys)[None, :]
                if IS_CAUSAL:
                    seen = seen & (keys[None, :] <= queries[:, None])
                weights = gl.where(seen, weights, 0.0)
            grad_weights = warpgroup_mma_wait(0, [grad_weights])
            mbarrier.arrive(v_empty.index(stage))
            grad_scores = gl.convert_layout((weights * (grad_weights - delta[:, None])).to(q.dtype), WEIGHTS)
            grad_q = warpgroup_mma(grad_scores, k.index(stage), grad_q, is_async=True)
            grad_q = warpgroup_mma_wait(0, [grad_q])
            mbarrier.arrive(k_empty.index(stage))
    _send(grad_q_tiles, batch, head, first_row, own_o, grad_q * scale)
    tma.store_wait(0)


@gluon.jit
def _backward_dq_kernel(
    q_tiles,
    k_tiles,
    v_tiles,
    o_tiles,
    grad_o_tiles,
    grad_q_tiles,
    logsumexp_base,
    rows_base,
    num_places,
    together,
    heads,
    group,
    num_queries,
    num_keys,
    padded_queries,
    scale,
    D: gl.constexpr,
    KEY_TILE: gl.constexpr,
    STAGES: gl.constexpr,
    IS_CAUSAL: gl.constexpr,
):
    """One tile of queries of one head, over all keys that it sees."""
    place, tile = _of_block(num_places, gl.cdiv(num_queries, 2 * _ROWS), together, LAST_FIRST=IS_CAUSAL)
    batch, head = place // heads, place % heads
    place = place.to(gl.int64)
    first_query = tile * 2 * _ROWS
    num_tiles, num_masked = _key_tiles(first_query, num_keys, KEY_TILE, IS_CAUSAL)
    layout: gl.constexpr = gl.NVMMASharedLayout.get_default_for([KEY_TILE, D], q_tiles.dtype)
    q = gl.allocate_shared_memory(q_tiles.dtype, [2, _ROWS, D], layout)
    o = gl.allocate_shared_memory(q_tiles.dtype, [2, _ROWS, D], layout)
    grad_o = gl.allocate_shared_memory(q_tiles.dtype, [2, _ROWS, D], layout)
    k = gl.allocate_shared_memory(q_tiles.dtype, [STAGES, KEY_TILE, D], layout)
    v = gl.allocate_shared_memory(q_tiles.dtype, [STAGES, KEY_TILE, D], layout)
    rows_full = _barriers(1, 1)
    k_full, k_empty = _barriers(STAGES, 1), _barriers(STAGES, 2)
    v_full, v_empty = _barriers(STAGES, 1), _barriers(STAGES, 2)
    fence_async_shared()
    # fmt: off
    gl.warp_specialize(
        [
            (_dq_computes, (
                0, q, o, grad_o, k, v, rows_full, k_full, k_empty, v_full, v_empty, grad_q_tiles, logsumexp_base,
                rows_base, batch, head, place, num_places, first_query, num_tiles, num_masked, num_queries, num_keys,
                padded_queries, scale, D, KEY_TILE, STAGES, IS_CAUSAL,
            )),
            (_dq_computes, (
                1, q, o, grad_o, k, v, rows_full, k_full, k_empty, v_full, v_empty, grad_q_tiles, logsumexp_base,
                rows_base, batch, head, place, num_places, first_query, num_tiles, num_masked, num_queries, num_keys,
                padded_queries, scale, D, KEY_TILE, STAGES, IS_CAUSAL,
            )),
            (_dq_moves, (
                q_tiles, k_tiles, v_tiles, o_tiles, grad_o_tiles, q, o, grad_o, k, v, rows_full, k_full, k_empty,
                v_full, v_empty, batch, head, head // group, first_query, num_tiles, KEY_TILE, STAGES,
            )),
        ],
        [4, 1],
        _REGISTERS,
    )
    # fmt: on


# ---- backward: dK and dV


@gluon.jit
def _dk_dv_moves(
    q_tiles,
    k_tiles,
    v_tiles,
    grad_o_tiles,
    rows,
    k,
    v,
    q,
    grad_o,
    logsumexp,
    delta,
    keys_full,
    full,
    empty,
    batch,
    kv_head,
    heads,
    group,
    first_key,
    first_tile,
    num_tiles,
    num_rows,
    padded_queries,
    QUERY_TILE: gl.constexpr,
    STAGES: gl.constexpr,
):
    mbarrier.expect(keys_full.index(0), 4 * k_tiles.block_type.nbytes)
    for half in gl.static_range(2):
        row = first_key + half * _ROWS
        _fetch(k_tiles, batch, kv_head, row, keys_full.index(0), k.index(half))
        _fetch(v_tiles, batch, kv_head, row, keys_full.index(0), v.index(half))
    i = 0
    for member in range(group):
        head = kv_head * group + member
        for tile in range(first_tile, num_tiles):
            stage = i % STAGES
            barrier = full.index(stage)
            row = tile * QUERY_TILE
            place = (batch * heads + head) * padded_queries + row
            mbarrier.wait(empty.index(stage), ((i // STAGES) & 1) ^ 1)
            mbarrier.expect(barrier, 2 * q_tiles.block_type.nbytes + 2 * rows.block_type.nbytes)
            _fetch(q_tiles, batch, head, row, barrier, q.index(stage))
            tma.async_copy_global_to_shared(rows, [place], barrier, logsumexp.index(stage))
            _fetch(grad_o_tiles, batch, head, row, barrier, grad_o.index(stage))
            tma.async_copy_global_to_shared(rows, [num_rows + place], barrier, delta.index(stage))
            i += 1


@gluon.jit
def _dk_dv_computes(
    half,
    k,
    v,
    q,
    grad_o,
    logsumexp,
    delta,
    keys_full,
    full,
    empty,
    grad_k_tiles,
    grad_v_tiles,
    batch,
    kv_head,
    group,
    first_key,
    first_tile,
    first_whole,
    num_tiles,
    scale,
    D: gl.constexpr,
    QUERY_TILE: gl.constexpr,
    STAGES: gl.constexpr,
    IS_CAUSAL: gl.constexpr,
):
    """dK and dV of half a tile of keys; scores are transposed, so that weights go into the next product as they are."""
    SCORES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, QUERY_TILE, 16])
    OUTPUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 16])
    WEIGHTS: gl.constexpr = gl.DotOperandLayout(0, OUTPUT, 2)
    first_row = first_key + half * _ROWS
    keys = first_row + gl.arange(0, _ROWS, gl.SliceLayout(1, SCORES))
    own_k, own_v = k.index(half), v.index(half)
    zeros = gl.zeros([_ROWS, QUERY_TILE], gl.float32, SCORES)
    grad_k = gl.zeros([_ROWS, D], gl.float32, OUTPUT)
    grad_v = gl.zeros([_ROWS, D], gl.float32, OUTPUT)
    mbarrier.wait(keys_full.index(0), 0)
    rows_k, rows_v = own_k, own_v
    if D == 64:  # small enough to stay in registers, which are read faster than shared memory
        rows_k = own_k.load(gl.DotOperandLayout(0, SCORES, 2))
        rows_v = own_v.load(gl.DotOperandLayout(0, SCORES, 2))
    i = 0
    for _member in range(group):
        for MASKED in gl.static_range(1 if IS_CAUSAL else 0, -1, -1):
            first = first_tile if MASKED else first_whole
            last = first_whole if MASKED else num_tiles
            for tile in range(first, last):
                stage = i % STAGES
                mbarrier.wait(full.index(stage), (i // STAGES) & 1)
                scores = warpgroup_mma(rows_k, q.index(stage).permute((1, 0)), zeros, use_acc=False, is_async=True)
                grad_weights = warpgroup_mma(
                    rows_v, grad_o.index(stage).permute((1, 0)), zeros, use_acc=False, is_async=True
                )
                of_rows = logsumexp.index(stage).load(gl.SliceLayout(0, SCORES))
                scores = warpgroup_mma_wait(1, [scores])
                weights = gl.exp2(scores * (scale * _LOG2_E) - of_rows[None, :])
                if MASKED:
                    queries = tile * QUERY_TILE + gl.arange(0, QUERY_TILE, gl.SliceLayout(0, SCORES))
                    weights = gl.where(keys[:, None] <= queries[None, :], weights, 0.0)
                operand = gl.convert_layout(weights.to(q.dtype), WEIGHTS)
                grad_v = warpgroup_mma(operand, grad_o.index(stage), grad_v, is_async=True)
                of_rows = delta.index(stage).load(gl.SliceLayout(0, SCORES))
                grad_weights = warpgroup_mma_wait(1, [grad_weights])
                grad_scores = (weights * (grad_weights - of_rows[None, :])).to(q.dtype)
                grad_k = warpgroup_mma(gl.convert_layout(grad_scores, WEIGHTS), q.index(stage), grad_k, is_async=True)
                grad_v, grad_k = warpgroup_mma_wait(0, [grad_v, grad_k])
                mbarrier.arrive(empty.index(stage))
                i += 1
    _send(grad_k_tiles, batch, kv_head, first_row, own_k, grad_k * scale)
    _send(grad_v_tiles, batch, kv_head, first_row, own_v, grad_v)
    tma.store_wait(0)


@gluon.jit
def _backward_dk_dv_kernel(
    q_tiles,
    k_tiles,
    v_tiles,
    grad_o_tiles,
    grad_k_tiles,
    grad_v_tiles,
    rows,
    num_places,
    together,
    heads,
    group,
    num_queries,
    num_keys,
    padded_queries,
    scale,
    D: gl.constexpr,
    QUERY_TILE: gl.constexpr,
    STAGES: gl.constexpr,
    IS_CAUSAL: gl.constexpr,
):
    """One tile of keys of one head, over all queries of the heads that read it.

    Queries beyond the end and their gradients are 0, and so is what they add; keys beyond it are not stored.
    """
    kv_heads = heads // group
    place, tile = _of_block(num_places, gl.cdiv(num_keys, 2 * _ROWS), together, LAST_FIRST=False)
    batch, kv_head = place // kv_heads, place % kv_heads
    first_key = tile * 2 * _ROWS
    num_tiles = gl.cdiv(num_queries, QUERY_TILE)
    first_tile, first_whole = 0, 0  # queries before see none of these keys; those from here on see all of them
    if IS_CAUSAL:
        first_tile = first_key // QUERY_TILE
        first_whole = gl.minimum(gl.cdiv(first_key + 2 * _ROWS, QUERY_TILE), num_tiles)
    num_rows = num_places * group * padded_queries
    layout: gl.constexpr = gl.NVMMASharedLayout.get_default_for([_ROWS, D], q_tiles.dtype)
    k = gl.allocate_shared_memory(q_tiles.dtype, [2, _ROWS, D], layout)
    v = gl.allocate_shared_memory(q_tiles.dtype, [2, _ROWS, D], layout)
    q = gl.allocate_shared_memory(q_tiles.dtype, [STAGES, QUERY_TILE, D], layout)
    grad_o = gl.allocate_shared_memory(q_tiles.dtype, [STAGES, QUERY_TILE, D], layout)
    logsumexp = gl.allocate_shared_memory(gl.float32, [STAGES, QUERY_TILE], rows.layout)
    delta = gl.allocate_shared_memory(gl.float32, [STAGES, QUERY_TILE], rows.layout)
    keys_full = _barriers(1, 1)
    full, empty = _barriers(STAGES, 1), _barriers(STAGES, 2)
    fence_async_shared()
    # fmt: off
    gl.warp_specialize(
        [
            (_dk_dv_computes, (
                0, k, v, q, grad_o, logsumexp, delta, keys_full, full, empty, grad_k_tiles, grad_v_tiles, batch,
                kv_head, group, first_key, first_tile, first_whole, num_tiles, scale, D, QUERY_TILE, STAGES, IS_CAUSAL,
            )),
            (_dk_dv_computes, (
                1, k, v, q, grad_o, logsumexp, delta, keys_full, full, empty, grad_k_tiles, grad_v_tiles, batch,
                kv_head, group, first_key, first_tile, first_whole, num_tiles, scale, D, QUERY_TILE, STAGES, IS_CAUSAL,
            )),
            (_dk_dv_moves, (
                q_tiles, k_tiles, v_tiles, grad_o_tiles, rows, k, v, q, grad_o, logsumexp, delta, keys_full, full,
                empty, batch, kv_head, heads, group, first_key, first_tile, num_tiles, num_rows, padded_queries,
                QUERY_TILE, STAGES,
            )),
        ],
        [4, 1],
        _REGISTERS,
    )
    # fmt: on
