"""The fine-tuning loop: it learns, resumes to the same weights, keeps the best, and ends as it is told to."""

import math
import signal
import subprocess
import sys
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from cs336.files import UserError
from cs336.model.transformer import load_model
from cs336.posttrain.epochs import micro_batches, tune
from cs336.posttrain.loop import UpdateConfig
from cs336.posttrain.sft import SftConfig, train_sft
from cs336.train.checkpoint import checkpoint_paths
from cs336.train.loop import NotFinite
from cs336.train.resume import CHECKPOINTS_FOLDER
from tests.posttrain.models import EXAMPLES, MODELS, Saved, assert_same_weights, curve, our_model, weights

CONFIG = SftConfig(
    batch_size=4, micro_batch_size=3, learning_rate=1e-2, num_epochs=8, valid_interval=5, schedule="cosine"
)
TRAIN, VALID = EXAMPLES[:10], EXAMPLES[10:]  # 3 steps an epoch, the last of 2 examples; 24 in all


def _run(folder, model=None, config=CONFIG, train=TRAIN, valid=VALID, **options):
    model = our_model(dropout=0.1) if model is None else model
    outcome = train_sft(model, Saved(), train, valid, config, seed=0, folder=folder, **options)
    return model, outcome


@pytest.mark.parametrize("kind", MODELS)
def test_examples_are_learnt(kind, tmp_path):
    config = replace(CONFIG, num_epochs=60, batch_size=8, micro_batch_size=0)
    model, outcome = _run(tmp_path, MODELS[kind](), config, train=EXAMPLES, valid=EXAMPLES)
    rows = curve(tmp_path)
    assert rows[0]["step"] == 0 and rows[0]["valid_loss"] > 3
    assert outcome.ended_by == "steps" and outcome.last_step == 120
    assert outcome.best["valid_loss"] < 0.05 and not model.training


def test_rows_say_what_each_step_did(tmp_path):
    seen = []
    _run(tmp_path, report=lambda row: seen.append(row["step"]))
    rows = curve(tmp_path)
    assert seen == [row["step"] for row in rows] == list(range(25))
    assert [row["num_examples"] for row in rows[1:7]] == [4, 4, 2, 4, 4, 2]
    assert [row["epoch"] for row in rows[1:7]] == [0, 0, 0, 1, 1, 1]
    assert [row["step"] for row in rows if "valid_loss" in row] == [0, 5, 10, 15, 20, 24]
    expected = [CONFIG.learning_rate * (1 + math.cos(math.pi * step / 25)) / 2 for step in range(1, 25)]
    assert [row["learning_rate"] for row in rows[1:]] == pytest.approx(expected)
    assert all(row["grad_norm"] > 0 and row["num_tokens"] > row["num_response_tokens"] > 0 for row in rows[1:])


class Noted:
    """An objective that writes down which examples it was given."""

    num_examples, num_left_out = 10, 0
    marks: ClassVar[dict] = {}

    def __init__(self):
        self.taken = []

    def add_gradients(self, model, places):
        self.taken.append(list(places))
        loss = model.lm_head.weight.square().mean()
        loss.backward()
        return {"train_loss": loss.detach(), "num_tokens": 1}

    def validate(self, model):
        return {"valid_loss": 1.0}


def test_an_epoch_takes_each_example_once_in_an_order_of_its_own(tmp_path):
    objective = Noted()
    tune(our_model(), objective, CONFIG, seed=0, folder=tmp_path)
    epochs = [list(chain(*objective.taken[start : start + 3])) for start in range(0, 24, 3)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 8


def test_equal_runs_are_equal_and_another_seed_is_not(tmp_path):
    first, _ = _run(tmp_path / "a")
    second, _ = _run(tmp_path / "b")
    assert_same_weights(weights(first), weights(second))
    assert curve(tmp_path / "a") == curve(tmp_path / "b")
    train_sft(our_model(dropout=0.1), Saved(), TRAIN, VALID, CONFIG, seed=1, folder=tmp_path / "c")
    assert curve(tmp_path / "a") != curve(tmp_path / "c")


KILLED = """
import os, signal, sys
from pathlib import Path
from tests.posttrain.models import MODELS
from tests.posttrain.test_loop import _run
def kill(row):
    if row["step"] == 13:
        os.kill(os.getpid(), signal.SIGKILL)
kind = sys.argv[2]
_run(Path(sys.argv[1]), MODELS[kind](dropout=0.1), report=kill)
"""


@pytest.mark.parametrize("kind", MODELS)
def test_a_killed_run_ends_with_the_same_bytes(kind, tmp_path):
    """Dropout draws random numbers, which must go on where they stood."""
    root = Path(__file__).parents[2]
    killed = subprocess.run([sys.executable, "-c", KILLED, tmp_path / "killed", kind], cwd=root, check=False)
    assert killed.returncode == -signal.SIGKILL
    (tmp_path / "killed" / CHECKPOINTS_FOLDER / ".step-000000015.pt.1.partial").write_bytes(b"half")
    with (tmp_path / "killed" / "metrics.jsonl").open("a") as log:
        log.write('{"step": 14, "train_l')
    seen = []
    torch.manual_seed(5)
    resumed, outcome = _run(tmp_path / "killed", MODELS[kind](dropout=0.1), report=lambda row: seen.append(row["step"]))
    assert seen[0] in (6, 11)  # the checkpoint of step 10 may still have been on its way to the disk
    assert seen == list(range(seen[0], 25))
    whole, whole_outcome = _run(tmp_path / "whole", MODELS[kind](dropout=0.1))
    assert_same_weights(weights(resumed), weights(whole))
    assert curve(tmp_path / "killed") == curve(tmp_path / "whole")
    assert outcome.best_step == whole_outcome.best_step
    names = [sorted(path.name for path in (tmp_path / each).rglob("*")) for each in ("killed", "whole")]
    assert names[0] == names[1]


BY_HEART = {"train": [("next a ", "bbc"), ("next b ", "ccd")], "valid": [("next a ", "ccd"), ("next b ", "bbc")]}


def test_the_best_weights_are_kept_and_the_run_goes_on_without_them(tmp_path):
    """What is learnt first, the letters, helps both sides; then the answers are learnt by heart, which hurts one."""
    config = replace(CONFIG, num_epochs=30, batch_size=2, valid_interval=3, schedule="constant")
    model, outcome = _run(tmp_path / "best", our_model(), config, **BY_HEART)
    losses = {row["step"]: row["valid_loss"] for row in curve(tmp_path / "best") if "valid_loss" in row}
    assert 0 < outcome.best_step < 30 == outcome.last_step
    assert outcome.best_step == min(losses, key=losses.__getitem__) and outcome.best["valid_loss"] == min(
        losses.values()
    )
    paths = [path.name for path in checkpoint_paths(tmp_path / "best" / CHECKPOINTS_FOLDER)]
    assert paths == [f"step-{outcome.best_step:09d}.pt", "step-000000030.pt"]

    again, _ = _run(tmp_path / "short", our_model(), replace(config, num_epochs=outcome.best_step), **BY_HEART)
    assert_same_weights(weights(model), weights(again))
    assert_same_weights(weights(model), weights(load_model(tmp_path / "best")))
    assert (tmp_path / "best" / "letters.txt").exists()

    last, outcome = _run(tmp_path / "last", our_model(), replace(config, keep="last"), **BY_HEART)
    assert curve(tmp_path / "last") == curve(tmp_path / "best") and 0 < outcome.best_step < 30
    assert any(not torch.equal(weights(last)[name], weight) for name, weight in weights(model).items())


def test_a_finished_run_is_not_trained_again(tmp_path):
    config = replace(CONFIG, num_epochs=30, batch_size=2, valid_interval=3, schedule="constant")
    model, outcome = _run(tmp_path, our_model(), config, **BY_HEART)
    (tmp_path / "model.safetensors").unlink()  # as a kill before the last write leaves it
    rows = curve(tmp_path)
    again, same = _run(tmp_path, our_model(), config, **BY_HEART, report=lambda row: pytest.fail("a step was made"))
    assert_same_weights(weights(model), weights(again))
    assert same == outcome and curve(tmp_path) == rows and (tmp_path / "model.safetensors").exists()


def test_patience_ends_a_run_that_gets_no_better(tmp_path):
    config = replace(CONFIG, num_epochs=200, batch_size=2, valid_interval=3, schedule="constant", patience=4)
    _, outcome = _run(tmp_path, our_model(), config, **BY_HEART)
    assert outcome.ended_by == "patience"
    assert outcome.last_step == outcome.best_step + 4 * 3 < 200


def test_the_clock_ends_a_run(tmp_path):
    config = replace(CONFIG, num_epochs=100_000, max_seconds=0.5, valid_interval=1_000)
    _, outcome = _run(tmp_path, our_model(), config)
    rows = curve(tmp_path)
    assert outcome.ended_by == "time" and outcome.last_step == rows[-1]["step"] < 10_000
    assert "valid_loss" in rows[-1]


def test_an_evaluation_of_the_callers_decides_which_weights_are_kept_and_disturbs_nothing(tmp_path):
    scores = {0: 0.1, 5: 0.2, 10: 0.4, 15: 0.4, 20: 0.3, 24: 0.0}

    def evaluate(model, step):
        assert not model.training
        torch.rand(7)  # such as a sampler that uses the global stream
        return {"valid_accuracy": scores[step]}

    config = replace(CONFIG, best_by="valid_accuracy", best_is="highest")
    _, outcome = _run(tmp_path / "a", config=config, evaluate=evaluate)
    assert outcome.best_step == 10 and outcome.best["valid_accuracy"] == 0.4  # the first of equal ones
    _run(tmp_path / "b")
    without = [{k: v for k, v in row.items() if k != "valid_accuracy"} for row in curve(tmp_path / "a")]
    assert without == curve(tmp_path / "b")
    with pytest.raises(ValueError, match="best_by is 'valid_accuracy', but"):
        _run(tmp_path / "c", config=config)


def test_a_run_of_other_settings_data_or_weights_does_not_go_on(tmp_path):
    _run(tmp_path)
    for changes, message in (
        ({"config": replace(CONFIG, learning_rate=2e-2)}, "learning_rate was 0.01, is 0.02"),
        ({"train": TRAIN[:-1]}, "train_examples was"),
        ({"valid": VALID[:-1]}, "valid_examples was"),
        ({"model": our_model(seed=1, dropout=0.1)}, "initial_weights was"),
    ):
        with pytest.raises(UserError, match=message):
            _run(tmp_path, **changes)


def test_a_loss_that_is_no_number_ends_the_run_with_one_line(tmp_path):
    with pytest.raises(NotFinite, match=r"became nan at step \d+; the last good checkpoint is .*step-0000000\d+\.pt"):
        _run(tmp_path, our_model(), replace(CONFIG, learning_rate=1e30, schedule="constant", valid_interval=1))
    with pytest.raises(NotFinite, match="valid_loss became nan at step 0; there is no checkpoint yet"):
        broken = our_model()
        torch.nn.init.constant_(broken.lm_head.weight, math.nan)
        _run(tmp_path / "broken", broken)


@pytest.mark.parametrize("optimizer", ["adamw", "rmsprop"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_both_optimizers_resume_in_both_precisions(optimizer, precision, tmp_path):
    config = replace(CONFIG, optimizer=optimizer, precision=precision, learning_rate=1e-3, weight_decay=0.1)

    def stop(row):
        if row["step"] == 13:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _run(tmp_path / "parts", config=config, report=stop)
    resumed, _ = _run(tmp_path / "parts", config=config)
    whole, outcome = _run(tmp_path / "whole", config=config)
    assert_same_weights(weights(resumed), weights(whole))
    assert curve(tmp_path / "parts") == curve(tmp_path / "whole")
    assert outcome.best["valid_loss"] < curve(tmp_path / "whole")[0]["valid_loss"]


class Still(Noted):
    """An objective whose gradient is 0 everywhere: what moves is moved by decay."""

    def add_gradients(self, model, places):
        sum((parameter * 0).sum() for parameter in model.parameters()).backward()
        return {"train_loss": 1.0, "num_tokens": 1}


def test_decay_shrinks_matrices_alone(tmp_path):
    config = replace(CONFIG, num_epochs=1, schedule="constant", weight_decay=0.5, keep="last")
    model, before = our_model(), weights(our_model())
    tune(model, Still(), config, seed=0, folder=tmp_path)
    for name, weight in model.named_parameters():
        expected = before[name] * (1 - config.learning_rate * 0.5) ** 3 if weight.ndim == 2 else before[name]
        torch.testing.assert_close(weight.detach(), expected)


def test_gradients_are_clipped_and_logged_as_they_were(tmp_path):
    model, _ = _run(tmp_path, config=replace(CONFIG, num_epochs=1, max_grad_norm=0.25, keep="last"))
    norm = torch.linalg.vector_norm(torch.stack([each.grad.norm() for each in model.parameters()]))
    assert curve(tmp_path)[-1]["grad_norm"] > 0.3 and norm.item() == pytest.approx(0.25, rel=1e-3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_on_a_gpu_a_stopped_run_goes_on_to_the_same_weights(kind, precision, tmp_path):
    config = replace(CONFIG, precision=precision)

    def stop(row):
        if row["step"] == 13:
            raise KeyboardInterrupt

    def model():
        return MODELS[kind](dropout=0.1).cuda()

    with pytest.raises(KeyboardInterrupt):
        _run(tmp_path / "parts", model(), config, report=stop)
    resumed, _ = _run(tmp_path / "parts", model(), config)
    whole, _ = _run(tmp_path / "whole", model(), config)
    assert_same_weights(weights(resumed), weights(whole))
    assert curve(tmp_path / "parts") == curve(tmp_path / "whole")


@pytest.mark.parametrize("kind", MODELS)
def test_weights_in_bf16_are_tuned_as_they_are(kind, tmp_path):
    config = replace(CONFIG, num_epochs=30)
    model, outcome = _run(tmp_path, MODELS[kind]().bfloat16(), config, train=EXAMPLES, valid=EXAMPLES)
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    assert outcome.best["valid_loss"] < 0.5


def test_the_learning_rate_warms_up_and_falls():
    config = UpdateConfig(batch_size=1, learning_rate=1.0, warmup_fraction=0.2)
    assert [config.learning_rate_at(step, 10) for step in (1, 2, 3, 10)] == [0.5, 1.0, 1.0, 1.0]
    cosine = replace(config, schedule="cosine")
    assert [cosine.learning_rate_at(step, 10) for step in (1, 2)] == [0.5, 1.0]
    assert cosine.learning_rate_at(10, 10) == pytest.approx((1 + math.cos(math.pi * 8 / 9)) / 2)
    assert UpdateConfig(batch_size=1, learning_rate=1.0, schedule="cosine").learning_rate_at(1, 1) == pytest.approx(0.5)


def test_micro_batches_hold_each_example_once_the_longest_first():
    assert list(micro_batches([4, 0, 3, 1], [5, 9, 0, 5, 7], 3)) == [[1, 4, 0], [3]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schedule": "wsd"}, "schedule is constant or cosine"),
        ({"optimizer": "sgd"}, "optimizer is adamw or rmsprop"),
        ({"precision": "float16"}, "precision is float32 or bfloat16"),
        ({"best_is": "most"}, "best_is is lowest or highest"),
        ({"keep": "all"}, "keep is best or last"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"learning_rate": -1.0}, "learning_rate must not be negative"),
        ({"warmup_fraction": 1.0}, r"warmup_fraction lies in \[0, 1\)"),
    ],
)
def test_settings_out_of_range_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **changes)
