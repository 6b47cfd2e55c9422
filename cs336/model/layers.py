"""Linear, Embedding, RMSNorm, SwiGLU and rotary positions, from tensors and parameters alone.

Every layer takes any number of leading batch-like dimensions; features are last, positions
second to last.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from jaxtyping import Float, Int


class Linear(nn.Module):
    """`y = W x` without bias; `weight` has shape (out_features, in_features).

    Drawn from N(0, 2 / (in + out)), cut at three standard deviations.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features, device=device, dtype=dtype))
        std = math.sqrt(2 / (in_features + out_features))
        nn.init.trunc_normal_(self.weight, std=std, a=-3 * std, b=3 * std)

    def forward(self, x: Float[Tensor, "... d_in"]) -> Float[Tensor, "... d_out"]:
        return x @ self.weight.T


class Embedding(nn.Module):
    """One learned vector per id; `weight` has shape (num_embeddings, embedding_dim).

    Drawn from N(0, std²), cut at three standard deviations; std is 1 unless tied to an output head.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        *,
        std: float = 1.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_embeddings, embedding_dim, device=device, dtype=dtype))
        nn.init.trunc_normal_(self.weight, std=std, a=-3 * std, b=3 * std)

    def forward(self, token_ids: Int[Tensor, "..."]) -> Float[Tensor, "... d_model"]:
        return self.weight[token_ids]


class RMSNorm(nn.Module):
    """`x / sqrt(mean(x²) + eps) * weight` over the last dimension, computed in fp32.

    Source: Zhang and Sennrich 2019, arXiv:1910.07467.
    """

    def __init__(
        self,
        d_model: int,
        *,
        eps: float = 1e-5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(d_model, device=device, dtype=dtype))

    def forward(self, x: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        wide = x.float()  # squares overflow in fp16 and lose digits in bf16
        scale = torch.rsqrt(wide.pow(2).mean(dim=-1, keepdim=True) + self.eps)
        return (wide * scale * self.weight).to(x.dtype)


def silu(x: Tensor) -> Tensor:
    """`x * sigmoid(x)`, elementwise."""
    return x * torch.sigmoid(x)


def softmax(x: Tensor, dim: int) -> Tensor:
    """Softmax along `dim`; the maximum is subtracted first, so large inputs stay finite."""
    weights = torch.exp(x - x.amax(dim=dim, keepdim=True))
    return weights / weights.sum(dim=dim, keepdim=True)


def default_d_ff(d_model: int) -> int:
    """The multiple of 64 nearest to 8/3 d_model (512 -> 1344): SwiGLU then costs what 4 d_model costs ungated."""
    return max(64, 64 * round(8 * d_model / 3 / 64))


class SwiGLU(nn.Module):
    """`W2(silu(W1 x) * W3 x)`.

    Source: Shazeer 2020, arXiv:2002.05202.
    """

    def __init__(
        self,
        d_model: int,
        d_ff: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.w1 = Linear(d_model, d_ff, device=device, dtype=dtype)
        self.w2 = Linear(d_ff, d_model, device=device, dtype=dtype)
        self.w3 = Linear(d_model, d_ff, device=device, dtype=dtype)

    def forward(self, x: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        return self.w2(silu(self.w1(x)) * self.w3(x))


class SiLUFeedForward(nn.Module):
    """`W2 silu(W1 x)`: the ungated ablation of SwiGLU."""

    def __init__(
        self,
        d_model: int,
        d_ff: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.w1 = Linear(d_model, d_ff, device=device, dtype=dtype)
        self.w2 = Linear(d_ff, d_model, device=device, dtype=dtype)

    def forward(self, x: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        return self.w2(silu(self.w1(x)))


class RotaryPositionalEmbedding(nn.Module):
    """Rotates each adjacent pair of features (2k, 2k+1) by `position * theta^(-2k/d_k)`.

    Args:
        theta: base of the angles; 10,000 in the paper.
        d_k: features of one head; even.
        max_seq_len: positions in the table.

    Raises:
        ValueError: d_k is odd.

    Source: Su et al. 2021, arXiv:2104.09864.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, theta: float, d_k: int, max_seq_len: int, *, device: torch.device | str | None = None):
        super().__init__()
        if d_k % 2:
            raise ValueError(f"rotary positions turn pairs of features, so d_k must be even, got {d_k}")
        # Tables in fp64 first: in fp32 the angle of a far position loses its last digits.
        frequencies = theta ** (-torch.arange(0, d_k, 2, dtype=torch.float64) / d_k)
        angles = torch.arange(max_seq_len, dtype=torch.float64)[:, None] * frequencies
        self.register_buffer("cos", angles.cos().float().to(device), persistent=False)
        self.register_buffer("sin", angles.sin().float().to(device), persistent=False)

    def forward(
        self, x: Float[Tensor, "... seq d_k"], token_positions: Int[Tensor, "... seq"]
    ) -> Float[Tensor, "... seq d_k"]:
        """Rotate `x`; positions broadcast over its leading dimensions."""
        cos, sin = self.cos[token_positions], self.sin[token_positions]
        even, odd = x[..., 0::2].float(), x[..., 1::2].float()
        return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2).to(x.dtype)
