"""Learning rate over the steps of a run."""

from __future__ import annotations

import math

SCHEDULES = ("cosine", "wsd")


def lr_cosine(t: float, alpha_max: float, alpha_min: float, warmup_steps: float, cosine_steps: float) -> float:
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


def lr_wsd(
    t: float, alpha_max: float, alpha_min: float, warmup_steps: float, decay_start: float, last_step: float
) -> float:
    """Warmup-stable-decay: linear warm-up from 0, constant, then a straight line down to `alpha_min`.

    Args:
        t: step, from 0.
        alpha_min: reached at the last step; usually 0.
        warmup_steps: the step at which `alpha_max` is reached.
        decay_start: the step at which the rate begins to fall.
        last_step: the run's last step.

    Source: Hu et al. 2024 (MiniCPM), arXiv:2404.06395, section 4; a linear decay to zero: Hägele et
        al. 2024, arXiv:2405.18392, section 4.
    """
    if t < warmup_steps:
        return alpha_max * t / warmup_steps
    if t <= decay_start:
        return alpha_max
    if t >= last_step:
        return alpha_min
    return alpha_max + (alpha_min - alpha_max) * (t - decay_start) / (last_step - decay_start)
