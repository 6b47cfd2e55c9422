"""AdamW, Muon, SGD with a falling rate, and clipping of the global gradient norm.

Steps run over lists of tensors (`torch._foreach_*`), so that a GPU gets a few large launches instead
of several for each parameter; the arithmetic is that of one tensor at a time.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from jaxtyping import Float


class AdamW(torch.optim.Optimizer):
    """Adam with decoupled weight decay.

    Args:
        lr: step size alpha.
        betas: decay of the first and second moments; (0.9, 0.95) is usual for language models.
        eps: added to the root of the second moment.
        weight_decay: each step shrinks a weight by `lr * weight_decay` of itself.
        fused: update by our Triton kernel, in one pass; for contiguous parameters on a GPU, and AdamW alone.

    Raises:
        ValueError: a setting outside its range.

    Source: Loshchilov and Hutter 2019, arXiv:1711.05101, algorithm 2.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        *,
        fused: bool = False,
    ):
        self._fused = fused
        if lr < 0:
            raise ValueError(f"lr must not be negative, got {lr}")
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas lie in [0, 1), got {betas}")
        if eps < 0 or weight_decay < 0:
            raise ValueError(f"eps and weight_decay must not be negative, got {eps} and {weight_decay}")
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every parameter that has a gradient; returns what `closure` returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self._update(group)
        return loss

    def _update(self, group: dict[str, Any]) -> None:
        beta1, beta2 = group["betas"]
        lr, eps, weight_decay = group["lr"], group["eps"], group["weight_decay"]
        for parameters in _alike(group["params"], self._steps_done):
            for parameter in parameters:
                state = self.state[parameter]
                if not state:
                    state["t"] = 0
                    state["m"] = torch.zeros_like(parameter)
                    state["v"] = torch.zeros_like(parameter)
                state["t"] += 1
            t = self.state[parameters[0]]["t"]
            gradients: list[Tensor] = [parameter.grad for parameter in parameters if parameter.grad is not None]
            m = [self.state[parameter]["m"] for parameter in parameters]
            v = [self.state[parameter]["v"] for parameter in parameters]
            if self._fused:
                from cs336.kernels.adamw import adamw_step  # only here: all else runs without Triton

                settings = {"lr": lr, "betas": group["betas"], "eps": eps, "weight_decay": weight_decay}
                adamw_step(parameters, gradients, m, v, t=t, **settings)
                continue
            torch._foreach_lerp_(m, gradients, 1 - beta1)
            torch._foreach_mul_(v, beta2)
            torch._foreach_addcmul_(v, gradients, gradients, 1 - beta2)
            step_size = lr * math.sqrt(1 - beta2**t) / (1 - beta1**t)
            divisors = torch._foreach_sqrt(v)
            torch._foreach_add_(divisors, eps)
            torch._foreach_addcdiv_(parameters, m, divisors, -step_size)
            if weight_decay:
                torch._foreach_mul_(parameters, 1 - lr * weight_decay)

    def _steps_done(self, parameter: Tensor) -> int:
        return self.state[parameter]["t"] if self.state.get(parameter) else 0


class Muon(AdamW):
    """Momentum whose matrix updates are made orthogonal; AdamW for everything else.

    Groups with `orthogonalize=True` hold matrices and take Muon's step; the other groups take AdamW's.
    An orthogonal update of a (rows, columns) matrix is scaled by `0.2 * sqrt(max(rows, columns))`, which
    gives its entries the size that AdamW's usually have, so both kinds of groups share learning rate
    and weight decay.

    Args:
        momentum: decay of the gradients' average; Nesterov's look-ahead is applied.
        num_iterations: of Newton-Schulz.
        orthogonalize: for groups that do not say.

    Raises:
        ValueError: a setting outside its range, or a parameter that is no matrix in a Muon group.

    Source: Jordan et al. 2024, kellerjordan.github.io/posts/muon; scale and shared settings: Liu et
        al. 2025, arXiv:2502.16982, section 2.2.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.1,
        *,
        momentum: float = 0.95,
        num_iterations: int = 5,
        orthogonalize: bool = False,
    ):
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum lies in [0, 1), got {momentum}")
        if num_iterations < 1:
            raise ValueError(f"Newton-Schulz needs at least one iteration, got {num_iterations}")
        super().__init__(params, lr, betas, eps, weight_decay)
        ours = {"momentum": momentum, "num_iterations": num_iterations, "orthogonalize": orthogonalize}
        self.defaults.update(ours)
        for group in self.param_groups:
            for name, value in ours.items():
                group.setdefault(name, value)
            wrong = [tuple(p.shape) for p in group["params"] if p.ndim != 2] if group["orthogonalize"] else []
            if wrong:
                raise ValueError(f"Muon orthogonalizes matrices, got a parameter of shape {wrong[0]}")

    def _update(self, group: dict[str, Any]) -> None:
        if not group["orthogonalize"]:
            super()._update(group)
            return
        lr, momentum = group["lr"], group["momentum"]
        # Matrices of one shape are orthogonalized together: a batched product fills a GPU, a small one does not.
        for parameters in _alike(group["params"], lambda parameter: parameter.shape):
            for parameter in parameters:
                if not self.state[parameter]:
                    self.state[parameter]["m"] = torch.zeros_like(parameter)
            gradients: list[Tensor] = [parameter.grad for parameter in parameters if parameter.grad is not None]
            m = [self.state[parameter]["m"] for parameter in parameters]
            torch._foreach_lerp_(m, gradients, 1 - momentum)
            ahead = torch._foreach_lerp(gradients, m, momentum)  # Nesterov: as if this gradient came once more
            updates = orthogonalize(torch.stack(ahead), num_iterations=group["num_iterations"])
            if group["weight_decay"]:
                torch._foreach_mul_(parameters, 1 - lr * group["weight_decay"])
            scale = 0.2 * math.sqrt(max(parameters[0].shape))
            torch._foreach_add_(parameters, list(updates.to(parameters[0].dtype).unbind()), alpha=-lr * scale)


def orthogonalize(
    matrices: Float[Tensor, "... rows columns"], *, num_iterations: int = 5
) -> Float[Tensor, "... rows columns"]:
    """About the nearest matrix whose singular values are all 1: U V^T of the singular value decomposition.

    A quintic Newton-Schulz iteration with coefficients that rise fastest from 0; it ends with singular
    values between about 0.7 and 1.2, which serves an optimizer as well. In bf16 on a GPU, else in fp32.

    Source: Jordan et al. 2024, kellerjordan.github.io/posts/muon.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrices.to(torch.bfloat16 if matrices.is_cuda else torch.float32)
    tall = x.shape[-2] > x.shape[-1]
    if tall:  # the products below are as large as the number of rows
        x = x.transpose(-2, -1)
    x = x / (torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True) + 1e-7)  # no singular value above 1
    for _ in range(num_iterations):
        gram = x @ x.transpose(-2, -1)
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.transpose(-2, -1) if tall else x


class SGD(torch.optim.Optimizer):
    """Plain gradient steps whose size falls as `lr / sqrt(t + 1)`, t from 0.

    Raises:
        ValueError: a negative `lr`.
    """

    def __init__(self, params: Iterable[Any], lr: float = 1e-3):
        if lr < 0:
            raise ValueError(f"lr must not be negative, got {lr}")
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every parameter that has a gradient; returns what `closure` returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                t = self.state[parameter].get("t", 0)
                parameter.sub_(parameter.grad, alpha=group["lr"] / math.sqrt(t + 1))
                self.state[parameter]["t"] = t + 1
        return loss


def sgd_exercise(lr: float, *, num_steps: int = 10, seed: int = 0) -> list[float]:
    """The first handout's warm-up: the loss `mean(w²)` before each of some SGD steps.

    The weight is 10 x 10, drawn as 5 times a standard normal. A small rate lets the loss decay, one that is
    too large multiplies it at each step.
    """
    generator = torch.Generator().manual_seed(seed)
    weight = nn.Parameter(5 * torch.randn(10, 10, generator=generator))
    optimizer = SGD([weight], lr=lr)
    losses = []
    for _ in range(num_steps):
        optimizer.zero_grad()
        loss = weight.square().mean()
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
    return losses


def clip_gradients(params: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Scale all gradients in place so that their global l2 norm is at most `max_norm`.

    Returns:
        The norm before clipping; zero when no parameter has a gradient.
    """
    gradients = [parameter.grad for parameter in params if parameter.grad is not None]
    if not gradients:
        return torch.zeros(())
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    # On the device, without reading the norm: a comparison in Python would wait for the GPU.
    scale = torch.where(norm > max_norm, max_norm / (norm + 1e-6), torch.ones_like(norm))
    torch._foreach_mul_(gradients, scale)
    return norm


def _alike(parameters: Iterable[Tensor], key: Callable[[Tensor], Any]) -> Iterator[list[Tensor]]:
    """Parameters with a gradient, in lists that one step of arithmetic can take together."""
    lists: dict[Any, list[Tensor]] = defaultdict(list)
    for parameter in parameters:
        if parameter.grad is not None:
            lists[parameter.device, parameter.dtype, key(parameter)].append(parameter)
    return iter(lists.values())
