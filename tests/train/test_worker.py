"""The training worker's run file: what is wrong with it is one line."""

import json

import pytest

from cs336.train.worker import main

MODEL = {"context_length": 8, "d_model": 8, "num_layers": 1, "num_heads": 2, "vocab_size": 20}
TRAIN = {"batch_size": 2, "num_steps": 2, "learning_rate": 0.01, "min_learning_rate": 0.001, "warmup_steps": 1}
RUN = {"model": MODEL, "train": TRAIN, "seed": 0, "folder": "out", "token_shards": []}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seeds": 1}, "has an unknown seeds"),
        ({"train": {**TRAIN, "num_step": 3}}, "TrainConfig has no setting num_step"),
        ({"train": {"batch_size": 2}}, "TrainConfig needs learning_rate, min_learning_rate, num_steps, warmup_steps"),
        ({"train": {**TRAIN, "schedule": "linear"}}, 'schedule is "cosine" or "wsd"'),
        ({"model": {**MODEL, "num_heads": 3}}, "num_heads must divide d_model"),
    ],
)
def test_a_mistake_in_the_run_file_is_one_line(tmp_path, capsys, changes, said):
    path = tmp_path / "run.json"
    path.write_text(json.dumps(RUN | {"folder": str(tmp_path / "out")} | changes))
    assert main([str(path)]) == 1
    line = capsys.readouterr().err
    assert line.startswith("run.json: ") and said in line and line.count("\n") == 1
