"""FSDP against one process on whole batches, weights and names after every step."""

import contextlib
import copy
import itertools
import warnings

import pytest
import torch
from torch import nn

from cs336.parallel import collectives
from cs336.parallel.fsdp import FSDP, gather_full_params
from cs336.parallel.process_group import run_ranks
from cs336.train.loss import linear_cross_entropy
from cs336.train.optimizer import AdamW
from tests.parallel.models import VOCAB, Feed, batches, loss_of, made, names_for, reference, slice_of

NUM_STEPS = 3


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1)


def train(place, model, make_optimizer, *, num_steps=NUM_STEPS, **options):
    """Yields the gathered weights after each step."""
    fsdp = FSDP(model, **options)
    optimizer = make_optimizer(fsdp.parameters())
    for batch in batches(num_steps):
        optimizer.zero_grad()
        loss_of(fsdp, slice_of(batch, place.rank, place.world_size)).backward()
        fsdp.finish_gradient_synchronization()
        for parameter in fsdp.parameters():
            if parameter.requires_grad:
                assert parameter.grad.shape == parameter.shape and parameter.grad.dtype == torch.float32
        optimizer.step()
        yield fsdp, gather_full_params(fsdp)


def check_equal_to_one_process(place):
    """The batch's sum is split over the ranks, so that the last bit may differ, and no more."""
    for name in names_for(place.world_size):
        names = [n for n, _ in made(name).named_parameters()]
        both = [n for n, _ in made(name).named_parameters(remove_duplicate=False)]
        states = reference(made(name), sgd, NUM_STEPS)
        for attempt in range(5 if place.world_size == 2 else 2):
            mine = made(name, seed=0 if place.rank == 0 else 99)
            steps = train(place, mine, sgd, prefetch=attempt != 1)
            for (fsdp, full), state in zip(steps, states, strict=True):
                assert [n for n, _ in fsdp.module.named_parameters()] == names
                assert list(full) == both
                for n in full:
                    torch.testing.assert_close(full[n], state[n], rtol=2**-23, atol=1e-7)
                # Two blocks share a weight, which is then a unit within a unit.
                assert fsdp.max_whole_units <= (3 if name == "blocks" else 2)


def check_slices(place):
    """What a rank holds: its padded slice of matrices, zeros in the padding, and all of the rest."""
    model = made("mixed")
    for fsdp, full in train(place, made("mixed"), sgd):
        sizes = {n: p.shape[0] for n, p in fsdp.module.named_parameters() if p.ndim == 2}
        assert sizes == {n: -(-p.shape[0] // place.world_size) for n, p in model.named_parameters() if p.ndim == 2}
        shard, rows = fsdp.module.embed.weight, model.embed.weight.shape[0]
        start = place.rank * shard.shape[0]
        own = full["embed.weight"][start : start + shard.shape[0]]
        assert torch.equal(shard[: len(own)], own) and not shard[len(own) :].any()
        assert full["embed.weight"].shape[0] == rows
        assert fsdp.module.unused.weight.grad is not None and not fsdp.module.unused.weight.grad.any()
        assert fsdp.module.frozen.weight.grad is None
        assert torch.equal(full["frozen.weight"], model.frozen.weight)
        assert not any(unit._storage.nbytes() for unit in fsdp.units), "whole weights outlive the step"


def check_replicated_gradients_are_bit_identical(place):
    fsdp = FSDP(made("transformer"))
    loss_of(fsdp, slice_of(batches(1)[0], place.rank, place.world_size)).backward()
    fsdp.finish_gradient_synchronization()
    flat = torch.cat([p.grad for p in fsdp.parameters() if p.ndim == 1])
    everyone = [torch.empty_like(flat) for _ in range(place.world_size)]
    torch.distributed.all_gather(everyone, flat)
    assert flat.abs().sum() > 0 and all(torch.equal(flat, other) for other in everyone)


def check_adamw(place):
    def make(parameters):
        return AdamW(parameters, lr=0.01, weight_decay=0.1)

    steps = zip(train(place, made("transformer"), make), reference(made("transformer"), make, NUM_STEPS), strict=True)
    for (_, full), state in steps:
        for name in full:
            torch.testing.assert_close(full[name], state[name], rtol=1e-4, atol=1e-5)


def cast_reference(name, dtype):
    """One process in mixed precision: weights of the large layers cast at each step, fp32 masters."""
    master = made(name)
    optimizer = sgd(master.parameters())
    for batch in batches(NUM_STEPS):
        working = copy.deepcopy(master)
        for layer in working.modules():
            if type(layer).__name__ in ("Linear", "Embedding"):
                layer.to(dtype)
                layer.register_forward_pre_hook(
                    lambda _, inputs: tuple(x.to(dtype) if x.is_floating_point() else x for x in inputs)
                )
        loss_of(working, batch).backward()
        for parameter, worked in zip(master.parameters(), working.parameters(), strict=True):
            parameter.grad = None if worked.grad is None else worked.grad.float()
        optimizer.step()
        yield copy.deepcopy(master.state_dict())


def check_mixed_precision(place):
    """Near one process that casts the same weights; tied weights add up larger gradients, with larger roundings."""
    for dtype, tolerance in ((torch.float16, 1e-4), (torch.bfloat16, 1e-3)):
        for name in ("transformer", "mixed", "blocks", "transformer, tied"):
            tolerance *= 5 if "tied" in name else 1
            steps = train(place, made(name), sgd, compute_dtype=dtype)
            seen = []
            for (fsdp, full), state in zip(steps, cast_reference(name, dtype), strict=True):
                seen.append(fsdp)
                for n in full:
                    assert full[n].dtype == torch.float32
                    torch.testing.assert_close(full[n], state[n], rtol=tolerance, atol=tolerance)
            with torch.no_grad():
                assert made(name)(batches(1)[0][0]).dtype == torch.float32
                assert seen[0](batches(1)[0][0]).dtype == dtype


def check_recomputation(place):
    """Blocks that run again in the backward pass: the same weights, few gathers, few whole at once."""
    for name, layers_per_segment in itertools.product(("transformer", "transformer, tied"), (1, 2)):
        model = made(name).recompute_in_segments(layers_per_segment)
        fsdp, learned = FSDP(model), False
        watched = _Watched(fsdp)
        optimizer = sgd(fsdp.parameters())
        for batch, state in zip(batches(NUM_STEPS), reference(made(name), sgd, NUM_STEPS), strict=True):
            optimizer.zero_grad()
            watched.forget()
            loss_of(fsdp, slice_of(batch, place.rank, place.world_size)).backward()
            assert not any(unit.is_whole or unit._storage.nbytes() for unit in fsdp.units)
            fsdp.finish_gradient_synchronization()
            optimizer.step()
            full = gather_full_params(fsdp)
            for n in full:
                torch.testing.assert_close(full[n], state[n], rtol=2**-23, atol=1e-7)
            # Two blocks thrice, the embedding once, the head twice. A segment runs again when the backward pass asks
            # for what its last block has saved, which is whole then, and stays so; as do tied ends.
            assert watched.num_gathers == 3 * 2 + 3 - 2 // layers_per_segment
            assert watched.most_whole == max(layers_per_segment, 1 + learned) + ("tied" in name)
            assert not learned or watched.num_late == 1  # that of the head, with which the backward pass begins
            learned = True


class _Watched:
    """Counts what an FSDP gathers, at once and only when the backward pass already needs it."""

    def __init__(self, fsdp):
        self.forget()
        for unit in fsdp.units:

            def start(unit=unit, plain=unit.start_gather):
                self.num_gathers += not unit.is_whole
                plain()
                self.most_whole = max(self.most_whole, sum(unit.is_whole for unit in fsdp.units))

            unit.start_gather = start
        plain = fsdp._gather_in_backward

        def gather_in_backward(unit):
            self.num_late += not unit.is_whole
            plain(unit)

        fsdp._gather_in_backward = gather_in_backward

    def forget(self):
        self.num_gathers = self.most_whole = self.num_late = 0


def check_accumulation(place):
    """Two backward passes for one step, and a forward pass without one in between."""
    state = reference(made("transformer"), sgd, 1)[0]
    for attempt in ("accumulate", "evaluate between"):
        fsdp = FSDP(made("transformer"))
        optimizer = sgd(fsdp.parameters())
        batch = slice_of(batches(1)[0], place.rank, place.world_size)
        parts = [slice_of(batch, part, 2) for part in range(2)] if attempt == "accumulate" else [batch]
        for part in parts:
            loss = loss_of(fsdp, part) / len(parts)
            if attempt == "evaluate between":
                with torch.no_grad():
                    fsdp(batch[0])
            loss.backward()
        fsdp.finish_gradient_synchronization()
        optimizer.step()
        full = gather_full_params(fsdp)
        for n in full:
            torch.testing.assert_close(full[n], state[n], rtol=1e-6, atol=1e-7)


def check_without_reduce_scatter(place):
    kept, collectives._probed["gloo"] = collectives._probed["gloo"], False
    try:
        check_slices(place)
        full = [full for _, full in train(place, made("mixed"), sgd)][-1]
    finally:
        collectives._probed["gloo"] = kept
    state = reference(made("mixed"), sgd, NUM_STEPS)[-1]
    for n in full:
        torch.testing.assert_close(full[n], state[n], rtol=1e-6, atol=1e-7)


def check_prefetch_rule(place):
    """The gather for unit i starts once unit i - 2 is done, never sooner."""
    fsdp = FSDP(made("transformer"))
    batch = slice_of(batches(1)[0], place.rank, place.world_size)
    fsdp(batch[0])  # learns the order
    events = []
    model = fsdp.module
    entries = [model.token_embeddings, *model.layers, model.lm_head]
    assert [unit.entries for unit in fsdp._forward_order.last] == [[entry] for entry in entries]
    for number, unit in enumerate(fsdp._forward_order.last):

        def started(start=unit.start_gather, unit=unit, number=number):
            if not unit.is_whole:
                events.append(("gather", number))
            start()

        unit.start_gather = started
        entries[number].register_forward_hook(lambda *_, number=number: events.append(("done", number)))
    with torch.no_grad():
        fsdp(batch[0])
    gather, done = ([(what, number) for number in range(4)] for what in ("gather", "done"))
    # "Done" is noted after our own hook, which has then gathered.
    assert events == [*gather[:3], done[0], gather[3], *done[1:]]


def check_gradients_of_a_block_leave_together(place):
    """Once the block's last one is made; what it has not used travels as zeros; two blocks' gradients at most exist."""
    fsdp = FSDP(made("blocks"))
    of_layers = [[unit for unit in fsdp.units if layer in unit.entries] for layer in fsdp.module.layers]
    assert [len(units) for units in of_layers] == [1, 1, 1]
    assert [len(units[0].trainable) for units in of_layers] == [2, 0, 2]  # the shared weight is a unit by itself
    sent = []
    collectives._has_reduce_scatter()  # tries one, once
    plain = collectives._reduce_scatter

    def counted(shards, full):
        sent.append([tuple(shard.shape) for shard in shards])
        whole = [weight for unit in fsdp.units for weight in unit.weights if weight.whole.grad is not None]
        assert not {id(weight) for weight in whole} & {id(weight) for units in of_layers for weight in units[0].weights}
        return plain(shards, full)

    collectives._reduce_scatter = counted
    try:
        loss_of(fsdp, slice_of(batches(1)[0], place.rank, place.world_size)).backward()
        fsdp.finish_gradient_synchronization()
    finally:
        collectives._reduce_scatter = plain
    rows = {n: -(-n // place.world_size) for n in (2, 6, 7, VOCAB)}
    block = [(rows[7], 6), (rows[2], 3)]
    assert sent == [[(rows[VOCAB], 6)], block, [(rows[6], 5)], block, [(rows[VOCAB], 6)]]


def check_a_block_waits_for_its_frozen_weights(place):
    """Also where nothing that comes in has a gradient, whose arrival would say that they have served."""
    model = made("blocks")
    model.embed.weight.requires_grad_(False)
    expected = reference(model, sgd, NUM_STEPS)
    for (_, full), state in zip(train(place, model, sgd), expected, strict=True):
        for n in full:
            torch.testing.assert_close(full[n], state[n], rtol=2**-23, atol=1e-7)


def check_two_backward_passes_over_one_graph(place):
    """Gradients add up, and frozen weights are waited for both times."""
    alone, fsdp = made("blocks"), FSDP(made("blocks"))
    batch = batches(1)[0]
    (2 * loss_of(alone, batch)).backward()
    loss = loss_of(fsdp, slice_of(batch, place.rank, place.world_size))
    loss.backward(retain_graph=True)
    loss.backward()
    fsdp.finish_gradient_synchronization()
    cuts = fsdp.cuts()
    for ours, theirs in zip(fsdp.module.parameters(), alone.parameters(), strict=True):
        if theirs.grad is not None:
            gradient = cuts[ours].gathered(ours.grad) if ours in cuts else ours.grad
            torch.testing.assert_close(gradient, theirs.grad, rtol=1e-5, atol=1e-7)


def check_ranks_use_different_layers_of_a_block(place):
    """As experts do; the gradients of a layer that is used elsewhere are the mean over all ranks."""

    class Choice(nn.Module):
        def __init__(self):
            super().__init__()
            self.experts = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

        def forward(self, x, chosen):
            return x + self.experts[chosen](x)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(Choice() for _ in range(2))

        def forward(self, x, rank):
            for number, layer in enumerate(self.layers):
                x = layer(x, (rank + number) % 2)
            return x.square().sum()

    torch.manual_seed(1)
    net = Net()
    fsdp = FSDP(copy.deepcopy(net))
    for _ in range(2):  # the second adds
        fsdp(torch.ones(2, 4), place.rank).backward()
    fsdp.finish_gradient_synchronization()
    for rank in range(place.world_size):
        (2 * net(torch.ones(2, 4), rank) / place.world_size).backward()
    rows = 4 // place.world_size
    mine = slice(place.rank * rows, (place.rank + 1) * rows)
    for ours, theirs in zip(fsdp.module.parameters(), net.parameters(), strict=True):
        gradient = torch.zeros_like(theirs) if theirs.grad is None else theirs.grad
        torch.testing.assert_close(ours.grad, gradient if gradient.ndim < 2 else gradient[mine])


def check_a_block_of_two_dtypes(place):
    """Its weights travel apart, each in its own dtype, and the slices keep theirs if they shall."""
    torch.manual_seed(1)
    net = nn.ModuleList([Feed(torch.bfloat16) for _ in range(2)])
    for keep_dtype in (False, True):
        fsdp = FSDP(copy.deepcopy(net), keep_dtype=keep_dtype)
        x = torch.randn(2, 4, generator=torch.Generator().manual_seed(2))
        net.zero_grad()
        for first, second, leave in (*net, contextlib.nullcontext()), (*fsdp.module, fsdp.forward_pass()):
            with leave:
                loss = second(first(x)).square().sum()
            loss.backward()
        fsdp.finish_gradient_synchronization()
        for name, parameter in net.named_parameters():
            ours = fsdp.module.get_parameter(name)
            low = (keep_dtype and parameter.dtype == torch.bfloat16) or ours.ndim == 1
            assert ours.dtype == ours.grad.dtype == (parameter.dtype if low else torch.float32)
            rows = len(parameter) // place.world_size
            mine = slice(place.rank * rows, (place.rank + 1) * rows) if ours.ndim == 2 else slice(None)
            torch.testing.assert_close(ours.grad.float(), parameter.grad[mine].float(), rtol=1e-2, atol=1e-6)


def check_layers_of_a_block_run_within_it(place):
    for dtype in (None, torch.bfloat16):
        fsdp = FSDP(made("transformer"), dtype)
        with pytest.raises(RuntimeError, match="outside the block's own forward"):
            fsdp.module.layers[0].attn(torch.zeros(1, 8, 16))


def check_a_loss_that_takes_the_heads_weight(place):
    """`linear_cross_entropy` instead of logits, with gradients of the tied and untied head's weight."""
    for name in ("transformer", "transformer, tied"):
        for attempt in range(2):
            fsdp = FSDP(made(name))
            optimizer, model = sgd(fsdp.parameters()), fsdp.module
            for batch, state in zip(batches(NUM_STEPS), reference(made(name), sgd, NUM_STEPS), strict=True):
                inputs, targets = slice_of(batch, place.rank, place.world_size)
                optimizer.zero_grad()

                def loss_of_hidden(hidden, model=model, targets=targets):
                    assert model.lm_head.weight.shape == (VOCAB, 16)
                    return linear_cross_entropy(hidden, model.lm_head.weight, targets)

                with fsdp.forward_pass() if attempt else contextlib.nullcontext():
                    hidden = model.hidden_states(inputs)
                    loss = fsdp.with_whole_weight(model.lm_head, loss_of_hidden, hidden)
                loss.total.backward()
                fsdp.finish_gradient_synchronization()
                optimizer.step()
                full = gather_full_params(fsdp)
                for n in full:
                    torch.testing.assert_close(full[n], state[n], rtol=1e-5, atol=1e-6)


def check_keyword_inputs(place):
    """A layer called by keyword gets its weight back in the backward pass, too."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.b(input=torch.tanh(self.a(input=x)))

    torch.manual_seed(1)
    net = Net()
    fsdp = FSDP(copy.deepcopy(net))
    for model in (net, fsdp):
        model(torch.ones(2, 4)).square().sum().backward()
    fsdp.finish_gradient_synchronization()
    rows = 4 // place.world_size
    mine = slice(place.rank * rows, (place.rank + 1) * rows)
    torch.testing.assert_close(fsdp.module.a.weight.grad, net.a.weight.grad[mine])


def all_checks(place):
    warnings.simplefilter("error")
    check_equal_to_one_process(place)
    check_slices(place)
    check_replicated_gradients_are_bit_identical(place)
    check_adamw(place)
    check_recomputation(place)
    check_accumulation(place)
    check_prefetch_rule(place)
    check_gradients_of_a_block_leave_together(place)
    check_a_block_waits_for_its_frozen_weights(place)
    check_two_backward_passes_over_one_graph(place)
    check_ranks_use_different_layers_of_a_block(place)
    check_a_block_of_two_dtypes(place)
    check_layers_of_a_block_run_within_it(place)
    check_without_reduce_scatter(place)
    check_mixed_precision(place)
    check_a_loss_that_takes_the_heads_weight(place)
    check_keyword_inputs(place)


@pytest.mark.parametrize("world_size", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_weights_equal_one_processs_after_every_step(world_size):
    run_ranks(all_checks, world_size, start_method="forkserver")
