"""All forms on GPUs over NCCL against one GPU, weights after every step."""

import copy

import pytest
import torch
import torch.distributed as dist

from cs336.parallel.ddp import DDP, DDPBucketed
from cs336.parallel.fsdp import FSDP, gather_full_params
from cs336.parallel.optimizer_shard import ShardedOptimizer
from cs336.parallel.process_group import run_ranks
from cs336.train.optimizer import AdamW
from tests.parallel.models import batches, loss_of, made, slice_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs"),
]

SETTINGS = {"lr": 0.01, "weight_decay": 0.1, "eps": 1e-4}  # tiny gradients: no division of one rounding by another
FORMS = {
    "ddp": DDP,
    "buckets": lambda module: DDPBucketed(module, 1e-3),
    "fsdp": FSDP,
    "fsdp, bf16": lambda module: FSDP(module, torch.bfloat16),
}


def _weights(model):
    if isinstance(model, FSDP):
        return gather_full_params(model)
    return dict(getattr(model, "module", model).named_parameters(remove_duplicate=False))


def _train(model, optimizer, place, rank, world_size):
    for batch in batches(10):
        optimizer.zero_grad()
        on_gpu = tuple(part.to(place.device) for part in slice_of(batch, rank, world_size))
        loss_of(model, on_gpu).backward()
        if hasattr(model, "finish_gradient_synchronization"):
            model.finish_gradient_synchronization()
        optimizer.step()
        yield {name: value.detach().clone() for name, value in _weights(model).items()}


def largest_differences(place):
    """Of each form from one GPU, over ten AdamW steps, and with the optimizer's state sharded or not."""
    found = {}
    for name in ("transformer", "transformer, tied"):
        start = made(name)
        alone = copy.deepcopy(start).to(place.device)
        expected = list(_train(alone, AdamW(alone.parameters(), **SETTINGS), place, 0, 1))
        for form, wrap in FORMS.items():
            for sharded in (False, True) if "fsdp" not in form else (False,):
                for _ in range(5):
                    model = wrap(copy.deepcopy(start).to(place.device))
                    parameters = model.parameters()
                    optimizer = (
                        ShardedOptimizer(parameters, AdamW, **SETTINGS) if sharded else AdamW(parameters, **SETTINGS)
                    )
                    steps = _train(model, optimizer, place, place.rank, place.world_size)
                    for weights, state in zip(steps, expected, strict=True):
                        for n, value in weights.items():
                            difference = (value - state[n]).abs().max().item()
                            key = f"{name}, {form}{', zero1' * sharded}"
                            found[key] = max(found.get(key, 0.0), difference)
                if sharded:
                    full = optimizer.full_state_dict()
                    assert (full is None) == (place.rank > 0)
                    if full:
                        assert len(full["state"]) == len(list(alone.parameters()))
    assert dist.get_backend() == "nccl"
    return found


def test_all_forms_equal_one_gpu():
    for name, difference in run_ranks(largest_differences, 2, device="cuda", timeout_seconds=300)[0].items():
        assert difference < (1e-2 if "bf16" in name else 1e-4), name
