"""The loop learns, resumes to the same weights, and ends with one line when it cannot go on."""

import json
import math
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cs336.files import UserError
from cs336.model.transformer import ModelConfig, TransformerLM
from cs336.tokens.batches import Batches
from cs336.train import checkpoint, loop, metrics
from cs336.train.checkpoint import checkpoint_path, checkpoint_paths
from cs336.train.forms import Form
from cs336.train.loop import TrainConfig, train
from cs336.train.metrics import METRICS_FILE, WALL_CLOCK
from cs336.train.parallel_forms import FORMS
from cs336.train.resume import CHECKPOINTS_FOLDER

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


def _files(folder):
    """All files' bytes, the metrics' wall-clock columns aside."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != METRICS_FILE]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths} | {"curve": _curve(folder)}


KILLED = """
import os, signal, sys
from pathlib import Path
from tests.train.test_loop import _noisy_model, _train, CONFIG
def kill(row):
    if row["step"] == 17:
        os.kill(os.getpid(), signal.SIGKILL)
_noisy_model()
_train(Path(sys.argv[1]), report=kill)
"""


def _noisy_model(set_attribute=setattr):
    """Make training draw from PyTorch's global random stream, as dropout does."""
    plain = TransformerLM.hidden_states

    def noisy(self, *arguments, **options):
        hidden = plain(self, *arguments, **options)
        return hidden + 0.1 * torch.randn_like(hidden) if self.training else hidden

    set_attribute(TransformerLM, "hidden_states", noisy)


def test_a_killed_run_that_draws_random_numbers_ends_with_the_same_bytes(tmp_path, monkeypatch):
    root = Path(__file__).parents[2]
    killed = subprocess.run([sys.executable, "-c", KILLED, tmp_path / "killed"], cwd=root, check=False)
    assert killed.returncode == -signal.SIGKILL
    # What a kill in the middle of a write leaves: neither taken for a checkpoint nor left over.
    (tmp_path / "killed" / CHECKPOINTS_FOLDER / ".step-000000020.pt.1.partial").write_bytes(b"half")
    _noisy_model(monkeypatch.setattr)
    seen = []
    torch.manual_seed(1)
    _train(tmp_path / "killed", report=lambda row: seen.append(row["step"]))
    assert seen[0] == 11
    _train(tmp_path / "whole")
    assert _files(tmp_path / "killed") == _files(tmp_path / "whole")
    names = [path.name for path in checkpoint_paths(tmp_path / "whole" / CHECKPOINTS_FOLDER)]
    assert names == ["step-000000020.pt", "step-000000024.pt"]


def test_a_finished_run_is_not_trained_again(tmp_path):
    _train(tmp_path)
    before = _files(tmp_path)
    _train(tmp_path, report=lambda row: pytest.fail("a step was made"))
    assert _files(tmp_path) == before


def test_other_settings_do_not_go_on_from_a_checkpoint(tmp_path):
    _train(tmp_path)
    with pytest.raises(UserError, match=r"other settings \(learning_rate was 0.01, is 0.02\); take another folder"):
        _train(tmp_path, replace(CONFIG, learning_rate=2e-2))


def test_a_checkpoint_of_other_text_is_refused(tmp_path, monkeypatch):
    _train(tmp_path)
    other = TOKENS.copy()
    other[3] ^= 1
    monkeypatch.setitem(_train.__globals__, "TOKENS", other)
    with pytest.raises(UserError, match=r"other settings \(train_tokens was '1000 tokens .*', is '1000 tokens "):
        _train(tmp_path)


def test_rows_may_hold_any_character_and_half_a_last_line(tmp_path):
    path = tmp_path / "samples.jsonl"
    rows = [{"step": 1, "text": "a\u2028b\u0085c"}, {"step": 2, "text": "d"}]
    whole = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(whole + '{"step": 3, "te', encoding="utf-8")
    assert list(metrics.read_rows(path)) == rows
    assert metrics.drop_rows_after(path, 1) == rows[:1]
    path.write_text("")
    assert list(metrics.read_rows(path)) == []


def test_a_loss_that_is_not_finite_ends_in_one_line_that_names_step_text_and_checkpoint(tmp_path, monkeypatch):
    plain = TransformerLM.hidden_states
    forwards = iter(range(1_000))

    def breaks(self, *arguments, **options):
        hidden = plain(self, *arguments, **options)
        return hidden * float("nan") if self.training and next(forwards) == 13 else hidden

    monkeypatch.setattr(TransformerLM, "hidden_states", breaks)
    asked = []

    def name_documents(starts, num_tokens):
        asked.append((starts, num_tokens))
        return iter([f"http://page/{number}" for number in range(10)])

    with pytest.raises(UserError) as caught:
        _train(tmp_path, name_documents=name_documents)
    good = checkpoint_path(tmp_path / CHECKPOINTS_FOLDER, 10)
    assert str(caught.value) == (
        f"{tmp_path / METRICS_FILE}: the loss became nan at step 14, on "
        + ", ".join(f"http://page/{number}" for number in range(8))
        + f" and 2 more; the last good checkpoint is {good}; lower learning_rate, or look at that text"
    )
    batches = Batches(TOKENS, batch_size=8, context_length=16, seed=0, device="cpu")
    assert asked == [(batches.starts(13).tolist(), 17)]
    assert [row["step"] for row in _curve(tmp_path)] == list(range(1, 14))  # nothing of the bad step
    assert checkpoint_paths(tmp_path / CHECKPOINTS_FOLDER) == [good]


def test_weights_that_are_not_finite_are_never_saved(tmp_path, monkeypatch):
    def explodes(self, t, seconds):
        return 1e30 if t == 5 else 1e-2

    monkeypatch.setattr(TrainConfig, "learning_rate_at", explodes)
    with pytest.raises(UserError, match=r"the weights became infinite at step 5; .*step-000000004\.pt; lower learn"):
        _train(tmp_path, replace(CONFIG, checkpoint_interval=1))  # the loss of step 5 itself was fine
    assert len(checkpoint_paths(tmp_path / CHECKPOINTS_FOLDER)) == 2
    for path in checkpoint_paths(tmp_path / CHECKPOINTS_FOLDER):
        assert all(weight.isfinite().all() for weight in checkpoint.read_checkpoint(path)["model"].values())


def test_a_checkpoint_that_cannot_be_written_stops_the_run_at_its_next_step(tmp_path, monkeypatch):
    go = threading.Event()

    def full(state, out):
        assert go.wait(10)
        raise UserError(f"{out}: the disk is full")

    monkeypatch.setattr(checkpoint, "_write", full)
    seen = []

    def report(row):
        seen.append(row["step"])
        if row["step"] == 12:  # training goes on beside the write; then let it fail
            go.set()
            for thread in threading.enumerate():
                if thread.name == "checkpoint":
                    thread.join()

    with pytest.raises(UserError, match=r"step-000000010\.pt: the disk is full"):
        _train(tmp_path, report=report)
    assert seen == list(range(1, 13)) and not (tmp_path / "model.safetensors").exists()


def test_a_batch_in_parts_is_the_batch(tmp_path):
    _train(tmp_path / "whole")
    _train(tmp_path / "parts", replace(CONFIG, micro_batch_size=2))
    for whole, parts in zip(_curve(tmp_path / "whole"), _curve(tmp_path / "parts"), strict=True):
        assert whole == pytest.approx(parts, rel=2e-3)
    first = [_curve(tmp_path / name)[0] for name in ("whole", "parts")]
    assert first[0] == pytest.approx(first[1], rel=1e-6)  # before rounding has had time to grow


def test_recomputation_changes_nothing(tmp_path, monkeypatch):
    _noisy_model(monkeypatch.setattr)
    _train(tmp_path / "kept")
    _train(tmp_path / "recomputed", recompute=1)
    assert _files(tmp_path / "kept") == _files(tmp_path / "recomputed")


@pytest.mark.parametrize(
    "changes",
    [
        {"precision": "bfloat16"},
        {"optimizer": "muon", "schedule": "wsd", "min_learning_rate": 0.0},
        {"z_loss": 1e-3, "decay_all": True, "micro_batch_size": 4},
    ],
)
def test_other_ways_of_training_learn_the_pattern_too(tmp_path, changes):
    _train(tmp_path, replace(CONFIG, num_steps=60, **changes))
    curve = _curve(tmp_path)
    assert curve[0]["train_loss"] > 2.5 and curve[-1]["valid_loss"] < 0.5
    plain = TransformerLM(MODEL)
    assert {p.dtype for p in plain.parameters()} == {torch.float32}


def test_one_minibatch_is_learnt_by_heart(tmp_path):
    tokens = np.random.default_rng(0).integers(0, 20, MODEL.context_length + 1)  # a single place to start
    config = replace(CONFIG, num_steps=80, batch_size=2, weight_decay=0.0)
    train(MODEL, config, train_tokens=tokens, valid_tokens=tokens, seed=0, folder=tmp_path, device="cpu")
    last = _curve(tmp_path)[-1]
    assert last["train_loss"] < 0.02 and last["valid_loss"] == pytest.approx(last["train_loss"], abs=0.01)


def test_validation_outside_autocast_is_that_of_fp32():
    torch.manual_seed(0)
    model, half = TransformerLM(MODEL), replace(CONFIG, precision="bfloat16")
    configs = CONFIG, replace(half, valid_in_float32=True), half
    plain, outside, inside = (loop.evaluate(Form(model, config), TOKENS)[0] for config in configs)
    assert plain == outside != inside
    cut = object.__new__(FORMS["fsdp"])  # gathers its weights in bf16
    cut.config = configs[1]
    with pytest.raises(UserError, match="take --parallel zero1"):
        _ = cut._compute_dtype


def test_the_last_validation_loss_is_that_of_all_held_out_tokens(tmp_path, monkeypatch):
    _noisy_model(monkeypatch.setattr)  # but not while it is evaluated
    model = _train(tmp_path, replace(CONFIG, valid_batches=1))
    rows = [row for row in _curve(tmp_path) if "valid_loss" in row]
    assert [(row["step"], row["num_valid_tokens"]) for row in rows] == [(12, 8 * 16), (24, len(TOKENS) - 1)]
    nats = 0.0
    tokens = torch.from_numpy(TOKENS.astype(np.int64))
    for start in range(0, len(TOKENS) - 1, 16):
        context, targets = tokens[start : start + 16], tokens[start + 1 : start + 17]
        if len(targets) < 16:  # the last window is as long as the others and counts what is new
            context, counted = tokens[-17:-1], len(targets)
            nats += torch.nn.functional.cross_entropy(model(context)[-counted:], targets, reduction="sum").item()
        else:
            nats += torch.nn.functional.cross_entropy(model(context), targets, reduction="sum").item()
    assert rows[-1]["valid_loss"] == pytest.approx(nats / (len(TOKENS) - 1), rel=1e-4)


class _FakeTime:
    """A clock that moves when it is told to."""

    now = 100.0

    def monotonic(self):
        return self.now


@pytest.fixture
def one_second_a_step(monkeypatch):
    clock = _FakeTime()
    monkeypatch.setattr(metrics, "time", clock)
    plain = Batches.at

    def at(self, step):
        clock.now += 1.0
        return plain(self, step)

    monkeypatch.setattr(Batches, "at", at)
    return clock


@pytest.mark.parametrize(("limit", "num_steps"), [(10.5, 10), (10.0, 10), (9.9, 9), (1e6, 24)])
def test_no_step_begins_that_would_end_after_the_time(tmp_path, one_second_a_step, limit, num_steps):
    _train(tmp_path, replace(CONFIG, max_seconds=limit))
    curve = [json.loads(line) for line in (tmp_path / METRICS_FILE).read_text().splitlines()]
    assert curve[-1]["seconds"] == curve[-1]["step"] == num_steps
    assert curve[-1]["num_valid_tokens"] == len(TOKENS) - 1
    assert [path.name for path in checkpoint_paths(tmp_path / CHECKPOINTS_FOLDER)][-1] == f"step-{num_steps:09d}.pt"
    before = _files(tmp_path)
    _train(tmp_path, replace(CONFIG, max_seconds=limit))  # its time is up: nothing is added
    assert _files(tmp_path) == before


def test_validating_takes_time_too(tmp_path, one_second_a_step, monkeypatch):
    plain = loop.evaluate

    def slow(*arguments, **options):
        one_second_a_step.now += 3.0 if options["max_batches"] else 0.0
        return plain(*arguments, **options)

    monkeypatch.setattr(loop, "evaluate", slow)
    # Step 10 ends at 10 s, its validation at 13 s: an eleventh step would end at 14 s.
    _train(tmp_path, replace(CONFIG, max_seconds=13.5, valid_interval=10))
    curve = [json.loads(line) for line in (tmp_path / METRICS_FILE).read_text().splitlines()]
    assert curve[-1]["step"] == 10 and curve[-1]["num_valid_tokens"] == len(TOKENS) - 1


def test_time_spent_before_a_stop_counts(tmp_path, one_second_a_step):
    def stop(row):
        if row["step"] == 13:
            raise KeyboardInterrupt

    config = replace(CONFIG, max_seconds=15.5)
    with pytest.raises(KeyboardInterrupt):
        _train(tmp_path, config, report=stop)
    _train(tmp_path, config)  # from step 10, which was done after 10 s
    curve = [json.loads(line) for line in (tmp_path / METRICS_FILE).read_text().splitlines()]
    assert curve[-1]["step"] == curve[-1]["seconds"] == 15


def test_a_schedule_by_the_clock_ends_with_the_time_whatever_the_number_of_steps(tmp_path, one_second_a_step):
    config = replace(CONFIG, num_steps=1_000_000, max_seconds=20.0, schedule_by_clock=True, schedule="wsd")
    _train(tmp_path, config)
    rates = [row["learning_rate"] for row in _curve(tmp_path)]
    assert len(rates) == 20
    assert rates[0] == pytest.approx(0.005) and rates[1:16] == pytest.approx([0.01] * 15)
    falling = [0.01 - 0.009 * (seconds - 16) / 4 for seconds in range(17, 21)]
    assert rates[16:] == pytest.approx(falling)


def test_rates_by_hand():
    by_steps = replace(CONFIG, num_steps=10, warmup_steps=0, schedule="wsd", decay_fraction=0.5)
    assert [by_steps.learning_rate_at(t, 0.0) for t in (1, 5, 10)] == pytest.approx([0.01, 0.01, 0.001])
    cosine = replace(CONFIG, num_steps=1_000_000, schedule_by_clock=True, max_seconds=100.0, warmup_steps=0)
    assert cosine.learning_rate_at(7, 50.0) == pytest.approx(0.0055)
    assert cosine.learning_rate_at(7, 0.0) == pytest.approx(0.01)
    assert cosine.learning_rate_at(7, 130.0) == pytest.approx(0.001)
    few = replace(cosine, num_steps=14)  # that end before the time: the schedule ends with them
    assert few.learning_rate_at(7, 1.0) == pytest.approx(0.0055)
    assert few.learning_rate_at(14, 2.0) == pytest.approx(0.001)


class _Letters:
    """A tokenizer of 19 letters; id 19 ends a text."""

    end_of_text_id = 19

    def encode(self, text):
        return [ord(letter) - ord("a") for letter in text]

    def decode(self, ids):
        return "".join(chr(ord("a") + i) for i in ids if i < 19)


def test_samples_and_norms_are_logged_and_change_nothing(tmp_path, monkeypatch):
    _noisy_model(monkeypatch.setattr)
    config = replace(
        CONFIG,
        sample_interval=12,
        sample_prompts=("abc", "b"),
        sample_tokens=5,
        sample_temperature=0.0,
        norm_interval=8,
    )
    _train(tmp_path / "plain")
    _train(tmp_path / "watched", config, tokenizer=_Letters())
    samples = [json.loads(line) for line in (tmp_path / "watched" / "samples.jsonl").read_text().splitlines()]
    assert [(row["step"], row["prompt"]) for row in samples] == [(12, "abc"), (12, "b"), (24, "abc"), (24, "b")]
    assert samples[2]["text"] == "defgh"  # the pattern is learnt
    curve = _curve(tmp_path / "watched")
    norms = [{key: row.pop(key) for key in list(row) if key.endswith("_norms")} for row in curve]
    assert curve == _curve(tmp_path / "plain")
    assert [bool(some) for some in norms] == [step % 8 == 0 for step in range(1, 25)]
    gradients = norms[7]["gradient_norms"]
    assert gradients.keys() == norms[7]["weight_norms"].keys() == dict(TransformerLM(MODEL).named_parameters()).keys()
    assert math.hypot(*gradients.values()) == pytest.approx(curve[7]["grad_norm"], rel=1e-4)
    assert {"token_embeddings", "layers.0", "layers.0.attn", "layers.0.ffn"} == norms[7]["activation_norms"].keys()
    with pytest.raises(UserError, match="sample_interval needs a tokenizer"):
        _train(tmp_path / "none", config)


def test_too_little_text_is_one_line(tmp_path):
    with pytest.raises(UserError, match="16 training and 5 held-out tokens are too few for a context of 16"):
        train(MODEL, CONFIG, train_tokens=TOKENS[:16], valid_tokens=TOKENS[:5], seed=0, folder=tmp_path, device="cpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("compile_model", [False, True])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_stopped_run_on_a_gpu_goes_on_to_the_same_weights(tmp_path, compile_model, precision):
    # So large that a GPU's blocks share gradients: in a smaller model there is one order to add them up in.
    model = ModelConfig(context_length=512, d_model=128, num_layers=2, num_heads=4, vocab_size=20)
    tokens = np.tile(TOKENS, 20)

    def run(folder, **options):
        config = replace(CONFIG, batch_size=32, precision=precision)
        data = {"train_tokens": tokens, "valid_tokens": tokens, "seed": 0, "device": "cuda"}
        return train(model, config, folder=folder, compile_model=compile_model, **data, **options)

    def stop(row):
        if row["step"] == 17:
            raise KeyboardInterrupt

    whole = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", report=stop)
    resumed = run(tmp_path / "parts")
    assert _curve(tmp_path / "parts") == _curve(tmp_path / "whole")
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_broken_checkpoint_is_named(tmp_path):
    (tmp_path / CHECKPOINTS_FOLDER).mkdir()
    checkpoint_path(tmp_path / CHECKPOINTS_FOLDER, 10).write_bytes(b"not a checkpoint")
    with pytest.raises(UserError, match=r"step-000000010\.pt: not a readable checkpoint"):
        _train(tmp_path)


@pytest.mark.parametrize(
    "bad",
    [
        {"precision": "fp8"},
        {"num_steps": 0},
        {"schedule": "linear"},
        {"optimizer": "sgd"},
        {"micro_batch_size": 3},
        {"decay_fraction": 0.0},
        {"schedule_by_clock": True},
        {"keep_checkpoints": 0},
        {"max_seconds": -1.0},
    ],
)
def test_settings_out_of_range_are_errors(bad):
    with pytest.raises(ValueError):
        replace(CONFIG, **bad)
