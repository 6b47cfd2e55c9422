"""Whole states of a sharded model and its optimizer, and the norm of its gradients.

What is saved is what one process would save, so that a run may go on in another form or on another number of
ranks. Every function here is called by all ranks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cs336.parallel.collectives import start_all_reduce
from cs336.parallel.fsdp import FSDP
from cs336.parallel.process_group import rank


@torch.no_grad()
def load_full_params(fsdp: FSDP, full: Mapping[str, Tensor]) -> None:
    """Take this rank's slices of whole parameters, as `gather_full_params` or one process's model names them.

    Args:
        full: the same on all ranks; what else it holds, such as buffers, is left alone.

    Raises:
        ValueError: a parameter is missing, or of another shape.
    """
    weights = {weight.shard: weight for weight in fsdp._weights}
    for name, parameter in fsdp.module.named_parameters():
        weight = weights.get(parameter)
        shape = (weight.rows, *parameter.shape[1:]) if weight else parameter.shape
        if name not in full or full[name].shape != shape:
            found = tuple(full[name].shape) if name in full else "nothing"
            raise ValueError(f"{name} must be of shape {tuple(shape)}, got {found}")
        parameter.copy_(weight.slice_of(full[name]) if weight else full[name])


def full_optimizer_state(fsdp: FSDP, optimizer: torch.optim.Optimizer) -> dict[str, Any] | None:
    """The optimizer's `state_dict()` with whole tensors: in main memory on rank 0, None on the others.

    Args:
        optimizer: over `fsdp.parameters()`; its states have a parameter's shape or are replicated.
    """
    state = optimizer.state_dict()
    whole: dict[int, dict[str, Any]] = {}
    for index, parameter in _indexed(optimizer, state):
        weight = _weight_of(fsdp, parameter)
        for name, value in state["state"].get(index, {}).items():
            if isinstance(value, Tensor):
                if weight is not None and value.shape == parameter.shape:
                    value = weight.gathered(value)
                value = value.cpu() if rank() == 0 else None  # one at a time: the others keep nothing
            whole.setdefault(index, {})[name] = value
    return state | {"state": whole} if rank() == 0 else None


def load_full_optimizer_state(fsdp: FSDP, optimizer: torch.optim.Optimizer, full: dict[str, Any]) -> None:
    """Take this rank's part of one process's optimizer state, or of what `full_optimizer_state` gave rank 0.

    Args:
        full: the same on all ranks.
    """
    state = {}
    for index, parameter in _indexed(optimizer, full):
        if index not in full["state"]:
            continue
        weight = _weight_of(fsdp, parameter)
        shape = torch.Size((weight.rows, *parameter.shape[1:])) if weight is not None else None
        state[index] = {
            name: weight.slice_of(value)
            if weight is not None and isinstance(value, Tensor) and value.shape == shape
            else value
            for name, value in full["state"][index].items()
        }
    optimizer.load_state_dict(full | {"state": state})


@torch.no_grad()
def clip_gradients(fsdp: FSDP, max_norm: float) -> Tensor:
    """Scale all gradients in place so that the l2 norm of the whole model's is at most `max_norm`.

    Called after `finish_gradient_synchronization`.

    Returns:
        The norm before clipping, the same on all ranks.
    """
    sharded = {weight.shard for weight in fsdp._weights}
    parts = [torch.zeros((), device=next(fsdp.parameters()).device) for _ in range(2)]
    gradients = []
    for parameter in fsdp.parameters():
        if parameter.grad is not None:
            gradients.append(parameter.grad)
            parts[parameter in sharded] += parameter.grad.float().square().sum()
    replicated, slices = parts
    start_all_reduce(slices).wait()
    norm = (replicated + slices).sqrt()
    scale = torch.where(norm > max_norm, max_norm / (norm + 1e-6), torch.ones_like(norm))
    for gradient in gradients:
        gradient.mul_(scale)
    return norm


def _indexed(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> list[tuple[int, nn.Parameter]]:
    """The number that a state dict gives each parameter, in the order of the groups."""
    indices = [index for group in state["param_groups"] for index in group["params"]]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return list(zip(indices, parameters, strict=True))


def _weight_of(fsdp: FSDP, parameter: nn.Parameter) -> Any:
    return next((weight for weight in fsdp._weights if weight.shard is parameter), None)
