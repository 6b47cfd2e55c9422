"""The benchmark of the scaling service, small: rows with latencies, and failures that are told."""

import json

import pytest

from benchmarks import scaling_service
from benchmarks.__main__ import main
from benchmarks.scaling_service import Server


@pytest.fixture
def small(monkeypatch):
    # Processor time comes in ticks of 10 ms: enough requests for a dozen of them.
    monkeypatch.setattr(scaling_service, "REQUESTS", 300)
    monkeypatch.setattr(scaling_service, "MAX_P50_MS", {"exact": 5_000.0, "surrogate": 5_000.0})
    monkeypatch.setattr(scaling_service, "KEYS", 4)
    monkeypatch.setattr(scaling_service, "CONNECTIONS", 4)


def rows_of(tmp_path, *options):
    status = main(["scaling_service", "--repeats", "1", "--results", str(tmp_path), *options])
    lines = (tmp_path / "scaling_service.jsonl").read_text().splitlines()
    return status, {row["case"]: row for row in map(json.loads, lines)}


@pytest.mark.slow
def test_each_case_has_its_latencies_and_what_a_request_costs(small, tmp_path):
    status, rows = rows_of(tmp_path, "--per-second", "100", "--seconds", "2")
    assert status == 0 and list(rows) == ["exact", "surrogate", "sustained"]
    for row in rows.values():
        assert 0 < row["p50_ms"] <= row["p99_ms"] <= row["worst_ms"]
        assert row["server_cpu_ms"] > 0 and row["figure"] > 0
    assert rows["sustained"]["figure"] == pytest.approx(100, rel=0.2)


def test_a_rate_that_the_server_refuses_is_a_failure_with_its_statuses(small, tmp_path, monkeypatch):
    start = Server.__init__
    monkeypatch.setattr(Server, "__init__", lambda *given: start(*given, "--requests-per-second", "1"))
    status, rows = rows_of(tmp_path, "--per-second", "40", "--seconds", "2")
    assert status == 1 and '"429"' in rows["sustained"]["failure"]
