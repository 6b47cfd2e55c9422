"""A small job, its text, and bodies made from them, for the tests of the contest's service."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from cs336.service.job_config import NUM_VALID_TOKENS, TrainingConfig

VOCAB_SIZE = 48


def architecture(**changes: Any) -> dict[str, Any]:
    """One layer, 16 wide."""
    return {
        "attention_bias": False,
        "head_dim": 8,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10_000.0,
        "tie_word_embeddings": False,
        "dtype": "float32",
        "vocab_size": VOCAB_SIZE,
    } | changes


def body(**changes: Any) -> dict[str, Any]:
    """What is posted to /submit: 8 steps of 2 sequences, in 4 chunks."""
    return {
        "architecture": architecture(),
        "optimizer": {"type": "adamw", "schedule": {"peak_value": 0.01}},
        "train_batch_size": 2,
        "val_batch_size": 16,
        "n_evals": 4,
        "total_train_tokens": 8 * 2 * 512,
        "max_runtime_seconds": 600,
        "model_seed": 0,
    } | changes


def config(**changes: Any) -> TrainingConfig:
    """The same, read."""
    return TrainingConfig.model_validate(body(**changes))


def write_text(folder: Path, *, num_train_tokens: int = 20_000) -> Path:
    """Token arrays in which each id is mostly followed by the next: soon learnt."""
    generator = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    for split, size in (("train", num_train_tokens), ("valid", NUM_VALID_TOKENS + 1)):
        steps = np.where(generator.random(size) < 0.9, 1, generator.integers(VOCAB_SIZE, size=size))
        (np.cumsum(steps) % VOCAB_SIZE).astype("<u2").tofile(folder / f"{split}.bin")
    return folder
