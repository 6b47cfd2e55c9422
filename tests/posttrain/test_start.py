"""Where policies start: folders of ours, checkpoints as the Hub has them."""

import json
import shutil

import pytest
import torch

from cs336.files import UserError
from cs336.fingerprint import jsonable
from cs336.model.huggingface import save_huggingface
from cs336.model.transformer import ModelConfig, TransformerLM, load_model, save_model
from cs336.posttrain.policy import save_policy
from cs336.posttrain.start import (
    CHECKPOINT_FILE,
    PolicyConfig,
    load_policy,
    shape_of,
    write_start,
)
from cs336.tokenizer.bpe import Tokenizer
from cs336.tokenizer.formats import END_OF_TEXT, OWN_FILE

TOKENIZER = Tokenizer(
    {number: bytes([number]) for number in range(256)} | {256: END_OF_TEXT.encode()}, [], [END_OF_TEXT]
)
TEXT = "User: What is 3+4?\nAssistant: <think>"


def _model():
    torch.manual_seed(0)
    return TransformerLM(ModelConfig(vocab_size=257, context_length=64, d_model=32, num_layers=1, num_heads=2)).eval()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A checkpoint with a tokenizer of transformers alone, as downloaded ones have it."""
    folder = tmp_path_factory.mktemp("hub") / "checkpoint"
    save_huggingface(_model(), folder, tokenizer=TOKENIZER)
    (folder / OWN_FILE).unlink()
    return folder


def _logits(model, tokenizer):
    ids = torch.tensor([tokenizer.encode(TEXT)])
    with torch.no_grad():
        return model(ids).float()


def test_a_folder_of_ours_is_read_in_the_type_asked_for(tmp_path):
    save_policy(_model(), TOKENIZER, tmp_path)
    model, tokenizer = load_policy(tmp_path, PolicyConfig())
    assert isinstance(tokenizer, Tokenizer) and shape_of(tmp_path, PolicyConfig()) == model.config
    torch.testing.assert_close(_logits(model, tokenizer), _logits(_model(), TOKENIZER), rtol=0, atol=0)
    half, _ = load_policy(tmp_path, PolicyConfig(dtype="bfloat16"))
    assert {weight.dtype for weight in half.parameters()} == {torch.bfloat16}
    rope = next(module for module in half.modules() if hasattr(module, "cos"))
    assert rope.cos.dtype == torch.float32, "rotations lose their precision in bfloat16"
    assert next(load_model(tmp_path).parameters()).dtype == torch.float32


def test_a_checkpoint_stays_where_it_is_and_is_trained_as_ours(checkpoint, tmp_path):
    config = PolicyConfig(start=str(checkpoint), context_length=48)
    write_start(tmp_path, config)
    assert [path.name for path in tmp_path.iterdir()] == [CHECKPOINT_FILE]
    model, tokenizer = load_policy(tmp_path, config)
    assert model.config.context_length == 48 and model.config == shape_of(tmp_path, config)
    expected = _logits(_model(), TOKENIZER)
    torch.testing.assert_close(_logits(model, tokenizer), expected, rtol=1e-4, atol=1e-5)
    trained = tmp_path / "trained"
    trained.mkdir()
    save_policy(model, tokenizer, trained)
    again, its_tokenizer = load_policy(trained, config)
    torch.testing.assert_close(_logits(again, its_tokenizer), _logits(model, tokenizer), rtol=0, atol=0)
    assert its_tokenizer.decode(its_tokenizer.encode(TEXT)) == TEXT


def test_what_a_checkpoint_holds_is_known_by_its_bytes_not_its_place(checkpoint, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "copy")
    ours, copied = (jsonable(PolicyConfig(start=str(folder))) for folder in (checkpoint, tmp_path / "copy"))
    assert ours == copied and str(checkpoint) not in json.dumps(ours)
    other = _model()
    other.lm_head.weight.data += 1
    shutil.rmtree(tmp_path / "copy")
    save_huggingface(other, tmp_path / "copy", tokenizer=TOKENIZER)
    (tmp_path / "copy" / OWN_FILE).unlink()
    assert {path.name for path in (tmp_path / "copy").iterdir()} == {path.name for path in checkpoint.iterdir()}
    assert jsonable(PolicyConfig(start=str(tmp_path / "copy"))) != ours


def test_how_devices_are_shared_out_makes_no_other_policy(checkpoint):
    alone = PolicyConfig(start=str(checkpoint))
    shared = {"generator_device": "cuda:1", "hand_over": True, "memory_share": 0.6}
    assert jsonable(alone) == jsonable(PolicyConfig(start=str(checkpoint), **shared))
    assert jsonable(alone) != jsonable(PolicyConfig(start=str(checkpoint), context_length=8))


def test_settings_outside_their_range_are_refused():
    refused = [{"dtype": "float16"}, {"generator": "theirs"}, {"context_length": -1}, {"memory_share": 1.0}]
    for changes in [*refused, {"generator_device": "1"}, {"generator_device": "cpu"}]:
        with pytest.raises(ValueError, match=next(iter(changes))):
            PolicyConfig(**changes)


def test_a_model_alone_has_no_tokenizer(tmp_path):
    save_model(_model(), tmp_path)
    with pytest.raises(UserError, match="tokenizer"):
        load_policy(tmp_path, PolicyConfig())
