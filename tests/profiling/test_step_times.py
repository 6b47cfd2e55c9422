"""The harness runs what it says, and its ranges are there only when they are asked for."""

import dataclasses

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from cs336.model.attention import causal_mask, scaled_dot_product_attention
from cs336.model.sizes import SIZES
from cs336.profiling.ranges import BACKWARD, FINAL_MATMUL, FORWARD, OPTIMIZER, SCORES, SOFTMAX, annotated_attention
from cs336.profiling.step_times import (
    MODES,
    StepConfig,
    Workload,
    measure_in_fresh_process,
    measure_step,
    parse_size,
)

CPU = torch.device("cpu")
TINY = StepConfig(size="16x32x2x2", context_length=16, batch_size=2, warmup=1, steps=3)


@pytest.mark.parametrize("mode", MODES)
def test_each_mode_does_its_part_of_a_step(mode):
    workload = Workload(dataclasses.replace(TINY, mode=mode), CPU)
    before = [parameter.detach().clone() for parameter in workload.model.parameters()]
    workload.step()
    parameters = list(workload.model.parameters())
    assert all((parameter.grad is not None) == (mode != "forward") for parameter in parameters)
    moved = any(not torch.equal(one, other) for one, other in zip(before, parameters, strict=True))
    assert moved == (mode == "step")


def test_the_figures_are_of_the_steps_that_count():
    figures = measure_step(TINY, CPU)
    assert len(figures["seconds"]) == 3 and len(figures["warmup_seconds"]) == 1
    assert figures["mean_seconds"] == pytest.approx(sum(figures["seconds"]) / 3)
    assert figures["tokens_per_second"] == pytest.approx(32 / figures["mean_seconds"])
    assert figures["peak_bytes"] is None and figures["mfu"] is None


def test_a_fresh_process_gives_the_same_kind_of_figures():
    assert measure_in_fresh_process(TINY, CPU).keys() == measure_step(TINY, CPU).keys()


def test_bfloat16_is_autocast_and_weights_stay_fp32():
    workload = Workload(dataclasses.replace(TINY, precision="bfloat16", mode="step"), CPU)
    dtypes = []
    workload.model.lm_head.register_forward_hook(lambda module, inputs, output: dtypes.append(output.dtype))
    workload.step()
    assert dtypes == [torch.bfloat16]
    assert {parameter.dtype for parameter in workload.model.parameters()} == {torch.float32}


def test_sizes_by_name_and_by_numbers():
    assert parse_size("xl", context_length=128) == dataclasses.replace(SIZES["xl"], context_length=128)
    assert parse_size("768x3072x12x12") == SIZES["small"]
    for wrong in ("huge", "768x3072x12", "768x3072x12xtwelve"):
        with pytest.raises(ValueError, match="768x3072x12x12"):
            parse_size(wrong)
    with pytest.raises(ValueError, match="mode is one of"):
        dataclasses.replace(TINY, mode="backward")


@pytest.mark.parametrize("ranges", [True, False])
def test_ranges_are_there_when_asked_for(ranges):
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        measure_step(dataclasses.replace(TINY, mode="step", warmup=0, steps=1), CPU, ranges=ranges)
    names = {event.name: event for event in profiler.events()}
    for name in (FORWARD, BACKWARD, OPTIMIZER, SCORES, SOFTMAX, FINAL_MATMUL):
        assert (name in names) == ranges
    counted = {event.key: event.count for event in profiler.key_averages()}
    assert counted.get(SCORES, 0) == (2 if ranges else 0)  # once a layer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_twin_of_attention_is_the_reference_to_the_last_bit(dtype):
    q, k, v = torch.randn(3, 2, 2, 8, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    mask = causal_mask(8, 8)
    assert torch.equal(annotated_attention(q, k, v, mask), scaled_dot_product_attention(q, k, v, mask))
    assert torch.equal(annotated_attention(q, k, v), scaled_dot_product_attention(q, k, v))
