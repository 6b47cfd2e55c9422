"""Training started by the graph on several processes: one process's run, and one line when a process fails."""

import json
import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from cs336.documents import Document
from cs336.files import UserError
from cs336.model.transformer import ModelConfig
from cs336.tokenizer.bpe import Tokenizer
from cs336.tokens.shards import SplitConfig, write_shard
from cs336.train.checkpoint import checkpoint_paths, read_checkpoint
from cs336.train.loop import TrainConfig
from cs336.train.metrics import METRICS_FILE, read_rows
from cs336.train.resume import CHECKPOINTS_FOLDER
from cs336_assets.asset import Step
from cs336_assets.launch import RUN_FILE, train_in_child
from cs336_assets.resources import Runtime

MODEL = ModelConfig(context_length=16, d_model=16, num_layers=2, num_heads=2, vocab_size=257)
CONFIG = TrainConfig(
    batch_size=8,
    num_steps=12,
    learning_rate=1e-2,
    min_learning_rate=1e-3,
    warmup_steps=1,
    eps=1e-4,
    checkpoint_interval=5,
)
ENDLESS = replace(CONFIG, num_steps=1_000_000)


@pytest.fixture
def inputs(tmp_path, monkeypatch):
    """Bytes as tokens, 0 to 255, and an end of text, 256."""
    monkeypatch.setenv("PYTHONWARNINGS", "ignore")  # Dagster's, that nobody listens
    tokenizer = Tokenizer({**{i: bytes([i]) for i in range(256)}, 256: b"<|endoftext|>"}, [], ["<|endoftext|>"])
    tokenizer.save(tmp_path / "tokenizer")
    documents = [
        Document(id=str(i), url=f"a://{i}", text="some words of text " * 5, warc="w", offset=0) for i in range(20)
    ]
    (tmp_path / "shard").mkdir()
    write_shard(tmp_path / "shard", documents, tokenizer, split=SplitConfig(valid_fraction=0.3))
    return {"seed": 0, "token_shards": [tmp_path / "shard"], "tokenizer": tmp_path / "tokenizer"}


def step_in(folder, **options):
    folder.mkdir(exist_ok=True)
    return Step(folder=folder, num_workers=2, device="cpu", **options)


def test_the_environment_says_how_a_run_is_shared(monkeypatch):
    plain = Runtime.from_environment()
    assert (plain.num_processes, plain.parallel, plain.recompute) == (1, "ddp", 0)
    for name, value in (("PROCESSES", "4"), ("PARALLEL", "fsdp2"), ("RECOMPUTE", "2")):
        monkeypatch.setenv(f"CS336_{name}", value)
    chosen = Runtime.from_environment()
    assert (chosen.num_processes, chosen.parallel, chosen.recompute) == (4, "fsdp2", 2)


@pytest.mark.slow
def test_two_processes_make_the_run_of_one(tmp_path, inputs):
    one = train_in_child(step_in(tmp_path / "one"), MODEL, CONFIG, **inputs)
    two = train_in_child(
        step_in(tmp_path / "two", num_processes=2, parallel="fsdp", recompute=1), MODEL, CONFIG, **inputs
    )
    for column in ("step", "train_loss", "grad_norm", "learning_rate"):
        assert [row[column] for row in two] == pytest.approx([row[column] for row in one], rel=1e-4)
    assert two[-1]["valid_loss"] == pytest.approx(one[-1]["valid_loss"], rel=1e-4)
    assert two[-1]["num_valid_tokens"] == one[-1]["num_valid_tokens"]
    names = [sorted(path.name for path in (tmp_path / name).rglob("*")) for name in ("one", "two")]
    assert names[0] == names[1]  # nothing tells the number of processes
    assert (tmp_path / "one" / RUN_FILE).read_bytes() == (tmp_path / "two" / RUN_FILE).read_bytes()


def pid_of(rank, folder):
    """The process of a rank of the job that writes into a folder."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            environment = (process / "environ").read_text(errors="replace").split("\0")
        except OSError:  # it has ended, or is another user's
            continue
        if f"RANK={rank}" in environment and any(str(folder) in value for value in environment):
            return int(process.name)
    raise LookupError(f"no process of rank {rank}")


def when_trained_for(num_steps, folder, act):
    """Run `act` in a thread as soon as so many steps are done."""

    def wait():
        while sum(1 for _ in read_rows(folder / METRICS_FILE)) < num_steps:
            time.sleep(0.05)
        act()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()


@pytest.mark.parametrize(("form", "rank"), [("ddp", 1), pytest.param("fsdp2", 0, marks=pytest.mark.slow)])
def test_a_killed_process_ends_the_others_in_one_line_and_its_checkpoints_stay(tmp_path, inputs, capfd, form, rank):
    folder, killed_at = tmp_path / "run", []

    def kill():
        os.kill(pid_of(rank, folder), signal.SIGKILL)
        killed_at.append(time.monotonic())

    when_trained_for(12, folder, kill)
    which = f"of rank {rank} " if rank else ""
    with pytest.raises(UserError, match=rf"^the training worker {which}ended with exit code -9 \(killed; out of memo"):
        train_in_child(step_in(folder, num_processes=2, parallel=form), MODEL, ENDLESS, **inputs)
    assert time.monotonic() - killed_at[0] < 15
    with pytest.raises(LookupError):
        pid_of(1 - rank, folder)
    assert capfd.readouterr() == ("", "")
    last = read_checkpoint(checkpoint_paths(folder / CHECKPOINTS_FOLDER)[-1])
    assert last["iteration"] >= 10 and last["model"].keys()


def test_weights_that_are_not_finite_end_all_processes_in_the_first_ones_line(tmp_path, inputs, capfd):
    config = replace(ENDLESS, learning_rate=1e30, min_learning_rate=1e30, max_grad_norm=1e30)
    with pytest.raises(UserError, match=r"; lower learning_rate, or look at that text$") as caught:
        train_in_child(step_in(tmp_path / "run", num_processes=2), MODEL, config, **inputs)
    assert "\n" not in str(caught.value) and "at step" in str(caught.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_a_full_disk_ends_all_processes_in_one_line(tmp_path, inputs, small_disk, capfd):
    folder = small_disk("400k") / "run"
    with pytest.raises(UserError, match="the disk is full"):
        train_in_child(step_in(folder, num_processes=2, parallel="zero1"), MODEL, ENDLESS, **inputs)
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_a_batch_that_does_not_divide_is_one_line(tmp_path, inputs):
    with pytest.raises(UserError, match=r"^batch_size 9 does not divide by 2 processes; start another number"):
        train_in_child(step_in(tmp_path / "run", num_processes=2), MODEL, replace(CONFIG, batch_size=9), **inputs)
    assert json.loads((tmp_path / "run" / RUN_FILE).read_text())["train"]["batch_size"] == 9
