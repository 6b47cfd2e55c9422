"""Ids from any tokenizer: ours, ours in batches, and transformers', with and without its special tokens."""

import json
from types import SimpleNamespace

import pytest

from cs336.tokenizer.bpe import Tokenizer
from cs336.tokens import codec
from cs336.tokens.codec import encode_texts, end_of_text_id, pad_id
from tests.posttrain.tokenizers import BOS, END, Letters, TheirLetters

TEXTS = ["abc", "", "a b.", "zz"]


@pytest.fixture
def ours():
    vocab = {number: bytes([number]) for number in range(256)} | {256: b"ab", 257: b"<|endoftext|>"}
    return Tokenizer(vocab, [(b"a", b"b")], ["<|endoftext|>"])


@pytest.mark.parametrize("at_once", [1, 3, 100])
def test_texts_keep_their_order_however_many_are_taken_at_once(at_once, ours, monkeypatch):
    monkeypatch.setattr(codec, "_TEXTS_AT_ONCE", at_once)
    for tokenizer in (ours, Letters()):
        for special_tokens in (True, False):
            found = list(encode_texts(tokenizer, TEXTS, special_tokens=special_tokens))
            assert found == [tokenizer.encode(text) for text in TEXTS]
            assert all(type(number) is int for ids in found for number in ids)


def test_special_tokens_of_transformers_come_only_where_asked_for():
    plain = [Letters().encode(text) for text in TEXTS]
    assert list(encode_texts(TheirLetters(), TEXTS, special_tokens=False)) == plain
    assert list(encode_texts(TheirLetters(), TEXTS, special_tokens=True)) == [[BOS, *ids] for ids in plain]


def test_a_real_tokenizer_of_transformers_that_begins_texts(ours, tmp_path):
    transformers = pytest.importorskip("transformers")
    ours.save(tmp_path)
    file = tmp_path / "tokenizer.json"
    values = json.loads(file.read_text())
    begin = {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}
    values["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [begin, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [257], "tokens": ["<|endoftext|>"]}},
    }
    file.write_text(json.dumps(values))
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(file), eos_token="<|endoftext|>")
    plain = [ours.encode(text) for text in TEXTS]
    assert list(encode_texts(theirs, TEXTS, special_tokens=False)) == plain
    assert list(encode_texts(theirs, TEXTS, special_tokens=True)) == [[257, *ids] for ids in plain]
    assert end_of_text_id(theirs) == pad_id(theirs) == 257


def test_ends_and_padding(ours):
    assert end_of_text_id(ours) == pad_id(ours) == 257
    assert end_of_text_id(TheirLetters()) == pad_id(TheirLetters()) == END
    assert pad_id(SimpleNamespace(eos_token_id=3, pad_token_id=7)) == 7
    assert pad_id(SimpleNamespace(eos_token_id=3, pad_token_id=None)) == 3
    with pytest.raises(ValueError, match="no end-of-text token"):
        end_of_text_id(SimpleNamespace(eos_token_id=None))
