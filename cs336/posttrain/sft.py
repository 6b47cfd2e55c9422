"""Supervised fine-tuning on responses: the loss of a micro-batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from cs336.posttrain.masked import masked_mean, masked_normalize

if TYPE_CHECKING:
    from jaxtyping import Bool, Float


def sft_microbatch_train_step(
    policy_log_probs: Float[Tensor, "batch seq"],
    response_mask: Bool[Tensor, "batch seq"],
    gradient_accumulation_steps: float,
    normalize_constant: float = 1.0,
) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """Add a micro-batch's gradient: the mean over its rows of the responses' negative log-likelihood.

    Args:
        policy_log_probs: of the labels, in nats.
        gradient_accumulation_steps: micro-batches whose mean is wanted.
        normalize_constant: what each row's sum is divided by.

    Returns:
        The loss, already divided by `gradient_accumulation_steps` and without gradient; and `num_response_tokens`
        and `nats_per_token` of the micro-batch.
    """
    per_row = -masked_normalize(policy_log_probs, response_mask, normalize_constant, dim=-1)
    loss = per_row.mean() / gradient_accumulation_steps
    loss.backward()
    log_probs = policy_log_probs.detach()
    metadata = {
        "num_response_tokens": response_mask.sum(),
        "nats_per_token": -masked_mean(log_probs, response_mask),
    }
    return loss.detach(), metadata
