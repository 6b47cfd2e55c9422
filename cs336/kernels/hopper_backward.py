"""Attention's backward pass on Hopper, in two passes over the scores; hopper_tiles.py says how such a block works."""

from __future__ import annotations

import math
from typing import Any

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
    tile, stages = streamed("dq", padded, q)
    _backward_dq_kernel[(batch * heads * triton.cdiv(num_queries, TILE),)](
        *descriptors(64, padded, q),
        *descriptors(tile, padded, k, v),
        *descriptors(64, padded, o, grad_o, grad_q),
        logsumexp,
        rows,
        batch * heads,
        heads_together(q.device, heads // kv_heads, k, v),
        *numbers,
        KEY_TILE=tile,
        STAGES=stages,
        **common,
    )
    tile, stages = streamed("dk_dv", padded, q)
    of_rows = gl.NVMMASharedLayout(swizzle_byte_width=0, element_bitwidth=32, rank=1)
    _backward_dk_dv_kernel[(batch * kv_heads * triton.cdiv(num_keys, TILE),)](
        *descriptors(tile, padded, q),
        *descriptors(64, padded, k, v),
        *descriptors(tile, padded, grad_o),
        *descriptors(64, padded, grad_k, grad_v),
        TensorDescriptor(rows, [rows.numel()], [1], [tile], of_rows),
        batch * kv_heads,
        heads_together(q.device, 1, q, grad_o),
        *numbers,
        QUERY_TILE=tile,
        STAGES=stages,
        **common,
    )


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
        row = first_query + group * ROWS
        fetch(o_tiles, batch, head, row, barrier, o.index(group))
        fetch(grad_o_tiles, batch, head, row, barrier, grad_o.index(group))
        fetch(q_tiles, batch, head, row, barrier, q.index(group))
    stream_keys(k_tiles, v_tiles, k, v, k_full, k_empty, v_full, v_empty, batch, kv_head, num_tiles, KEY_TILE, STAGES)


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
    first_row = first_query + group * ROWS
    queries = first_row + gl.arange(0, ROWS, gl.SliceLayout(1, SCORES))
    is_query = queries < num_queries
    logsumexp = gl.load(logsumexp_base + place * num_queries + queries, mask=is_query, other=0.0) * LOG2_E
    gl.store(rows_base + place * padded_queries + queries, logsumexp, mask=is_query)
    mbarrier.wait(rows_full.index(0), 0)
    own_q, own_o, own_grad_o = q.index(group), o.index(group), grad_o.index(group)
    delta = gl.sum(own_o.load(OUTPUT).to(gl.float32) * own_grad_o.load(OUTPUT).to(gl.float32), 1)
    delta = gl.convert_layout(delta, gl.SliceLayout(1, SCORES))
    gl.store(rows_base + (num_places + place) * padded_queries + queries, delta, mask=is_query)
    zeros = gl.zeros([ROWS, KEY_TILE], gl.float32, SCORES)
    grad_q = gl.zeros([ROWS, D], gl.float32, OUTPUT)
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
            weights = gl.exp2(scores * (scale * LOG2_E) - logsumexp[:, None])
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
    send(grad_q_tiles, batch, head, first_row, own_o, grad_q * scale)
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
    place, tile = of_block(num_places, gl.cdiv(num_queries, 2 * ROWS), together, LAST_FIRST=IS_CAUSAL)
    batch, head = place // heads, place % heads
    place = place.to(gl.int64)
    first_query = tile * 2 * ROWS
    num_tiles, num_masked = key_tiles(first_query, num_keys, KEY_TILE, IS_CAUSAL)
    layout: gl.constexpr = gl.NVMMASharedLayout.get_default_for([KEY_TILE, D], q_tiles.dtype)
    q = gl.allocate_shared_memory(q_tiles.dtype, [2, ROWS, D], layout)
    o = gl.allocate_shared_memory(q_tiles.dtype, [2, ROWS, D], layout)
    grad_o = gl.allocate_shared_memory(q_tiles.dtype, [2, ROWS, D], layout)
    k = gl.allocate_shared_memory(q_tiles.dtype, [STAGES, KEY_TILE, D], layout)
    v = gl.allocate_shared_memory(q_tiles.dtype, [STAGES, KEY_TILE, D], layout)
    rows_full = barriers_of(1, 1)
    k_full, k_empty = barriers_of(STAGES, 1), barriers_of(STAGES, 2)
    v_full, v_empty = barriers_of(STAGES, 1), barriers_of(STAGES, 2)
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
        REGISTERS,
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
        row = first_key + half * ROWS
        fetch(k_tiles, batch, kv_head, row, keys_full.index(0), k.index(half))
        fetch(v_tiles, batch, kv_head, row, keys_full.index(0), v.index(half))
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
            fetch(q_tiles, batch, head, row, barrier, q.index(stage))
            tma.async_copy_global_to_shared(rows, [place], barrier, logsumexp.index(stage))
            fetch(grad_o_tiles, batch, head, row, barrier, grad_o.index(stage))
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
    first_row = first_key + half * ROWS
    keys = first_row + gl.arange(0, ROWS, gl.SliceLayout(1, SCORES))
    own_k, own_v = k.index(half), v.index(half)
    zeros = gl.zeros([ROWS, QUERY_TILE], gl.float32, SCORES)
    grad_k = gl.zeros([ROWS, D], gl.float32, OUTPUT)
    grad_v = gl.zeros([ROWS, D], gl.float32, OUTPUT)
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
                weights = gl.exp2(scores * (scale * LOG2_E) - of_rows[None, :])
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
    send(grad_k_tiles, batch, kv_head, first_row, own_k, grad_k * scale)
    send(grad_v_tiles, batch, kv_head, first_row, own_v, grad_v)
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
    place, tile = of_block(num_places, gl.cdiv(num_keys, 2 * ROWS), together, LAST_FIRST=False)
    batch, kv_head = place // kv_heads, place % kv_heads
    first_key = tile * 2 * ROWS
    num_tiles = gl.cdiv(num_queries, QUERY_TILE)
    first_tile, first_whole = 0, 0  # queries before see none of these keys; those from here on see all of them
    if IS_CAUSAL:
        first_tile = first_key // QUERY_TILE
        first_whole = gl.minimum(gl.cdiv(first_key + 2 * ROWS, QUERY_TILE), num_tiles)
    num_rows = num_places * group * padded_queries
    layout: gl.constexpr = gl.NVMMASharedLayout.get_default_for([ROWS, D], q_tiles.dtype)
    k = gl.allocate_shared_memory(q_tiles.dtype, [2, ROWS, D], layout)
    v = gl.allocate_shared_memory(q_tiles.dtype, [2, ROWS, D], layout)
    q = gl.allocate_shared_memory(q_tiles.dtype, [STAGES, QUERY_TILE, D], layout)
    grad_o = gl.allocate_shared_memory(q_tiles.dtype, [STAGES, QUERY_TILE, D], layout)
    logsumexp = gl.allocate_shared_memory(gl.float32, [STAGES, QUERY_TILE], rows.layout)
    delta = gl.allocate_shared_memory(gl.float32, [STAGES, QUERY_TILE], rows.layout)
    keys_full = barriers_of(1, 1)
    full, empty = barriers_of(STAGES, 1), barriers_of(STAGES, 2)
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
        REGISTERS,
    )
    # fmt: on
