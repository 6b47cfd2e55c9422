"""Attention of one new token in each of many cached sequences of different lengths, in Triton; for generation.

The new token's key and value are put into the cache by the same kernel.

Source    the forward pass of Dao 2023, arXiv:2307.08691, with the heads that share keys in place of a tile of queries.
Layout    queries (batch, heads, d); new keys and values (batch, kv_heads, d); cache (batch, kv_heads, capacity, d) of
          any strides but the last, which is 1.
Numerics  bf16, fp16, fp32 in and out; softmax statistics and sums in fp32.
Accepts   d of 16, 32, 64 or 128; else ValueError (`takes` tells before).
Reads     the filled part of the cache alone, each key and value once. One program a sequence and key-value head, so a
          few very long sequences leave most of a GPU idle.
Twin      model/attention.py, masked_decode_attention: a mask over the whole capacity, which was written before.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float, Int

_KEYS = 64  # of one step; not tuned
_WIDTHS = (16, 32, 64, 128)


def takes(d_head: int) -> bool:
    """Whether there is a kernel for heads of this width."""
    return d_head in _WIDTHS


def decode_attention(
    queries: Float[Tensor, "batch heads d"],
    new_keys: Float[Tensor, "batch kv_heads d"],
    new_values: Float[Tensor, "batch kv_heads d"],
    keys: Float[Tensor, "batch kv_heads capacity d"],
    values: Float[Tensor, "batch kv_heads capacity d"],
    lengths: Int[Tensor, " batch"],
) -> Float[Tensor, "batch heads d"]:
    """`softmax(q K^T / sqrt(d)) V` over the first `lengths` positions of each sequence and a new one, put behind them.

    It has no gradient.

    Args:
        keys, values: the cache; gets the new ones at position `lengths` of each sequence.
        lengths: positions filled before; at most `capacity` - 1, which nobody checks. Stays on the device.

    Raises:
        ValueError: shapes that do not fit, or a width without a kernel.
    """
    batch, heads, d = queries.shape
    kv_heads = keys.shape[1]
    if keys.shape != values.shape or keys.shape[0] != batch or keys.shape[-1] != d or heads % kv_heads:
        raise ValueError(f"queries {tuple(queries.shape)} do not fit {tuple(keys.shape)}, {tuple(values.shape)}")
    if new_keys.shape != (batch, kv_heads, d) or new_values.shape != new_keys.shape:
        shapes = tuple(new_keys.shape), tuple(new_values.shape)
        raise ValueError(f"new keys and values {shapes} do not fit a cache of {tuple(keys.shape)}")
    if not takes(d) or keys.stride(-1) != 1 or values.stride() != keys.stride():
        raise ValueError(f"heads of {d} features with strides {keys.stride()}; the kernel takes {_WIDTHS}, contiguous")
    queries, new_keys, new_values = queries.contiguous(), new_keys.contiguous(), new_values.contiguous()
    attended = torch.empty_like(queries)
    group = heads // kv_heads
    _decode_kernel[(batch * kv_heads,)](
        queries,
        new_keys,
        new_values,
        keys,
        values,
        attended,
        lengths,
        *keys.stride()[:3],
        kv_heads,
        scale=math.log2(math.e) / math.sqrt(d),
        GROUP=group,
        PADDED=max(16, triton.next_power_of_2(group)),  # the least that a matrix product takes
        WIDTH=d,
        KEYS=_KEYS,
    )
    return attended


@triton.jit
def _decode_kernel(
    queries_base,
    new_keys_base,
    new_values_base,
    keys_base,
    values_base,
    attended_base,
    lengths_base,
    stride_row,
    stride_head,
    stride_place,
    kv_heads,
    scale,
    GROUP: tl.constexpr,
    PADDED: tl.constexpr,
    WIDTH: tl.constexpr,
    KEYS: tl.constexpr,
):
    """All heads that share one head of keys, in one sequence."""
    row, head = (tl.program_id(0) // kv_heads).to(tl.int64), (tl.program_id(0) % kv_heads).to(tl.int64)
    length = tl.load(lengths_base + row)
    features = tl.arange(0, WIDTH)
    members = tl.arange(0, PADDED)[:, None]
    of_group = (tl.program_id(0).to(tl.int64) * GROUP + members) * WIDTH + features[None, :]
    queries = tl.load(queries_base + of_group, mask=members < GROUP, other=0.0)  # (PADDED, WIDTH)
    keys_base += row * stride_row + head * stride_head
    values_base += row * stride_row + head * stride_head
    # The new token is first, from where it came: what this kernel writes to the cache it does not read there.
    of_new = tl.program_id(0).to(tl.int64) * WIDTH + features
    new_key = tl.load(new_keys_base + of_new).to(keys_base.dtype.element_ty)
    new_value = tl.load(new_values_base + of_new).to(values_base.dtype.element_ty)
    tl.store(keys_base + length * stride_place + features, new_key)
    tl.store(values_base + length * stride_place + features, new_value)
    largest = tl.sum(queries.to(tl.float32) * new_key.to(tl.float32)[None, :], axis=1) * scale  # in powers of two
    total = tl.full((PADDED,), 1.0, tl.float32)
    attended = tl.zeros((PADDED, WIDTH), tl.float32) + new_value.to(tl.float32)[None, :]
    for start in range(0, length, KEYS):
        places = (start + tl.arange(0, KEYS)).to(tl.int64)[:, None]
        inside = places < length
        keys = tl.load(keys_base + places * stride_place + features[None, :], mask=inside, other=0.0)
        scores = tl.dot(queries, tl.trans(keys), input_precision="ieee") * scale
        scores = tl.where(tl.trans(inside), scores, float("-inf"))
        new_largest = tl.maximum(largest, tl.max(scores, axis=1))
        weights = tl.exp2(scores - new_largest[:, None])
        correction = tl.exp2(largest - new_largest)
        values = tl.load(values_base + places * stride_place + features[None, :], mask=inside, other=0.0)
        attended = attended * correction[:, None] + tl.dot(weights.to(values.dtype), values, input_precision="ieee")
        total = total * correction + tl.sum(weights, axis=1)
        largest = new_largest
    attended = attended / total[:, None]
    tl.store(attended_base + of_group, attended.to(attended_base.dtype.element_ty), mask=members < GROUP)
