"""The benchmarks' command line on a small input, and the machinery with contenders made for it."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.corpus import generated_text
from benchmarks.measure import Case, Contender, Unavailable, measure_case, run_subject, with_peak_memory
from cs336.tokenizer.reference import count_pretokens

ROOT = Path(__file__).parents[2]


def run_cli(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "CS336_DATA"}
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_the_tokenizer_subject_runs_ours_beside_the_peers(tmp_path: Path):
    path = tmp_path / "input.txt"
    path.write_text(generated_text(200_000, seed=7), newline="")
    done = run_cli(
        "tokenizer", "--input", str(path), "--vocab-size", "600", "--repeats", "2", "--results", str(tmp_path)
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [json.loads(line) for line in (tmp_path / "tokenizer.jsonl").read_text().splitlines()]
    vocabularies = "encode-0.2MB-learnt-first", "encode-0.2MB-learnt-second"
    cases = ["train-0.2MB", *vocabularies, "stream-0.2MB", "folder-0.2MB", "startup", "compilation", "memory-0.2MB"]
    assert list(dict.fromkeys(row["case"] for row in rows)) == cases
    assert [row["case"] for row in rows if row["contender"] == "ours"] == cases
    learning = [row for row in rows if row["case"].startswith(("train-", "memory-"))]
    distinct = len(count_pretokens([path.read_text()], ["<|endoftext|>"]))
    assert {row["input"]["num_distinct"] for row in learning} == {distinct}
    measured = [row for row in rows if "failure" not in row]
    assert {row["contender"] for row in measured} >= {"ours", "tiktoken", "HF tokenizers"}
    for row in rows:
        assert {"hardware", "commit", "versions", "date"} <= row.keys()
        assert row["case"] in ("startup", "compilation") or (
            row["input"]["bytes"] == path.stat().st_size and len(row["input"]["sha256"]) == 64
        )
    for row in measured:
        low, high = row["spread"]
        assert 0 < low <= row["figure"] <= high and row["unit"] in ("MB/s", "starts/s")
        assert row["repeats"] == (1 if row["case"] in ("compilation", "memory-0.2MB") else 2), row
    ratios = [line.split() for line in done.stdout.splitlines() if line.startswith("ratio ")]
    assert [words[1] for words in ratios] == [*(f"tokenizer/{case}" for case in cases), "tokenizer"]
    numbers = [float(words[2]) for words in ratios if words[2] != "n/a"]
    assert len(numbers) > 2 and numbers[-1] == min(numbers)
    assert done.stdout.splitlines()[-1].startswith("ratio tokenizer ")


def test_without_a_subject_the_subjects_are_listed_and_an_unknown_one_is_refused():
    assert "\n  tokenizer " in run_cli().stdout
    refused = run_cli("no-such-subject")
    assert refused.returncode == 2 and "tokenizer" in refused.stderr


def test_generated_text_is_the_same_every_time_and_about_as_long_as_asked():
    text = generated_text(50_000)
    assert text == generated_text(50_000) != generated_text(50_000, seed=1)
    assert 50_000 <= len(text.encode()) < 50_500


def _case(**prepare) -> Case:
    return Case(
        name="case",
        amount=1.0,
        unit="runs/s",
        contenders=[Contender(name=name, prepare=function) for name, function in prepare.items()],
        difference=lambda ours, theirs: None if ours == theirs else f"{theirs} is not {ours}",
    )


def _missing():
    raise Unavailable("not installed")


def test_contenders_that_fail_or_differ_keep_their_message_and_the_others_go_on():
    case = _case(ours=lambda: lambda: 42, wrong=lambda: lambda: 41, broken=lambda: lambda: 1 // 0, absent=_missing)
    measured, messages = measure_case(case, repeats=3)
    assert list(measured) == ["ours"] and len(measured["ours"].seconds[""]) == 3
    assert messages["wrong"].endswith("its result differs: 41 is not 42")
    assert messages["broken"].startswith("ZeroDivisionError")
    assert messages["absent"] == "Unavailable: not installed"


class _Subject:
    """One case: ours sleeps half as long as the peer."""

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        """No options."""

    @staticmethod
    def cases(options: argparse.Namespace):
        """A single case."""
        yield _case(ours=lambda: lambda: time.sleep(0.02), peer=lambda: lambda: time.sleep(0.04))


def test_a_ratio_above_one_means_that_ours_is_faster(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert run_subject("sleep", _Subject, argparse.Namespace(repeats=3, results=tmp_path)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2].startswith("ratio sleep/case ") and lines[-1].startswith("ratio sleep ")
    assert 1.2 < float(lines[-1].split()[-1]) < 3.5


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="resident memory is read Linux's way")
def test_peak_memory_sees_what_a_call_held_and_gave_back():
    _, peak = with_peak_memory(lambda: len(bytearray(80_000_000)))
    if peak is not None:
        assert 75_000_000 < peak < 90_000_000
