"""The studies over NCCL at two small layers: what only a GPU has, peaks, kernels and streams, is there."""

from dataclasses import replace

import pytest
import torch

from cs336.parallel.process_group import run_ranks
from cs336.profiling import collective_times, ddp_times, fsdp_times, full_step, full_step_check, optimizer_memory
from cs336.profiling.rank_cells import Rows
from tests.profiling.shapes import CONFIG, FULL_STEP

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs"),
]
ON_GPUS = replace(CONFIG, device="cuda", precision="bfloat16")


def rows_in(folder):
    return Rows(folder / "rows.jsonl", {"hardware": {"cpu": "this", "gpus": ["two"]}})


def quiet(line):
    assert "failed" not in line, line


def test_all_reduces(tmp_path):
    found = collective_times.measure_all_reduces(replace(ON_GPUS, process_counts=(2, 4_096)), rows_in(tmp_path), quiet)
    assert [row["cell"]["backend"] for row in found] == ["nccl"] * 2 and all(row["ms"] > 0 for row in found)


def test_data_parallel_forms(tmp_path):
    rows = ddp_times.measure_ddp(ON_GPUS, rows_in(tmp_path), tmp_path, quiet)
    assert not [row for row in rows if "failure" in row or "state" in row]
    for row in rows:
        if row["cell"].get("form") not in (None, ddp_times.FIT):
            assert min(row["memory"]["peak"]) > 0
        if "trace" in row:
            assert row["communication_ms"] > 0
    assert ddp_times.draw_timelines(rows, tmp_path, "own", tmp_path / "timeline.png")


def test_optimizer_states(tmp_path):
    rows = optimizer_memory.measure_optimizers(ON_GPUS, rows_in(tmp_path), quiet)
    for row in rows:
        after = row["stages"]["after the update"]
        for counted, held in zip(after["counted"], after["gpu"]["held"], strict=True):
            assert sum(counted.values()) <= held


def test_sharded_parameters(tmp_path):
    rows = fsdp_times.measure_fsdp(ON_GPUS, rows_in(tmp_path), tmp_path, quiet)
    assert not [row for row in rows if "failure" in row or "state" in row]
    for row in rows:
        if row.get("gathers", [None])[0]:
            forward = [gather["slack_ms"] for gather in row["gathers"][0] if gather["forward"]]
            assert len(forward) == 4 and any(slack != 0 for slack in forward)
    assert "of 4 units were there in time" in fsdp_times.page(rows)


@pytest.mark.parametrize("fp32_masters", [False, True])
def test_the_contests_step(tmp_path, fp32_masters):
    config = replace(FULL_STEP, device="cuda", dtype="bfloat16", fp32_masters=fp32_masters, layers_per_segment=1)
    row = full_step.measure_full_step(config, rows_in(tmp_path), quiet)
    assert row["ms"] > 0 and min(row["memory"]["peak"]) > row["plan"]["parameters"]


def test_fp32_masters_follow_those_of_the_plain_model_with_our_kernels():
    config = replace(
        FULL_STEP,
        device="cuda",
        model=replace(FULL_STEP.model, d_model=128, context_length=128),
        dtype="bfloat16",
        fp32_masters=True,
        layers_per_segment=1,
        attention="flash",
        keep_attention=True,
        fused=True,
    )
    found = run_ranks(full_step_check.compare_with_plain, 2, config, device="cuda", start_method="forkserver")[0]
    assert 0 < found["gradients"] < 4 * 2**-7 and found["weights"] <= 3 * 2 * full_step.LEARNING_RATE, found
