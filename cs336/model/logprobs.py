"""Log-probabilities of given tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float, Int


def token_logprobs(logits: Float[Tensor, "... vocab"], targets: Int[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Log-probability of each target under the softmax of its logits, in nats.

    Finite for very large logits: the maximum is subtracted before exponentiation.
    """
    shifted = logits - logits.amax(dim=-1, keepdim=True).detach()
    chosen = shifted.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    return chosen - shifted.exp().sum(dim=-1).log()
