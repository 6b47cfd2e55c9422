"""What the kernels of flash_attention.py share when written for Hopper (H100, H200): blocks, streams, barriers.

In Gluon, Triton's lower level. A block has one warp that only moves tiles into shared memory and two groups of four
warps that only compute, 64 rows each: while one group waits for its matrix products, the other takes exponentials.
The passes are in hopper_forward.py and hopper_backward.py.

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

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier, tma
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from cs336.kernels.tuned import tuned_tiles

LOG2_E = gl.constexpr(math.log2(math.e))
ROWS = gl.constexpr(64)  # of one group: the height of a product of four warps
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
REGISTERS = gl.constexpr((240, 24))  # a thread's: of the second computing group, of the moving warp


def heads_together(device: torch.device, sharers: int, *streamed: Tensor) -> int:
    """How many heads' streams the second-level cache holds at once, `sharers` of them reading one; one at least.

    Blocks of more heads than these would each fetch from memory what others have just fetched.
    """
    of_head = sum(each.shape[2] * each.shape[3] * each.element_size() for each in streamed)
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    return max(1, int(cache * CACHE_SHARE * sharers / of_head))


def streamed(kernel: str, padded: int, q: Tensor) -> tuple[int, int]:
    """Rows of the tiles that stream past, and how many wait, of "forward", "dq" or "dk_dv" on q's GPU."""
    return tuned_tiles(f"hopper {kernel} {padded}", q) or STREAMED[kernel][padded]


def descriptors(rows: int, d_head: int, *tensors: Tensor) -> list[TensorDescriptor]:
    """Of each tensor, for tiles of so many rows and the padded head."""
    block, layout = [1, 1, rows, d_head], _layout(rows, d_head, tensors[0].dtype)
    return [TensorDescriptor(each, list(each.shape), list(each.stride()), block, layout) for each in tensors]


@functools.cache  # at short contexts a step takes as long as the host takes to start it
def _layout(rows: int, d_head: int, dtype: torch.dtype) -> gl.NVMMASharedLayout:
    return gl.NVMMASharedLayout.get_default_for(
        [1, 1, rows, d_head], gl.bfloat16 if dtype == torch.bfloat16 else gl.float16
    )


@gluon.jit
def fetch(tiles, batch, head, row, barrier, target):
    """Begin to fill a tile in shared memory; what lies beyond the sequence or the head arrives as 0."""
    shape: gl.constexpr = tiles.block_type.shape
    tma.async_copy_global_to_shared(
        tiles, [batch, head, row, 0], barrier, target._reinterpret(tiles.dtype, shape, tiles.layout)
    )


@gluon.jit
def send(tiles, batch, head, row, source, values):
    """Store a tile by way of shared memory, without what lies beyond."""
    shape: gl.constexpr = tiles.block_type.shape
    source.store(values.to(tiles.dtype))
    fence_async_shared()
    tma.async_copy_shared_to_global(tiles, [batch, head, row, 0], source._reinterpret(tiles.dtype, shape, tiles.layout))


@gluon.jit
def of_block(num_places, num_tiles, together, LAST_FIRST: gl.constexpr):
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
def barriers_of(NUMBER: gl.constexpr, COUNT: gl.constexpr):
    """Barriers that so many arrivals complete."""
    barriers = gl.allocate_shared_memory(gl.int64, [NUMBER, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(NUMBER):
        mbarrier.init(barriers.index(i), count=COUNT)
    return barriers


@gluon.jit
def key_tiles(first_query, num_keys, KEY_TILE: gl.constexpr, IS_CAUSAL: gl.constexpr):
    """Number of tiles of keys that a block of queries sees, and how many of the last need a mask: one at least."""
    last = num_keys
    num_whole = num_keys // KEY_TILE
    if IS_CAUSAL:
        last = gl.minimum(num_keys, first_query + 2 * ROWS)
        num_whole = gl.minimum(num_keys, first_query + 1) // KEY_TILE
    num_tiles = gl.cdiv(last, KEY_TILE)
    return num_tiles, gl.maximum(1, num_tiles - num_whole)


@gluon.jit
def stream_keys(
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
        fetch(k_tiles, batch, kv_head, row, k_full.index(stage), k.index(stage))
        mbarrier.wait(v_empty.index(stage), phase ^ 1)
        mbarrier.expect(v_full.index(stage), v_tiles.block_type.nbytes)
        fetch(v_tiles, batch, kv_head, row, v_full.index(stage), v.index(stage))
