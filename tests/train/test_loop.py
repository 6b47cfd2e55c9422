"""The loop learns, resumes to the same weights, and ends with one line when it cannot go on."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from cs336.files import UserError
from cs336.model.transformer import ModelConfig
from cs336.train.checkpoint import checkpoint_path
from cs336.train.loop import CHECKPOINTS_FOLDER, TrainConfig, train
from cs336.train.metrics import METRICS_FILE, WALL_CLOCK

MODEL = ModelConfig(context_length=16, d_model=32, num_layers=1, num_heads=2, vocab_size=20)
CONFIG = TrainConfig(
    batch_size=8,
    num_steps=24,
    learning_rate=1e-2,
    min_learning_rate=1e-3,
    warmup_steps=2,
    valid_interval=12,
    valid_batches=2,
    checkpoint_interval=10,
)
TOKENS = np.tile(np.arange(20, dtype=np.uint16), 50)  # counts upwards for ever: learnable to zero


def _train(folder, config=CONFIG, **options):
    return train(
        MODEL, config, train_tokens=TOKENS, valid_tokens=TOKENS, seed=0, folder=folder, device="cpu", **options
    )


def _curve(folder):
    rows = [json.loads(line) for line in (folder / METRICS_FILE).read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in WALL_CLOCK} for row in rows]


def test_a_pattern_is_learnt(tmp_path):
    _train(tmp_path, replace(CONFIG, num_steps=100))
    curve = _curve(tmp_path)
    assert curve[0]["train_loss"] > 2.5 and curve[-1]["valid_loss"] < 0.2
    assert [row["step"] for row in curve] == list(range(1, 101))


def test_two_runs_have_the_same_curve(tmp_path):
    _train(tmp_path / "a")
    _train(tmp_path / "b")
    assert _curve(tmp_path / "a") == _curve(tmp_path / "b")


def test_a_stopped_run_goes_on_to_the_same_weights(tmp_path):
    whole = _train(tmp_path / "whole")

    def stop(row):
        if row["step"] == 17:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _train(tmp_path / "parts", report=stop)
    with (tmp_path / "parts" / METRICS_FILE).open("a") as log:
        log.write('{"step": 99, "train_l')  # half a line, as `kill -9` leaves it
    seen = []
    resumed = _train(tmp_path / "parts", report=lambda row: seen.append(row["step"]))
    assert seen[0] == 11
    assert _curve(tmp_path / "parts") == _curve(tmp_path / "whole")
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_loss_that_is_not_finite_ends_in_one_line(tmp_path):
    with pytest.raises(UserError, match=r"metrics\.jsonl: the loss became .* lower learning_rate"):
        _train(tmp_path, replace(CONFIG, learning_rate=1e30, max_grad_norm=1e30, warmup_steps=0))


def test_a_broken_checkpoint_is_named(tmp_path):
    (tmp_path / CHECKPOINTS_FOLDER).mkdir()
    checkpoint_path(tmp_path / CHECKPOINTS_FOLDER, 10).write_bytes(b"not a checkpoint")
    with pytest.raises(UserError, match=r"step-000000010\.pt: not a readable checkpoint"):
        _train(tmp_path)


@pytest.mark.parametrize("bad", [{"precision": "fp8"}, {"num_steps": 0}])
def test_settings_out_of_range_are_errors(bad):
    with pytest.raises(ValueError):
        replace(CONFIG, **bad)
