"""From logits to the next token: temperature, top-p, argmax."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cs336.model.layers import softmax

if TYPE_CHECKING:
    from jaxtyping import Float


def next_token_probabilities(
    logits: Float[Tensor, "... vocab"], *, temperature: float, top_p: float = 1.0
) -> Float[Tensor, "... vocab"]:
    """Softmax of the logits over the temperature, cut to the nucleus of mass `top_p`.

    Args:
        temperature: above 0; towards 0 the most probable token takes all.
        top_p: the smallest set of most probable tokens whose mass reaches this is kept, the token
            that crosses the line included, and renormalised.

    Raises:
        ValueError: a setting outside its range.

    Source: Holtzman et al. 2020, arXiv:1904.09751.
    """
    if temperature <= 0:
        raise ValueError(f"temperature must be above 0 to sample (0 is greedy), got {temperature}")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p lies in (0, 1], got {top_p}")
    probabilities = softmax(logits.float() / temperature, dim=-1)
    if top_p == 1:
        return probabilities
    ordered, order = probabilities.sort(dim=-1, descending=True)
    mass_before = ordered.cumsum(dim=-1) - ordered
    ordered = ordered.masked_fill(mass_before >= top_p, 0.0)
    kept = torch.zeros_like(probabilities).scatter(-1, order, ordered)
    return kept / kept.sum(dim=-1, keepdim=True)


def sample(
    logits: Float[Tensor, " vocab"],
    *,
    temperature: float,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
) -> int:
    """One token id; temperature 0 is argmax."""
    if temperature == 0:
        return int(logits.argmax())
    probabilities = next_token_probabilities(logits, temperature=temperature, top_p=top_p)
    return int(torch.multinomial(probabilities, 1, generator=generator))
