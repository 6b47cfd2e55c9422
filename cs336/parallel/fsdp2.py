"""PyTorch's own fully sharded data parallelism behind the interface of ours.

`fully_shard` gathers and frees whole blocks, as ours does, through one array that it copies in and out of; and its
blocks may be compiled. It keeps its slices as distributed tensors; optimizers here see the plain tensors within, whose
arithmetic is cheaper to start and is that of one process.

Source: Liang et al. 2024, arXiv:2410.06511, section 2.1.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from cs336.parallel.collectives import broadcast, start_all_gather
from cs336.parallel.process_group import rank, world_size


class FullyShard:
    """Shards a module over the ranks, in place: each block by itself, and what is left as one more group.

    What is left (embedding, head) stays whole from the start of the forward pass to the end of the backward pass.

    Construction gives every rank the values of rank 0. Each backward pass sends its gradients, which add up in
    slices.

    Args:
        module: already on this rank's device.
        blocks: parts of it that are gathered and freed one after the other; they share no parameters.
        forward_methods: of the module, other than `forward`, that run forward passes.
        compute_dtype: of the weights and gradients that travel, and of products; None for the parameters' own.

    Attributes:
        module: the one given, with its own names.
    """

    def __init__(
        self,
        module: nn.Module,
        blocks: Iterable[nn.Module],
        *,
        forward_methods: Iterable[str] = (),
        compute_dtype: torch.dtype | None = None,
    ) -> None:
        # Here, since half a second goes by until it is imported, and every command that trains would wait.
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

        broadcast([*module.parameters(), *module.buffers()])
        rows = {name: parameter.shape[0] for name, parameter in module.named_parameters(remove_duplicate=False)}
        device = next(module.parameters()).device
        mesh = init_device_mesh(device.type, (world_size(),))
        policy = MixedPrecisionPolicy(param_dtype=compute_dtype)
        for block in blocks:
            fully_shard(block, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
        fully_shard(module, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
        for name in forward_methods:
            register_fsdp_forward_method(module, name)
        for part in module.modules():
            if device.type == "cpu" and isinstance(part, FSDPModule):
                part.set_force_sum_reduction_for_comms(True)  # Gloo has no average
        self.module = module
        self._distributed = dict(module.named_parameters(remove_duplicate=False))
        self._cuts = {parameter: _Cut(parameter, rows[name]) for name, parameter in self._distributed.items()}

    def parameters(self) -> Iterator[nn.Parameter]:
        """This rank's slices; optimizers are made on them."""
        return iter([cut.shard for cut in self._cuts.values()])

    def named_shards(self) -> list[tuple[str, nn.Parameter]]:
        """What this rank holds, under each of its names in the whole model."""
        return [(name, self._cuts[parameter].shard) for name, parameter in self._distributed.items()]

    def cuts(self) -> dict[nn.Parameter, _Cut]:
        """How each parameter is cut."""
        return {cut.shard: cut for cut in self._cuts.values()}

    def finish_gradient_synchronization(self) -> None:
        """Leave this rank's slice of the mean gradient over the ranks in each parameter's `.grad`.

        Call it after `backward()` and before `optimizer.step()`, on every rank.
        """
        for parameter, cut in self._cuts.items():
            cut.shard.grad = None if parameter.grad is None else _local(parameter.grad)

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for parameter, cut in self._cuts.items():
            parameter.grad = cut.shard.grad = None

    def free(self) -> None:
        """Give back what a forward pass without a backward pass has left whole."""
        self.module.reshard()  # type: ignore[operator]


class _Cut:
    """One parameter's slices of equal length; the last ones may be shorter, or empty.

    Attributes:
        shard: this rank's, sharing its memory with the distributed tensor's.
        rows: of the whole.
    """

    def __init__(self, parameter: nn.Parameter, rows: int) -> None:
        self.rows = rows
        self.shard = nn.Parameter(_local(parameter), requires_grad=parameter.requires_grad)
        self._shard_rows = -(-rows // world_size())

    def slice_of(self, whole: Tensor) -> Tensor:
        """This rank's rows of a whole tensor."""
        return whole[rank() * self._shard_rows :][: self._shard_rows]

    def gathered(self, slices: Tensor) -> Tensor:
        """The whole of a tensor that every rank holds a slice of."""
        slices = slices.detach()
        missing = slices.new_zeros(self._shard_rows - len(slices), *slices.shape[1:])
        full = slices.new_empty(self._shard_rows * world_size(), *slices.shape[1:])
        start_all_gather(full, torch.cat([slices, missing])).wait()
        return full[: self.rows]


@torch.no_grad()
def _local(distributed: Tensor) -> Tensor:
    return distributed.to_local()  # type: ignore[attr-defined]
