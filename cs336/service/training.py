"""The training of a contest's job: equal chunks of a fixed token order, a validation after each, a deadline between.

The model is RMSNorm, QK-norm, half-split rotary positions and SwiGLU, without dropout. Weights, the optimizer's
moments and all losses are float32; `dtype` is that of the matrix products. Weights kept in bfloat16 alone would stop
moving towards the end of the schedule, where a step is smaller than their spacing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from cs336.files import UserError
from cs336.hardware import pick_device
from cs336.model.transformer import ModelConfig, TransformerLM
from cs336.service.job_config import NUM_VALID_TOKENS, SEQUENCE_LENGTH, Architecture, TrainingConfig
from cs336.service.job_data import JobData
from cs336.service.optimizers import learning_rate, make_optimizer
from cs336.train.loss import linear_cross_entropy, linear_token_losses
from cs336.train.optimizer import clip_gradients

if TYPE_CHECKING:
    from jaxtyping import Int

    from cs336.tokens.shards import TokenArray

SEQUENCES_AT_ONCE = {"cuda": 32, "cpu": 8}  # larger batches are cut and their gradients added: memory stays bounded


def model_config(architecture: Architecture) -> ModelConfig:
    """The contest's model as one of ours."""
    return ModelConfig(
        context_length=SEQUENCE_LENGTH,
        d_model=architecture.hidden_size,
        num_layers=architecture.num_hidden_layers,
        num_heads=architecture.num_attention_heads,
        head_dim=architecture.head_dim,
        d_ff=architecture.intermediate_size,
        vocab_size=architecture.vocab_size,
        norm_eps=architecture.rms_norm_eps,
        qk_norm=True,
        rope_theta=architecture.rope_theta,
        rope_layout="half",
        qkv_bias=architecture.attention_bias,
        output_bias=architecture.attention_bias,
        tied=architecture.tie_word_embeddings,
    )


class Outcome(NamedTuple):
    """How a training ended.

    Attributes:
        val_losses: nats a token, after each chunk that was trained.
        used_seconds: from the first chunk's beginning to the last validation's end.
        timed_out: the time was over before the chunks were, or with the last one.
    """

    val_losses: list[float]
    used_seconds: float
    timed_out: bool


class Diverged(UserError):
    """The validation loss is no number any more."""


def train_job(
    config: TrainingConfig,
    data: JobData,
    *,
    device: str = "auto",
    on_start: Callable[[], None] = lambda: None,
    on_loss: Callable[[int, float], None] = lambda number, loss: None,
    clock: Callable[[], float] = time.monotonic,
) -> Outcome:
    """Train one job from the beginning.

    Making the model and one step on it that is thrown away, for kernels to be compiled and chosen, come before the
    clock starts.

    Args:
        device: "auto" takes a GPU where there is one.
        on_start: called once, as the clock starts.
        on_loss: called with each validation loss and its number, from 0.
        clock: seconds.

    Raises:
        UserError: more tokens than there are, or ids that the vocabulary does not have.
        Diverged: a validation loss is not finite.
    """
    if config.total_train_tokens >= len(data.train):
        raise UserError(
            f"total_train_tokens is {config.total_train_tokens:,}, but there are {len(data.train) - 1:,} tokens to"
            " predict, and none is taken twice"
        )
    run = _Run(config, data, pick_device(device))
    run.warm_up()
    on_start()
    start = clock()
    losses: list[float] = []
    for chunk in range(config.n_evals):
        if chunk and clock() - start > config.max_runtime_seconds:
            return Outcome(losses, clock() - start, timed_out=True)
        run.train_chunk(chunk)
        loss = run.validate()
        if not math.isfinite(loss):
            raise Diverged(f"the validation loss became {loss} in chunk {chunk + 1} of {config.n_evals}")
        losses.append(loss)
        on_loss(chunk, loss)
    used = clock() - start
    return Outcome(losses, used, timed_out=used > config.max_runtime_seconds)


class _Run:
    """Model, optimizer and data of one job."""

    def __init__(self, config: TrainingConfig, data: JobData, device: torch.device) -> None:
        self.config, self.data, self.device = config, data, device
        torch.manual_seed(config.model_seed)
        model = TransformerLM(model_config(config.architecture)).to(device).train()
        self.model = model.use_attention_kernel("fused")
        self.optimizer = make_optimizer(self.model.parameters(), config.optimizer)

    def warm_up(self) -> None:
        """One forward and backward pass whose result is forgotten."""
        inputs, targets = self._batch(self.data.train, 0, 1)
        self._backward(inputs, targets, 1.0)
        self.optimizer.zero_grad(set_to_none=True)
        self._wait()

    def train_chunk(self, chunk: int) -> None:
        """The steps of one of the equal chunks."""
        num_steps = self.config.num_steps
        per_chunk = num_steps // self.config.n_evals
        for step in range(chunk * per_chunk, (chunk + 1) * per_chunk):
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate(self.config.optimizer.schedule, step, num_steps)
            self._accumulate_gradients(step)
            if self.config.optimizer.grad_clip_norm is not None:
                clip_gradients(self.model.parameters(), self.config.optimizer.grad_clip_norm)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def validate(self) -> float:
        """Nats a token over the validation tokens."""
        self.model.eval()
        size = self.config.val_batch_size
        sums = []
        for first in range(0, NUM_VALID_TOKENS // SEQUENCE_LENGTH, size):
            inputs, targets = self._batch(self.data.valid, first, size)
            with self._autocast():
                losses = linear_token_losses(self.model.hidden_states(inputs), self.model.lm_head.weight, targets)
            sums.append(losses.sum())
        self.model.train()
        return math.fsum(torch.stack(sums).tolist()) / NUM_VALID_TOKENS

    def _accumulate_gradients(self, step: int) -> None:
        batch_size = self.config.train_batch_size
        at_once = SEQUENCES_AT_ONCE.get(self.device.type, SEQUENCES_AT_ONCE["cpu"])
        for first in range(0, batch_size, at_once):
            size = min(at_once, batch_size - first)
            inputs, targets = self._batch(self.data.train, step * batch_size + first, size)
            self._backward(inputs, targets, size / batch_size)

    def _backward(self, inputs: Tensor, targets: Tensor, share: float) -> None:
        with self._autocast():
            loss = linear_cross_entropy(self.model.hidden_states(inputs), self.model.lm_head.weight, targets)
        (loss.total * share).backward()

    def _batch(
        self, tokens: np.ndarray | TokenArray, first: int, size: int
    ) -> tuple[Int[Tensor, "batch seq"], Int[Tensor, "batch seq"]]:
        """Sequences `first`, `first + 1`, ... of the text cut into pieces that lie side by side."""
        start = first * SEQUENCE_LENGTH
        some = tokens[start : start + size * SEQUENCE_LENGTH + 1].astype(np.int64)
        largest = int(some.max())
        if largest >= self.config.architecture.vocab_size:
            raise UserError(
                f"vocab_size is {self.config.architecture.vocab_size:,}, but the text has id {largest:,}; take the"
                " tokenizer's vocabulary"
            )
        ids = torch.from_numpy(some).to(self.device)
        return ids[:-1].view(size, SEQUENCE_LENGTH), ids[1:].view(size, SEQUENCE_LENGTH)

    def _autocast(self) -> torch.autocast:
        wants_low = self.config.architecture.dtype == "bfloat16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=wants_low)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
