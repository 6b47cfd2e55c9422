"""The Transformer language model: token ids in, next-token logits out."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_model as load_safetensors
from safetensors.torch import save_model as save_safetensors
from torch import Tensor, nn

from cs336.files import UserError, read_json, write_json
from cs336.model.attention import CausalMultiHeadSelfAttention, KVCache
from cs336.model.layers import (
    Embedding,
    Linear,
    RMSNorm,
    RotaryPositionalEmbedding,
    SiLUFeedForward,
    SwiGLU,
    default_d_ff,
)

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int


@dataclass(frozen=True)
class ModelConfig:
    """Shape of a model, and the ablations of the first handout.

    Attributes:
        vocab_size: 0 means "read it from the trained tokenizer".
        context_length: the most tokens a forward pass takes.
        d_ff: 0 means 8/3 d_model, rounded to a multiple of 64.
        norm: "pre" (before each sublayer), "post" (after the residual sum), or "none".
        rope_theta: base of the rotary angles; 0 turns positions off (NoPE).
        gated: SwiGLU when True, `W2 silu(W1 x)` when False.
        tied: the output head shares the embedding's weight, drawn smaller.
    """

    context_length: int
    d_model: int
    num_layers: int
    num_heads: int
    d_ff: int = 0
    vocab_size: int = 0
    norm: str = "pre"
    rope_theta: float = 10_000.0
    gated: bool = True
    tied: bool = False

    def __post_init__(self) -> None:
        if self.norm not in ("pre", "post", "none"):
            raise ValueError(f'norm is "pre", "post" or "none", got {self.norm!r}')
        if self.d_model % self.num_heads:
            raise ValueError(f"num_heads must divide d_model, got {self.num_heads} heads for {self.d_model}")


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
        d_ff = config.d_ff or default_d_ff(config.d_model)
        self.attn = CausalMultiHeadSelfAttention(
            config.d_model, config.num_heads, rope=rope, device=device, dtype=dtype
        )
        feed_forward = SwiGLU if config.gated else SiLUFeedForward
        self.ffn = feed_forward(config.d_model, d_ff, device=device, dtype=dtype)
        if config.norm != "none":
            self.ln1 = RMSNorm(config.d_model, device=device, dtype=dtype)
            self.ln2 = RMSNorm(config.d_model, device=device, dtype=dtype)

    def forward(
        self,
        x: Float[Tensor, "... seq d_model"],
        *,
        token_positions: Int[Tensor, "... seq"] | None = None,
        mask: Bool[Tensor, "... queries keys"] | None = None,
        cache: KVCache | None = None,
    ) -> Float[Tensor, "... seq d_model"]:
        if self.norm == "pre":
            z = x + self.attn(self.ln1(x), token_positions=token_positions, mask=mask, cache=cache)
            return z + self.ffn(self.ln2(z))
        if self.norm == "post":
            z = self.ln1(x + self.attn(x, token_positions=token_positions, mask=mask, cache=cache))
            return self.ln2(z + self.ffn(z))
        z = x + self.attn(x, token_positions=token_positions, mask=mask, cache=cache)
        return z + self.ffn(z)


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
        rope = None
        if config.rope_theta:
            d_k = config.d_model // config.num_heads
            rope = RotaryPositionalEmbedding(config.rope_theta, d_k, config.context_length, device=device)
        self.token_embeddings = Embedding(
            config.vocab_size,
            config.d_model,
            std=config.d_model**-0.5 if config.tied else 1.0,  # as a head, unit vectors would saturate softmax
            device=device,
            dtype=dtype,
        )
        self.layers = nn.ModuleList(
            TransformerBlock(config, rope=rope, device=device, dtype=dtype) for _ in range(config.num_layers)
        )
        self.ln_final = RMSNorm(config.d_model, device=device, dtype=dtype) if config.norm == "pre" else None
        self.lm_head = Linear(config.d_model, config.vocab_size, device=device, dtype=dtype)
        if config.tied:
            self.lm_head.weight = self.token_embeddings.weight

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
            token_positions: place of each token; 0, 1, 2, ... by default.
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
        """What the output head reads: everything but its product, for losses that never hold all logits."""
        if token_ids.shape[-1] > self.config.context_length:
            raise ValueError(
                f"{token_ids.shape[-1]} tokens exceed the context of {self.config.context_length}; keep the last ones"
            )
        x = self.token_embeddings(token_ids)
        for number, layer in enumerate(self.layers):
            cache = caches[number] if caches is not None else None
            x = layer(x, token_positions=token_positions, mask=mask, cache=cache)
        if self.ln_final is not None:
            x = self.ln_final(x)
        return x

    def load_state_dict(self, state_dict, strict: bool = True, assign: bool = False):
        """As PyTorch's, but takes checkpoints of compiled models too (`_orig_mod.` prefixes)."""
        cleaned = {name.replace("_orig_mod.", ""): value for name, value in state_dict.items()}
        return super().load_state_dict(cleaned, strict=strict, assign=assign)


def save_model(model: TransformerLM, folder: Path) -> None:
    """Write `config.json` and `model.safetensors`; same weights, same bytes."""
    write_json(folder / "config.json", asdict(model.config))
    # Weights last: a folder with weights is complete.
    save_safetensors(model, str(folder / "model.safetensors"))


def load_model(folder: Path, *, device: torch.device | str = "cpu") -> TransformerLM:
    """Read what `save_model` wrote, in evaluation mode.

    Raises:
        UserError: the weights are not there, as after a run measured elsewhere.
    """
    config = ModelConfig(**read_json(folder / "config.json"))
    weights = folder / "model.safetensors"
    if not weights.exists():
        raise UserError(
            f"{weights}: not here (a run measured elsewhere may leave its weights behind); copy the file there,"
            " or materialize the model on this machine"
        )
    model = TransformerLM(config, device=device)
    load_safetensors(model, str(weights), device=str(device))
    return model.eval()
