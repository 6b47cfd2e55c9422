"""Instruction tuning on packed rows: the first loss from the logits, learning, and going on after a kill."""

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cs336.posttrain.instruction_sft import InstructionSftConfig, train_instruction_sft
from cs336.tokens.packing import PackedInstructions, shuffled
from tests.posttrain.models import CONTEXT, MODELS, Saved, assert_same_weights, curve, weights

CONFIG = InstructionSftConfig(
    batch_size=16, micro_batch_size=3, learning_rate=1e-2, seq_length=CONTEXT, num_epochs=2, valid_interval=2
)


@pytest.fixture
def paths(tmp_path):
    return _write(tmp_path)


def _write(folder):
    """Training and validation files."""
    for name, letters in (("train", "abcdefghijkl"), ("valid", "mn")):
        rows = [{"prompt": f"say {letter}", "response": f"yes {letter}"} for letter in letters]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "train.jsonl", folder / "valid.jsonl"


def _run(folder, paths, kind="ours", config=CONFIG, dropout=0.1, **options):
    model = MODELS[kind](dropout=dropout)
    return model, train_instruction_sft(model, Saved(), *paths, config, seed=0, folder=folder, **options)


@pytest.mark.parametrize("kind", MODELS)
def test_the_loss_is_the_mean_over_every_token_and_falls(kind, paths, tmp_path):
    _, outcome = _run(tmp_path / "run", paths, kind, dropout=0.0)
    rows = curve(tmp_path / "run")
    train, valid = (PackedInstructions(Saved(), path, CONTEXT, shuffle=path is paths[0], seed=0) for path in paths)
    model = MODELS[kind]()

    def mean_nats(dataset, places):
        batch = [dataset[place] for place in places]
        output = model(torch.stack([row["input_ids"] for row in batch]))
        logits = getattr(output, "logits", output)
        labels = torch.stack([row["labels"] for row in batch])
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten()).item()

    assert rows[0]["valid_loss"] == pytest.approx(mean_nats(valid, range(len(valid))), rel=1e-5)
    expected = mean_nats(train, shuffled(len(train), seed=0, epoch=0)[:16])
    assert rows[1]["train_loss"] == pytest.approx(expected, rel=1e-5)
    steps_per_epoch = -(-len(train) // 16)
    assert outcome.last_step == 2 * steps_per_epoch
    assert [row["num_examples"] for row in rows[1:]] == 2 * ([16] * (steps_per_epoch - 1) + [len(train) % 16 or 16])
    assert rows[1]["num_tokens"] == 16 * CONTEXT
    assert outcome.best["valid_loss"] < rows[0]["valid_loss"] - 0.5


def test_micro_batches_change_nothing_but_rounding(paths, tmp_path):
    ends = []
    for size in (0, 5):
        model = MODELS["ours"]()
        config = replace(CONFIG, micro_batch_size=size, learning_rate=1e-3)
        train_instruction_sft(model, Saved(), *paths, config, seed=0, folder=tmp_path / str(size))
        ends.append(list(model.parameters()))
    for ours, theirs in zip(*ends, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


KILLED = """
import os, signal, sys
from pathlib import Path
from tests.posttrain.test_instruction_sft import _run, _write
def kill(row):
    if row["step"] == 5:
        os.kill(os.getpid(), signal.SIGKILL)
folder = Path(sys.argv[1])
_run(folder / "killed", _write(folder), report=kill)
"""


def test_a_killed_run_ends_with_the_same_bytes(paths, tmp_path):
    root = Path(__file__).parents[2]
    killed = subprocess.run([sys.executable, "-c", KILLED, tmp_path], cwd=root, check=False)
    assert killed.returncode == -signal.SIGKILL
    seen = []
    resumed, _ = _run(tmp_path / "killed", paths, report=lambda row: seen.append(row["step"]))
    assert seen[0] in (3, 5)
    whole, _ = _run(tmp_path / "whole", paths)
    assert_same_weights(weights(resumed), weights(whole))
    assert curve(tmp_path / "killed") == curve(tmp_path / "whole")


def test_model_and_tokenizer_of_transformers_are_saved_to_one_folder(paths, tmp_path, shared_data):
    transformers = pytest.importorskip("transformers")
    from cs336.tokenizer.bpe import Tokenizer

    gpt2 = shared_data / "tokenizer"
    files = gpt2 / "gpt2_vocab.json.gz", gpt2 / "gpt2_merges.txt.gz"
    Tokenizer.from_files(*files, ["<|endoftext|>"]).save(tmp_path / "tokenizer")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.Qwen2Config(vocab_size=50_257, num_key_value_heads=1, tie_word_embeddings=True, **shape)
    model = transformers.Qwen2ForCausalLM(config)
    settings = replace(CONFIG, num_epochs=1, seq_length=16)
    train_instruction_sft(model, tokenizer, *paths, settings, seed=0, folder=tmp_path / "run")
    read = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "run")
    assert_same_weights(weights(read), weights(model))
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "run").encode("a test") == tokenizer.encode("a test")


def test_too_little_text_and_rows_beyond_the_context_are_refused(paths, tmp_path):
    with pytest.raises(ValueError, match="seq_length 41 exceeds the model's context of 40"):
        _run(tmp_path / "a", paths, config=replace(CONFIG, seq_length=41))
    (tmp_path / "valid.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"valid\.jsonl: 0 tokens do not fill a row of 40"):
        _run(tmp_path / "b", paths)


def test_the_defaults_are_the_handouts():
    config = InstructionSftConfig()
    assert (config.num_epochs, config.seq_length, config.batch_size, config.examples_at_once) == (1, 512, 32, 2)
    assert (config.learning_rate, config.schedule, config.warmup_fraction) == (2e-5, "cosine", 0.03)
    assert config.learning_rate_at(1, 100) == pytest.approx(2e-5 / 3)
