"""The few collectives that the parallel forms are made of, equal on Gloo and NCCL.

Every call must be made by all ranks in the same order. Sums are sums: Gloo has no average, so callers
divide. Without a process group, or in one of a single rank, nothing is sent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from cs336.parallel.process_group import rank, world_size


class Pending:
    """A collective under way, or several.

    Args:
        works: PyTorch's handles.
        kept: tensors that must stay alive until it is done.
        finish: run once after the wait.
    """

    def __init__(self, works: Sequence[Any] = (), *kept: Tensor, finish: Callable[[], None] | None = None) -> None:
        self.works, self._kept, self._finish = works, kept, finish

    def wait(self) -> None:
        """Block until the result may be used: on a GPU the current stream, on a CPU the process."""
        for work in self.works:
            work.wait()
        self.works, self._kept = (), ()
        if self._finish is not None:
            finish, self._finish = self._finish, None
            finish()


@torch.no_grad()
def broadcast(tensors: Iterable[Tensor], source: int = 0) -> None:
    """Overwrite each tensor with the one of rank `source`, bit for bit, whatever its dtype and layout."""
    start_broadcasts((tensor, source) for tensor in tensors).wait()


@torch.no_grad()
def start_broadcasts(tensors: Iterable[tuple[Tensor, int]]) -> Pending:
    """Begin to overwrite each tensor with the one of the rank that stands beside it; on GPUs in one launch.

    Where ranks send to each other, both directions are used at once.
    """
    if world_size() == 1:
        return Pending()
    sent, kept, copied = [], [], []
    for tensor, source in tensors:
        if not tensor.numel():
            continue
        tensor = tensor.detach()
        flat = tensor.contiguous().view(-1)
        sent.append((flat.view(torch.uint8), source))  # Gloo and NCCL know fewer dtypes than PyTorch; all have bytes
        kept.append(flat)
        if not tensor.is_contiguous() and rank() != source:
            copied.append((tensor, flat))

    def put_back() -> None:
        for tensor, flat in copied:
            tensor.copy_(flat.view(tensor.shape))

    return Pending(_broadcast_all(sent), *kept, finish=put_back)


def _broadcast_all(sent: Sequence[tuple[Tensor, int]]) -> list[Any]:
    if not sent:
        return []
    if dist.get_backend() != "nccl":
        return [dist.broadcast(data, source, async_op=True) for data, source in sent]
    group, device = dist.group.WORLD, sent[0][0].device
    assert group is not None
    group._start_coalescing(device)
    for data, source in sent:
        dist.broadcast(data, source, async_op=True)
    return [group._end_coalescing(device)]


def start_all_reduce(flat: Tensor) -> Pending:
    """Begin to replace a contiguous tensor by its sum over the ranks, bit-identical on all of them."""
    if world_size() == 1 or not flat.numel():
        return Pending()
    return Pending([dist.all_reduce(flat, op=dist.ReduceOp.SUM, async_op=True)], flat)


def start_all_gather(full: Tensor, shard: Tensor) -> Pending:
    """Begin to fill `full` with the equal shards of all ranks, one after the other along the first dimension."""
    return start_all_gathers([full], [shard]) if full.numel() else Pending()


def start_all_gathers(full: Sequence[Tensor], shards: Sequence[Tensor]) -> Pending:
    """Begin to fill each of `full` as `start_all_gather` does.

    On GPUs one launch moves them all, each straight into its place. A shard may be this rank's part of its whole.
    None is empty.
    """
    if world_size() == 1:
        for whole, shard in zip(full, shards, strict=True):
            whole.copy_(shard)
        return Pending()
    return Pending(_all_gather(full, shards), *full, *shards)


def start_reduce_scatters(shards: Sequence[Tensor], full: Sequence[Tensor]) -> Pending:
    """Begin to put this rank's part of the sum over the ranks of each of `full` into its shard, all in one message.

    None is empty. Where the backend cannot, all of the sums are made and the rest of them thrown away.
    """
    if world_size() == 1:
        for whole, shard in zip(full, shards, strict=True):
            shard.copy_(whole)
        return Pending()
    if _has_reduce_scatter():
        return Pending([_reduce_scatter(shards, full)], *shards, *full)

    def take_slices() -> None:
        for whole, shard in zip(full, shards, strict=True):
            shard.copy_(whole.chunk(world_size())[rank()])

    return Pending([dist.all_reduce(whole, async_op=True) for whole in full], *full, finish=take_slices)


def _all_gather(full: Sequence[Tensor], shards: Sequence[Tensor]) -> list[Any]:
    if dist.get_backend() == "nccl":
        return [_method("all_gather_single_coalesced", "allgather_into_tensor_coalesced")(full, shards)]
    # Never the same over Gloo: its two threads set the name of the last collective done, without a lock. That of
    # this one is too long to stand inside the string, so its memory is freed twice now and then (PyTorch 2.13).
    parts = [list(whole.chunk(world_size())) for whole in full]
    return [dist.all_gather(part, shard, async_op=True) for part, shard in zip(parts, shards, strict=True)]


def _reduce_scatter(shards: Sequence[Tensor], full: Sequence[Tensor]) -> Any:
    return _method("reduce_scatter_single_coalesced", "reduce_scatter_tensor_coalesced")(shards, full)  # sums


def _method(name: str, older: str) -> Callable[..., Any]:
    """Of the process group: `torch.distributed` has no function for several tensors. PyTorch 2.13 renamed them."""
    group = dist.group.WORLD
    return getattr(group, name, None) or getattr(group, older)


_probed: dict[str, bool] = {}


def _has_reduce_scatter() -> bool:
    """Whether the backend has one, found out once by trying; all ranks run the same PyTorch and agree."""
    backend = dist.get_backend()
    if backend not in _probed:
        _probed[backend] = backend == "nccl" or _try_reduce_scatter()
    return _probed[backend]


def _try_reduce_scatter() -> bool:
    try:
        _reduce_scatter([torch.empty(1)], [torch.zeros(world_size())]).wait()
    except (AttributeError, RuntimeError, NotImplementedError):  # Gloo of older PyTorch
        return False
    return True
