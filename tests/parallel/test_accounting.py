"""Bytes by formula equal those that the classes hand to `torch.distributed` and keep."""

from collections import Counter

import pytest
import torch
import torch.distributed as dist

from cs336.parallel import collectives
from cs336.parallel.accounting import (
    Traffic,
    fsdp_messages,
    held_bytes,
    step_traffic,
    weights_of,
    whole_weights_bytes,
)
from cs336.parallel.ddp import DDP, DDPBucketed
from cs336.parallel.fsdp import FSDP
from cs336.parallel.optimizer_shard import ShardedOptimizer
from cs336.parallel.process_group import run_ranks
from cs336.train.optimizer import AdamW
from tests.parallel.models import batches, loss_of, made, slice_of

NAMES = ("transformer", "transformer, tied")


def counted(calls, name, function, whole_at):
    """`function`, noting the bytes of its argument that is the whole tensor, or a list of them, and the call."""

    def wrapper(*arguments, **kwargs):
        tensors = arguments[whole_at] if isinstance(arguments[whole_at], list) else [arguments[whole_at]]
        calls[name] += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        calls["messages", name] += 1
        return function(*arguments, **kwargs)

    return wrapper


def record(place):
    """Traffic and held bytes of a second step, for each form and model."""
    calls = Counter()
    dist.all_reduce = counted(calls, "all_reduce", dist.all_reduce, 0)
    dist.broadcast = counted(calls, "broadcast", dist.broadcast, 0)
    collectives._has_reduce_scatter()  # tries one, once
    collectives._all_gather = counted(calls, "all_gather", collectives._all_gather, 0)
    collectives._reduce_scatter = counted(calls, "reduce_scatter", collectives._reduce_scatter, 1)
    found = {}
    for name in NAMES:
        for form, wrap, options in (
            ("ddp", DDP, {}),
            ("ddp", lambda module: DDPBucketed(module, 1e-3), {}),
            ("zero1", DDP, {}),
            ("fsdp", FSDP, {}),
            ("fsdp", lambda module: FSDP(module, prefetch=False), {}),
            ("fsdp", lambda module: FSDP(module, torch.bfloat16), {"compute_bytes": 2}),
        ):
            model = wrap(made(name))
            optimizer = ShardedOptimizer(model.parameters(), AdamW) if form == "zero1" else AdamW(model.parameters())
            for _ in range(2):
                calls.clear()
                optimizer.zero_grad()
                loss_of(model, slice_of(batches(1)[0], place.rank, place.world_size)).backward()
                model.finish_gradient_synchronization()
                optimizer.step()
            held = (
                sum(p.numel() * 4 for p in model.parameters()),
                sum(p.grad.numel() * 4 for p in model.parameters()),
                sum(t.numel() * 4 for s in optimizer.state.values() for t in (s["m"], s["v"])),
            )
            messages = {kind: calls.pop(("messages", kind)) for _, kind in [key for key in calls if len(key) == 2]}
            key = name, form, options.get("compute_bytes", 4)
            found.setdefault(key, []).append((Traffic(**calls), held, messages))
    return found


@pytest.mark.parametrize("world_size", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_what_the_classes_send_and_hold_is_what_the_formulas_say(world_size):
    by_rank = run_ranks(record, world_size, start_method="forkserver")
    for (name, form, compute_bytes), runs in by_rank[0].items():
        weights = weights_of(made(name))
        expected = step_traffic(form, weights, world_size, compute_bytes=compute_bytes)
        for number, (traffic, _, messages) in enumerate(runs):
            assert traffic == expected, (name, form, number)
            assert form != "fsdp" or messages == fsdp_messages(weights), name
            fullest = tuple(
                max(found[name, form, compute_bytes][number][1][part] for found in by_rank) for part in range(3)
            )
            held = held_bytes(form, weights, world_size)
            assert fullest == (held.parameters, held.gradients, held.states), (name, form, number)
            assert held.total == sum(fullest)


def test_a_block_travels_in_one_message_by_hand():
    weights = weights_of(made("transformer"))
    # Embedding, two blocks and head: each gathered forward, all but the embedding backward; norms in one sum.
    assert fsdp_messages(weights) == {"all_gather": 7, "reduce_scatter": 4, "all_reduce": 1}
    assert fsdp_messages(weights_of(made("transformer, tied"))) == {
        "all_gather": 7,
        "reduce_scatter": 3,
        "all_reduce": 1,
    }
    # A block's four matrices of 16 x 16 and three of 24 x 16; embedding and head of 13 x 16, padded to 14.
    assert whole_weights_bytes(weights, 2) == 2 * 4 * (4 * 16 * 16 + 3 * 24 * 16)


def test_a_weight_of_three_rows_on_two_ranks_by_hand():
    layer = torch.nn.Linear(5, 3)
    weights = weights_of(layer)
    assert [weight.gathered_for for weight in weights] == [("Linear",), ()]
    # Padded to 4 x 5 x 4 bytes; gathered twice, reduced once; the bias, 12 bytes, is summed whole.
    traffic = step_traffic("fsdp", weights, 2)
    assert traffic == Traffic(all_reduce=12, all_gather=160, reduce_scatter=80)
    assert traffic.sent_bytes(2) == 12 + 80 + 40
    assert held_bytes("fsdp", weights, 2).parameters == 2 * 5 * 4 + 12
    assert whole_weights_bytes(weights, 2, compute_bytes=2) == 40
    assert step_traffic("ddp", weights, 1) == Traffic()
    with pytest.raises(ValueError, match="form is one of"):
        step_traffic("zero2", weights, 2)
