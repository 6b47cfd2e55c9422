"""Every form of parallel training against one process: the weights of a small model, after every step."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from cs336.model.transformer import ModelConfig, TransformerLM
from cs336.parallel.ddp import DDP, DDPBucketed, average_gradients
from cs336.parallel.fsdp import FSDP, gather_full_params
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


def _naive(model: nn.Module) -> tuple[nn.Module, Callable[[], object]]:
    return model, lambda: average_gradients(model.parameters())


def _flat(model: nn.Module) -> tuple[nn.Module, Callable[[], object]]:
    return model, lambda: average_gradients(model.parameters(), flat=True)


def _overlapped(model: nn.Module) -> tuple[nn.Module, Callable[[], object]]:
    wrapped = DDP(model)
    return wrapped, wrapped.finish_gradient_synchronization


def _in_buckets(model: nn.Module) -> tuple[nn.Module, Callable[[], object]]:
    wrapped = DDPBucketed(model, 0.01)
    return wrapped, wrapped.finish_gradient_synchronization


def _sharded(model: nn.Module) -> tuple[nn.Module, Callable[[], object]]:
    wrapped = FSDP(model)
    return wrapped, wrapped.finish_gradient_synchronization


FORMS = {
    "naive": (_naive, False),
    "flat": (_flat, False),
    "overlapped": (_overlapped, False),
    "bucketed": (_in_buckets, False),
    "overlapped, optimizer sharded": (_overlapped, True),
    "FSDP": (_sharded, False),
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
    settings: dict[str, Any] = _SETTINGS
    optimizer: torch.optim.Optimizer = AdamW(alone.parameters(), **settings)
    expected = list(_weights_of_steps(alone, alone, optimizer, None, place, whole=True))
    differences = {}
    for form, (wrap, shards_optimizer) in FORMS.items():
        model = copy.deepcopy(start)
        wrapped, finish = wrap(model)
        optimizer = (
            ShardedOptimizer(model.parameters(), AdamW, **settings)
            if shards_optimizer
            else AdamW(model.parameters(), **settings)
        )
        largest = 0.0
        steps = _weights_of_steps(wrapped, model, optimizer, finish, place, whole=False)
        for weights, wanted in zip(steps, expected, strict=True):
            largest = max(largest, *((weights[name] - value).abs().max().item() for name, value in wanted.items()))
        differences[form] = max(over_ranks(largest))
    return differences


def _weights_of_steps(
    called: nn.Module,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    finish: Callable[[], object] | None,
    place: Rank,
    *,
    whole: bool,
) -> Iterator[dict[str, Tensor]]:
    """Train on whole batches or on this rank's slices; yields the full weights after each step."""
    for inputs, targets in _batches(place):
        if not whole:
            inputs, targets = (part.chunk(place.world_size)[place.rank] for part in (inputs, targets))
        optimizer.zero_grad()
        cross_entropy(called(inputs), targets).backward()
        if finish is not None:
            finish()
        optimizer.step()
        full = gather_full_params(called) if isinstance(called, FSDP) else dict(model.named_parameters())
        yield {name: value.detach().clone() for name, value in full.items()}


def _batches(place: Rank) -> Iterator[Batch]:
    generator = torch.Generator().manual_seed(1)
    shape = (2, SEQUENCES_PER_RANK * place.world_size, MODEL.context_length)
    for _ in range(NUM_STEPS):
        ids = torch.randint(MODEL.vocab_size, shape, generator=generator).to(place.device)
        yield ids[0], ids[1]
