"""Whole states of a sharded model and its optimizer, and the norm of its gradients.

What is saved is what one process would save, so that a run may go on in another form or on another number of
ranks. Every function here is called by all ranks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from cs336.parallel.collectives import start_all_reduce
from cs336.parallel.process_group import rank


class Cut(Protocol):
    """How one parameter is cut along its first dimension.

    Attributes:
        rows: of the whole.
    """

    rows: int

    def slice_of(self, whole: Tensor) -> Tensor:
        """This rank's part of a whole tensor."""

    def gathered(self, slices: Tensor) -> Tensor:
        """The whole of a tensor that every rank holds a part of; all ranks call it."""


class Sharded(Protocol):
    """A model cut over the ranks: `FSDP`, or `FullyShard`.

    Attributes:
        module: with the whole model's names.
    """

    module: nn.Module

    def parameters(self) -> Iterator[nn.Parameter]:
        """What this rank holds, to make an optimizer on."""

    def named_shards(self) -> list[tuple[str, nn.Parameter]]:
        """The same, under each of its names in the whole model."""

    def cuts(self) -> Mapping[nn.Parameter, Cut]:
        """How each parameter is cut; those left out are whole on every rank."""


@torch.no_grad()
def full_params_on_first_rank(fsdp: Sharded) -> dict[str, Tensor] | None:
    """Whole parameters by name, in main memory on rank 0; None on the others, which keep nothing.

    Tied ones are one tensor. Weights travel one at a time.
    """
    cuts = fsdp.cuts()
    whole: dict[nn.Parameter, Tensor | None] = {}
    result = {}
    for name, parameter in fsdp.named_shards():
        if parameter not in whole:
            value = cuts[parameter].gathered(parameter) if parameter in cuts else parameter.detach()
            whole[parameter] = value.to("cpu", copy=True) if rank() == 0 else None
        result[name] = whole[parameter]
    return result if rank() == 0 else None  # type: ignore[return-value]


@torch.no_grad()
def load_full_params(fsdp: Sharded, full: Mapping[str, Tensor]) -> None:
    """Take this rank's slices of whole parameters, as `gather_full_params` or one process's model names them.

    Args:
        full: the same on all ranks; what else it holds, such as buffers, is left alone.

    Raises:
        ValueError: a parameter is missing, or of another shape.
    """
    cuts = fsdp.cuts()
    for name, parameter in fsdp.named_shards():
        cut = cuts.get(parameter)
        shape = (cut.rows, *parameter.shape[1:]) if cut else parameter.shape
        if name not in full or full[name].shape != shape:
            found = tuple(full[name].shape) if name in full else "nothing"
            raise ValueError(f"{name} must be of shape {tuple(shape)}, got {found}")
        parameter.copy_(cut.slice_of(full[name]) if cut else full[name])


def full_optimizer_state(fsdp: Sharded, optimizer: torch.optim.Optimizer) -> dict[str, Any] | None:
    """The optimizer's `state_dict()` with whole tensors: in main memory on rank 0, None on the others.

    Args:
        optimizer: over `fsdp.parameters()`; its states have a parameter's shape or are replicated.
    """
    state = optimizer.state_dict()
    cuts = fsdp.cuts()
    whole: dict[int, dict[str, Any]] = {}
    for index, parameter in _indexed(optimizer, state):
        for name, value in state["state"].get(index, {}).items():
            if isinstance(value, Tensor):
                if parameter in cuts and value.shape == parameter.shape:
                    value = cuts[parameter].gathered(value)
                value = value.to("cpu", copy=True) if rank() == 0 else None  # one at a time: the others keep nothing
            whole.setdefault(index, {})[name] = value
    return state | {"state": whole} if rank() == 0 else None


def load_full_optimizer_state(fsdp: Sharded, optimizer: torch.optim.Optimizer, full: dict[str, Any]) -> None:
    """Take this rank's part of one process's optimizer state, or of what `full_optimizer_state` gave rank 0.

    Args:
        full: the same on all ranks.
    """
    state = {}
    cuts = fsdp.cuts()
    for index, parameter in _indexed(optimizer, full):
        if index not in full["state"]:
            continue
        cut = cuts.get(parameter)
        values = dict(full["state"][index])
        for name, value in values.items():
            if cut and isinstance(value, Tensor) and value.shape == (cut.rows, *parameter.shape[1:]):
                values[name] = cut.slice_of(value)
        state[index] = values
    optimizer.load_state_dict(full | {"state": state})


@torch.no_grad()
def clip_gradients(fsdp: Sharded, max_norm: float) -> Tensor:
    """Scale all gradients in place so that the l2 norm of the whole model's is at most `max_norm`.

    Called after `finish_gradient_synchronization`.

    Returns:
        The norm before clipping, the same on all ranks.
    """
    gradients = {parameter: parameter.grad for parameter in fsdp.parameters() if parameter.grad is not None}
    norm = full_norms(fsdp, gradients).square().sum().sqrt()
    scale = torch.where(norm > max_norm, max_norm / (norm + 1e-6), torch.ones_like(norm))
    torch._foreach_mul_(list(gradients.values()), scale)
    return norm


@torch.no_grad()
def full_norms(fsdp: Sharded, tensors: Mapping[nn.Parameter, Tensor]) -> Tensor:
    """l2 norm of each whole tensor, the same on all ranks.

    Args:
        tensors: by the parameter whose shape, and cut, each has; the same parameters on all ranks.
    """
    cuts = fsdp.cuts()
    squares = torch.stack(
        [
            tensor.float().square().sum()
            if parameter in cuts or rank() == 0
            else tensor.new_zeros((), dtype=torch.float32)
            for parameter, tensor in tensors.items()  # what all ranks hold counts once
        ]
    )
    start_all_reduce(squares).wait()
    return squares.sqrt()


def _indexed(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> list[tuple[int, nn.Parameter]]:
    """The number that a state dict gives each parameter, in the order of the groups."""
    indices = [index for group in state["param_groups"] for index in group["params"]]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return list(zip(indices, parameters, strict=True))
