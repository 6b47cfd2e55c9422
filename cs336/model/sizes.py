"""The shapes that the handout on systems measures, by name, and that of the model which reasoning RL starts from.

Source: CS336 assignment 2, editions of 2025 and 2026; all with a vocabulary of 10,000 but the last, the leaderboard's.
"""

from __future__ import annotations

from dataclasses import replace

from cs336.model.transformer import ModelConfig

BATCH_SIZE = 4  # sequences, unless a study says otherwise
CONTEXT_LENGTH = 512


def _shape(d_model: int, d_ff: int, num_layers: int, num_heads: int) -> ModelConfig:
    return ModelConfig(
        context_length=CONTEXT_LENGTH,
        d_model=d_model,
        d_ff=d_ff,
        num_layers=num_layers,
        num_heads=num_heads,
        vocab_size=10_000,
    )


SIZES = {
    "small": _shape(768, 3_072, 12, 12),
    "medium": _shape(1_024, 4_096, 24, 16),
    "large": _shape(1_280, 5_120, 36, 20),
    "xl": _shape(2_560, 10_240, 32, 32),  # named 2.7B in 2025
    "10b": _shape(4_608, 12_288, 50, 36),
    "xl-2025": _shape(1_600, 6_400, 48, 25),
    "8b": replace(_shape(4_096, 11_008, 34, 32), vocab_size=151_936, context_length=32_768),
}

# Source: Yang et al. 2024, arXiv:2412.15115, table 1, and the checkpoint's config.json.
QWEN_2_5_1_5B = ModelConfig(
    context_length=4_096,
    d_model=1_536,
    num_layers=28,
    num_heads=12,
    num_kv_heads=2,
    d_ff=8_960,
    vocab_size=151_936,
    norm_eps=1e-6,
    rope_theta=10_000.0,  # Qwen2.5-Math's; the general model has 1,000,000
    rope_layout="half",
    qkv_bias=True,
    tied=True,
)


def find_size(name: str, *, context_length: int | None = None) -> ModelConfig:
    """A shape by its name, for another context if given.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in SIZES:
        raise ValueError(f"there is no size {name!r}; there are {', '.join(SIZES)}")
    return replace(SIZES[name], context_length=context_length) if context_length else SIZES[name]
