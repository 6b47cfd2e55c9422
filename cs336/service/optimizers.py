"""The contest's two optimizers, as its handout's field names mean them; the learning rate is set at every step."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from cs336.service.job_config import AdamWConfig, Optimizer, Schedule
from cs336.train.schedule import lr_cosine


class RootedAdamW(torch.optim.Optimizer):
    """AdamW with a second epsilon: `m / (sqrt(v + eps_root) + eps)`, m and v without their bias.

    At its default of 1e-8 `eps_root` is no rounding guard: it damps gradients below 1e-4. Weight decay acts on
    every parameter, the norms' gains too.

    Source: Loshchilov and Hutter 2019, arXiv:1711.05101, algorithm 2; `eps_root` as in Optax.
    """

    def __init__(self, params: Iterable[nn.Parameter], config: AdamWConfig) -> None:
        super().__init__(params, {"lr": config.schedule.peak_value})
        self.config = config
        self.num_done = 0

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter by its gradient."""
        self.num_done += 1
        beta1, beta2 = self.config.beta1, self.config.beta2
        for group in self.param_groups:
            parameters, gradients = group["params"], [parameter.grad for parameter in group["params"]]
            for parameter in parameters:
                if not self.state[parameter]:
                    self.state[parameter] = {"m": torch.zeros_like(parameter), "v": torch.zeros_like(parameter)}
            m = [self.state[parameter]["m"] for parameter in parameters]
            v = [self.state[parameter]["v"] for parameter in parameters]
            torch._foreach_lerp_(m, gradients, 1 - beta1)
            torch._foreach_mul_(v, beta2)
            torch._foreach_addcmul_(v, gradients, gradients, 1 - beta2)
            divisors = torch._foreach_div(v, 1 - beta2**self.num_done)
            torch._foreach_add_(divisors, self.config.eps_root)
            torch._foreach_sqrt_(divisors)
            torch._foreach_add_(divisors, self.config.eps)
            if self.config.weight_decay:
                torch._foreach_mul_(parameters, 1 - group["lr"] * self.config.weight_decay)
            torch._foreach_addcdiv_(parameters, m, divisors, -group["lr"] / (1 - beta1**self.num_done))


class PlainSGD(torch.optim.Optimizer):
    """`w - lr * gradient`."""

    def __init__(self, params: Iterable[nn.Parameter], lr: float) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter by its gradient."""
        for group in self.param_groups:
            torch._foreach_add_(group["params"], [each.grad for each in group["params"]], alpha=-group["lr"])


def make_optimizer(params: Iterable[nn.Parameter], config: Optimizer) -> torch.optim.Optimizer:
    """The optimizer that a job asks for."""
    if isinstance(config, AdamWConfig):
        return RootedAdamW(params, config)
    return PlainSGD(params, config.schedule.peak_value)


def learning_rate(schedule: Schedule, step: int, num_steps: int) -> float:
    """Of step `step`, from 0: `init_value` at the first, the peak after the warm-up, almost the lowest at the last.

    The warm-up takes `round(warmup_frac * num_steps)` steps.
    """
    warmup_steps = round(schedule.warmup_frac * num_steps)
    if step < warmup_steps:
        return schedule.init_value + (schedule.peak_value - schedule.init_value) * step / warmup_steps
    return lr_cosine(step, schedule.peak_value, schedule.final_lr_frac * schedule.peak_value, warmup_steps, num_steps)
