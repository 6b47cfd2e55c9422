"""The contest's step equals the plain model's; its memory plan counts what is there."""

import time
from dataclasses import replace

import pytest
import torch

from cs336.model.transformer import ModelConfig, TransformerBlock, TransformerLM
from cs336.parallel.process_group import run_ranks
from cs336.profiling.full_step import (
    LEARNING_RATE,
    bench,
    build,
    page,
    row_name,
    step_flops,
    table_of,
    time_full_step,
)
from cs336.profiling.full_step_check import compare_with_plain
from cs336.profiling.full_step_memory import block_residual_bytes, memory_plan
from cs336.profiling.parallel_config import FullStepConfig
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


def compared_masters(place):
    masters = replace(SEGMENTS, dtype="bfloat16", fp32_masters=True)
    # In fp16, as Triton's interpreter rounds bf16 its own way.
    kernels = replace(masters, dtype="float16", attention="flash", keep_attention=True, fused=True)
    return {config.dtype: compare_with_plain(place, config) for config in (masters, kernels)}


def computed(place):
    """Dtypes of the logits, and of a rank's slices, gradients and states."""
    step = build(replace(SEGMENTS, dtype="bfloat16", fp32_masters=True), place)
    step()
    states = [value for state in step.optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    held = [*step.model.parameters(), *(parameter.grad for parameter in step.model.parameters()), *states]
    return step.fsdp(step.inputs).dtype, {tensor.dtype for tensor in held}, len(states)


def timed(place):
    counts = [0]

    def step():
        counts[0] += 1
        time.sleep(0.02 if place.rank else 0.005)

    times = bench(place, step, warmup_ms=0.0, rep_ms=60.0)
    rows = []
    for config in (replace(SEGMENTS, dtype="bfloat16"), replace(SEGMENTS, dtype="bfloat16", fp32_masters=True)):
        rows.append(time_full_step(place, config) | {"cell": config.described()})
    return {"bench": times | {"calls": over_ranks(counts[0])}, "rows": rows}


def test_output_loss_and_weights_are_the_plain_models():
    for name, found in run_ranks(compared, 2, timeout_seconds=200, start_method="forkserver")[0].items():
        # In bf16, a gradient is rounded once for each rank before it is averaged: a unit in the last place of a weight.
        bound = 2**-7 * found["scale"] if name == "bf16" else 2e-6
        assert all(found[key] <= bound for key in ("loss", "weights", "output")), (name, found)
        assert found["gradients"] <= (4 * 2**-8 if name == "bf16" else 1e-5), (name, found)
        assert found["scale"] > 0.5


@pytest.mark.slow
def test_fp32_masters_follow_those_of_the_plain_model():
    for dtype, found in run_ranks(compared_masters, 2, timeout_seconds=200, start_method="forkserver")[0].items():
        unit = torch.finfo(getattr(torch, dtype)).eps / 2  # by how much of itself a number is rounded at most
        # A gradient is rounded on each rank, as their sum, and in the plain model: three times, and once for what
        # weights rounded to the other side change.
        assert 0 < found["gradients"] <= 4 * unit, (dtype, found)
        assert found["output"] <= 4 * unit * found["scale"] and found["loss"] <= 4 * unit, (dtype, found)
        # A step moves a weight by the learning rate, whichever way its gradient is rounded; narrow masters would
        # be off by a unit of the largest weight.
        assert found["weights"] <= 3 * 2 * LEARNING_RATE < unit * found["scale"], (dtype, found)


def test_fp32_masters_are_gathered_and_computed_in_bf16():
    logits, held, num_states = run_ranks(computed, 2, timeout_seconds=200, start_method="forkserver")[0]
    assert logits == torch.bfloat16 and held == {torch.float32} and num_states > 0


def test_steps_are_counted_and_bytes_are_those_of_the_plan():
    found = run_ranks(timed, 2, timeout_seconds=200, start_method="forkserver")[0]
    times = found["bench"]
    assert times["ms"] >= 20 and times["num_steps"] > 1  # the slowest rank's time, the first rank's number of steps
    assert times["calls"] == [5 + 1 + times["num_steps"]] * 2
    for row in found["rows"]:
        for counted in row["counted"]:
            assert counted == {kind: row["plan"][kind] for kind in ("parameters", "gradients", "states")}
        assert row["losses"][1][0] < row["losses"][0][0]
    bf16, masters = (row["plan"] for row in found["rows"])
    assert masters["states"] == 2 * bf16["states"] and masters["residuals"] == bf16["residuals"]
    said = page(found["rows"])
    assert "2 layers" in said and "checkpoints" in said and "GiB of a rank, fp32 masters" in said


def test_a_row_says_which_of_the_leaderboards_it_is():
    ranked = FullStepConfig(keep_attention=True)
    names = {"ranked": ranked, "fp32 masters": replace(ranked, fp32_masters=True), "other": FULL_STEP}
    for name, config in names.items():
        assert row_name(config.described()) == name
        assert table_of([{"cell": config.described()}])[0]["row"] == name
    assert row_name(replace(ranked, num_sequences=4).described()) == "other"


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


CONTEST = FullStepConfig()


def contest_plan(slice_bytes, **changes):
    return memory_plan(
        CONTEST.model,
        world_size=2,
        num_tokens=CONTEST.tokens_per_rank,
        num_sequences=1,
        element_bytes=2,
        slice_bytes=slice_bytes,
        layers_per_segment=1,
        chunk_tokens=CONTEST.chunk_tokens,
        **changes,
    )


def test_the_contests_step_fits_two_cards_and_costs_what_the_handout_says():
    plan = contest_plan(2)
    assert plan["parameters"] == pytest.approx(8.126e9, rel=1e-3)  # of 8.126 B weights half, of 2 bytes
    assert plan["states"] == 2 * plan["parameters"]
    assert plan["checkpoints"] == 34 * 32_768 * 4_096 * 2
    assert 40e9 < plan["peak"] < 70e9
    assert step_flops(CONTEST.model, 2 * 32_768) == pytest.approx(4.74e15, rel=0.01)


def test_fp32_masters_fit_two_cards_of_80_gb_with_our_kernel():
    narrow, wide = (contest_plan(size, keep_attention=True, fused_update=True) for size in (2, 4))
    assert narrow["peak"] == pytest.approx(57.2e9, rel=1e-3) and wide["peak"] == pytest.approx(81.5e9, rel=1e-3)
    assert wide["peak"] < 78 * 2**30
    resting = sum(wide[kind] - narrow[kind] for kind in ("parameters", "states"))
    assert resting == pytest.approx(24.4e9, rel=2e-3) and wide["peak"] - narrow["peak"] == resting
    # Without attention's outputs the backward pass holds most at its end: it gives back less than fp32 gradients take.
    again = contest_plan(4, fused_update=True)
    at_its_end = ("parameters", "states", "gradients", "residuals", "backward")
    assert again["peak"] == sum(again[kind] for kind in at_its_end) < wide["peak"]
    by_lists = contest_plan(4)
    assert by_lists["peak"] == sum(by_lists[kind] for kind in ("parameters", "states", "gradients", "update"))


def test_without_recomputation_every_layer_stays():
    common = {"world_size": 2, "num_tokens": 32, "num_sequences": 2, "element_bytes": 4, "slice_bytes": 4}
    common |= {"chunk_tokens": 8}
    kept = memory_plan(TINY, layers_per_segment=0, **common)
    again = memory_plan(TINY, layers_per_segment=1, **common)
    assert kept["residuals"] == 2 * again["residuals"] and kept["checkpoints"] == 0 < again["checkpoints"]


def test_sequences_must_divide():
    with pytest.raises(ValueError, match="3 sequences do not divide over 2 ranks"):
        replace(FULL_STEP, num_sequences=3)


def test_masters_are_wider_than_what_is_computed():
    with pytest.raises(ValueError, match="float32 has its weights in fp32 already"):
        replace(FULL_STEP, fp32_masters=True)
