"""Spans and their overlap by hand, from traces as PyTorch's profiler writes them."""

import pytest
import torch

from cs336.profiling.timelines import (
    draw,
    intersection,
    read_timeline,
    record,
    small_trace,
    timeline_of,
    union,
)


def event(cat, name, ts, dur):
    return {"ph": "X", "cat": cat, "name": name, "ts": ts, "dur": dur, "pid": 0, "tid": 7, "args": {"stream": 7}}


GPU = [
    event("user_annotation", "forward", 900, 10),  # on the CPU, where the work is only queued
    event("gpu_user_annotation", "forward", 1_000, 2_000),
    event("gpu_user_annotation", "backward", 3_000, 4_000),
    event("gpu_user_annotation", "nccl:all_reduce", 4_000, 4_000),
    event("kernel", "gemm", 1_000, 2_000),
    event("kernel", "gemm", 3_000, 3_000),
    event("kernel", "ncclDevKernel_AllReduce_Sum_f32_RING_LL", 5_000, 2_000),
    event("gpu_memcpy", "Memcpy DtoD", 6_500, 100),
    event("cpu_op", "aten::mm", 900, 50),
    {"ph": "i", "cat": "kernel", "name": "an instant", "ts": 0},
]


def test_unions_and_intersections_by_hand():
    assert union([(4, 5), (0, 2), (1, 3), (3, 3.5)]) == [(0, 3.5), (4, 5)]
    assert intersection([(0, 2), (3, 6)], [(1, 4), (5, 7)]) == [(1, 2), (3, 4), (5, 6)]
    assert intersection([(0, 10)], [(1, 2), (3, 4)]) == [(1, 2), (3, 4)] and intersection([], [(0, 1)]) == []


def test_of_two_ms_of_communication_one_and_a_tenth_hide():
    timeline = timeline_of(small_trace(GPU))
    assert timeline.communication_ms == 2.0
    assert timeline.hidden_share == pytest.approx(1.1 / 2)
    assert [name for name, _, _ in timeline.phases] == ["forward", "backward"]
    assert timeline.phases[1][1:] == pytest.approx((2.0, 6.0))


def test_a_backward_pass_without_a_name_stands_between_its_neighbours():
    events = [
        event("gpu_user_annotation", "forward", 0, 2_000),
        event("gpu_user_annotation", "synchronization", 5_000, 500),
        event("gpu_user_annotation", "synchronization", 4_000, 1_000),  # on another stream
        event("kernel", "gemm", 0, 6_000),
    ]
    assert timeline_of(small_trace(events)).phases == [
        ("forward", 0, 2),
        ("backward", 2, 4),
        ("synchronization", 4, 5.5),
    ]


def test_a_step_is_recorded_small_and_drawn(tmp_path):
    def step():
        with torch.profiler.record_function("forward"):
            x = torch.ones(200, 200)
            for _ in range(3):
                x = x @ x

    path = tmp_path / "traces" / "step.json.gz"
    record(step, path, torch.device("cpu"))
    timeline = read_timeline(path)
    assert timeline.computation and not timeline.communication and timeline.hidden_share == 0
    assert [phase for phase, _, _ in timeline.phases] == ["forward"]
    assert path.stat().st_size < 20_000
    draw({"alone": timeline, "again": timeline_of(small_trace(GPU))}, tmp_path / "timeline.png")
    assert (tmp_path / "timeline.png").read_bytes().startswith(b"\x89PNG")


def test_an_empty_trace_is_an_error():
    with pytest.raises(ValueError, match="no timed event"):
        timeline_of([])
