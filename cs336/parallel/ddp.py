"""Data parallelism: every rank holds the whole model, and gradients are averaged over the ranks.

Four forms of one sum. `average_gradients` sends after the backward pass, a tensor at a time or all in one;
`DDP` sends each gradient, and `DDPBucketed` each bucket of gradients, while the backward pass goes on.

With rank r holding the r-th equal slice of a batch and a mean loss, the averaged gradients are those of the
whole batch, so that the ranks' weights stay equal to each other and to one process's.

Source: Li et al. 2020, arXiv:2006.15704.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cs336.parallel.collectives import Pending, broadcast, start_all_reduce
from cs336.parallel.process_group import world_size

_MB = 1_000_000  # as in the handout's "100 MB"


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter], *, flat: bool = False) -> None:
    """Replace each gradient by its mean over the ranks, after the backward pass.

    A parameter that has a gradient on some ranks only counts as zero on the others; one that has none
    anywhere keeps none, so that optimizers skip it as they do in one process.

    Args:
        parameters: the same on all ranks, in the same order; frozen ones are left out.
        flat: send all gradients as one tensor (for each dtype): fewer calls, but memory for a copy.
    """
    distinct = _trainable(parameters)
    buckets = _buckets(distinct, None) if flat else [_Bucket([parameter]) for parameter in distinct]
    used = _UsedSomewhere(distinct)
    for bucket in buckets:
        bucket.start()
        bucket.finish()
    used.start()
    used.settle()


class _Overlapped(nn.Module):
    """What `DDP` and `DDPBucketed` share: buckets that are sent as soon as their gradients are ready.

    All ranks send the buckets in one fixed order, whatever the order in which gradients happen to be ready
    on each: a bucket that is ready waits for those before it.
    """

    def __init__(self, module: nn.Module, bucket_bytes: float | None) -> None:
        super().__init__()
        self.module = module
        broadcast([*module.parameters(), *module.buffers()])
        self._parameters_sent = _trainable(module.parameters())
        self._buckets = _buckets(self._parameters_sent, bucket_bytes)
        self._bucket_of = {parameter: bucket for bucket in self._buckets for parameter in bucket.parameters}
        self._enabled = True
        self.start_batch()
        for parameter in self._parameters_sent:
            parameter.register_post_accumulate_grad_hook(self._gradient_is_ready)

    def forward(self, *inputs: Any, **kwargs: Any) -> Any:
        """The module's own."""
        return self.module(*inputs, **kwargs)

    @property
    def num_buckets(self) -> int:
        """Messages of a step, besides the small one at its end."""
        return len(self._buckets)

    def start_batch(self) -> None:
        """Forget a batch that broke off between backward and `finish_gradient_synchronization`; else not needed.

        All ranks must have broken off: what some rank has sent, the others have to receive.
        """
        self._num_started = 0
        for bucket in self._buckets:
            bucket.discard()

    @contextlib.contextmanager
    def no_sync(self) -> Iterator[None]:
        """Backward passes inside send nothing: gradients add up until one outside, or the finish, sends the sum."""
        before, self._enabled = self._enabled, False
        try:
            yield
        finally:
            self._enabled = before

    @torch.no_grad()
    def finish_gradient_synchronization(self) -> None:
        """Send what is not yet on its way, wait for all, and leave the mean over the ranks in each `.grad`.

        Call it after `backward()` and before `optimizer.step()`, on every rank.
        """
        used = _UsedSomewhere(self._parameters_sent)
        self._start_ready_buckets(all_of_them=True)
        used.start()
        for bucket in self._buckets:
            bucket.finish()
        used.settle()
        self._num_started = 0

    def _gradient_is_ready(self, parameter: Tensor) -> None:
        if not self._enabled:
            return
        bucket = self._bucket_of[parameter]  # type: ignore[index]
        if bucket.pending is not None or parameter in bucket.ready:
            raise RuntimeError(
                "a second backward pass before finish_gradient_synchronization(); put all but the last into no_sync()"
            )
        bucket.ready.add(parameter)
        self._start_ready_buckets()

    @torch.no_grad()
    def _start_ready_buckets(self, *, all_of_them: bool = False) -> None:
        while self._num_started < len(self._buckets):
            bucket = self._buckets[self._num_started]
            if not all_of_them and len(bucket.ready) < len(bucket.parameters):
                return
            bucket.start()
            self._num_started += 1


class DDP(_Overlapped):
    """Sends each gradient as soon as the backward pass has made it.

    Construction gives every rank the parameters and buffers of rank 0. Frozen parameters (at construction)
    are never sent, tied ones once. Buffers are not sent again.

        ddp = DDP(model)
        loss_of(ddp(inputs)).backward()
        ddp.finish_gradient_synchronization()
        optimizer.step()

    Args:
        module: already on this rank's device.

    Attributes:
        module: the one wrapped, with its own names.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module, 0)


class DDPBucketed(_Overlapped):
    """`DDP` that sends gradients in buckets: fewer and larger messages, which start a little later.

    Buckets fill in the reverse of `parameters()`, about the order in which gradients become ready; each holds
    one dtype and device. A gradient larger than the limit has its own.

    Args:
        bucket_size_mb: limit in MB (1e6 bytes); None for one bucket without limit.

    Raises:
        ValueError: a negative limit.
    """

    def __init__(self, module: nn.Module, bucket_size_mb: float | None) -> None:
        if bucket_size_mb is not None and bucket_size_mb < 0:
            raise ValueError(f"bucket_size_mb must not be negative, got {bucket_size_mb}; None means no limit")
        super().__init__(module, None if bucket_size_mb is None else bucket_size_mb * _MB)


class _Bucket:
    """Gradients that travel together."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters = list(parameters)
        self.ready: set[Tensor] = set()
        self.pending: Pending | None = None
        self._flat: Tensor | None = None

    def start(self) -> None:
        """Begin the sum over the ranks; a missing gradient travels as zeros, since others may have one."""
        for parameter in self.parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        if len(gradients) == 1 and gradients[0].is_contiguous():
            self._flat = gradients[0].detach().view(-1)  # in place: no copy
        else:
            self._flat = torch.cat([gradient.detach().reshape(-1) for gradient in gradients])
        self.pending = start_all_reduce(self._flat)

    def finish(self) -> None:
        """Wait for the sum and put the mean into the gradients."""
        if self.pending is None or self._flat is None:
            raise RuntimeError("finish before start")
        self.pending.wait()
        self._flat /= world_size()
        start = 0
        for parameter in self.parameters:
            gradient = parameter.grad
            assert gradient is not None
            mean = self._flat[start : start + gradient.numel()].view(gradient.shape)
            start += gradient.numel()
            if mean.data_ptr() != gradient.data_ptr():
                gradient.copy_(mean)
        self.discard()

    def discard(self) -> None:
        if self.pending is not None:
            self.pending.wait()
        self.ready, self.pending, self._flat = set(), None, None


class _UsedSomewhere:
    """Finds out which parameters have a gradient on no rank, by one small sum.

    Made before buckets fill in zeros; sent after all buckets, so that every rank sends in the same order.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self._parameters = parameters
        self._here = [parameter.grad is not None for parameter in parameters]
        self._counts: Tensor | None = None
        self._pending = Pending()

    def start(self) -> None:
        """Begin to count the ranks on which each parameter has a gradient."""
        if self._parameters:
            device = self._parameters[0].device
            counts = torch.tensor(self._here, dtype=torch.float32, pin_memory=device.type == "cuda")
            self._counts = counts.to(device, non_blocking=True)  # from pinned memory: nobody waits for the GPU
            self._pending = start_all_reduce(self._counts)

    def settle(self) -> None:
        """Take away the zeros of parameters that were used nowhere."""
        self._pending.wait()
        if all(self._here) or self._counts is None:
            return  # nothing to take away here, and no need to wait for a GPU's answer
        for parameter, here, count in zip(self._parameters, self._here, self._counts.tolist(), strict=True):
            if not here and count == 0:
                parameter.grad = None


def _trainable(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    """Each distinct parameter that is not frozen."""
    return [parameter for parameter in dict.fromkeys(parameters) if parameter.requires_grad]


def _buckets(parameters: Sequence[nn.Parameter], max_bytes: float | None) -> list[_Bucket]:
    """Parameters in reverse order, cut where a bucket would exceed `max_bytes` or change its dtype or device."""
    groups: list[list[nn.Parameter]] = []
    size = 0
    for parameter in reversed(parameters):
        num_bytes = parameter.numel() * parameter.element_size()
        last = groups[-1][-1] if groups else None
        alike = last is not None and (last.dtype, last.device) == (parameter.dtype, parameter.device)
        if alike and (max_bytes is None or size + num_bytes <= max_bytes):
            groups[-1].append(parameter)
            size += num_bytes
        else:
            groups.append([parameter])
            size = num_bytes
    return [_Bucket(group) for group in groups]
