"""The contest's step equals the plain model's; its memory plan counts what is there."""

import time
from dataclasses import replace

import pytest
import torch

from cs336.model.transformer import ModelConfig, TransformerBlock, TransformerLM
from cs336.parallel.process_group import run_ranks
from cs336.profiling.full_step import bench, compare_with_plain, page, step_flops, time_full_step
from cs336.profiling.full_step_memory import block_residual_bytes, memory_plan
from cs336.profiling.rank_cells import over_ranks
from tests.profiling.shapes import FULL_STEP, TINY

SEGMENTS = replace(FULL_STEP, layers_per_segment=1)


def compared(place):
    return {
        "all kept": compare_with_plain(place, replace(FULL_STEP, layers_per_segment=0)),
        "recomputed": compare_with_plain(place, SEGMENTS),
        "our kernels": compare_with_plain(place, replace(SEGMENTS, attention="flash", keep_attention=True, fused=True)),
        "bf16": compare_with_plain(place, replace(SEGMENTS, dtype="bfloat16")),
    }


def timed(place):
    counts = [0]

    def step():
        counts[0] += 1
        time.sleep(0.02 if place.rank else 0.005)

    times = bench(place, step, warmup_ms=0.0, rep_ms=60.0)
    row = time_full_step(place, replace(SEGMENTS, dtype="bfloat16"))
    return {
        "bench": times | {"calls": over_ranks(counts[0])},
        "row": row | {"cell": replace(SEGMENTS, dtype="bfloat16").described()},
    }


def test_output_loss_and_weights_are_the_plain_models():
    for name, found in run_ranks(compared, 2, timeout_seconds=200, start_method="forkserver")[0].items():
        # In bf16, a gradient is rounded once for each rank before it is averaged: a unit in the last place of a weight.
        bound = 2**-7 * found["scale"] if name == "bf16" else 2e-6
        assert all(found[key] <= bound for key in ("loss", "weights", "output")), (name, found)
        assert found["scale"] > 0.5


def test_steps_are_counted_and_bytes_are_those_of_the_plan():
    found = run_ranks(timed, 2, timeout_seconds=200, start_method="forkserver")[0]
    times = found["bench"]
    assert times["ms"] >= 20 and times["num_steps"] > 1  # the slowest rank's time, the first rank's number of steps
    assert times["calls"] == [5 + 1 + times["num_steps"]] * 2
    row = found["row"]
    for counted in row["counted"]:
        assert counted == {kind: row["plan"][kind] for kind in ("parameters", "gradients", "states")}
    assert row["losses"][1][0] < row["losses"][0][0]
    said = page([row])
    assert "2 layers" in said and "checkpoints" in said


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_sequences", [1, 3])
def test_a_blocks_residuals_are_those_that_autograd_keeps(dtype, num_sequences):
    config = ModelConfig(context_length=16, d_model=32, num_layers=1, num_heads=4, d_ff=80, vocab_size=11)
    model = TransformerLM(config, dtype=dtype).use_attention_kernel("fused")
    block: TransformerBlock = model.layers[0]
    parameters = {parameter.untyped_storage().data_ptr() for parameter in block.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters and tensor.numel() > 1:
            kept[storage.data_ptr()] = storage
        return tensor

    x = torch.randn(num_sequences, 16, 32, dtype=dtype, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        y = block(x)
    counted = sum(storage.nbytes() for storage in kept.values())
    assert y.requires_grad
    expected = block_residual_bytes(
        config, num_tokens=16 * num_sequences, num_sequences=num_sequences, element_bytes=dtype.itemsize
    )
    # On a CPU the fused kernel's output does not lie token by token, so the output projection keeps a copy of it.
    assert counted == expected + 32 * 16 * num_sequences * dtype.itemsize


def test_the_contests_step_fits_two_cards_and_costs_what_the_handout_says():
    config = type(FULL_STEP)()
    plan = memory_plan(
        config.model,
        world_size=2,
        num_tokens=config.tokens_per_rank,
        num_sequences=1,
        element_bytes=2,
        layers_per_segment=1,
        chunk_tokens=config.chunk_tokens,
    )
    assert plan["parameters"] == pytest.approx(8.126e9, rel=1e-3)  # of 8.126 B weights half, of 2 bytes
    assert plan["states"] == 2 * plan["parameters"]
    assert plan["checkpoints"] == 34 * 32_768 * 4_096 * 2
    assert 40e9 < plan["peak"] < 70e9
    assert step_flops(config.model, 2 * 32_768) == pytest.approx(4.74e15, rel=0.01)


def test_without_recomputation_every_layer_stays():
    common = {"world_size": 2, "num_tokens": 32, "num_sequences": 2, "element_bytes": 4, "chunk_tokens": 8}
    kept = memory_plan(TINY, layers_per_segment=0, **common)
    again = memory_plan(TINY, layers_per_segment=1, **common)
    assert kept["residuals"] == 2 * again["residuals"] and kept["checkpoints"] == 0 < again["checkpoints"]


def test_sequences_must_divide():
    with pytest.raises(ValueError, match="3 sequences do not divide over 2 ranks"):
        replace(FULL_STEP, num_sequences=3)
