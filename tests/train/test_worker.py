"""The training worker's run file: what is wrong with it is one line."""

import json

import pytest

from cs336.documents import Document
from cs336.tokenizer.bpe import Tokenizer
from cs336.tokens.shards import SplitConfig, write_shard
from cs336.train.worker import main

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
