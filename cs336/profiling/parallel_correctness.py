"""Every form of parallel training against one process: the weights of a small model, after every step."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cs336.model.transformer import ModelConfig, TransformerLM
from cs336.parallel.ddp import DDP, DDPBucketed, average_gradients
from cs336.parallel.fsdp import FSDP
from cs336.parallel.fsdp2 import FullyShard
from cs336.parallel.fsdp_state import Sharded
from cs336.parallel.optimizer_shard import ShardedOptimizer
from cs336.parallel.process_group import Rank
from cs336.profiling.rank_cells import over_ranks, run_cell
from cs336.train.loss import cross_entropy
from cs336.train.optimizer import AdamW

MODEL = ModelConfig(context_length=16, d_model=32, num_layers=2, num_heads=2, d_ff=48, vocab_size=61)
NUM_STEPS = 4
SEQUENCES_PER_RANK = 2
# Of weights about 1 in size: a sum that is split over ranks rounds otherwise. FSDP in bf16 is no equality.
TOLERANCE = 1e-5
_SETTINGS = {"lr": 1e-2, "weight_decay": 0.1, "eps": 1e-4}  # no division of one rounding by another

Batch = tuple[Tensor, Tensor]


@dataclass
class Wrapped:
    """A model as one form trains it.

    Attributes:
        call: what is called with the inputs.
        optimizer: over what this rank holds.
        finish: brings the gradients over the ranks.
        zero_grad: in place of the optimizer's.
        sharded: where the weights are cut.
    """

    call: nn.Module
    optimizer: torch.optim.Optimizer
    finish: Callable[[], object] | None = None
    zero_grad: Callable[[], object] | None = None
    sharded: Sharded | None = None


def _adamw(parameters: Iterable[nn.Parameter]) -> AdamW:
    settings: dict[str, Any] = _SETTINGS
    return AdamW(parameters, **settings)


def _naive(model: TransformerLM) -> Wrapped:
    return Wrapped(model, _adamw(model.parameters()), lambda: average_gradients(model.parameters()))


def _flat(model: TransformerLM) -> Wrapped:
    return Wrapped(model, _adamw(model.parameters()), lambda: average_gradients(model.parameters(), flat=True))


def _overlapped(model: TransformerLM) -> Wrapped:
    wrapped = DDP(model)
    return Wrapped(wrapped, _adamw(model.parameters()), wrapped.finish_gradient_synchronization)


def _in_buckets(model: TransformerLM) -> Wrapped:
    wrapped = DDPBucketed(model, 0.01)
    return Wrapped(wrapped, _adamw(model.parameters()), wrapped.finish_gradient_synchronization)


def _optimizer_sharded(model: TransformerLM) -> Wrapped:
    wrapped = DDP(model)
    optimizer = ShardedOptimizer(model.parameters(), AdamW, **_SETTINGS)
    return Wrapped(wrapped, optimizer, wrapped.finish_gradient_synchronization)


def _sharded(model: TransformerLM) -> Wrapped:
    wrapped = FSDP(model)
    finish = wrapped.finish_gradient_synchronization
    return Wrapped(wrapped, _adamw(wrapped.parameters()), finish, sharded=wrapped)


def _fully_sharded(model: TransformerLM) -> Wrapped:
    wrapped = FullyShard(model, model.layers)
    finish, zero_grad = wrapped.finish_gradient_synchronization, wrapped.zero_grad
    return Wrapped(model, _adamw(wrapped.parameters()), finish, zero_grad, sharded=wrapped)


FORMS: dict[str, Callable[[TransformerLM], Wrapped]] = {
    "naive": _naive,
    "flat": _flat,
    "overlapped": _overlapped,
    "bucketed": _in_buckets,
    "overlapped, optimizer sharded": _optimizer_sharded,
    "FSDP": _sharded,
    "FSDP2": _fully_sharded,
}


def compare_forms(world_size: int, device: str, timeout_seconds: float) -> dict[str, Any]:
    """The largest difference of any weight after any step, for each form, from one process on whole batches.

    Returns:
        By form; or `{"failure": line}`.
    """
    return run_cell(largest_differences, world_size, device=device, timeout_seconds=timeout_seconds)


def largest_differences(place: Rank) -> dict[str, float]:
    """What `compare_forms` returns; every rank calls it."""
    torch.manual_seed(0)
    start = TransformerLM(MODEL).to(place.device)
    alone = copy.deepcopy(start)
    expected = list(_weights_of_steps(Wrapped(alone, _adamw(alone.parameters())), alone, place, whole=True))
    differences = {}
    for form, wrap in FORMS.items():
        model = copy.deepcopy(start)
        steps = _weights_of_steps(wrap(model), model, place, whole=False)
        found = [
            (weights[name] - value).abs().max()
            for weights, wanted in zip(steps, expected, strict=True)
            for name, value in wanted.items()
        ]
        # Of tensors, whose largest is NaN where one is; Python's may be any other.
        differences[form] = torch.tensor(over_ranks(torch.stack(found).max().item())).max().item()
    return differences


def _weights_of_steps(wrapped: Wrapped, model: nn.Module, place: Rank, *, whole: bool) -> Iterator[dict[str, Tensor]]:
    """Train on whole batches or on this rank's slices; yields the full weights after each step."""
    for inputs, targets in _batches(place):
        if not whole:
            inputs, targets = (part.chunk(place.world_size)[place.rank] for part in (inputs, targets))
        (wrapped.zero_grad or wrapped.optimizer.zero_grad)()
        cross_entropy(wrapped.call(inputs), targets).backward()
        if wrapped.finish is not None:
            wrapped.finish()
        wrapped.optimizer.step()
        full = _gathered(wrapped.sharded) if wrapped.sharded else dict(model.named_parameters())
        yield {name: value.detach().clone() for name, value in full.items()}


def _gathered(sharded: Sharded) -> dict[str, Tensor]:
    cuts = sharded.cuts()
    return {
        name: cuts[shard].gathered(shard) if shard in cuts else shard.detach() for name, shard in sharded.named_shards()
    }


def _batches(place: Rank) -> Iterator[Batch]:
    generator = torch.Generator().manual_seed(1)
    shape = (2, SEQUENCES_PER_RANK * place.world_size, MODEL.context_length)
    for _ in range(NUM_STEPS):
        ids = torch.randint(MODEL.vocab_size, shape, generator=generator).to(place.device)
        yield ids[0], ids[1]
