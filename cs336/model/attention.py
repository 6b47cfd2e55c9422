"""Scaled dot-product attention, and causal multi-head self-attention with an optional KV cache."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from cs336.model.layers import Linear, RotaryPositionalEmbedding, softmax

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int


def scaled_dot_product_attention(
    Q: Float[Tensor, "... queries d_k"],
    K: Float[Tensor, "... keys d_k"],
    V: Float[Tensor, "... keys d_v"],
    mask: Bool[Tensor, "... queries keys"] | None = None,
) -> Float[Tensor, "... queries d_v"]:
    """`softmax(Q K^T / sqrt(d_k)) V`.

    Args:
        mask: True where a query may attend to a key; None allows all.
    """
    # Scaling the queries instead of the scores touches d_k numbers a query, not one for every key.
    scores = (Q / math.sqrt(Q.shape[-1])) @ K.transpose(-2, -1)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return softmax(scores, dim=-1) @ V


@dataclass
class KVCache:
    """Keys and values of the positions that one layer has seen so far."""

    keys: Float[Tensor, "batch heads seq d_k"] | None = None
    values: Float[Tensor, "batch heads seq d_k"] | None = None

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append new positions; returns all keys and values."""
        if self.keys is not None and self.values is not None:
            keys = torch.cat((self.keys, keys), dim=-2)
            values = torch.cat((self.values, values), dim=-2)
        self.keys, self.values = keys, values
        return keys, values


class CausalMultiHeadSelfAttention(nn.Module):
    """Several heads of causal attention over the same sequence.

    Args:
        rope: rotary positions, shared by all layers; None for no position information.

    Raises:
        ValueError: num_heads does not divide d_model.
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        *,
        rope: RotaryPositionalEmbedding | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        if d_model % num_heads:
            raise ValueError(f"num_heads must divide d_model, got {num_heads} heads for {d_model}")
        self.num_heads = num_heads
        self.rope = rope
        self.q_proj = Linear(d_model, d_model, device=device, dtype=dtype)
        self.k_proj = Linear(d_model, d_model, device=device, dtype=dtype)
        self.v_proj = Linear(d_model, d_model, device=device, dtype=dtype)
        self.output_proj = Linear(d_model, d_model, device=device, dtype=dtype)

    def forward(
        self,
        x: Float[Tensor, "... seq d_model"],
        *,
        token_positions: Int[Tensor, "... seq"] | None = None,
        mask: Bool[Tensor, "... queries keys"] | None = None,
        cache: KVCache | None = None,
    ) -> Float[Tensor, "... seq d_model"]:
        """Attend.

        Args:
            token_positions: place of each token; 0, 1, 2, ... by default.
            mask: replaces the causal mask, for padded batches; True where a query may attend.
            cache: earlier positions of the same sequences; extended by this call.
        """
        seq = x.shape[-2]
        queries, keys, values = (
            projection(x).unflatten(-1, (self.num_heads, -1)).transpose(-3, -2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        if self.rope is not None:
            if token_positions is None:
                token_positions = torch.arange(seq, device=x.device)
            positions = token_positions.unsqueeze(-2)  # the same for each head
            queries, keys = self.rope(queries, positions), self.rope(keys, positions)
        if cache is not None:
            keys, values = cache.extend(keys, values)
        if mask is None:
            mask = causal_mask(seq, keys.shape[-2], device=x.device)
        attended = scaled_dot_product_attention(queries, keys, values, mask)
        return self.output_proj(attended.transpose(-3, -2).flatten(-2))


def causal_mask(
    num_queries: int, num_keys: int, *, device: torch.device | str | None = None
) -> Bool[Tensor, "queries keys"]:
    """True where key j is not after query i; the last query stands at the last key."""
    ones = torch.ones(num_queries, num_keys, dtype=torch.bool, device=device)
    return ones.tril(num_keys - num_queries)
