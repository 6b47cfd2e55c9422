"""What `kill -9`, a full disk and another number of workers do to the graph: nothing."""

import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import kill_graph
from tests.assets.conftest import ROOT, make_project

UP_TO_TOKENS = ("crawl", "extracted_text", "quality_classifier", "document_scores", "filtered_text", "filter_ledger")
UP_TO_TOKENS += ("line_hashes", "repeated_lines", "unique_lines", "minhash_signatures", "candidate_pairs")
UP_TO_TOKENS += ("candidate_shingles", "duplicate_pairs", "near_duplicates", "deduplicated_text")
UP_TO_TOKENS += ("tokenizer", "token_shards")


@pytest.mark.slow
def test_killed_runs_end_as_undisturbed_ones(tmp_path, monkeypatch, project):
    for key in ("CS336_PRESETS", "CS336_PRESET", "CS336_WORKERS", "CS336_DOWNLOADS"):
        monkeypatch.setenv(key, project.environment[key])
    monkeypatch.delenv("CS336_DATA", raising=False)
    assert kill_graph.kill_and_compare(tmp_path / "kills", preset="micro", kills=2, seed=1) == []


@pytest.mark.slow
def test_equal_inputs_give_equal_bytes_whatever_the_number_of_workers(finished, tmp_path):
    other = make_project(tmp_path, CS336_WORKERS="2")
    other.run()
    differences = kill_graph.compare(finished.artifacts, other.artifacts)
    assert not [name for name in differences if name.split("/")[0] in UP_TO_TOKENS]


@pytest.mark.slow
def test_an_equal_run_has_the_same_loss_curve_and_scores(finished, tmp_path):
    other = make_project(tmp_path)
    other.run()
    assert kill_graph.compare(finished.artifacts, other.artifacts) == []


def test_a_full_disk_ends_in_one_line_and_keeps_what_was_finished(project, small_disk):
    disk = small_disk("300k")
    project.environment["CS336_ARTIFACTS"] = str(disk)
    done = project.python("-m", "cs336", "run", "--preset", "micro", "--job", "data")
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert "the disk is full" in last and str(disk) in last and "Traceback" not in done.stderr
    assert kill_graph._half_made(disk / "micro") == []


@pytest.mark.parametrize(
    ("device", "reason"),
    [("gpu", "device 'gpu' is none; use auto, cpu, cuda or cuda:N"), ("meta", "Error: ")],  # foreseen, and not
)
def test_a_failed_training_is_one_line_with_the_workers_reason(copied, device, reason):
    shutil.rmtree(copied.artifacts / "base_model")
    copied.environment["CS336_DEVICE"] = device
    done = copied.python("-m", "cs336", "run", "--preset", "micro", "--job", "pretrain")
    assert done.returncode == 1
    assert done.stderr.startswith("cs336: micro/base_model: ") and reason in done.stderr, done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert not (copied.artifacts / "base_model").exists()


def test_an_interrupted_run_ends_with_one_line(copied):
    shutil.rmtree(copied.artifacts / "base_model")
    text = Path(copied.environment["CS336_PRESETS"]).read_text().replace("num_steps = 30", "num_steps = 100000", 1)
    longer = copied.folder / "presets.toml"
    longer.write_text(text)
    run = subprocess.Popen(
        [sys.executable, "-m", "cs336", "run", "--preset", "micro", "--job", "pretrain"],
        cwd=ROOT,
        env=copied.environment | {"CS336_PRESETS": str(longer)},
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # as a terminal starts it
    )
    while not list((copied.artifacts / ".work").glob("base_model--*/metrics.jsonl")):
        assert run.poll() is None
        time.sleep(0.2)
    run.send_signal(signal.SIGINT)
    _, said = run.communicate(timeout=60)
    assert run.returncode == 130
    assert said.strip() == "cs336: stopped; finished artifacts are kept, run again to go on"


@pytest.mark.slow
def test_results_copied_from_another_machine_are_adopted(copied, tmp_path):
    run = tmp_path / "run"
    shutil.move(copied.artifacts / "base_model", run)
    (run / "model.safetensors").unlink()
    done = copied.python("-m", "cs336", "adopt", str(run))
    assert done.returncode == 0, done.stderr
    assert "same code, settings and inputs as here" in done.stdout
    shown = copied.python("-m", "cs336", "show", "base_model", "--preset", "micro").stdout
    assert re.search(r"^ *adopted: +measured elsewhere, on .+, without model.safetensors$", shown, re.MULTILINE), shown
    shutil.rmtree(copied.artifacts / "perplexity")
    again = copied.python("-m", "cs336", "run", "--preset", "micro", "--job", "evals")
    assert again.returncode == 1
    assert "model.safetensors: not here" in again.stderr.strip().splitlines()[-1]


def test_a_folder_of_runs_is_adopted_in_the_order_of_the_graph(copied, tmp_path):
    for name in ("perplexity", "base_model"):
        shutil.move(copied.artifacts / name, tmp_path / "runs" / name)
    for left_behind in ("model.safetensors", "curve.png"):
        (tmp_path / "runs" / "base_model" / left_behind).unlink()
    done = copied.python("-m", "cs336", "adopt", str(tmp_path / "runs"))
    assert done.returncode == 0, done.stderr
    said = ["2 adopted: same code, settings and inputs as here", "`cs336 scores` shows their scores"]
    assert done.stdout.splitlines() == ["micro/base_model", "micro/perplexity", *said]
    (tmp_path / "none").mkdir()
    refused = copied.python("-m", "cs336", "adopt", str(tmp_path / "none"))
    assert refused.returncode == 1 and "none/manifest.json: not found, nor one in a folder below" in refused.stderr


def test_a_changed_file_is_not_adopted(copied, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(copied.artifacts / "base_model", run)
    refused = copied.python("-m", "cs336", "adopt", str(run))
    assert refused.returncode == 1 and "was made on this machine; --replace" in refused.stderr
    shutil.rmtree(copied.artifacts / "base_model")
    with (run / "metrics.jsonl").open("a") as file:
        file.write("{}\n")
    done = copied.python("-m", "cs336", "adopt", str(run))
    assert done.returncode == 1 and "metrics.jsonl: differs from its manifest" in done.stderr
