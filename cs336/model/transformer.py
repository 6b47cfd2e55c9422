"""The Transformer language model: token ids in, next-token logits out."""

from __future__ import annotations

import os
import shutil
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_model as load_safetensors
from safetensors.torch import save_model as save_safetensors
from torch import Tensor, nn

from cs336.files import UserError, name_full_disk, read_json, write_json
from cs336.model.attention import CausalMultiHeadSelfAttention, KVCache
from cs336.model.layers import (
    FEED_FORWARDS,
    NORMS,
    ROPE_LAYOUTS,
    Embedding,
    GELUFeedForward,
    LayerNorm,
    Linear,
    RMSNorm,
    RopeScaling,
    RotaryPositionalEmbedding,
    SwiGLU,
    default_d_ff,
    dropout,
    fused_dropout,
)
from cs336.model.recompute import run_in_segments

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int


@dataclass(frozen=True)
class ModelConfig:
    """Shape of a model. The defaults are the first handout's; the rest are its ablations and other models' ways.

    Attributes:
        context_length: the most tokens a forward pass takes.
        d_ff: 0 means 8/3 d_model to the nearest multiple of 64, or 4 d_model without a gate: the
            parameters are then equal.
        vocab_size: 0 means "read it from the trained tokenizer".
        num_kv_heads: fewer than `num_heads` is grouped-query attention; 0 means as many.
        head_dim: 0 means d_model / num_heads.
        norm: "pre" (before each sublayer), "post" (after the residual sum), or "none" (nowhere).
        norm_kind: "rms", or "layer" (LayerNorm without bias).
        norm_eps: added inside the root of every norm.
        qk_norm: RMSNorm over each head's queries and keys, before the rotation.
        positions: "rope" (rotary), "learned" (a vector per position, added to the token's), or
            "none" (NoPE: order is known from the causal mask alone).
        rope_theta: base of the rotary angles.
        rope_layout: features of a head that turn together, "interleaved" (2k, 2k+1) or "half"
            (k, k + head_dim/2).
        rope_factor: above 1, slow rotations are stretched as in Llama 3.1; see `RopeScaling`, as for
            the three settings that begin like it.
        feed_forward: "swiglu", "silu" (`W2 silu(W1 x)`) or "gelu" (`W2 gelu(W1 x)`).
        qkv_bias, output_bias, ffn_bias: biases in the projections to queries, keys and values, in the
            one after attention, and in the feed-forward.
        tied: the output head shares the embedding's weight, drawn smaller.
        dropout: rate in training, of the attention weights, of each sublayer's output and of the
            embedding sum.

    Raises:
        ValueError: a setting out of range, or settings that contradict each other.
    """

    context_length: int
    d_model: int
    num_layers: int
    num_heads: int
    d_ff: int = 0
    vocab_size: int = 0
    num_kv_heads: int = 0
    head_dim: int = 0
    norm: str = "pre"
    norm_kind: str = "rms"
    norm_eps: float = 1e-5
    qk_norm: bool = False
    positions: str = "rope"
    rope_theta: float = 10_000.0
    rope_layout: str = "interleaved"
    rope_factor: float = 1.0
    rope_original_context: int = 8_192
    rope_low_frequency: float = 1.0
    rope_high_frequency: float = 4.0
    feed_forward: str = "swiglu"
    qkv_bias: bool = False
    output_bias: bool = False
    ffn_bias: bool = False
    tied: bool = False
    dropout: float = 0.0

    def __post_init__(self) -> None:
        for name in ("context_length", "d_model", "num_layers", "num_heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is 1 or more, got {getattr(self, name)}")
        for name in ("d_ff", "vocab_size", "num_kv_heads", "head_dim"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is 0 (take the usual) or more, got {getattr(self, name)}")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is one of {', '.join(choices)}, got {getattr(self, name)!r}")
        if not self.head_dim and self.d_model % self.num_heads:
            raise ValueError(
                f"num_heads must divide d_model, got {self.num_heads} heads for {self.d_model}; or set head_dim"
            )
        if self.num_heads % self.kv_heads:
            raise ValueError(f"num_kv_heads must divide num_heads, got {self.num_kv_heads} for {self.num_heads}")
        if self.norm_eps <= 0:
            raise ValueError(f"norm_eps is above 0, got {self.norm_eps}; 1e-5 is usual")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout lies in [0, 1), got {self.dropout}")
        if self.norm == "none" and (self.norm_kind != "rms" or self.qk_norm):
            raise ValueError('norm="none" is a model without any norm; leave out norm_kind and qk_norm')
        if self.positions == "rope":
            self._check_rope()
        elif self.rope_layout != "interleaved" or self.rope_factor != 1:
            raise ValueError(
                f'positions="{self.positions}" rotates nothing; leave out rope_layout and rope_factor, or take "rope"'
            )

    def _check_rope(self) -> None:
        if self.features_per_head % 2:
            raise ValueError(
                f"rotary positions turn pairs of features, so heads need an even number, got {self.features_per_head};"
                ' change num_heads or head_dim, or take positions="learned"'
            )
        if self.rope_theta <= 0:
            raise ValueError(f'rope_theta is above 0, got {self.rope_theta}; positions="none" turns rotation off')
        if self.rope_factor < 1 or self.rope_original_context < 1:
            raise ValueError(
                "rope_factor and rope_original_context are 1 or more,"
                f" got {self.rope_factor} and {self.rope_original_context}"
            )
        if not 0 < self.rope_low_frequency < self.rope_high_frequency:
            raise ValueError(
                "rope_low_frequency lies between 0 and rope_high_frequency,"
                f" got {self.rope_low_frequency} and {self.rope_high_frequency}"
            )

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values."""
        return self.num_kv_heads or self.num_heads

    @property
    def features_per_head(self) -> int:
        """Width of one head."""
        return self.head_dim or self.d_model // self.num_heads

    @property
    def hidden_width(self) -> int:
        """Width inside the feed-forward."""
        return self.d_ff or default_d_ff(self.d_model, self.feed_forward)


_CHOICES = {
    "norm": ("pre", "post", "none"),
    "norm_kind": tuple(NORMS),
    "positions": ("rope", "learned", "none"),
    "rope_layout": ROPE_LAYOUTS,
    "feed_forward": tuple(FEED_FORWARDS),
}


class TransformerBlock(nn.Module):
    """Attention, then feed-forward, each added to the residual stream."""

    def __init__(
        self,
        config: ModelConfig,
        *,
        rope: RotaryPositionalEmbedding | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.norm = config.norm
        self.dropout_rate = config.dropout
        self.fused_dropout = False
        self.attn = CausalMultiHeadSelfAttention(
            config.d_model,
            config.num_heads,
            num_kv_heads=config.kv_heads,
            head_dim=config.features_per_head,
            rope=rope,
            qkv_bias=config.qkv_bias,
            output_bias=config.output_bias,
            qk_norm=config.qk_norm,
            norm_eps=config.norm_eps,
            dropout_rate=config.dropout,
            device=device,
            dtype=dtype,
        )
        self.ffn = FEED_FORWARDS[config.feed_forward](
            config.d_model, config.hidden_width, bias=config.ffn_bias, device=device, dtype=dtype
        )
        if config.norm != "none":
            norm = NORMS[config.norm_kind]
            self.ln1 = norm(config.d_model, eps=config.norm_eps, device=device, dtype=dtype)
            self.ln2 = norm(config.d_model, eps=config.norm_eps, device=device, dtype=dtype)

    def forward(
        self,
        x: Float[Tensor, "... seq d_model"],
        *,
        token_positions: Int[Tensor, "... seq"] | None = None,
        mask: Bool[Tensor, "... queries keys"] | None = None,
        cache: KVCache | None = None,
    ) -> Float[Tensor, "... seq d_model"]:
        def attend(x: Tensor) -> Tensor:
            return self._drop(self.attn(x, token_positions=token_positions, mask=mask, cache=cache))

        if self.norm == "pre":
            z = x + attend(self.ln1(x))
            return z + self._drop(self.ffn(self.ln2(z)))
        if self.norm == "post":
            z = self.ln1(x + attend(x))
            return self.ln2(z + self._drop(self.ffn(z)))
        z = x + attend(x)
        return z + self._drop(self.ffn(z))

    def _drop(self, x: Tensor) -> Tensor:
        drop = fused_dropout if self.fused_dropout else dropout
        return drop(x, self.dropout_rate if self.training else 0.0)


class TransformerLM(nn.Module):
    """Embedding, blocks, final norm, output head.

    Raises:
        ValueError: `config.vocab_size` is still 0.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        if config.vocab_size < 1:
            raise ValueError("vocab_size is not set; take it from the tokenizer: replace(config, vocab_size=...)")
        self.config = config
        self.recomputed_layers, self.kept_attention, self.fused_dropout = 0, False, False
        rope = _rope(config, device)
        std = config.d_model**-0.5 if config.tied else 1.0  # as a head, unit vectors would saturate softmax
        self.token_embeddings = Embedding(config.vocab_size, config.d_model, std=std, device=device, dtype=dtype)
        self.position_embeddings = (
            Embedding(config.context_length, config.d_model, std=std, device=device, dtype=dtype)
            if config.positions == "learned"
            else None
        )
        self.layers = nn.ModuleList(
            TransformerBlock(config, rope=rope, device=device, dtype=dtype) for _ in range(config.num_layers)
        )
        self.ln_final = (
            NORMS[config.norm_kind](config.d_model, eps=config.norm_eps, device=device, dtype=dtype)
            if config.norm == "pre"
            else None
        )
        self.lm_head = Linear(config.d_model, config.vocab_size, device=device, dtype=dtype)
        if config.tied:
            self.lm_head.weight = self.token_embeddings.weight

    @classmethod
    def without_weights(
        cls, config: ModelConfig, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
    ) -> TransformerLM:
        """A model whose weights hold anything, for those about to be loaded: draws no random numbers."""
        model = cls(config, device="meta", dtype=dtype).to_empty(device=device)
        rope = _rope(config, device)  # tables are no weights; they have to be right
        for attention in model._attentions():
            attention.rope = rope
        if config.tied:
            model.lm_head.weight = model.token_embeddings.weight
        return model

    def use_attention_kernel(self, kernel: str) -> TransformerLM:
        """Compute attention by "reference", the default, "fused", PyTorch's own, or "flash", ours; returns the model.

        Raises:
            ValueError: there is no such kernel.
        """
        for attention in self._attentions():
            attention.use_kernel(kernel)
        return self

    def fuse(self, fused: bool = True, *, dropout: bool = False) -> TransformerLM:
        """Compute norms, rotations and gates by our Triton kernels; returns the model.

        For runs without `torch.compile`, which fuses the plain code itself. What we have no kernels for, LayerNorm and
        GELU, is computed by PyTorch's.

        Args:
            dropout: fuse that around sublayers too; it then draws other numbers.
        """
        for module in self.modules():
            if isinstance(module, _FUSIBLE):
                module.fused = fused
            elif isinstance(module, TransformerBlock | TransformerLM):
                module.fused_dropout = fused and dropout
        return self

    def recompute_in_segments(self, layers_per_segment: int, *, keep_attention: bool = False) -> TransformerLM:
        """In training keep only what enters each segment of layers (`recompute.py`); 0 keeps all. Returns the model.

        Args:
            keep_attention: keep the outputs of attention, too, and do not run it again.

        Raises:
            ValueError: a negative number.
        """
        if layers_per_segment < 0:
            raise ValueError(f"layers_per_segment must not be negative, got {layers_per_segment}")
        self.recomputed_layers, self.kept_attention = layers_per_segment, keep_attention
        return self

    def _attentions(self) -> list[CausalMultiHeadSelfAttention]:
        return [module for module in self.modules() if isinstance(module, CausalMultiHeadSelfAttention)]

    def forward(
        self,
        token_ids: Int[Tensor, "... seq"],
        *,
        token_positions: Int[Tensor, "... seq"] | None = None,
        mask: Bool[Tensor, "... queries keys"] | None = None,
        caches: list[KVCache] | None = None,
    ) -> Float[Tensor, "... seq vocab"]:
        """Logits of the next token at each position.

        Args:
            token_positions: place of each token; 0, 1, 2, ... by default, also with caches.
            mask: replaces the causal mask, for padded batches; broadcast over heads.
            caches: one per layer; holds earlier positions and is extended.

        Raises:
            ValueError: more positions than `context_length`.
        """
        return self.lm_head(self.hidden_states(token_ids, token_positions=token_positions, mask=mask, caches=caches))

    def hidden_states(
        self,
        token_ids: Int[Tensor, "... seq"],
        *,
        token_positions: Int[Tensor, "... seq"] | None = None,
        mask: Bool[Tensor, "... queries keys"] | None = None,
        caches: list[KVCache] | None = None,
    ) -> Float[Tensor, "... seq d_model"]:
        """What `lm_head` turns into logits; arguments and errors as for a call of the model."""
        seq = token_ids.shape[-1]
        if seq > self.config.context_length:
            raise ValueError(f"{seq} tokens exceed the context of {self.config.context_length}; keep the last ones")
        if token_positions is None:
            token_positions = torch.arange(seq, device=token_ids.device)
        x = self.token_embeddings(token_ids)
        if self.position_embeddings is not None:
            x = x + self.position_embeddings(token_positions)
        drop = fused_dropout if self.fused_dropout else dropout
        x = drop(x, self.config.dropout if self.training else 0.0)
        layers = [
            partial(
                layer, token_positions=token_positions, mask=mask, cache=caches[number] if caches is not None else None
            )
            for number, layer in enumerate(self.layers)
        ]
        if self.recomputed_layers and self.training and torch.is_grad_enabled():
            x = run_in_segments(layers, x, self.recomputed_layers, keep_attention=self.kept_attention)
        else:
            for layer in layers:
                x = layer(x)
        return x if self.ln_final is None else self.ln_final(x)

    def load_state_dict(self, state_dict, strict: bool = True, assign: bool = False):
        """As PyTorch's, but takes checkpoints of compiled models too (`_orig_mod.` prefixes)."""
        cleaned = {name.replace("_orig_mod.", ""): value for name, value in state_dict.items()}
        return super().load_state_dict(cleaned, strict=strict, assign=assign)


_FUSIBLE = (RMSNorm, LayerNorm, RotaryPositionalEmbedding, SwiGLU, GELUFeedForward)


def _rope(config: ModelConfig, device: torch.device | str | None) -> RotaryPositionalEmbedding | None:
    """The rotation that all layers share."""
    if config.positions != "rope":
        return None
    scaling = None
    if config.rope_factor != 1:
        scaling = RopeScaling(
            factor=config.rope_factor,
            original_context=config.rope_original_context,
            low_frequency=config.rope_low_frequency,
            high_frequency=config.rope_high_frequency,
        )
    return RotaryPositionalEmbedding(
        config.rope_theta,
        config.features_per_head,
        config.context_length,
        layout=config.rope_layout,
        scaling=scaling,
        device=device,
    )


def save_model(model: TransformerLM, folder: Path) -> None:
    """Write `config.json` and `model.safetensors`; same weights, same bytes."""
    write_json(folder / "config.json", asdict(model.config))
    # Weights last, and under their name only once they are whole: a folder with weights is complete.
    partial = folder / ".model.safetensors.partial"
    with name_full_disk(partial):
        save_safetensors(model, str(partial))
    shutil.copymode(folder / "config.json", partial)  # safetensors lets nobody else read what it writes
    os.replace(partial, folder / "model.safetensors")


def load_model(folder: Path, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> TransformerLM:
    """Read what `save_model` wrote, in evaluation mode.

    Args:
        dtype: of the weights, whatever they are stored in; float32 by default.

    Raises:
        UserError: the weights are not there, as after a run measured elsewhere, or the folder is
            another program's.
    """
    values = read_json(folder / "config.json")
    if "model_type" in values:
        raise UserError(f"{folder}: a Hugging Face checkpoint; cs336.model.huggingface.load_huggingface reads it")
    config = ModelConfig(**values)
    weights = folder / "model.safetensors"
    if not weights.exists():
        raise UserError(
            f"{weights}: not here (a run measured elsewhere may leave its weights behind); copy the file there,"
            " or materialize the model on this machine"
        )
    model = TransformerLM.without_weights(config, device=device, dtype=dtype)
    try:
        load_safetensors(model, str(weights), device=str(device))
    except SafetensorError as error:
        raise UserError(f"{weights}: not a readable safetensors file ({error}); materialize the model again") from None
    return model.eval()
