"""Learning rate over the steps of a run."""

from __future__ import annotations

import math


def lr_cosine(t: int, alpha_max: float, alpha_min: float, warmup_steps: int, cosine_steps: int) -> float:
    """Linear warm-up from 0, half a cosine down to `alpha_min`, then constant.

    Args:
        t: step, from 0.
        warmup_steps: the step at which `alpha_max` is reached.
        cosine_steps: the step at which `alpha_min` is reached; the run's last step.
    """
    if t < warmup_steps:
        return alpha_max * t / warmup_steps
    if t > cosine_steps:
        return alpha_min
    progress = (t - warmup_steps) / max(1, cosine_steps - warmup_steps)
    return alpha_min + 0.5 * (1 + math.cos(math.pi * progress)) * (alpha_max - alpha_min)
