"""What a budget of nominal FLOPs buys: sizes, tokens, steps. `recipe.real_flops` has what a run costs in truth.

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
