"""Cross-entropy that stays finite."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from cs336.model.logprobs import token_logprobs

if TYPE_CHECKING:
    from jaxtyping import Float, Int


def cross_entropy(logits: Float[Tensor, "... vocab"], targets: Int[Tensor, "..."]) -> Float[Tensor, ""]:
    """Mean negative log-likelihood of the targets, in nats; finite for very large logits."""
    return -token_logprobs(logits, targets).mean()
