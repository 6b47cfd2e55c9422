"""The training worker's run file: what is wrong with it is one line."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cs336.documents import Document
from cs336.tokenizer.bpe import Tokenizer
from cs336.tokens.shards import SplitConfig, write_shard
from cs336.train.metrics import METRICS_FILE, read_rows
from cs336.train.worker import main

ROOT = Path(__file__).parents[2]
MODEL = {"context_length": 8, "d_model": 8, "num_layers": 1, "num_heads": 2, "vocab_size": 20}
TRAIN = {"batch_size": 2, "num_steps": 2, "learning_rate": 0.01, "min_learning_rate": 0.001, "warmup_steps": 1}
RUN = {"model": MODEL, "train": TRAIN, "seed": 0, "folder": "out", "token_shards": []}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seeds": 1}, "has an unknown seeds"),
        ({"token_shrds": []}, "has an unknown token_shrds"),
        ({"train": {**TRAIN, "num_step": 3}}, "TrainConfig has no setting num_step"),
        ({"train": {"batch_size": 2}}, "TrainConfig needs learning_rate, min_learning_rate, num_steps, warmup_steps"),
        ({"train": {**TRAIN, "schedule": "linear"}}, 'schedule is "cosine" or "wsd"'),
        ({"model": {**MODEL, "num_heads": 3}}, "num_heads must divide d_model"),
    ],
)
def test_a_mistake_in_the_run_file_is_one_line(tmp_path, capsys, changes, said):
    path = tmp_path / "mine.json"  # errors name the file that was given
    path.write_text(json.dumps(RUN | {"folder": str(tmp_path / "out")} | changes))
    assert main([str(path)]) == 1
    line = capsys.readouterr().err
    assert line.startswith(f"{path}: ") and said in line and line.count("\n") == 1


@pytest.fixture
def shard(tmp_path):
    """Bytes as tokens, 0 to 255, and an end of text, 256."""
    tokenizer = Tokenizer({**{i: bytes([i]) for i in range(256)}, 256: b"<|endoftext|>"}, [], ["<|endoftext|>"])
    tokenizer.save(tmp_path / "tokenizer")
    documents = [
        Document(id=str(i), url=f"a://{i}", text="some words of text " * 5, warc="w", offset=0) for i in range(20)
    ]
    (tmp_path / "shard").mkdir()
    write_shard(tmp_path / "shard", documents, tokenizer, split=SplitConfig(valid_fraction=0.3))
    return tmp_path


def _described(folder, **changes):
    path = folder / "run.json"
    run = RUN | {"folder": str(folder / "out"), "token_shards": [str(folder / "shard")]}
    path.write_text(json.dumps(run | changes))
    return main([str(path)])


def test_a_vocabulary_smaller_than_the_ids_is_one_line(shard, capsys):
    assert _described(shard, model={**MODEL, "vocab_size": 200}) == 1
    assert "the token shards hold id 256, but the model's vocab_size is 200" in capsys.readouterr().err


def test_without_a_vocabulary_size_the_tokenizers_is_taken(shard, capsys):
    model = {name: value for name, value in MODEL.items() if name != "vocab_size"}
    assert _described(shard, model=model) == 1
    assert "model needs vocab_size, or name the tokenizer" in capsys.readouterr().err
    assert _described(shard, model=model, tokenizer=str(shard / "tokenizer")) == 0
    assert json.loads((shard / "out" / "config.json").read_text())["vocab_size"] == 257
    assert f"{shard / 'out'}: 2 steps in " in capsys.readouterr().out
    assert _described(shard, model=model, tokenizer=str(shard / "tokenizer")) == 0
    assert capsys.readouterr().out == f"{shard / 'out'}: was finished already\n"


def _torchrun(run_file, *options):
    """Two processes under torchrun itself, without a GPU."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "cs336.train.worker", str(run_file), *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)


def _children(pid):
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


@pytest.mark.skipif(sys.platform != "linux", reason="finds the ranks in /proc")
@pytest.mark.parametrize("rank", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_of_several_processes_of_which_one_is_killed_another_says_so_in_one_line(shard, rank):
    run = RUN | {"folder": str(shard / "out"), "token_shards": [str(shard / "shard")], "device": "cpu"}
    run |= {"model": {**MODEL, "vocab_size": 257}, "train": {**TRAIN, "num_steps": 1_000_000}}
    (shard / "run.json").write_text(json.dumps(run))
    job = _torchrun(shard / "run.json", "--parallel", "zero1")
    while sum(1 for _ in read_rows(shard / "out" / METRICS_FILE)) < 5:
        assert job.poll() is None, job.stderr.read()
        time.sleep(0.05)
    ranks = _children(job.pid)
    killed = next(pid for pid in ranks if f"\0RANK={rank}\0" in Path(f"/proc/{pid}/environ").read_text())
    os.kill(int(killed), signal.SIGKILL)
    before = time.monotonic()
    said = job.communicate(timeout=60)[1].splitlines()
    assert time.monotonic() - before < 20 and job.returncode == 1
    assert sum("another process of this job" in line for line in said) == 1
    assert not any(Path(f"/proc/{pid}").exists() for pid in ranks)


@pytest.mark.slow
def test_a_mistake_that_all_processes_meet_is_said_once(shard):
    run = RUN | {"folder": str(shard / "out"), "token_shards": [str(shard / "shard")], "device": "cpu"}
    (shard / "run.json").write_text(json.dumps(run | {"seeds": 1}))
    said = _torchrun(shard / "run.json").communicate(timeout=60)[1]
    assert said.count("has an unknown seeds") == 1
