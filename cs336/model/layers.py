"""Linear, Embedding, norms, feed-forwards, dropout and rotary positions, from tensors and parameters alone.

Every layer takes any number of leading batch-like dimensions; features are last, positions
second to last.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from jaxtyping import Float, Int


class Linear(nn.Module):
    """`y = W x`, or `W x + b`; `weight` has shape (out_features, in_features).

    Drawn from N(0, 2 / (in + out)), cut at three standard deviations; a bias starts at 0.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features, device=device, dtype=dtype))
        std = math.sqrt(2 / (in_features + out_features))
        nn.init.trunc_normal_(self.weight, std=std, a=-3 * std, b=3 * std)
        self.bias = nn.Parameter(torch.zeros(out_features, device=device, dtype=dtype)) if bias else None

    def forward(self, x: Float[Tensor, "... d_in"]) -> Float[Tensor, "... d_out"]:
        y = x @ self.weight.T
        return y if self.bias is None else y + self.bias


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
        self.fused = False
        self.weight = nn.Parameter(torch.ones(d_model, device=device, dtype=dtype))

    def forward(self, x: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        if self.fused:
            from cs336.kernels.rms_norm import rms_norm

            return rms_norm(x, self.weight, eps=self.eps)
        wide = x.float()  # squares overflow in fp16 and lose digits in bf16
        scale = torch.rsqrt(wide.pow(2).mean(dim=-1, keepdim=True) + self.eps)
        return (wide * scale * self.weight).to(x.dtype)


class LayerNorm(nn.Module):
    """`(x - mean) / sqrt(variance + eps) * weight` over the last dimension, computed in fp32; no bias.

    Source: Ba et al. 2016, arXiv:1607.06450.
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
        self.fused = False
        self.weight = nn.Parameter(torch.ones(d_model, device=device, dtype=dtype))

    def forward(self, x: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        wide = x.float()
        if self.fused:
            return nn.functional.layer_norm(wide, self.weight.shape, self.weight, eps=self.eps).to(x.dtype)
        centred = wide - wide.mean(dim=-1, keepdim=True)
        scale = torch.rsqrt(centred.pow(2).mean(dim=-1, keepdim=True) + self.eps)
        return (centred * scale * self.weight).to(x.dtype)


NORMS: dict[str, type[RMSNorm] | type[LayerNorm]] = {"rms": RMSNorm, "layer": LayerNorm}


def silu(x: Tensor) -> Tensor:
    """`x * sigmoid(x)`, elementwise."""
    return x * torch.sigmoid(x)


def gelu(x: Tensor) -> Tensor:
    """`x * P(Z <= x)` for a standard normal Z, elementwise; exact, not the tanh approximation.

    Source: Hendrycks and Gimpel 2016, arXiv:1606.08415.
    """
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def softmax(x: Tensor, dim: int) -> Tensor:
    """Softmax along `dim`; the maximum is subtracted first, so large inputs stay finite."""
    weights = torch.exp(x - x.amax(dim=dim, keepdim=True))
    return weights / weights.sum(dim=dim, keepdim=True)


def dropout(x: Tensor, rate: float) -> Tensor:
    """Zero each element with probability `rate` and scale the others so that the mean stays.

    Draws from PyTorch's global generator, which `torch.manual_seed` seeds. Only for training: the
    caller asks its module's `training`.

    Source: Srivastava et al. 2014, jmlr.org/papers/v15/srivastava14a.html.
    """
    if rate == 0:
        return x
    # Compared in fp32: in bf16 the draw itself would be too coarse for a rate such as 0.1.
    kept = torch.rand(x.shape, device=x.device) >= rate
    return x * kept / (1 - rate)


def fused_dropout(x: Tensor, rate: float) -> Tensor:
    """The same by PyTorch's own kernel, which draws in the pass that multiplies; it draws other numbers."""
    return nn.functional.dropout(x, rate)


class SwiGLU(nn.Module):
    """`W2(silu(W1 x) * W3 x)`.

    Source: Shazeer 2020, arXiv:2002.05202.
    """

    def __init__(
        self,
        d_model: int,
        d_ff: int,
        *,
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.w1 = Linear(d_model, d_ff, bias=bias, device=device, dtype=dtype)
        self.w2 = Linear(d_ff, d_model, bias=bias, device=device, dtype=dtype)
        self.w3 = Linear(d_model, d_ff, bias=bias, device=device, dtype=dtype)
        self.fused = False

    def forward(self, x: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        if self.fused:
            from cs336.kernels.swiglu import swiglu

            return self.w2(swiglu(self.w1(x), self.w3(x)))
        return self.w2(silu(self.w1(x)) * self.w3(x))


class SiLUFeedForward(nn.Module):
    """`W2 silu(W1 x)`: the ungated ablation of SwiGLU."""

    def __init__(
        self,
        d_model: int,
        d_ff: int,
        *,
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.w1 = Linear(d_model, d_ff, bias=bias, device=device, dtype=dtype)
        self.w2 = Linear(d_ff, d_model, bias=bias, device=device, dtype=dtype)

    def forward(self, x: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        return self.w2(silu(self.w1(x)))


class GELUFeedForward(nn.Module):
    """`W2 gelu(W1 x)`, as in GPT-2 and the scaling model of 2025."""

    def __init__(
        self,
        d_model: int,
        d_ff: int,
        *,
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.w1 = Linear(d_model, d_ff, bias=bias, device=device, dtype=dtype)
        self.w2 = Linear(d_ff, d_model, bias=bias, device=device, dtype=dtype)
        self.fused = False

    def forward(self, x: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        hidden = self.w1(x)
        return self.w2(nn.functional.gelu(hidden) if self.fused else gelu(hidden))


FEED_FORWARDS: dict[str, type[SwiGLU] | type[SiLUFeedForward] | type[GELUFeedForward]] = {
    "swiglu": SwiGLU,
    "silu": SiLUFeedForward,
    "gelu": GELUFeedForward,
}


def default_d_ff(d_model: int, feed_forward: str = "swiglu") -> int:
    """Hidden width of a feed-forward: 4 d_model ungated, and what costs the same with SwiGLU's third matrix.

    That is 8/3 d_model, to the nearest multiple of 64 (512 -> 1344).
    """
    if feed_forward != "swiglu":
        return 4 * d_model
    return max(64, 64 * round(8 * d_model / 3 / 64))


ROPE_LAYOUTS = ("interleaved", "half")


@dataclass(frozen=True)
class RopeScaling:
    """Stretches slow rotations so that a model reads further than it was trained to (Llama 3.1's way).

    Attributes:
        factor: by how much the slowest rotations are slowed down.
        original_context: tokens of the context trained first.
        low_frequency: rotations with fewer turns than this in that context are slowed by `factor`.
        high_frequency: those with more turns stay; in between, a linear blend.

    Source: Dubey et al. 2024, arXiv:2407.21783, and the constants published with Llama 3.1.
    """

    factor: float
    original_context: int = 8_192
    low_frequency: float = 1.0
    high_frequency: float = 4.0

    def apply(self, frequencies: Tensor) -> Tensor:
        """Scaled angles per position, from plain ones."""
        turns = frequencies * self.original_context / (2 * math.pi)
        kept = ((turns - self.low_frequency) / (self.high_frequency - self.low_frequency)).clamp(0, 1)
        return frequencies * (kept + (1 - kept) / self.factor)


class RotaryPositionalEmbedding(nn.Module):
    """Rotates pairs of features by `position * theta^(-2k/d_k)`, pair k of d_k / 2.

    Args:
        theta: base of the angles; 10,000 in the paper.
        d_k: features of one head; even.
        max_seq_len: positions in the table.
        layout: "interleaved" turns the adjacent features (2k, 2k+1), as the paper does; "half" turns
            (k, k + d_k/2), as Hugging Face's Llama and Qwen do. The two differ by the order of the
            rows of the query and key projections alone.
        scaling: for contexts longer than those trained on.

    Raises:
        ValueError: d_k is odd, or there is no such layout.

    Source: Su et al. 2021, arXiv:2104.09864.
    """

    cos: Tensor
    sin: Tensor

    def __init__(
        self,
        theta: float,
        d_k: int,
        max_seq_len: int,
        *,
        layout: str = "interleaved",
        scaling: RopeScaling | None = None,
        device: torch.device | str | None = None,
    ):
        super().__init__()
        if d_k % 2:
            raise ValueError(f"rotary positions turn pairs of features, so d_k must be even, got {d_k}")
        if layout not in ROPE_LAYOUTS:
            raise ValueError(f"layout is one of {', '.join(ROPE_LAYOUTS)}, got {layout!r}")
        self.layout = layout
        self.fused = False
        # Tables in fp64 first: in fp32 the angle of a far position loses its last digits.
        frequencies = theta ** (-torch.arange(0, d_k, 2, dtype=torch.float64, device="cpu") / d_k)
        if scaling is not None:
            frequencies = scaling.apply(frequencies)
        angles = torch.arange(max_seq_len, dtype=torch.float64, device="cpu")[:, None] * frequencies
        self.register_buffer("cos", angles.cos().float().to(device), persistent=False)
        self.register_buffer("sin", angles.sin().float().to(device), persistent=False)

    def forward(
        self, x: Float[Tensor, "... seq d_k"], token_positions: Int[Tensor, "... seq"]
    ) -> Float[Tensor, "... seq d_k"]:
        """Rotate `x`; positions broadcast over its leading dimensions."""
        cos, sin = self.cos[token_positions], self.sin[token_positions]
        if self.fused and x.ndim == 4:
            half, interleaved = x.shape[-1] // 2, self.layout == "interleaved"
            if token_positions.numel() == x.shape[-2]:  # the same for all heads and sequences
                from cs336.kernels.rope import rotate

                return rotate(x, cos.view(-1, half), sin.view(-1, half), interleaved=interleaved)
            if x.shape[-2] == 1 and token_positions.numel() == len(x):  # a token of each sequence: turned as one
                from cs336.kernels.rope import rotate

                turned = rotate(x.transpose(0, 2), cos.view(-1, half), sin.view(-1, half), interleaved=interleaved)
                return turned.transpose(0, 2)
        if self.layout == "half":
            first, second = x.float().chunk(2, dim=-1)
            return torch.cat((first * cos - second * sin, first * sin + second * cos), dim=-1).to(x.dtype)
        even, odd = x[..., 0::2].float(), x[..., 1::2].float()
        return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2).to(x.dtype)
