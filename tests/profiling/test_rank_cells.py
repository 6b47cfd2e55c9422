"""Cells end alone, whatever befalls a rank; rows are kept, and a second run measures what is missing."""

import os
import time

import pytest
import torch
import torch.distributed as dist

from cs336.files import UserError, read_jsonl
from cs336.profiling.rank_cells import Rows, Stopwatch, require_gpus, run_cell, time_steps

FACTS = {"hardware": {"cpu": "this", "gpus": []}}


def befalls_rank_one(place, what):
    if place.rank == 1:
        if what == "memory":
            raise torch.OutOfMemoryError("tried to allocate 20 GiB")
        if what == "death":
            os._exit(3)
    dist.barrier()
    return {"sum": place.world_size}


def timed(place):
    seconds = iter([0.0, 0.03, 2.0, 0.03])  # the first does not count, and one is a neighbour's

    def step(watch):
        watch.mark("start")
        time.sleep(next(seconds) if place.rank else 0.01)
        watch.mark("sleep")

    return time_steps(place, step, num_warmup=1, num_steps=3)


@pytest.mark.parametrize(
    ("what", "expected"),
    [("memory", {"state": "out of memory", "rank": 1}), ("nothing", {"sum": 2})],
)
def test_a_cell_without_memory_says_so(what, expected):
    assert run_cell(befalls_rank_one, 2, what, device="cpu", timeout_seconds=60) == expected


def test_a_rank_that_dies_is_named_and_nobody_waits_for_it():
    start = time.monotonic()
    found = run_cell(befalls_rank_one, 2, "death", device="cpu", timeout_seconds=200)
    assert "rank 1 of 2" in found["failure"] and "exit code 3" in found["failure"]
    assert time.monotonic() - start < 100


def test_a_step_takes_as_long_as_its_slowest_rank():
    found = run_cell(timed, 2, device="cpu", timeout_seconds=60)
    assert found["ms"] >= 30 and found["ms_by_rank"][0] < found["ms_by_rank"][1]
    assert found["ms_by_rank"][0] / 2 < found["parts_ms"]["sleep"] < found["ms"] and found["num_steps"] == 3


def test_one_slow_step_does_not_move_the_median():
    found = run_cell(timed, 2, device="cpu", timeout_seconds=60)
    assert max(found["steps_ms"]) >= 2_000 and 30 <= found["ms"] < 400  # their mean is 687 or more
    low, high = found["ms_quartiles"]
    assert low <= found["ms"] <= high and found["parts_ms"]["sleep"] < 100


def test_a_second_run_measures_what_is_missing_or_failed(tmp_path):
    said, measured = [], []

    def run(result):
        measured.append(result)
        return result

    for _ in range(2):
        rows = Rows(tmp_path / "rows.jsonl", FACTS)
        assert rows.measure({"form": "good"}, lambda: run({"ms": 1.0}), said.append)["ms"] == 1.0
        assert rows.measure({"form": "large"}, lambda: run({"state": "out of memory"}), said.append)["state"]
        assert rows.measure({"form": "bad"}, lambda: run({"failure": "rank 0 failed"}), said.append)["failure"]
    assert measured == [
        {"ms": 1.0},
        {"state": "out of memory"},
        {"failure": "rank 0 failed"},
        {"failure": "rank 0 failed"},
    ]
    assert said[3] == "good: there already" and len(list(read_jsonl(tmp_path / "rows.jsonl"))) == 4
    assert [row["cell"]["form"] for row in rows.latest()] == ["good", "large", "bad"]


def test_rows_of_other_hardware_are_not_this_ones(tmp_path):
    Rows(tmp_path / "rows.jsonl", {"hardware": {"cpu": "other", "gpus": []}}).add({"form": "good"}, {"ms": 9.0})
    assert Rows(tmp_path / "rows.jsonl", FACTS).find({"form": "good"}) is None


def test_again_measures_also_what_is_there(tmp_path):
    Rows(tmp_path / "rows.jsonl", FACTS).add({"form": "good"}, {"ms": 9.0})
    rows = Rows(tmp_path / "rows.jsonl", FACTS, again=True)
    assert rows.find({"form": "good"}) is None
    rows.add({"form": "good"}, {"ms": 1.0})
    assert rows.find({"form": "good"})["ms"] == 1.0


def test_a_stopwatch_adds_up_parts_of_one_name(monkeypatch):
    times = iter([0.0, 1.0, 3.0, 6.0])
    monkeypatch.setattr("cs336.profiling.rank_cells.default_timer", lambda: next(times))
    watch = Stopwatch(torch.device("cpu"))
    for name in ("start", "forward", "backward", "forward"):
        watch.mark(name)
    assert watch.seconds() == {"forward": 4.0, "backward": 2.0}


def test_too_few_gpus_are_one_line(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match=r"^the study needs 2 GPUs, this machine has 1;"):
        require_gpus("the study", 2, "cuda")
    require_gpus("the study", 2, "cpu")
