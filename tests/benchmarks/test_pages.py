"""The subjects on pages, without data and without peers: made-up pages, ours beside resiliparse."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import pages
from benchmarks.filters import overlap
from cs336.crawl.warc import read_records

ROOT = Path(__file__).parents[2]


def run_subject(tmp_path: Path, *arguments: str) -> list[dict]:
    environment = {key: value for key, value in os.environ.items() if key not in ("CS336_DATA", "CS336_PEERS")}
    done = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks", *arguments, "--repeats", "1"),
            *("--results", str(tmp_path), "--cache", str(tmp_path / "cache")),
        ],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads(line) for line in (tmp_path / f"{arguments[0]}.jsonl").read_text().splitlines()]


def test_extraction_runs_beside_resiliparse_with_the_same_bytes(tmp_path: Path):
    rows = run_subject(tmp_path, "extract", "--pages", "24", "--cores", "1", "2")
    by_case = {(row["case"], row["contender"]): row for row in rows}
    for case in ("text-cores1-24", "warc-cores1-24", "text-cores2-24", "warc-cores2-24"):
        ours, resiliparse = by_case[case, "ours"], by_case[case, "resiliparse"]
        assert ours["unit"] == "pages/s" and ours["input"]["pages"] == 24
        assert "failure" not in resiliparse and ours["ratios"]["resiliparse"] > 0
        assert ours["megabytes_per_second"] > 0 and ours["cpu_seconds"] > 0 and ours["peak_bytes"] > 0


@pytest.mark.slow
def test_filters_run_and_say_how_much_was_extraction(tmp_path: Path):
    rows = run_subject(tmp_path, "filters", "--pages", "16", "--cores", "1")
    ours = {row["case"]: row for row in rows if row["contender"] == "ours"}
    assert list(ours) == ["warc-cores1-16", "wet-cores1-16"]
    assert 0 < ours["warc-cores1-16"]["extraction_share"] < 1
    peers = [row for row in rows if row["contender"] == "datatrove"]
    assert all("not installed" in row["failure"] or row["figure"] > 0 for row in peers)


def test_a_crawl_holds_its_pages_with_their_type_and_a_larger_one_the_same_files_again(tmp_path: Path):
    crawl = pages.crawl(tmp_path, None, 20)
    records = [record for path in crawl.files for record in read_records(path)]
    assert len(records) == crawl.num_pages == 20
    assert sum(len(record.payload) for record in records) == crawl.num_bytes
    assert {record.mime_type for record in records} == {"text/html"}
    texts = [record for path in pages.crawl(tmp_path, None, 20, wet=True).files for record in read_records(path)]
    assert {record.kind for record in texts} == {"conversion"}
    assert sorted(record.id for record in texts) == sorted(record.id for record in records)


def test_overlap_by_hand():
    assert overlap({"a", "b", "c"}, {"b", "c", "d"}) == pytest.approx(0.5)
    assert overlap(set(), set()) == 1.0
