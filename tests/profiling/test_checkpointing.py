"""What is kept for a backward pass, by hand and by hooks; recursive halving costs what its formula says."""

import math

import pytest
import torch
from torch.utils.checkpoint import set_checkpoint_early_stop

from cs336.profiling.checkpointing import (
    best_segment,
    block_memory,
    halving_costs,
    norm_saves,
    run_by_halving,
    segment_bytes,
)
from cs336.profiling.saved_tensors import COMPILED, largest_contributors, saved_tensors
from cs336.profiling.step_times import parse_size

MIB = 2**20


def test_a_storage_counts_once_and_parameters_do_not_count():
    weight, x = torch.ones(8, 8, requires_grad=True), torch.ones(4, 8, requires_grad=True)
    saved = saved_tensors(lambda: ((x @ weight) * x.view(4, 8)).exp(), excluded=[weight])
    # x for both products, the product for the gradient of x, the exponentials for their own.
    assert [each.num_bytes for each in saved] == [4 * 4 * 8] * 3
    assert largest_contributors(saved)[0]["share"] == 1.0


def test_a_block_on_no_device_is_the_block_on_a_cpu():
    shape = parse_size("32x64x1x2", context_length=16)
    there, nowhere = (block_memory(shape, 2, device=torch.device(name)) for name in ("cpu", "meta"))
    assert there == nowhere
    assert there["gradient_bytes"] == there["expected_gradient_bytes"] == 4 * (4 * 32**2 + 3 * 32 * 64 + 2 * 32)
    assert there["residual_bytes"] == 4 * 2 * 16 * 32
    assert "layers.py" in there["largest"][0]["origin"] and len(there["largest"]) == 5


def test_the_handouts_xl_block_needs_no_gpu_to_be_counted():
    found = block_memory(parse_size("xl", context_length=2_048), 4, device=torch.device("meta"))
    assert found["residual_bytes"] == 80 * MIB
    scores = 4 * 4 * 32 * 2_048**2
    assert found["largest"][0]["num_bytes"] >= scores
    assert found["saved_bytes"] > 2 * scores


def test_eager_rmsnorm_keeps_full_tensors():
    saved = norm_saves(2, 16, 8, torch.device("cpu"), compiled=False)
    full = [each for each in saved if each["num_bytes"] == 4 * 2 * 16 * 8]
    assert len(full) >= 2 and any(each["num_bytes"] == 4 * 2 * 16 for each in saved)


@pytest.mark.slow
def test_compiled_rmsnorm_keeps_one_and_a_number_a_row():
    saved = norm_saves(2, 16, 8, torch.device("cpu"), compiled=True)
    assert sorted(each["num_bytes"] for each in saved) == [4 * 2 * 16, 4 * 2 * 16 * 8]
    assert {each["origin"] for each in saved} == {COMPILED}


@pytest.mark.parametrize("num_blocks", [1, 2, 4, 8, 32])
def test_halving_costs_of_powers_of_two(num_blocks):
    costs, levels = halving_costs(num_blocks), int(math.log2(num_blocks))
    assert costs.checkpoints == levels + 1
    assert costs.block_runs == num_blocks * (levels + 1)


@pytest.mark.parametrize("num_blocks", [1, 3, 8])
def test_halving_runs_as_often_as_it_says_and_computes_the_same(num_blocks):
    torch.manual_seed(0)
    weights = [torch.randn(4, 4, requires_grad=True) for _ in range(num_blocks)]
    calls = []

    def block(weight):
        return lambda x: calls.append(1) or torch.tanh(x @ weight)

    x = torch.randn(2, 4, requires_grad=True)
    with set_checkpoint_early_stop(False):
        run_by_halving([block(weight) for weight in weights], x).sum().backward()
    assert len(calls) == halving_costs(num_blocks).block_runs
    plain = x.detach().requires_grad_()
    y = plain
    for weight in weights:
        y = torch.tanh(y @ weight)
    y.sum().backward()
    torch.testing.assert_close(x.grad, plain.grad)


def test_no_block_is_an_error():
    with pytest.raises(ValueError, match="at least one block, got 0"):
        halving_costs(0)


def test_segments_by_hand():
    # The handout's xl block, compiled, with the 16 heads of its edition.
    assert segment_bytes(32, 1, residual_bytes=80, block_bytes=3_651) == 32 * 80 + 3_651
    assert segment_bytes(32, 3, residual_bytes=80, block_bytes=3_651) == 11 * 80 + 3 * 3_651
    assert best_segment(32, residual_bytes=80, block_bytes=3_651) == 1
    assert best_segment(32, residual_bytes=80, block_bytes=40) == 8
