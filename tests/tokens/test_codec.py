"""Ids from any tokenizer: ours, ours in batches, and transformers', with and without its special tokens."""

import json
from types import SimpleNamespace

import pytest

from cs336.generate.backend import HuggingFaceCodec
from cs336.posttrain.sft import encode_examples
from cs336.tokenizer.bpe import Tokenizer
from cs336.tokens import codec
from cs336.tokens.codec import bos_ids, crop_prompt, encode_prompts, encode_texts, end_of_text_id, pad_id
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


def _llamas(before: bool, after: bool):
    """A tokenizer of transformers that knows `<begin>`, and puts it before texts, and an end behind them, or not."""
    tokenizers, transformers = pytest.importorskip("tokenizers"), pytest.importorskip("transformers")
    vocab = {letter: number for number, letter in enumerate("abc")} | {"<begin>": 3, "<end>": 4}
    inner = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, []))
    inner.post_processor = tokenizers.processors.TemplateProcessing(
        single="<begin> " * before + "$A" + " <end>" * after, special_tokens=[("<begin>", 3), ("<end>", 4)]
    )
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<begin>", eos_token="<end>")


@pytest.mark.parametrize("after", [True, False])
@pytest.mark.parametrize("before", [True, False])
def test_a_prompt_begins_once_as_its_tokenizer_has_it_for_engine_and_trainer_alike(before, after):
    theirs, bos = _llamas(before, after), [3] * before
    prompts = ["ab", "<begin>ab", "", "c"]
    expected = [[*bos, 0, 1], [3, 0, 1], bos, [*bos, 2]]
    assert list(encode_prompts(theirs, prompts)) == expected
    engines, ours = HuggingFaceCodec(theirs), Letters()
    assert [engines.encode(prompt) for prompt in prompts] == expected
    assert bos_ids(theirs) == bos_ids(engines) == bos
    rows = encode_examples(theirs, [(prompt, "c") for prompt in prompts], end_of_text=False, max_tokens=None)
    assert rows == [(ids, [2]) for ids in expected]
    assert bos_ids(ours) == [] and list(encode_prompts(ours, ["ab"])) == [ours.encode("ab")]
    if before and not after:  # as vLLM encodes a text
        assert theirs.encode("ab") == expected[0]


def test_a_prompt_that_is_cut_keeps_what_stands_before_texts():
    llamas, qwens = _llamas(True, False), _llamas(False, False)
    assert crop_prompt(llamas, [3, 0, 1, 2], 4) == [3, 0, 1, 2]
    assert crop_prompt(llamas, [3, 0, 1, 2], 3) == crop_prompt(HuggingFaceCodec(llamas), [3, 0, 1, 2], 3) == [3, 1, 2]
    assert crop_prompt(qwens, [3, 0, 1, 2], 3) == crop_prompt(Letters(), [3, 0, 1, 2], 3) == [0, 1, 2]
    assert crop_prompt(llamas, [3, 0, 1, 2], 1) == [2]  # of no use without a token of the prompt


def test_ends_and_padding(ours):
    assert end_of_text_id(ours) == pad_id(ours) == 257
    assert end_of_text_id(TheirLetters()) == pad_id(TheirLetters()) == END
    assert pad_id(SimpleNamespace(eos_token_id=3, pad_token_id=7)) == 7
    assert pad_id(SimpleNamespace(eos_token_id=3, pad_token_id=None)) == 3
    with pytest.raises(ValueError, match="no end-of-text token"):
        end_of_text_id(SimpleNamespace(eos_token_id=None))
