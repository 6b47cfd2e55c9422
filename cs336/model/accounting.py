"""Parameters, FLOPs and bytes of a model in closed form; nothing is built.

The rules: a product of an m x n and an n x p matrix costs 2mnp FLOPs; products are all that is
counted in a forward pass; a backward pass costs two forward passes. Attention counts every pair of
positions, as computing it without skipping masked ones does.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from cs336.model.transformer import ModelConfig

GPT2_SHAPES = {  # Radford et al. 2019, table 2; as the first handout has them, with a SwiGLU 4 d_model wide
    "small": ModelConfig(vocab_size=50_257, context_length=1_024, num_layers=12, d_model=768, num_heads=12, d_ff=3_072),
    "medium": ModelConfig(
        vocab_size=50_257, context_length=1_024, num_layers=24, d_model=1_024, num_heads=16, d_ff=4_096
    ),
    "large": ModelConfig(
        vocab_size=50_257, context_length=1_024, num_layers=36, d_model=1_280, num_heads=20, d_ff=5_120
    ),
    "xl": ModelConfig(vocab_size=50_257, context_length=1_024, num_layers=48, d_model=1_600, num_heads=25, d_ff=6_400),
}
BYTES_FP32 = 4
A100_FP32_FLOPS_PER_SECOND = 19.5e12  # NVIDIA's data sheet, without tensor cores


# ---- parameters


@dataclass(frozen=True)
class Parameters:
    """Numbers a model learns, by part."""

    embeddings: int
    attention: int
    feed_forward: int
    norms: int
    head: int

    @property
    def total(self) -> int:
        return self.embeddings + self.attention + self.feed_forward + self.norms + self.head

    @property
    def without_embeddings(self) -> int:
        """Those of the blocks and norms: near `12 L d²` when the feed-forward is as wide as usual."""
        return self.attention + self.feed_forward + self.norms


def count_parameters(config: ModelConfig) -> Parameters:
    """Parameters; `2Vd + L(4d² + 3·d·d_ff + 2d) + d` for the handout's model. A tied head is counted once."""
    d, d_ff, layers, vocab = config.d_model, config.hidden_width, config.num_layers, config.vocab_size
    q_width = config.num_heads * config.features_per_head
    kv_width = config.kv_heads * config.features_per_head
    attention = d * q_width + 2 * d * kv_width + q_width * d
    attention += (q_width + 2 * kv_width) * config.qkv_bias + d * config.output_bias
    attention += 2 * config.features_per_head * config.qk_norm
    num_inner = 2 if config.feed_forward == "swiglu" else 1  # matrices from d_model to d_ff
    feed_forward = (num_inner + 1) * d * d_ff + (num_inner * d_ff + d) * config.ffn_bias
    norms = {"pre": (2 * layers + 1) * d, "post": 2 * layers * d, "none": 0}[config.norm]
    return Parameters(
        embeddings=vocab * d + config.context_length * d * (config.positions == "learned"),
        attention=layers * attention,
        feed_forward=layers * feed_forward,
        norms=norms,
        head=0 if config.tied else vocab * d,
    )


# ---- FLOPs


@dataclass(frozen=True)
class MatrixProducts:
    """`count` products of an m x n with an n x p matrix.

    Attributes:
        part: "projections", "scores", "feed-forward" or "head".
    """

    name: str
    part: str
    m: int
    n: int
    p: int
    count: int

    @property
    def flops(self) -> int:
        return 2 * self.m * self.n * self.p * self.count


def matrix_products(config: ModelConfig, num_tokens: int | None = None) -> list[MatrixProducts]:
    """Every matrix product of a forward pass over one sequence, in order.

    Args:
        num_tokens: length of the sequence; the whole context by default.
    """
    t = config.context_length if num_tokens is None else num_tokens
    d, d_ff, layers, heads = config.d_model, config.hidden_width, config.num_layers, config.num_heads
    d_k = config.features_per_head
    products = [
        MatrixProducts("queries", "projections", t, d, heads * d_k, layers),
        MatrixProducts("keys", "projections", t, d, config.kv_heads * d_k, layers),
        MatrixProducts("values", "projections", t, d, config.kv_heads * d_k, layers),
        MatrixProducts("queries x keys", "scores", t, d_k, t, layers * heads),
        MatrixProducts("weights x values", "scores", t, t, d_k, layers * heads),
        MatrixProducts("attention output", "projections", t, heads * d_k, d, layers),
        MatrixProducts("W1", "feed-forward", t, d, d_ff, layers),
        MatrixProducts("W2", "feed-forward", t, d_ff, d, layers),
        MatrixProducts("output head", "head", t, d, config.vocab_size, 1),
    ]
    if config.feed_forward == "swiglu":
        products.insert(7, MatrixProducts("W3", "feed-forward", t, d, d_ff, layers))
    return products


def forward_flops(config: ModelConfig, num_tokens: int | None = None) -> int:
    """FLOPs of a forward pass over one sequence; `L(8Td² + 4T²d + 6T·d·d_ff) + 2TdV` for the handout's model.

    Args:
        num_tokens: length of the sequence; the whole context by default.
    """
    return sum(product.flops for product in matrix_products(config, num_tokens))


def training_flops(config: ModelConfig, num_tokens: int) -> int:
    """FLOPs of forward and backward over `num_tokens`, a multiple of the context, in full contexts.

    What the optimizer adds is left out: `optimizer_flops` a step, whatever the batch.

    Raises:
        ValueError: `num_tokens` does not fill whole contexts.
    """
    if num_tokens % config.context_length:
        raise ValueError(f"{num_tokens} tokens do not fill contexts of {config.context_length}; round to a multiple")
    return 3 * forward_flops(config) * (num_tokens // config.context_length)


def flops_by_part(config: ModelConfig, num_tokens: int | None = None) -> dict[str, int]:
    """Forward FLOPs over one sequence of projections, scores, feed-forward and head."""
    parts = dict.fromkeys(("projections", "scores", "feed-forward", "head"), 0)
    for product in matrix_products(config, num_tokens):
        parts[product.part] += product.flops
    return parts


ADAMW_FLOPS_PER_PARAMETER = 14
"""m: 2 products and a sum; v: 3 products and a sum; step: root, sum, quotient, product, difference;
decay: a product and a difference. The two bias corrections are once a step."""


def optimizer_flops(config: ModelConfig) -> int:
    """FLOPs of one AdamW step."""
    return ADAMW_FLOPS_PER_PARAMETER * count_parameters(config).total


# ---- bytes


@dataclass(frozen=True)
class TrainingMemory:
    """What training in fp32 with AdamW holds, in bytes; `activations` for each sequence of the batch."""

    parameters: int
    gradients: int
    optimizer_state: int
    activations: int

    @property
    def fixed(self) -> int:
        """What does not depend on the batch."""
        return self.parameters + self.gradients + self.optimizer_state

    def total(self, batch_size: int) -> int:
        """`a·B + b`."""
        return self.activations * batch_size + self.fixed

    def largest_batch(self, available_bytes: int) -> int:
        """The most sequences that fit; 0 when not even one does."""
        return max(0, (available_bytes - self.fixed) // self.activations)


def training_memory(config: ModelConfig, num_tokens: int | None = None) -> TrainingMemory:
    """Memory of training in fp32, by the handout's list of activations.

    Args:
        num_tokens: length of a sequence; the whole context by default.
    """
    parameters = BYTES_FP32 * count_parameters(config).total
    return TrainingMemory(
        parameters=parameters,
        gradients=parameters,
        optimizer_state=2 * parameters,  # m and v
        activations=BYTES_FP32 * activations(config, num_tokens),
    )


def activations(config: ModelConfig, num_tokens: int | None = None) -> int:
    """Numbers that one sequence's backward pass needs; `L(16Td + 2hT²) + Td + 2TV` for d_ff = 4d.

    The handout's list: in each block the outputs of two norms, of the three projections, scores and
    their softmax, the weighted sum of values, its projection, W1, its activation and W2; then the
    final norm, the logits, and the cross-entropy's copy of them. A SwiGLU's W3 and its product are
    not on that list.
    """
    t = config.context_length if num_tokens is None else num_tokens
    d, d_ff = config.d_model, config.hidden_width
    q_width = config.num_heads * config.features_per_head
    kv_width = config.kv_heads * config.features_per_head
    attention = t * (q_width + 2 * kv_width) + 2 * config.num_heads * t * t + t * q_width + t * d
    feed_forward = 2 * t * d_ff + t * d
    num_block_norms, num_final_norms = {"pre": (2, 1), "post": (2, 0), "none": (0, 0)}[config.norm]
    block = num_block_norms * t * d + attention + feed_forward
    return config.num_layers * block + num_final_norms * t * d + 2 * t * config.vocab_size


def kv_cache_bytes(config: ModelConfig, num_tokens: int, *, bytes_per_number: int = BYTES_FP32) -> int:
    """Keys and values that generation holds for one sequence."""
    return 2 * config.num_layers * config.kv_heads * config.features_per_head * num_tokens * bytes_per_number


# ---- the handout's questions


def training_days(
    config: ModelConfig,
    *,
    num_steps: int = 400_000,
    batch_size: int = 1_024,
    flops_per_second: float = A100_FP32_FLOPS_PER_SECOND,
    utilization: float = 0.5,
) -> float:
    """Days on one device for forward, backward and optimizer; the defaults are the handout's question."""
    step = training_flops(config, batch_size * config.context_length) + optimizer_flops(config)
    return num_steps * step / (flops_per_second * utilization) / 86_400


def gpt2_table(context_length: int = 1_024) -> list[dict[str, Any]]:
    """One row for each GPT-2 shape: parameters, fp32 bytes, forward FLOPs of one context, share of each part."""
    rows = []
    for name, shape in GPT2_SHAPES.items():
        config = replace(shape, context_length=context_length)
        total = forward_flops(config)
        rows.append(
            {
                "model": name,
                "num_parameters": count_parameters(config).total,
                "fp32_bytes": BYTES_FP32 * count_parameters(config).total,
                "forward_flops": total,
                **{f"{part} share": flops / total for part, flops in flops_by_part(config).items()},
            }
        )
    return rows
