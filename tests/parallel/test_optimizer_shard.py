"""Sharded optimizer state against the unsharded optimizer, its groups, its exchange and its checkpoints."""

import copy
import warnings

import pytest
import torch
import torch.distributed as dist
from torch import nn

from cs336.parallel import optimizer_shard
from cs336.parallel.ddp import DDP
from cs336.parallel.optimizer_shard import ShardedOptimizer
from cs336.parallel.process_group import run_ranks
from cs336.train.optimizer import AdamW, Muon
from tests.parallel.models import batches, loss_of, made, names_for, reference, slice_of

NUM_STEPS = 10
SETTINGS = {"lr": 0.01, "weight_decay": 0.1}


def train(model, optimizer, all_batches):
    for batch in all_batches:
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        optimizer.step()


def assert_same(model, expected, **tolerances):
    for n, value in model.state_dict().items():
        torch.testing.assert_close(value, expected[n], **(tolerances or {"rtol": 1e-7, "atol": 0}))


def check_equal_to_the_unsharded_optimizer(place):
    """Each rank computes the same gradients, so that nothing but the sharding can differ."""
    for optimizer_cls in (AdamW, torch.optim.AdamW):
        for name in names_for(place.world_size):
            expected = reference(made(name), lambda p, cls=optimizer_cls: cls(p, **SETTINGS), NUM_STEPS)[-1]
            for _ in range(5 if name == "mixed" and place.world_size == 2 else 1):
                model = made(name)
                train(model, ShardedOptimizer(model.parameters(), optimizer_cls, **SETTINGS), batches(NUM_STEPS))
                assert_same(model, expected)


def check_with_ddp(place):
    expected = reference(made("transformer"), lambda p: AdamW(p, **SETTINGS), 3)[-1]
    model = DDP(made("transformer", seed=place.rank))
    optimizer = ShardedOptimizer(model.parameters(), AdamW, **SETTINGS)
    for batch in batches(3):
        optimizer.zero_grad()
        loss_of(model, slice_of(batch, place.rank, place.world_size)).backward()
        model.finish_gradient_synchronization()
        optimizer.step()
    assert_same(model.module, expected, rtol=1e-4, atol=1e-5)


def _groups(model):
    named = list(model.named_parameters())
    return [
        {"params": [p for _, p in named if p.ndim == 2], "lr": 0.02, "mark": "matrices"},
        {"params": [p for _, p in named if p.ndim < 2], "weight_decay": 0.0, "betas": (0.5, 0.9)},
    ]


def check_groups(place):
    """Options of groups, a group added during training, a schedule, Muon's groups."""
    model, alone = made("transformer"), made("transformer")
    extra, extra_alone = (nn.Parameter(torch.ones(3, 5)) for _ in range(2))
    sharded = ShardedOptimizer(_groups(model), AdamW, **SETTINGS)
    plain = AdamW(_groups(alone), **SETTINGS)
    assert sharded.param_groups[0]["mark"] == "matrices" and sharded.param_groups[0]["eps"] == 1e-8
    train(model, sharded, batches(2))
    train(alone, plain, batches(2))
    sharded.add_param_group({"params": [extra], "lr": 0.3})
    plain.add_param_group({"params": [extra_alone], "lr": 0.3})
    schedules = [torch.optim.lr_scheduler.LambdaLR(o, lambda step: 0.5**step) for o in (sharded, plain)]
    for _ in range(3):
        extra.grad = torch.full((3, 5), 0.1)
        extra_alone.grad = torch.full((3, 5), 0.1)
        sharded.step()
        plain.step()
        for schedule in schedules:
            schedule.step()
    assert_same(model, alone.state_dict())
    assert torch.equal(extra, extra_alone) and extra[0, 0] < 1
    matrices = [{"params": [made("mixed", seed=4).head.weight], "orthogonalize": True}]
    muon = ShardedOptimizer(matrices, Muon, lr=0.1)
    matrices[0]["params"][0].grad = torch.ones_like(matrices[0]["params"][0])
    muon.step()
    assert muon.param_groups[0]["momentum"] == 0.95


def check_ownership(place):
    """Every parameter has one owner, the same on all ranks; only it holds the state; loads are about even."""
    model = made("transformer")
    optimizer = ShardedOptimizer(model.parameters(), AdamW, **SETTINGS)
    train(model, optimizer, batches(1))
    owners = [optimizer.owner(p) for p in model.parameters()]
    everyones = [None] * place.world_size
    dist.all_gather_object(everyones, owners)
    assert all(other == owners for other in everyones)
    assert {id(p) for p in optimizer.state} == {id(p) for p in model.parameters() if optimizer.owner(p) == place.rank}
    total = sum(p.numel() for p in model.parameters())
    own = sum(p.numel() for p in model.parameters() if optimizer.owner(p) == place.rank)
    largest = max(p.numel() for p in model.parameters())
    assert abs(own - total / place.world_size) <= largest
    assert sum(s["m"].numel() for s in optimizer.state.values()) == own
    optimizer.zero_grad()
    assert all(p.grad is None for p in model.parameters())


def check_a_rank_that_owns_nothing(place):
    """One parameter for several ranks: all get its update, and the closure's value."""
    parameter = nn.Parameter(torch.full((4,), 2.0))
    optimizer = ShardedOptimizer([parameter], torch.optim.SGD, lr=0.5)

    def closure():
        optimizer.zero_grad()
        loss = (parameter**2).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 16
    assert torch.equal(parameter.detach(), torch.zeros(4))


def check_checkpoints(place):
    """Sharded state, saved whole, goes on in an unsharded optimizer and in a sharded one, and the other way round."""
    for optimizer_cls in (AdamW, torch.optim.AdamW):
        first, rest = batches(6)[:3], batches(6)[3:]
        model = made("transformer")
        sharded = ShardedOptimizer(_groups(model), optimizer_cls, **SETTINGS)
        train(model, sharded, first)
        state = sharded.full_state_dict()
        assert (state is None) == (place.rank > 0)
        shared = [copy.deepcopy(state)]
        dist.broadcast_object_list(shared)
        alone = made("transformer")
        plain = optimizer_cls(_groups(alone), **SETTINGS)
        train(alone, plain, first)
        ours, theirs = shared[0], plain.state_dict()
        assert ours["param_groups"] == theirs["param_groups"] and list(ours["state"]) == list(theirs["state"])
        for index, values in theirs["state"].items():
            assert all(
                torch.equal(torch.as_tensor(v), torch.as_tensor(ours["state"][index][n])) for n, v in values.items()
            )
        resumed, weights = [], copy.deepcopy(model.state_dict())
        for make in (optimizer_cls, lambda p, cls=optimizer_cls, **s: ShardedOptimizer(p, cls, **s)):
            again = made("transformer", seed=7)
            again.load_state_dict(weights)
            optimizer = make(_groups(again), **SETTINGS)
            optimizer.load_state_dict(copy.deepcopy(ours))
            optimizer.param_groups[0]["lr"] = 0.003  # as a schedule does
            train(again, optimizer, rest)
            resumed.append(again)
        sharded.param_groups[0]["lr"] = 0.003
        train(model, sharded, rest)
        assert_same(resumed[0], model.state_dict())
        assert_same(resumed[1], model.state_dict())


def check_rounds(place):
    """Small rounds: all are sent, the owned part of a round is updated before it travels and no other."""
    model = made("transformer")
    optimizer = ShardedOptimizer(model.parameters(), torch.optim.SGD, lr=1.0)
    assert len(optimizer._rounds) > 2
    held = [sum(p.numel() * 4 for p in r.parameters if optimizer.owner(p) == place.rank) for r in optimizer._rounds]
    largest = max(p.numel() * 4 for p in model.parameters())
    assert max(held) <= max(optimizer_shard._ROUND_BYTES, largest)
    assert {id(p) for r in optimizer._rounds for p in r.parameters} == {id(p) for p in model.parameters()}
    before = copy.deepcopy(model.state_dict())
    sent = []
    plain = optimizer_shard.start_broadcasts

    def watched(tensors):
        tensors = list(tensors)
        sent.extend(parameter for parameter, _ in tensors)
        for name, parameter in model.named_parameters():
            if optimizer.owner(parameter) == place.rank:
                assert torch.equal(parameter, before[name]) != any(parameter is each for each in sent), name
        return plain(tensors)

    optimizer_shard.start_broadcasts = watched
    try:
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    finally:
        optimizer_shard.start_broadcasts = plain
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name] - 1)


def all_checks(place, round_bytes):
    warnings.simplefilter("error")
    optimizer_shard._ROUND_BYTES = round_bytes
    if round_bytes < 10_000:
        check_rounds(place)
    check_equal_to_the_unsharded_optimizer(place)
    check_with_ddp(place)
    check_groups(place)
    check_ownership(place)
    check_a_rank_that_owns_nothing(place)
    check_checkpoints(place)


@pytest.mark.parametrize(
    ("world_size", "round_bytes"),
    [
        (2, optimizer_shard._ROUND_BYTES),
        (2, 2_000),
        pytest.param(4, 1_000, marks=pytest.mark.slow),
    ],
)
def test_sharded_state_gives_the_unsharded_weights(world_size, round_bytes):
    run_ranks(all_checks, world_size, round_bytes, start_method="forkserver")
