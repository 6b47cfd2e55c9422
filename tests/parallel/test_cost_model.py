"""The accounting questions: limits by formula equal those found by trying numbers of devices."""

import pytest

from cs336.parallel.cost_model import (
    Cost,
    FeedForward,
    Machine,
    TwoLayerModel,
    data_parallel_backward,
    fsdp_backward,
    fsdp_by_tensor_parallel_forward,
    fsdp_forward,
    max_batch_sharded_devices,
    max_grid_devices,
    max_tensor_parallel_devices,
    ring_all_reduce_seconds,
    ring_gather_seconds,
    tensor_parallel,
    whole_tensor_ring_seconds,
)

LAYER = FeedForward(batch=32_768, d_model=4_096, d_ff=14_336)
MACHINE = Machine(flops_per_second=1e15, bytes_per_second=450e9)


def test_rings_by_hand():
    machine = Machine(flops_per_second=1, bytes_per_second=10)
    assert ring_gather_seconds(100, 4, machine) == 7.5
    assert ring_all_reduce_seconds(100, 4, machine) == 15
    assert whole_tensor_ring_seconds(100, 4, machine) == 30


def test_costs_of_a_small_layer_by_hand():
    layer, machine = FeedForward(batch=8, d_model=2, d_ff=3), Machine(flops_per_second=4, bytes_per_second=6)
    # Forward 3 x 2 x 8 x 2 x 3 = 288 FLOP, weights 36 bytes; two devices, so half of everything.
    assert fsdp_forward(layer, 2, machine) == Cost(36, 3)
    assert fsdp_backward(layer, 2, machine) == Cost(72, 6)
    assert data_parallel_backward(layer, 2, machine) == Cost(72, 6)
    # Activations 2 x 8 x 2 = 32 bytes, all-reduced over two devices: 32 sent.
    assert tensor_parallel(layer, 2, machine) == Cost(36, 32 / 6)
    assert tensor_parallel(layer, 2, machine, backward=True) == Cost(72, 32 / 6)


@pytest.mark.parametrize(
    ("cost", "limit"),
    [
        (data_parallel_backward, max_batch_sharded_devices(LAYER, MACHINE)),
        (fsdp_forward, max_batch_sharded_devices(LAYER, MACHINE)),
        (fsdp_backward, max_batch_sharded_devices(LAYER, MACHINE)),
        (tensor_parallel, max_tensor_parallel_devices(LAYER, MACHINE)),
        (
            lambda *arguments: tensor_parallel(*arguments, backward=True),
            max_tensor_parallel_devices(LAYER, MACHINE, backward=True),
        ),
    ],
)
def test_limits_are_where_communication_overtakes_computation(cost, limit):
    bound = [n for n in range(1, 200) if cost(LAYER, n, MACHINE).compute_bound]
    assert bound == list(range(1, int(limit) + 1)) and 1 < limit < 199


@pytest.mark.parametrize("shared_network", [False, True])
def test_no_grid_is_compute_bound_beyond_the_limit(shared_network):
    limit = max_grid_devices(LAYER, MACHINE, shared_network=shared_network)

    def some_grid(num_devices):
        splits = (1.01**power for power in range(1_500))
        return any(
            fsdp_by_tensor_parallel_forward(
                LAYER, split, num_devices / split, MACHINE, shared_network=shared_network
            ).compute_bound
            for split in splits
        )

    assert some_grid(0.98 * limit) and not some_grid(1.001 * limit)


def test_the_2025_handouts_xxl():
    model = TwoLayerModel()
    assert round(model.num_parameters / 1e9, 1) == 219.8
    assert round(model.master_bytes / 1e12, 2) == 3.52 and model.master_bytes / 80e9 < 44 < model.master_bytes / 79e9
    assert model.saved_bytes(1) == 2 * 126 * (16_384 + 53_248)
    # Without activations: 38 devices of a TPU v5p's 95 GB.
    assert model.device_bytes(37, 0) > 95e9 > model.device_bytes(38, 0)
    assert model.device_bytes(2, 1) == model.master_bytes / 2 + 0.75 * model.saved_bytes(1)
    machine = Machine(flops_per_second=4.6e14, bytes_per_second=2 * 9e10)
    tokens = model.compute_bound_tokens(machine, num_fsdp=16, num_tensor=4, axes_fsdp=2, axes_tensor=1)
    assert round(tokens) == 20_444 and round(tokens / 64) == 319
    with pytest.raises(ValueError, match="d_ff must be at least"):
        model.compute_bound_tokens(machine, num_fsdp=16, num_tensor=64)
