"""Whole states of a sharded run: what one process would save, and going on from it; clipping by the whole norm."""

import copy
import warnings

import pytest
import torch
import torch.distributed as dist

from cs336.parallel.fsdp import FSDP, gather_full_params
from cs336.parallel.fsdp_state import clip_gradients, full_optimizer_state, load_full_optimizer_state, load_full_params
from cs336.parallel.process_group import run_ranks
from cs336.train.optimizer import AdamW
from cs336.train.optimizer import clip_gradients as clip_alone
from tests.parallel.models import batches, loss_of, made, slice_of

MAX_NORM = 0.05  # below the norms met here


def adamw(model):
    return AdamW(model.parameters(), lr=0.01, weight_decay=0.1, eps=1e-4)


def train(place, model, optimizer, all_batches):
    """Returns the norms before clipping."""
    norms = []
    for batch in all_batches:
        optimizer.zero_grad()
        if isinstance(model, FSDP):
            loss_of(model, slice_of(batch, place.rank, place.world_size)).backward()
            model.finish_gradient_synchronization()
            norms.append(clip_gradients(model, MAX_NORM))
        else:
            loss_of(model, batch).backward()
            norms.append(clip_alone(model.parameters(), MAX_NORM))
        optimizer.step()
    return torch.stack(norms)


def close(ours, theirs):
    torch.testing.assert_close(torch.as_tensor(ours), torch.as_tensor(theirs), rtol=1e-4, atol=1e-6)


def all_checks(place):
    warnings.simplefilter("error")
    for name in ("transformer", "transformer, tied"):
        first, rest = batches(6)[:3], batches(6)[3:]
        alone, fsdp = made(name), FSDP(made(name))
        plain, sharded = adamw(alone), adamw(fsdp)
        norms = train(place, alone, plain, first)
        assert norms.min() > MAX_NORM
        close(train(place, fsdp, sharded, first), norms)

        weights, state = gather_full_params(fsdp), full_optimizer_state(fsdp, sharded)
        assert (state is None) == (place.rank > 0)
        shared = [state]
        dist.broadcast_object_list(shared)
        assert shared[0]["param_groups"] == plain.state_dict()["param_groups"]
        for index, values in plain.state_dict()["state"].items():
            assert values.keys() == shared[0]["state"][index].keys()
            for n, value in values.items():
                close(shared[0]["state"][index][n], value)

        # On in one process, and in a sharded run whose first values were others.
        again, again_sharded = made(name, seed=5), FSDP(made(name, seed=5))
        again.load_state_dict(weights, strict=False)
        load_full_params(again_sharded, again.state_dict())
        optimizers = adamw(again), adamw(again_sharded)
        optimizers[0].load_state_dict(copy.deepcopy(shared[0]))
        load_full_optimizer_state(again_sharded, optimizers[1], copy.deepcopy(shared[0]))
        train(place, fsdp, sharded, rest)
        train(place, again, optimizers[0], rest)
        train(place, again_sharded, optimizers[1], rest)
        expected = gather_full_params(fsdp)
        for n, value in gather_full_params(again_sharded).items():
            assert torch.equal(value, expected[n]), n
            close(again.state_dict()[n], value)
        with pytest.raises(ValueError, match="must be of shape"):
            load_full_params(fsdp, {n: value[:-1] for n, value in weights.items()})


@pytest.mark.parametrize("world_size", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_whole_states_go_on_anywhere(world_size):
    run_ranks(all_checks, world_size, start_method="forkserver")
