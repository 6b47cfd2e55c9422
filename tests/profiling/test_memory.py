"""Timelines: from a snapshot and a trace made by hand, and of a real step on a CPU."""

import torch

from cs336.model.accounting import count_parameters
from cs336.profiling.memory import NO_FRAME, Timeline, read_profile, read_timeline, record_step, thinned
from cs336.profiling.step_times import StepConfig

TINY = StepConfig(size="32x64x2x4", context_length=16, batch_size=2, mode="step", warmup=1, steps=1)


def _alloc(size, *frames):
    return {
        "action": "alloc",
        "size": size,
        "frames": [dict(zip(("filename", "line", "name"), f, strict=True)) for f in frames],
    }


def test_a_snapshot_by_hand():
    layers, ours = ("/x/cs336/model/layers.py", 7, "softmax"), ("/x/cs336/profiling/step_times.py", 1, "step")
    trace = [
        {"action": "segment_alloc", "size": 1_000, "frames": []},
        _alloc(10, ("/torch/functional.py", 3, "f"), layers, ours),
        _alloc(30, ours),
        {"action": "free_requested", "size": 10},
        {"action": "free_completed", "size": 10},
        _alloc(50),
    ]
    blocks = [{"state": "active_allocated", "size": 180}, {"state": "inactive", "size": 820}]
    snapshot = {"device_traces": [[], trace], "segments": [{"blocks": blocks}]}
    timeline = read_timeline(snapshot, [("forward", 0), ("backward", 2)])
    assert timeline.active_bytes == [100, 110, 140, 130, 180]  # what was held before is 180 less what came
    assert timeline.stages == [("forward", 1), ("backward", 4)]
    assert timeline.peak_bytes == 180 and timeline.peak_stage == "backward"
    assert [(each["num_bytes"], each["origin"]) for each in timeline.largest] == [
        (50, NO_FRAME),
        (30, "elsewhere in Python"),
        (10, "model/layers.py:7 softmax"),
    ]


def test_a_trace_of_memory_events_by_hand():
    def memory(time, size):
        return {"ph": "i", "name": "[memory]", "ts": time, "args": {"Bytes": size}}

    events = [
        {"ph": "X", "cat": "user_annotation", "name": "forward", "ts": 0, "dur": 10},
        {"ph": "X", "cat": "cpu_op", "name": "aten::mm", "ts": 1, "dur": 5},
        {"ph": "X", "cat": "cpu_op", "name": "aten::empty", "ts": 2, "dur": 2},
        {"ph": "X", "cat": "user_annotation", "name": "backward", "ts": 10, "dur": 10},
        memory(12, -40),
        memory(3, 40),
        memory(8, 5),
    ]
    timeline = read_profile(events, 100)
    assert timeline.active_bytes == [100, 140, 145, 105]
    assert timeline.stages == [("forward", 1), ("backward", 3)]
    assert timeline.largest[0] == {"num_bytes": 40, "count": 1, "origin": "aten::empty"}


def test_a_real_step_starts_with_weights_and_states_and_leaves_gradients_beside_them():
    timeline = record_step(TINY, torch.device("cpu"))
    parameters = 4 * count_parameters(TINY.model).total
    held = timeline.active_bytes[0]
    assert held == 3 * parameters  # with both moments
    assert parameters <= timeline.active_bytes[-1] - held < 1.05 * parameters
    assert [name for name, _ in timeline.stages] == ["forward", "backward", "optimizer"]
    assert timeline.peak_bytes > held


def test_thinning_keeps_the_peak():
    spike = Timeline(active_bytes=[1, 2, 9, 2, 1, 0, 3], stages=[("forward", 0), ("backward", 4)], largest=[])
    assert thinned(spike, most=3) == {
        "events_per_point": 3,
        "active_bytes": [9, 2, 3],
        "stages": [["forward", 0], ["backward", 1]],
    }
