"""The few collectives that the parallel forms are made of, equal on Gloo and NCCL.

Every call must be made by all ranks in the same order. Sums are sums: Gloo has no average, so callers
divide. Without a process group, or in one of a single rank, nothing is sent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from cs336.parallel.process_group import rank, world_size

# PyTorch 2.13 renamed both and warns of the old names, the only ones that 2.11 has.
_all_gather_single: Callable[..., Any] = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter_single: Callable[..., Any] | None = getattr(dist, "reduce_scatter_single", None) or getattr(
    dist, "reduce_scatter_tensor", None
)


class Pending:
    """A collective under way.

    Args:
        work: PyTorch's handle; None when there is nothing to wait for.
        kept: tensors that must stay alive until it is done.
        finish: run once after the wait.
    """

    def __init__(self, work: Any = None, *kept: Tensor, finish: Callable[[], None] | None = None) -> None:
        self._work, self._kept, self._finish = work, kept, finish

    def wait(self) -> None:
        """Block until the result may be used: on a GPU the current stream, on a CPU the process."""
        if self._work is not None:
            self._work.wait()
        self._work, self._kept = None, ()
        if self._finish is not None:
            finish, self._finish = self._finish, None
            finish()


@torch.no_grad()
def broadcast(tensors: Iterable[Tensor], source: int = 0) -> None:
    """Overwrite each tensor with the one of rank `source`, bit for bit, whatever its dtype and layout."""
    pending = [start_broadcast(tensor, source) for tensor in tensors]
    for transfer in pending:
        transfer.wait()


@torch.no_grad()
def start_broadcast(tensor: Tensor, source: int) -> Pending:
    """Begin to overwrite a tensor with the one of rank `source`."""
    if world_size() == 1 or not tensor.numel():
        return Pending()
    tensor = tensor.detach()
    flat = tensor.contiguous().view(-1)
    data = flat.view(torch.uint8)  # Gloo and NCCL know fewer dtypes than PyTorch; they all have bytes
    copied = not tensor.is_contiguous()

    def put_back() -> None:
        tensor.copy_(flat.view(tensor.shape))

    work = dist.broadcast(data, source, async_op=True)
    return Pending(work, data, finish=put_back if copied and rank() != source else None)


def start_all_reduce(flat: Tensor) -> Pending:
    """Begin to replace a contiguous tensor by its sum over the ranks, bit-identical on all of them."""
    if world_size() == 1 or not flat.numel():
        return Pending()
    return Pending(dist.all_reduce(flat, op=dist.ReduceOp.SUM, async_op=True), flat)


def start_all_gather(full: Tensor, shard: Tensor) -> Pending:
    """Begin to fill `full` with the equal shards of all ranks, one after the other along the first dimension."""
    if world_size() == 1 or not full.numel():
        full.copy_(shard)
        return Pending()
    return Pending(_all_gather_single(full, shard, async_op=True), full, shard)


def start_reduce_scatter(shard: Tensor, full: Tensor) -> Pending:
    """Begin to put this rank's part of the sum of `full` over the ranks into `shard`.

    Where the backend cannot, all of the sum is made and the rest of it thrown away.
    """
    if world_size() == 1 or not full.numel():
        shard.copy_(full)
        return Pending()
    if _has_reduce_scatter():
        assert _reduce_scatter_single is not None
        return Pending(_reduce_scatter_single(shard, full, op=dist.ReduceOp.SUM, async_op=True), shard, full)

    def take_slice() -> None:
        shard.copy_(full.chunk(world_size())[rank()])

    return Pending(dist.all_reduce(full, op=dist.ReduceOp.SUM, async_op=True), full, finish=take_slice)


_probed: dict[str, bool] = {}


def _has_reduce_scatter() -> bool:
    """Whether the backend has one, found out once by trying; all ranks run the same PyTorch and agree."""
    backend = dist.get_backend()
    if backend not in _probed:
        _probed[backend] = backend == "nccl" or _try_reduce_scatter()
    return _probed[backend]


def _try_reduce_scatter() -> bool:
    if _reduce_scatter_single is None:
        return False
    try:
        _reduce_scatter_single(torch.empty(1), torch.zeros(world_size()))
    except (RuntimeError, NotImplementedError):  # Gloo before PyTorch 2.6
        return False
    return True
