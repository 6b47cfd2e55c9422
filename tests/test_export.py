"""`cs336 export`: a preset's model opens in transformers; mistakes are one line."""

from dataclasses import replace

import pytest
import torch

from cs336.cli import main
from cs336.generate.checkpoints import load_checkpoint
from cs336.model.transformer import ModelConfig, TransformerLM, save_model
from cs336.posttrain.policy import save_policy
from cs336.store import Store
from cs336.tokenizer.bpe import END_OF_TEXT, Tokenizer
from tests.generate.toy import save_qwen2_of_letters

MODEL = ModelConfig(context_length=16, d_model=32, num_layers=2, num_heads=4, vocab_size=259)


@pytest.fixture
def artifacts(tmp_path, monkeypatch):
    """The artifacts of preset tiny that a model's readers need; returns a function that makes them."""
    monkeypatch.setenv("CS336_ARTIFACTS", str(tmp_path / "artifacts"))
    store = Store("tiny")

    def make(config):
        model = TransformerLM(config).eval()
        for asset in ("base_model", "tokenizer"):
            store.path(asset).mkdir(parents=True)
        save_model(model, store.path("base_model"))
        vocab = {i: bytes([i]) for i in range(256)} | {256: b"ca", 257: b"in"}
        merges = [(b"c", b"a"), (b"i", b"n")]
        Tokenizer(vocab, merges, [END_OF_TEXT]).save(store.path("tokenizer"))
        return model

    return make


TEXT = "Größe: 12 naïve cafés, it's\n\n  fine 👍🏽<|endoftext|>again"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_exported_folder_opens_in_transformers(dtype, artifacts, tmp_path, capsys):
    transformers = pytest.importorskip("transformers")
    model = artifacts(MODEL)
    assert main(["export", str(tmp_path / "out"), "--dtype", dtype]) == 0
    printed = capsys.readouterr().out
    assert f"{sum(p.numel() for p in model.parameters()):,} parameters in {dtype}" in printed
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert theirs.dtype == getattr(torch, dtype)
    ids = torch.randint(0, 259, (2, 16))
    tolerance = 1e-4 if dtype == "float32" else 0.1
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    ours = Tokenizer.load(Store("tiny").path("tokenizer"))
    assert tokenizer.encode(TEXT) == ours.encode(TEXT) and ours.encode(TEXT).count(ours.end_of_text_id) == 1
    assert tokenizer.decode(ours.encode(TEXT)) == TEXT
    assert tokenizer.eos_token_id == theirs.config.eos_token_id == ours.end_of_text_id
    assert Tokenizer.load(tmp_path / "out").encode(TEXT) == ours.encode(TEXT)
    torch.testing.assert_close(theirs.float()(ids).logits, model(ids), atol=tolerance, rtol=tolerance)


def test_a_policy_of_another_tokenizer_goes_out_as_it_came_in(tmp_path, capsys):
    """What GRPO makes of a checkpoint of the Hub: weights in our form, and the tokenizer of transformers."""
    transformers = pytest.importorskip("transformers")
    save_qwen2_of_letters(tmp_path / "theirs")
    came = load_checkpoint(tmp_path / "theirs")
    save_policy(came.model, came.tokenizer, tmp_path / "policy")
    assert main(["export", str(tmp_path / "out"), "--model", str(tmp_path / "policy")]) == 0
    assert f'AutoTokenizer.from_pretrained("{tmp_path / "out"}")' in capsys.readouterr().out
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    ids = came.tokenizer.encode("abc")
    assert tokenizer.encode("abc") == ids
    assert theirs.config.eos_token_id == came.tokenizer.eos_token_id
    assert theirs.config.bos_token_id == came.tokenizer.bos_token_id
    torch.testing.assert_close(theirs(torch.tensor([ids])).logits, came.model(torch.tensor([ids])))
    assert main(["generate", "abc", "--model", str(tmp_path / "policy"), "--tokens", "3"]) == 0
    assert capsys.readouterr().out.startswith("abc")


def test_a_folder_that_holds_something_is_left_alone(artifacts, tmp_path, capsys):
    artifacts(MODEL)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    assert main(["export", str(tmp_path / "out")]) == 1
    printed = capsys.readouterr().err
    assert "is there already; name a new folder" in printed and len(printed.splitlines()) == 1
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_a_model_that_transformers_has_not_is_one_line(artifacts, tmp_path, capsys):
    artifacts(replace(MODEL, norm="post"))
    assert main(["export", str(tmp_path / "out")]) == 1
    printed = capsys.readouterr().err
    assert "know no norm='post'" in printed and len(printed.splitlines()) == 1
    assert not (tmp_path / "out").exists()
