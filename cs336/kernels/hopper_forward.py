"""Attention's forward pass on Hopper; hopper_tiles.py says how such a block works.

The passes overlap within a group of warps, too: the product of the next scores runs during the softmax of these.
"""

from __future__ import annotations

import math

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

from cs336.kernels.hopper_tiles import (
    LOG2_E,
    REGISTERS,
    ROWS,
    TILE,
    barriers_of,
    descriptors,
    fetch,
    heads_together,
    key_tiles,
    of_block,
    send,
    stream_keys,
    streamed,
)


def forward(q: Tensor, k: Tensor, v: Tensor, o: Tensor, logsumexp: Tensor, is_causal: bool) -> None:
    """Fill output and logsumexp; all but the latter of 4 dimensions, addresses as descriptors take them."""
    batch, heads, num_queries, d_head = q.shape
    padded = max(64, triton.next_power_of_2(d_head))
    keys, stages = streamed("forward", padded, q)
    _forward_kernel[(batch * heads * triton.cdiv(num_queries, TILE),)](
        *descriptors(64, padded, q),
        *descriptors(keys, padded, k, v),
        *descriptors(64, padded, o),
        logsumexp,
        batch * heads,
        heads_together(q.device, heads // k.shape[1], k, v),
        heads,
        heads // k.shape[1],
        num_queries,
        k.shape[2],
        scale=LOG2_E.value / math.sqrt(d_head),
        D=padded,
        KEY_TILE=keys,
        STAGES=stages,
        IS_CAUSAL=is_causal,
        num_warps=4,
    )


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
        fetch(q_tiles, batch, head, first_query + group * ROWS, q_full.index(0), q.index(group))
    stream_keys(k_tiles, v_tiles, k, v, k_full, k_empty, v_full, v_empty, batch, kv_head, num_tiles, KEY_TILE, STAGES)


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
        queries = first_row + gl.arange(0, ROWS, gl.SliceLayout(1, SCORES))
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
    first_row = first_query + group * ROWS
    own_q = q.index(group)
    zeros = gl.zeros([ROWS, KEY_TILE], gl.float32, SCORES)
    running_max = gl.full([ROWS], float("-inf"), gl.float32, gl.SliceLayout(1, SCORES))
    running_sum = gl.zeros([ROWS], gl.float32, gl.SliceLayout(1, SCORES))
    acc = gl.zeros([ROWS, D], gl.float32, OUTPUT)

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

    queries = first_row + gl.arange(0, ROWS, gl.SliceLayout(1, SCORES))
    logsumexp = (running_max + gl.log2(running_sum)) / LOG2_E
    gl.store(logsumexp_base + place * num_queries + queries, logsumexp, mask=queries < num_queries)
    acc = acc * gl.convert_layout(1 / running_sum, gl.SliceLayout(1, OUTPUT))[:, None]
    send(o_tiles, batch, head, first_row, own_q, acc)  # in the place of the queries, which are not needed any more
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
    place, tile = of_block(num_places, gl.cdiv(num_queries, 2 * ROWS), together, LAST_FIRST=IS_CAUSAL)
    batch, head = place // heads, place % heads
    place = place.to(gl.int64)
    first_query = tile * 2 * ROWS
    num_tiles, num_masked = key_tiles(first_query, num_keys, KEY_TILE, IS_CAUSAL)
    layout: gl.constexpr = gl.NVMMASharedLayout.get_default_for([KEY_TILE, D], q_tiles.dtype)
    q = gl.allocate_shared_memory(q_tiles.dtype, [2, ROWS, D], layout)
    k = gl.allocate_shared_memory(q_tiles.dtype, [STAGES, KEY_TILE, D], layout)
    v = gl.allocate_shared_memory(q_tiles.dtype, [STAGES, KEY_TILE, D], layout)
    q_full = barriers_of(1, 1)
    k_full, k_empty = barriers_of(STAGES, 1), barriers_of(STAGES, 2)
    v_full, v_empty = barriers_of(STAGES, 1), barriers_of(STAGES, 2)
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
        REGISTERS,
    )
    # fmt: on
