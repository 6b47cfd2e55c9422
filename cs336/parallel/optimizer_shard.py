"""Optimizer state split over ranks: each rank keeps the states of its share of the parameters.

Every rank holds all weights and gradients, updates the parameters that it owns, and sends them to the others:
what ZeRO calls stage 1. The stage there reduces each gradient to its owner alone; here the gradients arrive
averaged on all ranks, from any form of data parallelism, so a step moves 3/2 of stage 1's bytes.

A step goes in rounds of some of each rank's parameters: while those of one round travel, from all their owners at
once, the next are updated.

Source: Rajbhandari et al. 2020, arXiv:1910.02054, section 5.1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from cs336.parallel.collectives import start_broadcasts
from cs336.parallel.process_group import rank, world_size

# Of one rank's parameters in a round. AdamW updates so much in about 1.5 ms on an H200 (46 ms for half of xl), and it
# travels about as long (200 GB/s, seen of all-reduces): much longer than starting either takes, and short beside a
# step, of whose sending the last round's alone hides behind no update.
_ROUND_BYTES = 256_000_000


class ShardedOptimizer(torch.optim.Optimizer):
    """Any optimizer, its state split over the ranks; steps give the weights that it gives alone.

    `param_groups` hold all parameters on every rank, and the settings that schedules change; `state` holds
    what this rank owns.

    Args:
        params: parameters or groups, the same on all ranks in the same order.
        optimizer_cls: made over the owned parameters, each group in parts; it must treat parameters one by one, and
            its step takes the groups that it finds in `param_groups`.
        kwargs: its settings.

    Source: see the module.
    """

    def __init__(self, params: Iterable[Any], optimizer_cls: type[torch.optim.Optimizer], **kwargs: Any) -> None:
        # The base class adds the groups, and adding needs these.
        self._rank, self._world_size = rank(), world_size()
        self._owners: dict[Tensor, int] = {}
        self._loads = [0] * self._world_size  # elements owned by each rank
        self._rounds: list[_Round] = []  # each has a group of the inner optimizer
        self._inner: torch.optim.Optimizer | None = None
        super().__init__(params, dict(kwargs))
        self._inner = optimizer_cls([self._owned(each) for each in self._rounds], **kwargs)
        self.state = self._inner.state
        for each, inner in zip(self._rounds, self._inner.param_groups, strict=True):
            _take_defaults(self.param_groups[each.group], inner)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters, each owned by the rank that has the fewest elements so far; also during training.

        All ranks add the same group. The largest parameters are given out first, for an even split.
        """
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        owners = assign_owners([parameter.numel() for parameter in group["params"]], self._loads)
        self._owners |= dict(zip(group["params"], owners, strict=True))
        added = [
            _Round(len(self.param_groups) - 1, parameters)
            for parameters in _in_rounds(group["params"], owners, self._world_size)
        ]
        self._rounds += added
        if self._inner is not None:
            for each in added:
                self._inner.add_param_group(self._owned(each))
            _take_defaults(group, self._inner.param_groups[-1])

    def step(self, closure: Callable[[], Any] | None = None, **kwargs: Any) -> Any:
        """Update what this rank owns, then exchange: afterwards all ranks hold all updated parameters.

        Args:
            closure: called on every rank; what it returns is returned.
            kwargs: for the inner optimizer's step.
        """
        assert self._inner is not None
        result = None
        if closure is not None:
            with torch.enable_grad():
                result = closure()
        groups, sent = self._inner.param_groups, []
        try:
            for each, inner in zip(self._rounds, groups, strict=True):
                inner.update(self._settings(each))
                self._inner.param_groups = [inner]
                self._inner.step(**kwargs)
                # Whatever has no gradient here may have one at its owner; frozen parameters have none anywhere.
                sent.append(start_broadcasts((p, self._owners[p]) for p in each.parameters if p.requires_grad))
        finally:
            self._inner.param_groups = groups
        for transfer in sent:
            transfer.wait()
        return result

    def owner(self, parameter: Tensor) -> int:
        """The rank that keeps a parameter's state."""
        return self._owners[parameter]

    def full_state_dict(self) -> dict[str, Any] | None:
        """A copy of the state that the unsharded optimizer would save: in main memory on rank 0; None on the others.

        All ranks call it. States travel one tensor at a time.
        """
        own = self.state_dict()
        if self._world_size == 1:
            return own
        device = next(iter(self._owners)).device
        outlines = [None] * self._world_size if self._rank == 0 else None
        dist.gather_object(_outline(own["state"]), outlines, dst=0)
        if outlines is None:
            for values in own["state"].values():
                for value in values.values():
                    if isinstance(value, Tensor):
                        dist.send(value.to(device).contiguous(), dst=0)
            return None
        full = {index: _on_cpu(values) for index, values in own["state"].items()}
        for source, outline in enumerate(outlines[1:], start=1):
            assert outline is not None
            for index, values in outline.items():
                full[index] = {name: _received(value, source, device) for name, value in values.items()}
        return own | {"state": dict(sorted(full.items()))}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take this rank's part of an unsharded optimizer's state, or of what `full_state_dict` gave.

        All ranks load the same. The number of ranks may differ from the one it was saved with.
        """
        assert self._inner is not None
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        indices = [index for group in state_dict["param_groups"] for index in group["params"]]
        mine = {index for index, p in zip(indices, parameters, strict=False) if self._owners[p] == self._rank}
        state = {index: values for index, values in state_dict["state"].items() if index in mine}
        super().load_state_dict(state_dict | {"state": state})
        self._inner.state = self.state

    def _owned(self, each: _Round) -> dict[str, Any]:
        """A group of only the parameters whose state lives here; it may be empty."""
        return self._settings(each) | {"params": [p for p in each.parameters if self._owners[p] == self._rank]}

    def _settings(self, each: _Round) -> dict[str, Any]:
        group = self.param_groups[each.group]  # another dictionary after a state is loaded
        return {name: value for name, value in group.items() if name not in _OF_PARAMETERS}


@dataclass
class _Round:
    """Parameters of one group, by its number, and of all owners, that are updated and sent together."""

    group: int
    parameters: list[Tensor]


def _in_rounds(parameters: Sequence[Tensor], owners: Sequence[int], world_size: int) -> list[list[Tensor]]:
    """At least one; in each, a rank has up to `_ROUND_BYTES`, or one larger parameter."""
    rounds: list[list[Tensor]] = [[]]
    number, num_bytes = [0] * world_size, [0] * world_size  # of each rank's last round, and in it
    for parameter, owner in zip(parameters, owners, strict=True):
        size = parameter.numel() * parameter.element_size()
        if num_bytes[owner] and num_bytes[owner] + size > _ROUND_BYTES:
            number[owner], num_bytes[owner] = number[owner] + 1, 0
        num_bytes[owner] += size
        if number[owner] == len(rounds):
            rounds.append([])
        rounds[number[owner]].append(parameter)
    return rounds


def _take_defaults(group: dict[str, Any], inner: dict[str, Any]) -> None:
    """Those that only the inner class knows."""
    for name, value in inner.items():
        if name not in _OF_PARAMETERS:
            group.setdefault(name, value)


def assign_owners(sizes: Sequence[int], loads: list[int]) -> list[int]:
    """The rank that owns each parameter: the largest first, each to the rank with the fewest elements so far.

    Args:
        sizes: elements of each parameter.
        loads: elements that each rank owns already; brought up to date.
    """
    owners = [0] * len(sizes)
    for number in sorted(range(len(sizes)), key=lambda number: -sizes[number]):
        owners[number] = loads.index(min(loads))
        loads[owners[number]] += sizes[number]
    return owners


_OF_PARAMETERS = ("params", "param_names")  # of a group: what is not a setting


class _Shape(tuple[Any, ...]):
    """A tensor's shape and dtype, sent ahead of it."""


def _outline(state: dict[int, dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """States with a shape and dtype in place of each tensor."""
    return {
        index: {
            name: _Shape((tuple(value.shape), value.dtype)) if isinstance(value, Tensor) else value
            for name, value in values.items()
        }
        for index, values in state.items()
    }


def _received(value: Any, source: int, device: torch.device) -> Any:
    if not isinstance(value, _Shape):
        return value
    shape, dtype = value
    tensor = torch.empty(shape, dtype=dtype, device=device)
    dist.recv(tensor, src=source)
    return tensor.cpu()


def _on_cpu(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value.to("cpu", copy=True) if isinstance(value, Tensor) else value for name, value in values.items()}
