"""What only a GPU can show: its allocator's history, its kernels, its memory's end."""

import gzip
import pickle

import pytest
import torch

from cs336.model.accounting import count_parameters
from cs336.profiling.cells import FAILURE, measured, release_memory
from cs336.profiling.checkpointing import block_memory, norm_saves
from cs336.profiling.kernel_times import answer_questions, profile_step
from cs336.profiling.memory import NO_FRAME, record_step
from cs336.profiling.precision import EXPECTED_DTYPES, autocast_dtypes
from cs336.profiling.ranges import BACKWARD, FORWARD, OPTIMIZER, SCORES, SOFTMAX
from cs336.profiling.step_times import StepConfig, measure_step, parse_size
from cs336.profiling.tables import OUT_OF_MEMORY

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
CUDA = torch.device("cuda")
STEP = StepConfig(size="256x1024x4x4", context_length=256, mode="step", warmup=2, steps=2)


def test_the_recorded_peak_is_the_allocators_and_has_stages_and_origins(tmp_path):
    path = tmp_path / "snapshot.pickle.gz"
    timeline = record_step(STEP, CUDA, path)
    release_memory(CUDA)  # as between all cells: what is left of one waits for the garbage collector
    peak = measure_step(STEP, CUDA)["peak_bytes"]
    assert timeline.peak_bytes == pytest.approx(peak, rel=0.05)
    parameters = 4 * count_parameters(STEP.model).total
    assert 4 * parameters <= timeline.active_bytes[0] < 6 * parameters  # and the workspace of matrix products
    assert [name for name, _ in timeline.stages] == [FORWARD, BACKWARD, OPTIMIZER]
    firsts = [first for _, first in timeline.stages]
    assert firsts == sorted(firsts) and firsts[-1] < len(timeline.active_bytes)
    origins = {each["origin"] for each in timeline.largest}
    assert any("model/" in origin or "train/" in origin for origin in origins) and origins != {NO_FRAME}
    assert "device_traces" in pickle.loads(gzip.decompress(path.read_bytes()))


def test_kernels_find_their_ranges_and_fill_no_more_than_the_timer(tmp_path):
    calls = profile_step(STEP, CUDA)
    assert {FORWARD, BACKWARD, OPTIMIZER, SCORES, SOFTMAX} <= set().union(*(call.ranges for call in calls))
    row = answer_questions(STEP, CUDA, tmp_path)
    assert 0 < row["kernels_over_timer"] < 1.1 and row["training_mode"] == "step"
    assert row["attention_matmul_seconds"] > 0 and row["softmax_seconds"] > 0
    assert all(path.stat().st_size < 4e6 for path in tmp_path.iterdir())


def test_a_cell_without_memory_leaves_the_gpu_as_it_was():
    def measure():
        held = torch.empty(2**28, device=CUDA)
        return {"figure": held.numel() + torch.empty(2**45, device=CUDA).numel()}

    release_memory(CUDA)
    before = torch.cuda.memory_allocated()
    assert measured(measure, CUDA) == {FAILURE: OUT_OF_MEMORY}
    assert torch.cuda.memory_allocated() == before


@pytest.mark.parametrize("compiled", [False, True])
def test_one_block_keeps_what_no_device_says_or_less(compiled):
    shape = parse_size("256x1024x1x4", context_length=256)
    nowhere = block_memory(shape, 4, device=torch.device("meta"))
    there = block_memory(shape, 4, device=CUDA, compiled=compiled)
    assert there["gradient_bytes"] == nowhere["gradient_bytes"]
    assert there["saved_bytes"] < nowhere["saved_bytes"] if compiled else there == nowhere
    assert len(norm_saves(4, 256, 256, CUDA, compiled=True)) == 2


def test_fp16_autocast_casts_as_derived():
    assert autocast_dtypes(CUDA) == EXPECTED_DTYPES
