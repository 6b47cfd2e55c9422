"""All forms of data parallelism against one process on whole batches, after every step."""

import warnings

import pytest
import torch
import torch.distributed as dist
from torch import nn

from cs336.parallel.ddp import DDP, DDPBucketed, average_gradients
from cs336.parallel.process_group import run_ranks
from cs336.train.optimizer import AdamW
from tests.parallel.models import VOCAB, batches, loss_of, made, names_for, reference, slice_of

NUM_STEPS = 4
FORMS = {
    "naive": None,
    "flat": None,
    "overlapped": DDP,
    "each alone": lambda module: DDPBucketed(module, 1e-6),
    "small buckets": lambda module: DDPBucketed(module, 1e-3),
    "one bucket": lambda module: DDPBucketed(module, None),
}
REPEATED = ("overlapped", "small buckets")  # what races could disturb


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1)


def adamw(parameters):
    return AdamW(parameters, lr=0.01, weight_decay=0.1)


def train(place, name, form, make_optimizer, num_steps=NUM_STEPS):
    """Yields the module after each step."""
    model = made(name, seed=0 if place.rank == 0 else 99)
    if FORMS[form] is None:
        DDP(model)  # for the first values; what it would send later is sent by hand
        wrapped = model = made(name)
    else:
        wrapped = FORMS[form](model)
        assert wrapped.module is model
    optimizer = make_optimizer(wrapped.parameters())
    for batch in batches(num_steps):
        optimizer.zero_grad()
        loss_of(wrapped, slice_of(batch, place.rank, place.world_size)).backward()
        if FORMS[form] is None:
            average_gradients(model.parameters(), flat=form == "flat")
        else:
            wrapped.finish_gradient_synchronization()
        optimizer.step()
        yield model


def everyones(tensor):
    gathered = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, tensor)
    return gathered


def check_equal_to_one_process(place):
    atol = 1e-8 if place.world_size == 2 else 1e-7  # four slices are summed in yet another order
    for name in names_for(place.world_size):
        states = reference(made(name), sgd, NUM_STEPS)
        for form in FORMS:
            for _ in range(5 if form in REPEATED and place.world_size == 2 else 1):
                for model, state in zip(train(place, name, form, sgd), states, strict=True):
                    for n, value in model.state_dict().items():
                        torch.testing.assert_close(value, state[n], rtol=1e-5, atol=atol)
                flat = torch.cat([p.grad.reshape(-1) for p in model.parameters() if p.grad is not None])
                assert all(torch.equal(flat, other) for other in everyones(flat)), "gradients differ between ranks"
                if "mixed" in name:
                    assert model.unused.weight.grad is None and model.frozen.weight.grad is None


def check_adamw(place):
    states = reference(made("transformer"), adamw, NUM_STEPS)
    for form in ("overlapped", "small buckets"):
        for model, state in zip(train(place, "transformer", form, adamw), states, strict=True):
            for n, value in model.state_dict().items():
                torch.testing.assert_close(value, state[n], rtol=1e-4, atol=1e-5)


class Branch(nn.Module):
    """Rank 0 takes another way than the others."""

    def __init__(self, place):
        super().__init__()
        self.place = place
        self.ways = nn.ModuleList(nn.Linear(3, 3) for _ in range(3))

    def forward(self, x):
        return self.ways[0 if self.place.rank == 0 else 1](x)


def check_gradients_missing_on_some_ranks(place):
    """A gradient that some rank lacks counts as zero there; one that all lack stays missing."""
    for form in ("overlapped", "one bucket", "small buckets"):
        torch.manual_seed(0)
        model = FORMS[form](Branch(place))
        for _ in range(2):
            model.zero_grad()
            model(torch.ones(3)).sum().backward()
            model.finish_gradient_synchronization()
            shares = [1 / place.world_size, 1 - 1 / place.world_size]
            for way, share in zip(model.module.ways, shares, strict=False):
                torch.testing.assert_close(way.weight.grad, torch.full((3, 3), share))
            assert model.module.ways[2].weight.grad is None


def check_buffers_and_initial_values(place):
    model = made("mixed", seed=place.rank)
    model.shift += place.rank
    model.flags[0] = place.rank == 0
    ids = batches(1)[0][0]
    DDP(model)
    expected = made("mixed", seed=0)
    assert torch.equal(model(ids), expected(ids))
    assert torch.equal(model.shift, expected.shift) and torch.equal(model.flags, expected.flags)
    assert torch.equal(model.frozen.weight, expected.frozen.weight)


def check_accumulation(place):
    """Micro-batches under `no_sync`; a second backward pass without it is an error, and can be recovered from."""
    state = reference(made("transformer"), sgd, 1)[0]
    batch = slice_of(batches(1)[0], place.rank, place.world_size)
    for form in ("overlapped", "small buckets"):
        model = FORMS[form](made("transformer"))
        optimizer = sgd(model.parameters())
        with model.no_sync():
            (loss_of(model, slice_of(batch, 0, 2)) / 2).backward()
        (loss_of(model, slice_of(batch, 1, 2)) / 2).backward()
        with pytest.raises(RuntimeError, match="second backward pass"):
            loss_of(model, batch).backward()
        model.start_batch()
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        model.finish_gradient_synchronization()
        optimizer.step()
        for n, value in model.module.state_dict().items():
            torch.testing.assert_close(value, state[n], rtol=1e-5, atol=1e-7)
        model.zero_grad()
        with model.no_sync():
            (loss_of(model, slice_of(batch, 0, 2)) / 2).backward()
        (loss_of(model, slice_of(batch, 1, 2)) / 2).backward()
        model.finish_gradient_synchronization()
        assert all(p.grad is not None for p in model.parameters())


def check_sending_begins_before_the_backward_pass_ends(place):
    """The head's gradient is under way when the embedding's is made."""
    for form, overlaps in (("overlapped", True), ("small buckets", True), ("one bucket", False)):
        model = FORMS[form](made("transformer"))
        started = []
        first = model.module.token_embeddings.weight
        first.register_hook(lambda _, m=model, s=started: s.append(m._num_started))
        loss_of(model, slice_of(batches(1)[0], place.rank, place.world_size)).backward()
        assert (started[0] > 0) == overlaps, (form, started)
        model.finish_gradient_synchronization()


def all_checks(place):
    warnings.simplefilter("error")
    check_equal_to_one_process(place)
    check_adamw(place)
    check_gradients_missing_on_some_ranks(place)
    check_buffers_and_initial_values(place)
    check_accumulation(place)
    check_sending_begins_before_the_backward_pass_ends(place)


@pytest.mark.parametrize("world_size", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_all_forms_equal_one_process_after_every_step(world_size):
    run_ranks(all_checks, world_size, start_method="forkserver")


def test_buckets_fill_in_reverse_order_up_to_the_limit():
    layers = nn.Sequential(*[nn.Linear(10, 10, bias=False) for _ in range(5)], nn.Linear(10, 100, bias=False))
    ddp = DDPBucketed(layers, 800e-6)  # two matrices of 400 bytes, and one of 4,000 alone
    numbers = {id(p): n for n, p in enumerate(layers.parameters())}
    assert [[numbers[id(p)] for p in bucket.parameters] for bucket in ddp._buckets] == [[5], [4, 3], [2, 1], [0]]
    with pytest.raises(ValueError, match="must not be negative"):
        DDPBucketed(layers, -1)


def test_without_a_process_group_it_is_one_process():
    model = DDP(nn.Linear(VOCAB, 2))
    model(torch.ones(VOCAB)).sum().backward()
    model.finish_gradient_synchronization()
    assert torch.equal(model.module.bias.grad, torch.ones(2))
