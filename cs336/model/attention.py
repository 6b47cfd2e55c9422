"""Scaled dot-product attention, and causal multi-head self-attention with an optional KV cache."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention as fused_attention

from cs336.model.layers import Linear, RMSNorm, RotaryPositionalEmbedding, dropout, softmax

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int


def scaled_dot_product_attention(
    Q: Float[Tensor, "... queries d_k"],
    K: Float[Tensor, "... keys d_k"],
    V: Float[Tensor, "... keys d_v"],
    mask: Bool[Tensor, "... queries keys"] | None = None,
    *,
    dropout_rate: float = 0.0,
) -> Float[Tensor, "... queries d_v"]:
    """`softmax(Q K^T / sqrt(d_k)) V`, with the softmax in fp32.

    Args:
        mask: True where a query may attend to a key; None allows all.
        dropout_rate: of the attention weights; 0 outside training.
    """
    # Scaling the queries instead of the scores touches d_k numbers a query, not one for every key.
    scores = (Q / math.sqrt(Q.shape[-1])) @ K.transpose(-2, -1)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    weights = dropout(softmax(scores.float(), dim=-1), dropout_rate)
    return weights.to(V.dtype) @ V


@dataclass
class KVCache:
    """Keys and values of the positions that one layer has seen so far, one head per key-value head."""

    keys: Float[Tensor, "batch kv_heads seq d_k"] | None = None
    values: Float[Tensor, "batch kv_heads seq d_k"] | None = None

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append new positions; returns all keys and values."""
        if self.keys is not None and self.values is not None:
            keys = torch.cat((self.keys, keys), dim=-2)
            values = torch.cat((self.values, values), dim=-2)
        self.keys, self.values = keys, values
        return keys, values

    def attend(
        self,
        kernel: Callable[..., Tensor],
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        mask: Tensor | None,
        dropout_rate: float,
    ) -> Tensor:
        """Attention of new queries to all positions, those of this call among them; extends the cache.

        Args:
            kernel: one of `KERNELS`.
        """
        return kernel(queries, *self.extend(keys, values), mask, dropout_rate)


class CausalMultiHeadSelfAttention(nn.Module):
    """Several heads of causal attention over the same sequence.

    The rows of each projection are grouped by head. With fewer key-value heads than heads
    (grouped-query attention), heads 0, 1, ... share them in runs of equal length.

    Args:
        num_kv_heads: heads of keys and values; as many as `num_heads` by default.
        head_dim: features of one head; `d_model / num_heads` by default.
        rope: rotary positions, shared by all layers; None for no position information.
        qkv_bias, output_bias: whether the projections have biases.
        qk_norm: RMSNorm over each head's queries and keys before the rotation.
        norm_eps: of those norms.
        dropout_rate: of the attention weights, in training.
        kernel: what computes the attention itself; see `KERNELS`.

    Raises:
        ValueError: head counts that do not divide, or an unknown kernel.

    Source: Vaswani et al. 2017, arXiv:1706.03762; grouped queries: Ainslie et al. 2023,
        arXiv:2305.13245; QK-norm: Henry et al. 2020, arXiv:2010.04245, as in Qwen3, arXiv:2505.09388.
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        *,
        num_kv_heads: int | None = None,
        head_dim: int | None = None,
        rope: RotaryPositionalEmbedding | None = None,
        qkv_bias: bool = False,
        output_bias: bool = False,
        qk_norm: bool = False,
        norm_eps: float = 1e-5,
        dropout_rate: float = 0.0,
        kernel: str = "reference",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        if head_dim is None:
            if d_model % num_heads:
                raise ValueError(f"num_heads must divide d_model, got {num_heads} heads for {d_model}; or set head_dim")
            head_dim = d_model // num_heads
        if num_kv_heads is None:
            num_kv_heads = num_heads
        if num_heads % num_kv_heads:
            raise ValueError(f"num_kv_heads must divide num_heads, got {num_kv_heads} for {num_heads}")
        self.num_heads, self.num_kv_heads = num_heads, num_kv_heads
        self.rope = rope
        self.dropout_rate = dropout_rate
        self.use_kernel(kernel)
        width, kv_width = num_heads * head_dim, num_kv_heads * head_dim
        self.q_proj = Linear(d_model, width, bias=qkv_bias, device=device, dtype=dtype)
        self.k_proj = Linear(d_model, kv_width, bias=qkv_bias, device=device, dtype=dtype)
        self.v_proj = Linear(d_model, kv_width, bias=qkv_bias, device=device, dtype=dtype)
        self.output_proj = Linear(width, d_model, bias=output_bias, device=device, dtype=dtype)
        self.q_norm = RMSNorm(head_dim, eps=norm_eps, device=device, dtype=dtype) if qk_norm else None
        self.k_norm = RMSNorm(head_dim, eps=norm_eps, device=device, dtype=dtype) if qk_norm else None

    def use_kernel(self, kernel: str) -> None:
        """Choose what computes the attention itself.

        Raises:
            ValueError: there is no such kernel.
        """
        if kernel not in KERNELS:
            raise ValueError(f"kernel is one of {', '.join(KERNELS)}, got {kernel!r}")
        self.kernel = kernel

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
            token_positions: place of each token; 0, 1, 2, ... by default, also with a cache.
            mask: replaces the causal mask, for padded batches; True where a query may attend.
            cache: earlier positions of the same sequences; extended by this call.
        """
        queries = self.q_proj(x).unflatten(-1, (self.num_heads, -1)).transpose(-3, -2)
        keys = self.k_proj(x).unflatten(-1, (self.num_kv_heads, -1)).transpose(-3, -2)
        values = self.v_proj(x).unflatten(-1, (self.num_kv_heads, -1)).transpose(-3, -2)
        if self.q_norm is not None and self.k_norm is not None:
            queries, keys = self.q_norm(queries), self.k_norm(keys)
        if self.rope is not None:
            if token_positions is None:
                token_positions = torch.arange(x.shape[-2], device=x.device)
            positions = token_positions.unsqueeze(-2)  # the same for each head
            queries, keys = self.rope(queries, positions), self.rope(keys, positions)
        kernel, dropout_rate = KERNELS[self.kernel], self.dropout_rate if self.training else 0.0
        if cache is None:
            attended = kernel(queries, keys, values, mask, dropout_rate)
        else:
            attended = cache.attend(kernel, queries, keys, values, mask, dropout_rate)
        return self.output_proj(attended.transpose(-3, -2).flatten(-2))


def causal_mask(
    num_queries: int, num_keys: int, *, device: torch.device | str | None = None
) -> Bool[Tensor, "queries keys"]:
    """True where key j is not after query i; the last query stands at the last key."""
    ones = torch.ones(num_queries, num_keys, dtype=torch.bool, device=device)
    return ones.tril(num_keys - num_queries)


# ---- one new token in each of many sequences


def has_decode_kernel(device: torch.device, head_dim: int) -> bool:
    """Whether `decode_attention` has a kernel for heads of this width there."""
    if device.type != "cuda":
        return False
    from cs336.kernels.decode_attention import takes

    return takes(head_dim)


def decode_attention(
    queries: Float[Tensor, "batch heads 1 d_k"],
    new_keys: Float[Tensor, "batch kv_heads 1 d_k"],
    new_values: Float[Tensor, "batch kv_heads 1 d_k"],
    keys: Float[Tensor, "batch kv_heads capacity d_k"],
    values: Float[Tensor, "batch kv_heads capacity d_k"],
    lengths: Int[Tensor, " batch"],
) -> Float[Tensor, "batch heads 1 d_k"]:
    """Attention of each sequence's newest token to itself and the first `lengths` positions of its own, by our Triton
    kernel, which puts its key and value behind those.
    """
    from cs336.kernels.decode_attention import decode_attention as by_kernel

    return by_kernel(queries[:, :, 0], new_keys[:, :, 0], new_values[:, :, 0], keys, values, lengths).unsqueeze(2)


def masked_decode_attention(
    queries: Float[Tensor, "batch heads 1 d_k"],
    keys: Float[Tensor, "batch kv_heads capacity d_k"],
    values: Float[Tensor, "batch kv_heads capacity d_k"],
    lengths: Int[Tensor, " batch"],
    *,
    kernel: Callable[..., Tensor],
) -> Float[Tensor, "batch heads 1 d_k"]:
    """The same with a mask over the whole capacity, by one of `KERNELS`."""
    filled = torch.arange(keys.shape[-2], device=lengths.device) < lengths[:, None]
    # Heads that share keys stand where several queries would: nothing is repeated in memory.
    grouped = queries.unflatten(1, (keys.shape[1], -1)).squeeze(3)
    return kernel(grouped, keys, values, filled[:, None, None], 0.0).flatten(1, 2).unsqueeze(2)


# ---- kernels: all compute the same; without a mask they are causal


def _reference(
    queries: Float[Tensor, "... heads queries d_k"],
    keys: Float[Tensor, "... kv_heads keys d_k"],
    values: Float[Tensor, "... kv_heads keys d_k"],
    mask: Bool[Tensor, "... queries keys"] | None,
    dropout_rate: float,
) -> Float[Tensor, "... heads queries d_k"]:
    """The formula, as it stands in the paper; holds all scores."""
    if mask is None:
        mask = causal_mask(queries.shape[-2], keys.shape[-2], device=queries.device)
    keys, values = _for_each_head(queries, keys, values)
    return scaled_dot_product_attention(queries, keys, values, mask, dropout_rate=dropout_rate)


def _fused(
    queries: Float[Tensor, "... heads queries d_k"],
    keys: Float[Tensor, "... kv_heads keys d_k"],
    values: Float[Tensor, "... kv_heads keys d_k"],
    mask: Bool[Tensor, "... queries keys"] | None,
    dropout_rate: float,
) -> Float[Tensor, "... heads queries d_k"]:
    """PyTorch's fused kernel: no scores in memory. For speed; never what results are checked against."""
    num_queries, num_keys = queries.shape[-2], keys.shape[-2]
    is_causal = mask is None and num_queries == num_keys
    if mask is None and not is_causal and num_queries > 1:  # a single query sees all keys
        mask = causal_mask(num_queries, num_keys, device=queries.device)
    keys, values = _for_each_head(queries, keys, values)
    return fused_attention(queries, keys, values, attn_mask=mask, dropout_p=dropout_rate, is_causal=is_causal)


def _flash(
    queries: Float[Tensor, "... heads queries d_k"],
    keys: Float[Tensor, "... kv_heads keys d_k"],
    values: Float[Tensor, "... kv_heads keys d_k"],
    mask: Bool[Tensor, "... queries keys"] | None,
    dropout_rate: float,
) -> Float[Tensor, "... heads queries d_k"]:
    """Our FlashAttention-2 in Triton, where a whole sequence attends to itself; the rest is PyTorch's."""
    num_queries, width = queries.shape[-2:]
    if mask is not None or dropout_rate or num_queries != keys.shape[-2] or width % 16 or width > 128:
        return _fused(queries, keys, values, mask, dropout_rate)
    from cs336.kernels.flash_attention import flash_attention  # only here: everything else runs without Triton

    device = queries.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else values.dtype
    q, k, v = (each.reshape(-1, *each.shape[-3:]).to(dtype) for each in (queries, keys, values))
    return flash_attention(q, k, v, causal=True).view(queries.shape)


KERNELS: dict[str, Callable[..., Tensor]] = {"reference": _reference, "fused": _fused, "flash": _flash}


def _for_each_head(queries: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values repeated for the heads that share them."""
    group = queries.shape[-3] // keys.shape[-3]
    if group == 1:
        return keys, values
    return keys.repeat_interleave(group, dim=-3), values.repeat_interleave(group, dim=-3)
