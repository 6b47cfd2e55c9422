"""The runner: every cell once, whatever happens in between, and the same rows however many processes there are."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cs336.files import UserError, read_jsonl
from cs336.scaling import runner
from cs336.scaling.grid import read_grid
from cs336.scaling.runner import RUNS_LEFT, Settings, code_revision, main, train_cells
from cs336.scaling.runs import append_run, read_runs
from cs336.scaling.tables import table_lines
from cs336.scaling.trainer import Trainer
from tests.scaling.conftest import VOCABULARY, small_cell
from tests.scaling.test_runs import made_run

ROOT = Path(__file__).parents[2]
GRID = f"""
name = "small"
version = 1
unique_tokens = 2_000
max_epochs = 8.0
max_steps = 1_000
vocab_size = {VOCABULARY}
context_length = 16
precision = "float32"

[[groups]]
budgets = [5e7]
shapes = ["16x1x1", "32x1x1", "32x2x2"]
batch_sizes = [4, 8]
learning_rates = [1e-3, 1e-2]
probe = true
"""


@pytest.fixture
def grid_file(tmp_path):
    path = tmp_path / "small.toml"
    path.write_text(GRID)
    return path


def cells():
    return [small_cell(steps=steps, d_model=width) for width in (16, 32) for steps in (5, 10)]


def train(some_cells, folder, rows, **settings):
    lines = []
    left = train_cells(
        some_cells, [folder], Settings(rows=rows, device="cpu", **settings), max_epochs=8.0, say=lines.append
    )
    return left, lines


def losses(rows):
    """What may not depend on how the runs were made."""
    timed = {"wall_seconds", "packed", "date", "utilisation"}
    plain = [{key: value for key, value in dataclasses.asdict(run).items() if key not in timed} for run in rows]
    return sorted(plain, key=lambda row: row["config_hash"])


def test_a_row_says_what_was_trained_and_what_came_of_it(token_folder, tmp_path):
    cell = small_cell(steps=40, learning_rate=1e-2)
    left, lines = train([cell], token_folder, tmp_path / "runs.jsonl")
    (run,) = read_runs(tmp_path / "runs.jsonl")
    assert left == [] and run.finished
    assert run.parameters == 12 * 2 * 16**2 and run.compute_budget == run.train_flops == cell.compute_budget
    assert (run.steps, run.tokens, run.tail_steps) == (40, 40 * 64, 2)
    assert run.epochs == pytest.approx(40 * 4 / 125)  # 2,001 tokens hold 125 windows of 16
    assert run.real_flops > run.compute_budget and run.wall_seconds > 0 and run.utilisation is None
    assert run.loss_curve[0][0] == 1 and run.loss_curve[-1][0] == 40
    assert run.final_loss == pytest.approx((run.loss_curve[-2][1] + run.loss_curve[-1][1]) / 2, abs=1e-4)
    assert run.final_loss < run.loss_curve[0][1] and run.code == code_revision() and "cpu" in run.hardware
    (session,) = map(json.loads, (tmp_path / "runs.sessions.jsonl").read_text().splitlines())
    assert session["num_runs"] == 1 and session["real_flops"] == run.real_flops and session["packed"] == 1
    assert any("loss" in line and "40 steps" in line for line in lines)


def test_a_finished_configuration_is_never_trained_again(token_folder, tmp_path, monkeypatch):
    rows = tmp_path / "runs.jsonl"
    train(cells()[:3], token_folder, rows)
    before = rows.read_bytes()
    trained = []
    original = Trainer.run
    monkeypatch.setattr(Trainer, "run", lambda self, cell, **rest: trained.append(cell) or original(self, cell, **rest))
    train(cells()[:3], token_folder, rows)
    assert not trained and rows.read_bytes() == before
    train(cells(), token_folder, rows)
    assert trained == cells()[3:] and len(read_runs(rows)) == 4


def test_packed_runs_have_the_rows_of_runs_one_at_a_time(token_folder, tmp_path):
    train(cells(), token_folder, tmp_path / "one.jsonl", packed=1)
    train(cells(), token_folder, tmp_path / "two.jsonl", packed=2)
    one, two = read_runs(tmp_path / "one.jsonl"), read_runs(tmp_path / "two.jsonl")
    assert len(one) == 4 and losses(one) == losses(two)
    assert {run.packed for run in two} == {2}


def test_several_devices_have_the_rows_of_one(token_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert Settings(rows=tmp_path / "two.jsonl", device="all").devices == ["cuda:0", "cuda:1"]
    train(cells(), token_folder, tmp_path / "one.jsonl", packed=1)
    monkeypatch.setattr(Settings, "devices", ["cpu", "cpu"])
    left, lines = train(cells(), token_folder, tmp_path / "two.jsonl", packed=1)
    assert not left and lines[0].startswith("4 runs to train") and "2 at a time" in lines[0]
    assert losses(read_runs(tmp_path / "two.jsonl")) == losses(read_runs(tmp_path / "one.jsonl"))
    (session,) = read_jsonl(tmp_path / "two.sessions.jsonl")
    assert session["num_devices"] == 2 and session["num_runs"] == 4
    assert any("4 runs in" in line and "2 at a time" in line for line in lines)


@pytest.mark.slow
def test_a_runner_that_is_killed_goes_on_where_it_stopped(token_folder, tmp_path, grid_file):
    rows, whole = tmp_path / "runs.jsonl", tmp_path / "whole.jsonl"
    command = [sys.executable, "-m", "cs336.scaling.runner", "--grid", str(grid_file), "--device", "cpu"]
    command += ["--tokens", str(token_folder), "--packed", "1"]
    environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE"}
    killed = 0
    for _ in range(20):
        before = len(read_runs(rows)) if rows.exists() else 0
        process = subprocess.Popen(
            [*command, "--rows", str(rows)], cwd=ROOT, env=environment, stdout=subprocess.DEVNULL
        )
        while process.poll() is None and (len(read_runs(rows)) if rows.exists() else 0) < before + 5:
            time.sleep(0.01)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            killed += 1
        if process.wait() == 0:
            break
    assert killed >= 1 and process.returncode == 0
    train(list(read_grid(grid_file).cells().values()), token_folder, whole)
    resumed = read_runs(rows)
    assert len(resumed) == 12 == len({run.config_hash for run in resumed})
    assert losses(resumed) == losses(read_runs(whole))


@pytest.mark.slow
def test_a_process_that_dies_is_named_and_the_others_rows_are_kept(token_folder, tmp_path):
    rows = tmp_path / "runs.jsonl"
    settings = Settings(rows=rows, device="cpu", packed=2)
    with pytest.raises(UserError, match=r"a process died .* what is trained is kept"):
        runner._share([["no cell"], cells()[:2]], [token_folder], settings, lambda line: None)
    assert len(read_runs(rows)) == 2


def test_divergence_is_a_row_and_is_not_tried_again(token_folder, tmp_path):
    rows = tmp_path / "runs.jsonl"
    wild = small_cell(steps=200, learning_rate=1e30)
    left, lines = train([wild, small_cell(steps=200)], token_folder, rows)
    diverged, sound = read_runs(rows)
    assert left == [] and diverged.outcome.startswith("diverged: the loss became") and sound.finished
    assert diverged.steps < 200 and any("diverged" in line for line in lines)


def test_no_memory_is_a_row_and_is_tried_again(token_folder, tmp_path, monkeypatch):
    rows, original = tmp_path / "runs.jsonl", Trainer.run

    def hungry(self, cell, **rest):
        if cell == cells()[0]:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore")
        return original(self, cell, **rest)

    monkeypatch.setattr(Trainer, "run", hungry)
    left, _ = train(cells()[:2], token_folder, rows)
    assert left == cells()[:1]
    outcomes = {run.outcome for run in read_runs(rows)}
    assert outcomes == {"finished", "out of memory: CUDA out of memory. Tried to allocate 2 GiB"}
    monkeypatch.setattr(Trainer, "run", original)
    assert train(cells()[:2], token_folder, rows)[0] == []


def test_no_run_begins_that_would_end_after_the_deadline(token_folder, tmp_path):
    rows = tmp_path / "runs.jsonl"
    left, _ = train(cells(), token_folder, rows, deadline=time.time() - 1)
    assert left == cells() and not rows.exists()


def test_text_that_would_be_read_too_often_or_has_other_tokens_is_refused(token_folder, tmp_path):
    with pytest.raises(UserError, match=r"would read the 2,001 training tokens 9\.60 times, more than the grid's 8"):
        train([small_cell(steps=300)], token_folder, tmp_path / "runs.jsonl")
    with pytest.raises(UserError, match="beyond the grid's vocabulary of 32"):
        train([small_cell(vocab_size=32)], token_folder, tmp_path / "runs.jsonl")


def test_the_command_plans_trains_and_shows_a_table(token_folder, tmp_path, grid_file, capsys):
    arguments = ["--grid", str(grid_file), "--tokens", str(token_folder), "--rows", str(tmp_path / "runs.jsonl")]
    arguments += ["--device", "cpu", "--packed", "1", "--only", "b4"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "grid small, version 1: 12 runs" in printed and "6 runs to train" in printed and "5e+07" in printed
    assert "left" not in printed
    assert main([*arguments, "--only", "none such"]) == 1
    assert "no such cells" in capsys.readouterr().err
    grid_file.write_text(GRID.replace("max_epochs = 8.0", "max_epochs = 0.01"))
    assert main(arguments) == 1
    wrong = capsys.readouterr().err.splitlines()
    assert len(wrong) == 12 and all("reads the text" in line for line in wrong)


def test_runs_that_are_left_have_an_exit_code_of_their_own(token_folder, tmp_path, grid_file, capsys):
    arguments = ["--grid", str(grid_file), "--tokens", str(token_folder), "--rows", str(tmp_path / "runs.jsonl")]
    arguments += ["--device", "cpu", "--packed", "1", "--only", "16x1x1.*b4"]
    assert main([*arguments, "--minutes", "0"]) == RUNS_LEFT == 3
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.endswith("2 of 2 runs left; the same command goes on with them (exit code 3)")
    assert main(arguments) == 0 and len(read_runs(tmp_path / "runs.jsonl")) == 2
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "3 runs are left" in " ".join(capsys.readouterr().out.split())


def test_the_table_marks_profiles_without_a_minimum_inside(tmp_path):
    runs = [made_run(parameters=size, final_loss=loss) for size, loss in ((1, 6.0), (2, 5.5), (3, 5.8))]
    assert table_lines(runs)[1].split()[3:5] == ["2", "5.5000"] and "no minimum" not in table_lines(runs)[1]
    untrained = made_run(parameters=0, steps=0, final_loss=10.5)
    rising = [untrained, *(made_run(parameters=size, final_loss=5 + size) for size in (1, 2))]
    assert table_lines(rising)[1].endswith("no minimum between the sizes"), "what took no step is no size of a profile"
    open_ended = [*runs, made_run(parameters=4, final_loss=5.0), made_run(outcome="out of memory", parameters=5)]
    assert table_lines(open_ended)[1].endswith("1 without a loss, no minimum between the sizes")


def test_rows_of_another_text_do_not_count(token_folder, tmp_path):
    rows = tmp_path / "runs.jsonl"
    train(cells()[:1], token_folder, rows)
    (run,) = read_runs(rows)
    rows.unlink()
    append_run(rows, replace(run, config_hash=runner.config_hash(cells()[0], "another text")))
    train(cells()[:1], token_folder, rows)
    assert len(read_runs(rows)) == 2
