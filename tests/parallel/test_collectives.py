"""Collectives: what each leaves behind, with many under way at once."""

import torch

from cs336.parallel.collectives import (
    _all_gather,
    start_all_gathers,
    start_all_reduce,
    start_broadcasts,
    start_reduce_scatters,
)
from cs336.parallel.process_group import run_ranks

AT_ONCE = 32  # under way


def check_many_at_once(place):
    own, size = place.rank, place.world_size
    ranks = torch.arange(size, dtype=torch.float32)
    for _ in range(10):
        pending, results = [], []
        for index in range(AT_ONCE):
            wholes = [torch.empty(2 * size, 3), torch.empty(size, dtype=torch.bfloat16)]
            wholes[1][own] = index + own
            # The second shard is this rank's part of its whole.
            pending.append(start_all_gathers(wholes, [torch.full((2, 3), float(own)), wholes[1][own : own + 1]]))
            results += [(wholes[0], ranks.repeat_interleave(2)[:, None].expand(-1, 3)), (wholes[1], index + ranks)]
            shards = [torch.empty(2), torch.empty(1, 3)]
            parts = [ranks.repeat_interleave(2) + own, torch.full((size, 3), float(index))]
            pending.append(start_reduce_scatters(shards, parts))
            results += [(shards[0], torch.full((2,), size * own + ranks.sum().item()))]
            results += [(shards[1], torch.full((1, 3), float(size * index)))]
            summed, sent = torch.full((3,), float(own)), torch.full((2,), float(own))
            pending += [start_all_reduce(summed), start_broadcasts([(sent, index % size)])]
            results += [(summed, ranks.sum().expand(3)), (sent, torch.full((2,), float(index % size)))]
        for one in pending:
            one.wait()
        for result, expected in results:
            torch.testing.assert_close(result.float(), expected, rtol=0, atol=0)


def test_many_collectives_at_once():
    run_ranks(check_many_at_once, 2, start_method="forkserver")


def check_gathers_end(place):
    # One rank, because messages take longer than what went wrong: within 15,000 gathers in each of six tries.
    full, shard = torch.empty(4), torch.ones(4)
    for _ in range(3000):
        for pending in [work for _ in range(AT_ONCE) for work in _all_gather([full], [shard])]:
            pending.wait()


def test_gathers_do_not_share_the_state_that_gloo_leaves_unlocked():
    """It kills the process: two threads of Gloo free the name of its collective of several tensors at once."""
    run_ranks(check_gathers_end, 1, start_method="forkserver")
