"""All-reduce times over Gloo, and the line through points that are known."""

from dataclasses import replace
from pathlib import Path

import pytest

from cs336.files import UserError, read_jsonl
from cs336.profiling.collective_times import (
    Line,
    bus_bytes,
    draw,
    fit_line,
    lines_of,
    measure_all_reduces,
    page,
)
from cs336.profiling.rank_cells import Rows
from tests.profiling.shapes import CONFIG

FACTS = {"hardware": {"cpu": "this", "gpus": []}}


def test_the_line_through_exact_points_is_found():
    points = [(size, 2e-4 + size / 5e9) for size in (1e6, 1e7, 1e8, 1e9)]
    line = fit_line(points)
    assert line.latency_seconds == pytest.approx(2e-4) and line.bytes_per_second == pytest.approx(5e9)


def test_no_latency_is_negative():
    line = fit_line([(1e6, 1e-6), (1e8, 1e-3)])  # faster for small tensors than any line through the origin
    assert line.latency_seconds == 0 and line.bytes_per_second > 0
    with pytest.raises(ValueError, match="two sizes"):
        fit_line([(1e6, 1e-3), (1e6, 2e-3)])


def test_a_ring_of_four_sends_three_quarters_twice():
    assert bus_bytes(100, 4) == 150 and bus_bytes(100, 2) == 100


def test_every_size_has_a_row_and_is_measured_once(tmp_path):
    said = []
    rows = Rows(tmp_path / "rows.jsonl", FACTS)
    found = measure_all_reduces(CONFIG, rows, said.append)
    assert [row["cell"]["bytes"] for row in found] == list(CONFIG.all_reduce_bytes)
    for row in found:
        assert row["ms_quartiles"][0] <= row["ms"] <= row["ms_quartiles"][1] and row["num_calls"] == 2
        assert 0 < row["ms_fastest_rank"] <= row["ms"]
        assert row["bus_gb_per_second"] == pytest.approx(row["cell"]["bytes"] / row["ms"] / 1e6)  # two ranks
    again = measure_all_reduces(CONFIG, Rows(tmp_path / "rows.jsonl", FACTS), said.append)
    assert again == found and said[-1].endswith("there already")
    assert "2 processes" in page(found) and isinstance(lines_of(found)["gloo", 2], Line)
    draw(found, tmp_path / "times.png")
    assert (tmp_path / "times.png").read_bytes().startswith(b"\x89PNG")


def test_fewer_gpus_than_the_least_number_of_processes_are_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    rows = Rows(tmp_path / "rows.jsonl", FACTS)
    with pytest.raises(UserError, match="needs 4 GPUs, this machine has 2"):
        measure_all_reduces(replace(CONFIG, device="cuda", process_counts=(6, 4)), rows, lambda line: None)


def test_the_comment_says_what_the_figures_say():
    rows = [
        {
            "cell": {"backend": "nccl", "processes": count, "bytes": size},
            "ms": 1e3 * (1e-4 + size / speed),
            "ms_std": 0.0,
        }
        | {"ms_fastest_rank": 1.0, "bus_gb_per_second": 1.0, "num_calls": 10}
        for count, speed in ((2, 4e9), (4, 2e9))
        for size in (10**6, 10**9)
    ]
    said = page(rows)
    assert "**nccl, 2 processes.** A call costs 100 µs however small it is, and then 4 GB/s (bus 4 GB/s)" in said
    assert "below 0.4 MB the call costs more than the bytes" in said
    assert "From 2 to 4 processes nccl's latency goes from 100 to 100 µs" in said
    assert "bus bandwidth goes from 4 to 3 GB/s" in said  # 4e9 x 2 x 1/2, and 2e9 x 2 x 3/4
    assert "Times are means of 10 calls, their spread (±) a standard deviation." in said


def test_a_number_of_processes_whose_times_are_noise_is_compared_with_no_other():
    rows = [
        {"cell": {"backend": "gloo", "processes": count, "bytes": size}, "ms": ms, "ms_quartiles": [ms, ms]}
        | {"ms_fastest_rank": ms, "bus_gb_per_second": 1.0, "num_calls": 30}
        for count, size, ms in ((2, 10**3, 1.0), (2, 10**6, 2.0), (3, 10**3, 5.0), (3, 10**6, 4.0))
    ]
    said = page(rows)
    assert "**gloo, 3 processes.** The time does not grow" in said and "From 2 to 3" not in said and "inf" not in said


def test_rows_of_means_and_of_medians_are_drawn(tmp_path):
    folder = Path(__file__).parents[2] / "benchmarks/results/runs/course/gloo_all_reduce_times"
    rows = list(read_jsonl(folder / "rows.jsonl"))
    draw(rows, tmp_path / "times.png")
    said = page(rows)
    assert "Times are means of 10 calls" in said and "± 0.154" in said
    # All that the older page says of each number of processes still stands there.
    told = [part for part in (folder / "page.md").read_text().split("\n\n") if part.startswith("**")]
    assert len(told) == 3 and all(part in said for part in told)
