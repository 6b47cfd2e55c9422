"""A model is read with its tokenizer wherever it is, and what is missing is one line."""

import dataclasses
import shutil

import pytest
import torch

from cs336.files import UserError
from cs336.generate.checkpoints import find_checkpoint, load_checkpoint
from cs336.model.huggingface import save_huggingface
from cs336.model.transformer import ModelConfig, TransformerLM
from cs336.posttrain.policy import save_policy
from cs336.tokenizer.bpe import Tokenizer

BYTES = Tokenizer({number: bytes([number]) for number in range(256)}, [], ["<|endoftext|>"])
TEXT = "Grüße, 12 eggs."


@pytest.fixture
def model():
    torch.manual_seed(0)
    shape = ModelConfig(vocab_size=257, context_length=64, d_model=16, num_layers=1, num_heads=2, d_ff=32)
    return TransformerLM(shape).eval()


def _logits(model):
    with torch.no_grad():
        return model(torch.tensor([BYTES.encode(TEXT)]))


def test_a_folder_of_ours_with_its_tokenizer_inside(model, tmp_path):
    save_policy(model, BYTES, tmp_path)
    read = load_checkpoint(tmp_path)
    assert torch.equal(_logits(read.model), _logits(model)) and not read.is_huggingface
    assert read.codec.encode(TEXT) == BYTES.encode(TEXT) and read.codec is read.tokenizer


def test_a_tokenizer_beside_the_folder_or_named(model, tmp_path):
    save_policy(model, None, tmp_path / "base_model")
    with pytest.raises(UserError, match="has no tokenizer with it"):
        load_checkpoint(tmp_path / "base_model")
    (tmp_path / "tokenizer").mkdir()
    BYTES.save(tmp_path / "tokenizer")
    assert load_checkpoint(tmp_path / "base_model").codec.vocab_size == 257
    named = shutil.move(tmp_path / "tokenizer", tmp_path / "elsewhere")
    assert load_checkpoint(tmp_path / "base_model", tokenizer=named).codec.vocab_size == 257


def test_a_hugging_face_checkpoint_keeps_its_own_tokenizer_and_as_much_context_as_asked_for(model, tmp_path):
    save_huggingface(model, tmp_path / "theirs", tokenizer=BYTES)
    read = load_checkpoint(tmp_path / "theirs", max_context=32)
    assert read.is_huggingface and read.model.config.context_length == 32
    assert load_checkpoint(tmp_path / "theirs", max_context=1_000).model.config.context_length == 64
    torch.testing.assert_close(_logits(read.model), _logits(model))
    assert read.codec.encode(TEXT) == BYTES.encode(TEXT)
    assert read.codec.end_of_text_id == BYTES.end_of_text_id and read.codec.decode(BYTES.encode(TEXT)) == TEXT


def test_a_checkpoint_without_its_tokenizer_is_refused(tmp_path):
    """transformers makes an empty one, to which every text is nothing."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    Qwen2ForCausalLM(Qwen2Config(vocab_size=300, num_key_value_heads=2, **sizes)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="tokenizer"):
        load_checkpoint(tmp_path)


def test_a_tuned_checkpoint_is_ours_with_their_tokenizer(model, tmp_path):
    save_huggingface(model, tmp_path / "theirs", tokenizer=BYTES)
    start = load_checkpoint(tmp_path / "theirs")
    save_policy(start.model, start.tokenizer, tmp_path / "tuned")
    assert not (tmp_path / "tuned" / "bpe.json").exists()
    tuned = load_checkpoint(tmp_path / "tuned")
    assert not tuned.is_huggingface and hasattr(tuned.tokenizer, "eos_token_id")
    torch.testing.assert_close(_logits(tuned.model), _logits(model))
    assert tuned.codec.encode(TEXT) == start.codec.encode(TEXT)


def test_weights_stay_in_the_type_that_they_are_stored_in(model, tmp_path):
    for folder, dtype in (("whole", torch.float32), ("half", torch.bfloat16)):
        (tmp_path / folder).mkdir()
        save_policy(model.to(dtype), BYTES, tmp_path / folder)
        read = load_checkpoint(tmp_path / folder).model
        assert {weight.dtype for weight in read.parameters()} == {dtype}
    (tmp_path / "half" / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(UserError, match="not a readable safetensors file"):
        load_checkpoint(tmp_path / "half")


def test_a_tokenizer_of_another_training_is_refused(model, tmp_path):
    small = TransformerLM(dataclasses.replace(model.config, vocab_size=200))
    save_policy(small, BYTES, tmp_path)
    with pytest.raises(UserError, match="257 tokens, the model knows 200"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("./nowhere", "no such folder; give that of a model, or a name on the hub"),
        ("nowhere", "no such folder"),
        ("someone/something", "no folder here, and the hub does not give it"),  # tests are offline
        ("llama-3.1-8b", "is not on this machine"),
    ],
)
def test_what_is_not_there_is_one_line(source, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CS336_DATA", raising=False)
    monkeypatch.setenv("CS336_DOWNLOADS", str(tmp_path))
    with pytest.raises(UserError, match=said) as caught:
        find_checkpoint(source)
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_model_says_so(tmp_path):
    with pytest.raises(UserError, match="holds no finished model"):
        find_checkpoint(tmp_path)


def test_catalogue_names_and_hub_ids_mean_the_same(tmp_path, monkeypatch):
    monkeypatch.setenv("CS336_DATA", str(tmp_path))
    monkeypatch.setenv("CS336_DOWNLOADS", str(tmp_path / "downloads"))
    for name in ("qwen2.5-math-1.5b", "Qwen/Qwen2.5-Math-1.5B"):
        with pytest.raises(UserError, match=r"cs336 data fetch qwen2\.5-math-1\.5b"):
            find_checkpoint(name)
    mirrored = tmp_path / "weights" / "Qwen2.5-Math-1.5B"
    mirrored.mkdir(parents=True)
    assert find_checkpoint("qwen2.5-math-1.5b") == find_checkpoint("Qwen/Qwen2.5-Math-1.5B") == mirrored
