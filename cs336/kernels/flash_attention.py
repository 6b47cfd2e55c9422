"""FlashAttention-2 in Triton: exact attention, causal or full, forward and backward.

Source    Dao 2023, arXiv:2307.08691, algorithms 1 and 2; grouped queries: Ainslie et al. 2023, arXiv:2305.13245.
Layout    (batch, heads, seq, d_head), or (batch, seq, d_head) with heads folded into the batch; strides as they come
          where the GPU's copy engine takes them, else a copy. Keys and values may have fewer heads, each for a group.
Numerics  bf16, fp16, fp32 in; softmax statistics and sums in fp32, weights in the inputs' type where they meet V.
          Products of fp32 are made of three tf32 products, which is fp32's precision to a few units in the last place.
Accepts   d_head a multiple of 16 up to 128; any number of queries and keys; else ValueError.
Twin      tiled_attention.py: the same tiles and names in plain PyTorch, on any device.
Loads     by descriptors (TMA on Hopper and later): what lies beyond the end of a sequence or a head arrives as 0.
Backward  two passes without atomics, so equal inputs give equal gradients: one over tiles of queries for dQ, one over
          tiles of keys for dK and dV. Both make the weights again from the saved logsumexp.
Hopper    bf16 and fp16 on H100 and H200 take the kernels of hopper_forward.py and hopper_backward.py, which do the same
          faster.
Checked   tests/kernels, on GPUs and in Triton's interpreter; speed and errors: benchmarks/results/attention.jsonl.gz.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from cs336.kernels.tuned import tuned_tiles

if TYPE_CHECKING:
    from jaxtyping import Float

MAX_D_HEAD = 128
_LOG2_E = tl.constexpr(math.log2(math.e))
_COPY_ALIGNMENT = 16  # bytes, of addresses and strides that a descriptor takes
_LARGEST_TILE = 128


class Tiles(NamedTuple):
    """Launch parameters of one kernel; `max_registers` of a thread, 0 for no limit."""

    queries: int
    keys: int
    num_warps: int
    num_stages: int
    max_registers: int = 0


# By kernel, then by the padded d_head; better ones for a GPU come from attention_tiles.json.
_TILES = {
    "forward": {64: Tiles(128, 64, 4, 3), 128: Tiles(128, 128, 8, 2)},
    "dq": {64: Tiles(128, 64, 8, 2), 128: Tiles(128, 64, 8, 2)},
    "dk_dv": {64: Tiles(64, 128, 8, 2), 128: Tiles(64, 128, 8, 2)},
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
    return FlashAttention.apply(q, k, v, causal)


class FlashAttention(torch.autograd.Function):
    """The kernels as the handout calls them: `FlashAttention.apply(q, k, v, is_causal)`, of 3 or 4 dimensions.

    Saves q, k, v, o and `logsumexp`, natural log, scale included: (batch, queries) or (batch, heads, queries).
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, is_causal: bool = False) -> Tensor:
        """Attention of every tile of queries."""
        _validate(q, k, v)
        run = torch.ops.cs336.flash_forward if _is_watched() else _forward
        o, logsumexp = run(q, k, v, is_causal)
        ctx.save_for_backward(q, k, v, o, logsumexp)
        ctx.is_causal = is_causal
        return o

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """Gradients of q, k and v."""
        q, k, v, o, logsumexp = ctx.saved_tensors
        run = torch.ops.cs336.flash_backward if _is_watched() else _backward
        return *run(q, k, v, o, grads[0], logsumexp, ctx.is_causal), None


def _is_watched() -> bool:
    """Somebody looks at operators: `torch.compile`, or a checkpoint that keeps some. Else they would only cost time."""
    return torch.compiler.is_compiling() or torch.utils._python_dispatch._get_current_dispatch_mode() is not None


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
    if 0 in q.shape or 0 in k.shape:
        raise ValueError(f"nothing to attend to: {shapes}")


def _forward(q: Tensor, k: Tensor, v: Tensor, is_causal: bool) -> tuple[Tensor, Tensor]:
    """Output, in q's layout, and logsumexp."""
    o = _empty_like(q)
    logsumexp = torch.empty(q.shape[:-1], dtype=torch.float32, device=q.device)
    tensors = _addressable(q), _addressable(k), _addressable(v), _addressable(o)
    if _takes_hopper_kernels(q):
        from cs336.kernels import hopper_forward

        hopper_forward.forward(*tensors, logsumexp, is_causal)
    else:
        _launch_forward(*tensors, logsumexp, is_causal)
    return o, logsumexp


def _backward(
    q: Tensor, k: Tensor, v: Tensor, o: Tensor, grad_o: Tensor, logsumexp: Tensor, is_causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v, in their layouts."""
    grads = _empty_like(q), _empty_like(k), _empty_like(v)
    tensors = [_addressable(each) for each in (q, k, v, o, grad_o)]
    # For each query its logsumexp in powers of two and rowsum(O * dO), which the first pass writes; 0 beyond the end.
    padded_queries = triton.cdiv(q.shape[-2], _LARGEST_TILE) * _LARGEST_TILE
    rows = torch.zeros(2, q[..., 0, 0].numel(), padded_queries, dtype=torch.float32, device=q.device)
    arguments = tensors, [_addressable(each) for each in grads], logsumexp, rows, is_causal
    if _takes_hopper_kernels(q):
        from cs336.kernels import hopper_backward

        hopper_backward.backward(*arguments)
    else:
        _launch_backward(*arguments)
    return grads


def _takes_hopper_kernels(q: Tensor) -> bool:
    return q.is_cuda and q.dtype != torch.float32 and torch.cuda.get_device_capability(q.device)[0] == 9


def _addressable(tensor: Tensor) -> Tensor:
    """The tensor with an axis of heads and strides that the copy engine takes, or else a copy."""
    if tensor.ndim == 3:
        tensor = tensor.unsqueeze(1)
    strides = _strides(tensor)
    if strides is None or tensor.data_ptr() % _COPY_ALIGNMENT:
        return tensor.clone(memory_format=torch.contiguous_format)  # as of o.sum(), whose gradient is one number
    return tensor.as_strided(tensor.shape, strides)


def _strides(tensor: Tensor) -> list[int] | None:
    """Strides as a descriptor takes them, or None: the last is 1, the others are multiples of 16 bytes."""
    whole = math.prod(tensor.shape[-2:])
    strides = [  # that of an axis of one element is never gone along
        stride if length > 1 else whole for stride, length in zip(tensor.stride(), tensor.shape, strict=True)
    ]
    strides[-1] = tensor.stride(-1)
    aligned = all(stride > 0 and stride * tensor.element_size() % _COPY_ALIGNMENT == 0 for stride in strides[:-1])
    return strides if aligned and strides[-1] == 1 else None


def _empty_like(tensor: Tensor) -> Tensor:
    """Room for a result, in the tensor's layout where it can be stored so."""
    result = torch.empty_like(tensor)
    return result if _strides(result) else torch.empty_like(tensor, memory_format=torch.contiguous_format)


def _launch_forward(q: Tensor, k: Tensor, v: Tensor, o: Tensor, logsumexp: Tensor, is_causal: bool) -> None:
    batch, heads, num_queries, d_head = q.shape
    tiles = _tiles("forward", q)
    _forward_kernel[(batch * heads, triton.cdiv(num_queries, tiles.queries))](
        *_descriptors(tiles.queries, q),
        *_descriptors(tiles.keys, k, v),
        *_descriptors(tiles.queries, o),
        logsumexp,
        heads,
        heads // k.shape[1],
        num_queries,
        k.shape[2],
        scale=_LOG2_E.value / math.sqrt(d_head),
        IS_CAUSAL=is_causal,
        **_options(tiles, q),
    )


def _launch_backward(
    inputs: list[Tensor], grads: list[Tensor], logsumexp: Tensor, rows: Tensor, is_causal: bool
) -> None:
    q, k, v, o, grad_o = inputs
    grad_q, grad_k, grad_v = grads
    batch, heads, num_queries, d_head = q.shape
    kv_heads, num_keys = k.shape[1:3]
    numbers = (heads, heads // kv_heads, num_queries, num_keys, rows.shape[-1])
    common = {"scale": 1 / math.sqrt(d_head), "IS_CAUSAL": is_causal}
    tiles = _tiles("dq", q)
    _backward_dq_kernel[(batch * heads, triton.cdiv(num_queries, tiles.queries))](
        *_descriptors(tiles.queries, q),
        *_descriptors(tiles.keys, k, v),
        *_descriptors(tiles.queries, o, grad_o, grad_q),
        logsumexp,
        rows,
        *numbers,
        **common,
        **_options(tiles, q),
    )
    tiles = _tiles("dk_dv", q)
    _backward_dk_dv_kernel[(batch * kv_heads, triton.cdiv(num_keys, tiles.keys))](
        *_descriptors(tiles.queries, q),
        *_descriptors(tiles.keys, k, v),
        *_descriptors(tiles.queries, grad_o),
        *_descriptors(tiles.keys, grad_k, grad_v),
        TensorDescriptor(rows, [rows.numel()], [1], [tiles.queries]),
        *numbers,
        **common,
        **_options(tiles, q),
    )


@torch.library.custom_op("cs336::flash_forward", mutates_args=())
def _forward_operator(q: Tensor, k: Tensor, v: Tensor, is_causal: bool) -> tuple[Tensor, Tensor]:
    return _forward(q, k, v, is_causal)


@_forward_operator.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, is_causal: bool) -> tuple[Tensor, Tensor]:
    return _empty_like(q), q.new_empty(q.shape[:-1], dtype=torch.float32)


@torch.library.custom_op("cs336::flash_backward", mutates_args=())
def _backward_operator(
    q: Tensor, k: Tensor, v: Tensor, o: Tensor, grad_o: Tensor, logsumexp: Tensor, is_causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return _backward(q, k, v, o, grad_o, logsumexp, is_causal)


@_backward_operator.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, o: Tensor, grad_o: Tensor, logsumexp: Tensor, is_causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return _empty_like(q), _empty_like(k), _empty_like(v)


def _descriptors(rows: int, *tensors: Tensor) -> list[TensorDescriptor]:
    """For tiles of so many rows of one head."""
    block = [1, 1, rows, triton.next_power_of_2(tensors[0].shape[-1])]
    return [TensorDescriptor(each, list(each.shape), list(each.stride()), block) for each in tensors]


def _tiles(kernel: str, q: Tensor) -> Tiles:
    padded = max(64, triton.next_power_of_2(q.shape[-1]))
    tuned = tuned_tiles(f"{kernel} {padded} {str(q.dtype).removeprefix('torch.')}", q)
    if tuned:
        return Tiles(*tuned)
    tiles = _TILES[kernel][padded]
    if q.dtype == torch.float32:  # twice the memory, and three products for one
        return Tiles(32, 64, 4, 2) if kernel == "dk_dv" else Tiles(64, 32, 4, 2)
    return tiles


def _options(tiles: Tiles, q: Tensor) -> dict[str, Any]:
    """Constants and launch options of a kernel."""
    options = {
        "D": triton.next_power_of_2(q.shape[-1]),
        "QUERY_TILE": tiles.queries,
        "KEY_TILE": tiles.keys,
        "PRECISION": "tf32x3" if q.is_cuda and q.dtype == torch.float32 else "ieee",
        "num_warps": tiles.num_warps,
        "num_stages": tiles.num_stages,
    }
    return options | ({"maxnreg": tiles.max_registers} if tiles.max_registers else {})


@triton.jit
def _load(descriptor, batch, head, row, ROWS: tl.constexpr, D: tl.constexpr):
    """A tile (ROWS, D) of one head; what lies beyond the sequence or the head is 0."""
    return tl.reshape(descriptor.load([batch, head, row, 0]), (ROWS, D))


@triton.jit
def _store(descriptor, tile, batch, head, row, ROWS: tl.constexpr, D: tl.constexpr):
    """Store a tile, without what lies beyond."""
    descriptor.store([batch, head, row, 0], tl.reshape(tile.to(descriptor.dtype), (1, 1, ROWS, D)))


@triton.jit
def _forward_kernel(
    q_tiles,
    k_tiles,
    v_tiles,
    o_tiles,
    logsumexp_base,
    heads,
    group,
    num_queries,
    num_keys,
    scale,
    D: tl.constexpr,
    QUERY_TILE: tl.constexpr,
    KEY_TILE: tl.constexpr,
    IS_CAUSAL: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One tile of queries of one head. The tiles with the most keys start first, so that none is left over alone.

    Scores are in powers of two: `scale` holds log2 e.
    """
    tile = tl.num_programs(1) - 1 - tl.program_id(1) if IS_CAUSAL else tl.program_id(1)
    batch, head = tl.program_id(0) // heads, tl.program_id(0) % heads
    first_query = tile * QUERY_TILE
    queries = first_query + tl.arange(0, QUERY_TILE)
    q = _load(q_tiles, batch, head, first_query, QUERY_TILE, D)
    acc = tl.zeros((QUERY_TILE, D), tl.float32)
    running_max = tl.full((QUERY_TILE,), float("-inf"), tl.float32)
    running_sum = tl.zeros((QUERY_TILE,), tl.float32)
    whole, last = _keys_to_see(first_query, num_keys, QUERY_TILE, KEY_TILE, IS_CAUSAL)
    for MASKED in tl.static_range(2):  # whole tiles first, then those that the diagonal or the end cuts
        first_key = whole if MASKED else 0
        last_key = last if MASKED else whole
        for start in range(first_key, last_key, KEY_TILE):
            k = _load(k_tiles, batch, head // group, start, KEY_TILE, D)
            scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)
            if MASKED:
                seen = _seen(queries[:, None], (start + tl.arange(0, KEY_TILE))[None, :], num_keys, IS_CAUSAL)
                scores = tl.where(seen, scores, float("-inf"))
            new_max = tl.maximum(running_max, tl.max(scores, 1) * scale)
            weights = tl.exp2(scores * scale - new_max[:, None])
            shrink = tl.exp2(running_max - new_max)
            running_sum = shrink * running_sum + tl.sum(weights, 1)
            v = _load(v_tiles, batch, head // group, start, KEY_TILE, D)
            acc = tl.dot(weights.to(v.dtype), v, acc * shrink[:, None], input_precision=PRECISION)
            running_max = new_max
    _store(o_tiles, acc * (1 / running_sum)[:, None], batch, head, first_query, QUERY_TILE, D)
    logsumexp = (running_max + tl.log2(running_sum)) / _LOG2_E
    place = tl.program_id(0).to(tl.int64) * num_queries
    tl.store(logsumexp_base + place + queries, logsumexp, mask=queries < num_queries)


@triton.jit
def _keys_to_see(first_query, num_keys, QUERY_TILE: tl.constexpr, KEY_TILE: tl.constexpr, IS_CAUSAL: tl.constexpr):
    """Of a tile of queries: keys before the first number need no mask, none from the second on is seen."""
    whole, last = num_keys // KEY_TILE * KEY_TILE, num_keys
    if IS_CAUSAL:
        whole = tl.minimum(whole, first_query // KEY_TILE * KEY_TILE)
        last = tl.minimum(last, first_query + QUERY_TILE)
    return whole, last


@triton.jit
def _seen(queries, keys, num_keys, IS_CAUSAL: tl.constexpr):
    """Which keys a query sees."""
    seen = keys < num_keys
    if IS_CAUSAL:
        seen = seen & (keys <= queries)
    return seen


@triton.jit
def _backward_dq_kernel(
    q_tiles,
    k_tiles,
    v_tiles,
    o_tiles,
    grad_o_tiles,
    grad_q_tiles,
    logsumexp_base,
    rows_base,
    heads,
    group,
    num_queries,
    num_keys,
    padded_queries,
    scale,
    D: tl.constexpr,
    QUERY_TILE: tl.constexpr,
    KEY_TILE: tl.constexpr,
    IS_CAUSAL: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One tile of queries of one head, over all keys that it sees; leaves their numbers for the second pass."""
    tile = tl.num_programs(1) - 1 - tl.program_id(1) if IS_CAUSAL else tl.program_id(1)
    batch, head = tl.program_id(0) // heads, tl.program_id(0) % heads
    first_query = tile * QUERY_TILE
    queries = first_query + tl.arange(0, QUERY_TILE)
    is_query = queries < num_queries
    o = _load(o_tiles, batch, head, first_query, QUERY_TILE, D)
    grad_o = _load(grad_o_tiles, batch, head, first_query, QUERY_TILE, D)
    delta = tl.sum(o.to(tl.float32) * grad_o.to(tl.float32), 1)
    place = tl.program_id(0).to(tl.int64)
    logsumexp = tl.load(logsumexp_base + place * num_queries + queries, mask=is_query, other=0.0) * _LOG2_E
    tl.store(rows_base + place * padded_queries + queries, logsumexp, mask=is_query)
    place += tl.num_programs(0)
    tl.store(rows_base + place * padded_queries + queries, delta, mask=is_query)
    q = _load(q_tiles, batch, head, first_query, QUERY_TILE, D)
    grad_q = tl.zeros((QUERY_TILE, D), tl.float32)
    whole, last = _keys_to_see(first_query, num_keys, QUERY_TILE, KEY_TILE, IS_CAUSAL)
    for MASKED in tl.static_range(2):
        first_key = whole if MASKED else 0
        last_key = last if MASKED else whole
        for start in range(first_key, last_key, KEY_TILE):
            k = _load(k_tiles, batch, head // group, start, KEY_TILE, D)
            v = _load(v_tiles, batch, head // group, start, KEY_TILE, D)
            scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)
            grad_weights = tl.dot(grad_o, tl.trans(v), input_precision=PRECISION)
            weights = tl.exp2(scores * (scale * _LOG2_E) - logsumexp[:, None])
            if MASKED:
                seen = _seen(queries[:, None], (start + tl.arange(0, KEY_TILE))[None, :], num_keys, IS_CAUSAL)
                weights = tl.where(seen, weights, 0.0)
            grad_scores = weights * (grad_weights - delta[:, None])
            grad_q = tl.dot(grad_scores.to(k.dtype), k, grad_q, input_precision=PRECISION)
    _store(grad_q_tiles, grad_q * scale, batch, head, first_query, QUERY_TILE, D)


@triton.jit
def _backward_dk_dv_kernel(
    q_tiles,
    k_tiles,
    v_tiles,
    grad_o_tiles,
    grad_k_tiles,
    grad_v_tiles,
    rows,
    heads,
    group,
    num_queries,
    num_keys,
    padded_queries,
    scale,
    D: tl.constexpr,
    QUERY_TILE: tl.constexpr,
    KEY_TILE: tl.constexpr,
    IS_CAUSAL: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One tile of keys of one head, over all queries of the heads that read it.

    Queries beyond the end and their gradients are 0, and so is what they add; keys beyond it are not stored.
    """
    kv_heads = heads // group
    batch, kv_head = tl.program_id(0) // kv_heads, tl.program_id(0) % kv_heads
    first_key = tl.program_id(1) * KEY_TILE
    keys = first_key + tl.arange(0, KEY_TILE)
    k = _load(k_tiles, batch, kv_head, first_key, KEY_TILE, D)
    v = _load(v_tiles, batch, kv_head, first_key, KEY_TILE, D)
    grad_k = tl.zeros((KEY_TILE, D), tl.float32)
    grad_v = tl.zeros((KEY_TILE, D), tl.float32)
    first, whole = 0, 0  # queries before the first see none of these keys, those from the second on all of them
    if IS_CAUSAL:
        first = first_key // QUERY_TILE * QUERY_TILE
        whole = tl.minimum(tl.cdiv(first_key + KEY_TILE, QUERY_TILE) * QUERY_TILE, num_queries)
    num_rows = tl.num_programs(0) * group * padded_queries
    for member in range(group):
        head = kv_head * group + member
        row = (batch * heads + head) * padded_queries
        for MASKED in tl.static_range(1 if IS_CAUSAL else 0, -1, -1):
            first_query = first if MASKED else whole
            last_query = whole if MASKED else num_queries
            for start in range(first_query, last_query, QUERY_TILE):
                q = _load(q_tiles, batch, head, start, QUERY_TILE, D)
                grad_o = _load(grad_o_tiles, batch, head, start, QUERY_TILE, D)
                logsumexp = rows.load([row + start])
                delta = rows.load([num_rows + row + start])
                scores = tl.dot(k, tl.trans(q), input_precision=PRECISION)
                grad_weights = tl.dot(v, tl.trans(grad_o), input_precision=PRECISION)
                weights = tl.exp2(scores * (scale * _LOG2_E) - logsumexp[None, :])
                if MASKED:
                    queries = start + tl.arange(0, QUERY_TILE)
                    weights = tl.where(keys[:, None] <= queries[None, :], weights, 0.0)
                grad_v = tl.dot(weights.to(grad_o.dtype), grad_o, grad_v, input_precision=PRECISION)
                grad_scores = weights * (grad_weights - delta[None, :])
                grad_k = tl.dot(grad_scores.to(q.dtype), q, grad_k, input_precision=PRECISION)
    _store(grad_k_tiles, grad_k * scale, batch, kv_head, first_key, KEY_TILE, D)
    _store(grad_v_tiles, grad_v, batch, kv_head, first_key, KEY_TILE, D)
