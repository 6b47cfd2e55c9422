"""FlashAttention-2 in plain PyTorch: exact attention tile by tile, forward and backward, on any device.

Source    Dao 2023, arXiv:2307.08691, algorithms 1 and 2.
Layout    (batch, seq, d); heads are folded into the batch.
Numerics  statistics and sums in fp32, whatever comes in.
Twin      flash_attention.py: the same tiles and names in Triton. This one is slow, and its oracle.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float

QUERY_TILE, KEY_TILE = 64, 64
MASKED = -1e6  # added to the score of a key that a query must not see: its weight is then 0 in fp32


class TiledAttention(torch.autograd.Function):
    """`softmax(Q Kᵀ / √d) V` without the matrix of scores: `TiledAttention.apply(q, k, v, is_causal)`.

    Saves q, k, v, o and `logsumexp` (batch, queries): the natural log of each row's sum of exponentials, scale
    included, from which the backward pass makes the weights again.
    """

    @staticmethod
    def forward(
        ctx: Any,
        q: Float[Tensor, "batch queries d"],
        k: Float[Tensor, "batch keys d"],
        v: Float[Tensor, "batch keys d"],
        is_causal: bool = False,
    ) -> Float[Tensor, "batch queries d"]:
        """Attention; causal means that query i sees the keys up to i."""
        o, logsumexp = torch.empty_like(q), q.new_empty(q.shape[:2], dtype=torch.float32)
        for start in range(0, q.shape[1], QUERY_TILE):
            rows = slice(start, min(start + QUERY_TILE, q.shape[1]))
            o[:, rows], logsumexp[:, rows] = _query_tile(q[:, rows], k, v, start if is_causal else None)
        ctx.save_for_backward(q, k, v, o, logsumexp)
        ctx.is_causal = is_causal
        return o

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """Gradients of q, k and v, each weight computed again from the scores and `logsumexp`."""
        q, k, v, o, logsumexp = ctx.saved_tensors
        return *_backward(q, k, v, o, logsumexp, grads[0], ctx.is_causal), None


def _query_tile(q: Tensor, k: Tensor, v: Tensor, first_query: int | None) -> tuple[Tensor, Tensor]:
    """Output and logsumexp of one tile of queries, over all tiles of keys.

    Args:
        first_query: the place of the first one in the sequence, if keys after a query are masked.
    """
    running_max = q.new_full(q.shape[:2], float("-inf"), dtype=torch.float32)
    running_sum = torch.zeros_like(running_max)
    acc = torch.zeros_like(q, dtype=torch.float32)
    num_keys = k.shape[1] if first_query is None else min(k.shape[1], first_query + q.shape[1])  # none beyond is seen
    for start in range(0, num_keys, KEY_TILE):
        keys = slice(start, min(start + KEY_TILE, k.shape[1]))
        scores = _scores(q, k[:, keys], first_query, start)
        new_max = torch.maximum(running_max, scores.amax(-1))
        weights = torch.exp(scores - new_max[..., None])
        shrink = torch.exp(running_max - new_max)
        running_sum = shrink * running_sum + weights.sum(-1)
        acc = shrink[..., None] * acc + (weights.to(v.dtype) @ v[:, keys]).float()
        running_max = new_max
    return (acc / running_sum[..., None]).to(q.dtype), running_max + torch.log(running_sum)


@torch.no_grad()
def _backward(
    q: Tensor, k: Tensor, v: Tensor, o: Tensor, logsumexp: Tensor, grad_o: Tensor, is_causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Two passes, as in Triton: one over tiles of keys for dK and dV, one over tiles of queries for dQ."""
    delta = (o.float() * grad_o.float()).sum(-1)
    grad_q, grad_k, grad_v = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    query_tiles = [slice(start, min(start + QUERY_TILE, q.shape[1])) for start in range(0, q.shape[1], QUERY_TILE)]
    key_tiles = [slice(start, min(start + KEY_TILE, k.shape[1])) for start in range(0, k.shape[1], KEY_TILE)]

    def weights_and_grad(rows: slice, keys: slice) -> tuple[Tensor, Tensor]:
        """Weights of a tile, and the gradient of its scores before the scale."""
        scores = _scores(q[:, rows], k[:, keys], rows.start if is_causal else None, keys.start)
        weights = torch.exp(scores - logsumexp[:, rows, None])
        grad_weights = (grad_o[:, rows] @ v[:, keys].mT).float()
        return weights, weights * (grad_weights - delta[:, rows, None])

    scale = 1 / math.sqrt(q.shape[-1])
    for keys in key_tiles:
        d_k, d_v = (torch.zeros_like(each[:, keys], dtype=torch.float32) for each in (k, v))
        for rows in query_tiles:
            if not is_causal or rows.stop > keys.start:
                weights, grad_scores = weights_and_grad(rows, keys)
                d_v += (weights.to(v.dtype).mT @ grad_o[:, rows]).float()
                d_k += (grad_scores.to(q.dtype).mT @ q[:, rows]).float()
        grad_k[:, keys], grad_v[:, keys] = d_k * scale, d_v
    for rows in query_tiles:
        d_q = torch.zeros_like(q[:, rows], dtype=torch.float32)
        for keys in key_tiles:
            if not is_causal or rows.stop > keys.start:
                d_q += (weights_and_grad(rows, keys)[1].to(k.dtype) @ k[:, keys]).float()
        grad_q[:, rows] = d_q * scale
    return grad_q, grad_k, grad_v


def _scores(q: Tensor, k: Tensor, first_query: int | None, first_key: int) -> Tensor:
    scores = (q @ k.mT).float() / math.sqrt(q.shape[-1])
    if first_query is None or first_key + k.shape[1] <= first_query + 1:  # a tile below the diagonal needs no mask
        return scores
    queries = torch.arange(first_query, first_query + q.shape[1], device=q.device)
    keys = torch.arange(first_key, first_key + k.shape[1], device=q.device)
    return scores + torch.where(keys > queries[:, None], MASKED, 0.0)
