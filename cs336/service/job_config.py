"""What a contest's user asks to be trained: the 2026 configuration and all its checks.

Unknown keys are refused, and an optimizer names its kind: without that tag a body with only the fields that both
kinds share would be taken for either.

Source: CS336 Spring 2026, scaling handout.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator

SEQUENCE_LENGTH = 512
NUM_VALID_TOKENS = 2**18
MAX_TRAIN_TOKENS = 500_000_000_000
MAX_RUNTIME_SECONDS = 43_200  # of a fitting job: 12 hours, the whole budget
MAX_FINAL_RUNTIME_SECONDS = 172_800  # of a final submission: the 48-hour run that the contest is about
MAX_EVALS = 1_024  # ours: a status and a worker's last report hold all losses
_HASH_BYTES = 10  # 80 bits

Fraction = Annotated[float, Field(ge=0, le=1)]
Beta = Annotated[float, Field(ge=0, lt=1)]
NotNegative = Annotated[float, Field(ge=0)]


class _Strict(BaseModel):
    """No unknown keys, no numbers in quotes, no NaN."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Architecture(_Strict):
    """Shape of the model: RMSNorm, QK-norm, half-split rotary positions, SwiGLU, no dropout."""

    attention_bias: bool = Field(description="biases in the projections to queries, keys and values, and after")
    head_dim: PositiveInt
    hidden_size: PositiveInt
    intermediate_size: PositiveInt
    num_attention_heads: PositiveInt
    num_hidden_layers: PositiveInt
    num_key_value_heads: PositiveInt
    rms_norm_eps: PositiveFloat
    rope_theta: PositiveFloat
    tie_word_embeddings: bool
    dtype: Literal["float32", "bfloat16"] = Field(description="of matrix products; masters and losses are float32")
    vocab_size: PositiveInt

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.hidden_size != self.num_attention_heads * self.head_dim:
            raise ValueError(
                f"hidden_size must be num_attention_heads * head_dim, got {self.hidden_size} for"
                f" {self.num_attention_heads} * {self.head_dim}"
            )
        if self.num_key_value_heads != self.num_attention_heads:
            raise ValueError(
                f"num_key_value_heads must equal num_attention_heads, got {self.num_key_value_heads} for"
                f" {self.num_attention_heads}; grouped queries are not offered"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim must be even, for rotary positions turn pairs, got {self.head_dim}")
        if self.intermediate_size < self.hidden_size:
            raise ValueError(
                f"intermediate_size must be at least hidden_size, got {self.intermediate_size} for {self.hidden_size}"
            )
        return self


class Schedule(_Strict):
    """Linear warm-up, then a cosine down to `final_lr_frac * peak_value` at the last step."""

    peak_value: PositiveFloat = 3e-4
    final_lr_frac: Fraction = 0.1
    warmup_frac: Fraction = Field(default=0.05, description="share of the steps")
    init_value: NotNegative = Field(default=0.0, description="learning rate before the first step")


class AdamWConfig(_Strict):
    """Adam with decoupled weight decay on all parameters."""

    type: Literal["adamw"]
    schedule: Schedule = Schedule()
    weight_decay: NotNegative = 0.01
    beta1: Beta = 0.9
    beta2: Beta = 0.95
    eps: PositiveFloat = 1e-8
    eps_root: NotNegative = Field(default=1e-8, description="added inside the root of the second moment")
    grad_clip_norm: PositiveFloat | None = 1.0


class SGDConfig(_Strict):
    """Plain gradient steps."""

    type: Literal["sgd"]
    schedule: Schedule = Schedule()
    grad_clip_norm: PositiveFloat | None = 1.0


Optimizer = Annotated[AdamWConfig | SGDConfig, Field(discriminator="type")]


class _Training(_Strict):
    """A configuration but for its limit of time."""

    architecture: Architecture
    optimizer: Optimizer
    train_batch_size: PositiveInt
    val_batch_size: PositiveInt
    n_evals: PositiveInt = Field(
        default=16, le=MAX_EVALS, description="equal chunks of training, each followed by a validation"
    )
    total_train_tokens: Annotated[int, Field(gt=0, le=MAX_TRAIN_TOKENS)]
    model_seed: Annotated[int, Field(ge=0, lt=2**32)]

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.total_train_tokens // (SEQUENCE_LENGTH * self.train_batch_size)

    @model_validator(mode="after")
    def _divides(self) -> Self:
        tokens_per_step = SEQUENCE_LENGTH * self.train_batch_size
        if self.total_train_tokens % tokens_per_step:
            raise ValueError(
                f"total_train_tokens must be a multiple of {SEQUENCE_LENGTH} * train_batch_size = {tokens_per_step},"
                f" got {self.total_train_tokens}"
            )
        if self.num_steps % self.n_evals:
            raise ValueError(f"the {self.num_steps} steps must be a multiple of n_evals, got {self.n_evals}")
        if NUM_VALID_TOKENS % (SEQUENCE_LENGTH * self.val_batch_size):
            raise ValueError(
                f"{SEQUENCE_LENGTH} * val_batch_size must divide the {NUM_VALID_TOKENS} validation tokens,"
                f" got {self.val_batch_size}; powers of two up to {NUM_VALID_TOKENS // SEQUENCE_LENGTH} do"
            )
        return self


class TrainingConfig(_Training):
    """A job for fitting, at most 12 hours long."""

    max_runtime_seconds: Annotated[int, Field(ge=1, le=MAX_RUNTIME_SECONDS)]


class FinalTrainingConfig(_Training):
    """The run that a final submission proposes, at most 48 hours long."""

    max_runtime_seconds: Annotated[int, Field(ge=1, le=MAX_FINAL_RUNTIME_SECONDS)]


def config_hash(config: TrainingConfig) -> str:
    """80 bits of BLAKE2s over the canonical JSON, as 20 hexadecimal digits.

    Canonical: all fields, defaults too, keys in order, each number in its field's type, so `1` and `1.0` are the
    same learning rate; an optimizer's kind is part of it.
    """
    text = json.dumps(config.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
    return hashlib.blake2s(text.encode(), digest_size=_HASH_BYTES).hexdigest()
