"""The data assignment's step at a tiny shape: one process and two, each contender with the same first loss."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import course_step
from cs336.model.accounting import count_parameters
from cs336.presets import DATA_COURSE
from cs336.train.loss import Loss

ROOT = Path(__file__).parents[2]
TINY = ["--preset", "micro", "--vocab-size", "300", "--batch-size", "1", "--steps", "1", "--repeats", "1"]
TINY += ["--device", "cpu", "--no-compile"]


@pytest.fixture(autouse=True)
def micro(monkeypatch):
    monkeypatch.setenv("CS336_PRESETS", str(ROOT / "tests" / "presets.toml"))


def _rows(folder):
    return [json.loads(line) for line in (folder / "train_step.jsonl").read_text().splitlines()]


def test_one_process_adds_up_the_parts_of_the_presets_batch(tmp_path, capsys):
    assert course_step.main([*TINY, "--results", str(tmp_path)]) == 0
    rows = _rows(tmp_path)
    assert [row["contender"] for row in rows] == list(course_step.CONTENDERS)
    for row in rows:
        assert (row["input"]["batch_size"], row["input"]["micro_batch_size"]) == (4, 1)
        assert row["first_loss"] == pytest.approx(rows[0]["first_loss"], rel=1e-4)
        steps_a_second = row["figure"] / (4 * 64)  # of 64 tokens
        assert row["hours"] == pytest.approx(30 / steps_a_second / 3_600)
    assert "4 sequences of 64 a step, 256 tokens: 1 processes with 4 parts of 1" in capsys.readouterr().out


@pytest.mark.slow
def test_two_processes_average_their_gradients(tmp_path):
    arguments = [*TINY, "--only", "ours", "--only", "plain", "--results", str(tmp_path)]
    command = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "benchmarks.course_step"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", *command, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    rows = _rows(tmp_path)
    assert [row["case"] for row in rows] == ["micro-2xcpu"] * 2 and all(row["figure"] > 0 for row in rows), rows
    assert {row["input"]["gradients"] for row in rows} == {"averaged by PyTorch's DistributedDataParallel"}
    assert "4 sequences of 64 a step, 256 tokens: 2 processes with 2 parts of 1" in done.stdout


def test_another_first_loss_is_a_failure(tmp_path, monkeypatch):
    right = course_step.linear_cross_entropy
    monkeypatch.setattr(course_step, "linear_cross_entropy", lambda *given: Loss(2 * right(*given).total, None))
    assert course_step.main([*TINY, "--only", "plain", "--only", "fused AdamW", "--results", str(tmp_path)]) == 0
    plain, fused = _rows(tmp_path)
    assert "failure" not in plain and "that of the first contender" in fused["failure"]


def test_the_preset_is_the_courses_fixed_setting():
    model, train = DATA_COURSE.model, DATA_COURSE.train
    sizes = count_parameters(type(model)(**{**vars(model), "vocab_size": DATA_COURSE.bpe.vocab_size}))
    assert round(sizes.total / 1e6, 1) == 162.1 and round(sizes.without_embeddings / 1e6, 2) == 84.95
    assert train.batch_size * model.context_length == 131_072 and train.num_steps == 100_000
    assert (train.betas, train.eps, train.weight_decay, train.max_grad_norm) == ((0.9, 0.98), 1e-9, 0.1, 1.0)
    assert (train.learning_rate, train.min_learning_rate, train.warmup_steps) == (1e-3, 1e-4, 1_000)
    assert train.precision == "bfloat16" and train.micro_batch_size == 128 and not train.decay_all
