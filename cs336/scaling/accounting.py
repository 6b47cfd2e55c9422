"""What a run of the scaling grid costs: sizes, tokens, steps, and FLOPs as they are labelled and as they are.

Source: CS336 2025, assignment 3: N = 12 L d^2 and C = 6 N D, and nothing beyond these two.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Quantity = TypeVar("Quantity", float, NDArray[np.float64])

FLOPS_PER_PARAMETER_TOKEN = 6  # 2 forward, 4 backward: Kaplan et al. 2020, arXiv:2001.08361, section 2.1
VOCAB_SIZE, CONTEXT_LENGTH = 32_000, 512  # of the grid's model


def num_parameters(num_layers: int, d_model: int) -> int:
    """Parameters without embeddings and head: 12 L d^2, of which 4 d^2 are attention's and 8 d^2 the FFN's."""
    return 12 * num_layers * d_model**2


def nominal_flops(parameters: float, tokens: float) -> float:
    """6 N D: what a run is labelled with and charged."""
    return FLOPS_PER_PARAMETER_TOKEN * parameters * tokens


def num_tokens(compute: Quantity, parameters: Quantity) -> Quantity:
    """D = C / (6 N): tokens that a budget pays for, before they are cut into whole steps."""
    return compute / (FLOPS_PER_PARAMETER_TOKEN * parameters)


def num_steps(compute: float, parameters: int, batch_size: int, context_length: int = CONTEXT_LENGTH) -> int:
    """Whole optimizer steps that a budget pays for; 0 where it is less than one.

    Args:
        compute: nominal FLOPs.
        parameters: as `num_parameters` counts them.
        batch_size: sequences a step.
        context_length: tokens a sequence.
    """
    return int(compute) // (FLOPS_PER_PARAMETER_TOKEN * parameters * batch_size * context_length)


def real_over_nominal(
    num_layers: int, d_model: int, vocab_size: int = VOCAB_SIZE, context_length: int = CONTEXT_LENGTH
) -> float:
    """Real FLOPs of a step by the nominal ones: 1 + V / (12 L d) + T / (6 d).

    The head's product and attention's two are real work that 6 N D leaves out; small models cost far more than
    their label says. Attention counts in full, though half of it is masked.
    """
    head = vocab_size / (12 * num_layers * d_model)
    attention = context_length / (6 * d_model)
    return 1 + head + attention


def real_flops(
    num_layers: int,
    d_model: int,
    tokens: float,
    vocab_size: int = VOCAB_SIZE,
    context_length: int = CONTEXT_LENGTH,
) -> float:
    """FLOPs of the matrix products that training on so many tokens takes, forward and backward."""
    nominal = nominal_flops(num_parameters(num_layers, d_model), tokens)
    return nominal * real_over_nominal(num_layers, d_model, vocab_size, context_length)
