"""Batches of prompts and outputs: by hand, against a slow reading of the definition, with real tokenizers."""

import pytest
import torch

from cs336.posttrain.tokenize import first_response_column, prompt_and_output_batch, tokenize_prompt_and_output
from cs336.tokenizer.bpe import Tokenizer
from tests.posttrain.tokenizers import BOS, END, Letters, TheirLetters

PROMPTS = ["ab", "abcd", "a"]
OUTPUTS = ["xyz", "x", "xyzxyz"]


def test_by_hand():
    found = tokenize_prompt_and_output(prompt_strs=PROMPTS, output_strs=OUTPUTS, tokenizer=Letters())
    a, b, c, d = Letters().encode("abcd")
    x, y, z = Letters().encode("xyz")
    assert set(found) == {"input_ids", "labels", "response_mask"}
    assert found["input_ids"].tolist() == [[a, b, x, y, z, END], [a, b, c, d, x, END], [a, x, y, z, x, y]]
    assert found["labels"].tolist() == [[b, x, y, z, END, END], [b, c, d, x, END, END], [x, y, z, x, y, z]]
    assert found["response_mask"].int().tolist() == [[0, 1, 1, 1, 0, 0], [0, 0, 0, 1, 0, 0], [1, 1, 1, 1, 1, 1]]
    assert found["input_ids"].dtype == found["labels"].dtype == torch.int64
    assert found["response_mask"].dtype == torch.bool


def test_the_mask_is_true_from_p_minus_1_to_p_plus_o_minus_2():
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 9, (20, 2), generator=generator).tolist()
    prompts, outputs = ["a" * p for p, _ in lengths], ["b" * o for _, o in lengths]
    found = tokenize_prompt_and_output(prompts, outputs, Letters())
    width = max(p + o for p, o in lengths) - 1
    assert all(tensor.shape == (20, width) for tensor in found.values())
    for row, (p, o) in enumerate(lengths):
        assert found["response_mask"][row].nonzero().flatten().tolist() == list(range(p - 1, p + o - 1))
        labels = found["labels"][row][found["response_mask"][row]]
        assert Letters().decode(labels.tolist()) == outputs[row]


def test_what_a_tokenizer_puts_before_texts_comes_before_prompts_alone():
    plain, found = (tokenize_prompt_and_output(PROMPTS, OUTPUTS, each) for each in (Letters(), TheirLetters()))
    assert found["input_ids"][:, 0].tolist() == [BOS] * 3
    assert torch.equal(found["input_ids"][:, 1:], plain["input_ids"])
    assert torch.equal(found["labels"][:, 1:], plain["labels"])
    assert torch.equal(found["response_mask"][:, 1:], plain["response_mask"])
    assert not found["response_mask"][:, 0].any()


def test_a_padding_token_of_its_own_is_used():
    tokenizer = TheirLetters()
    tokenizer.pad_token_id = 5
    found = tokenize_prompt_and_output(PROMPTS, OUTPUTS, tokenizer)
    assert found["input_ids"][0, -1] == found["labels"][0, -1] == 5


def test_ids_that_were_sampled_stay_as_they_are():
    """A model may write "a", "b" where the tokenizer would merge them: encoding the text would change the row."""
    found = prompt_and_output_batch([[7, 8], [7]], [[9], [9, 9, 9]], 0)
    assert found["labels"].tolist() == [[8, 9, 0], [9, 9, 9]]
    assert found["response_mask"].tolist() == [[False, True, False], [True, True, True]]


@pytest.mark.parametrize("prompts", [[[7, 8, 9], [7, 8]], [[7, 8, 9], [7]], [[7, 8], []]])
def test_no_label_before_the_first_response_column_is_a_responses(prompts):
    mask = prompt_and_output_batch(prompts, [[5, 6]] * 2, 0)["response_mask"]
    assert first_response_column(prompts) == mask.any(dim=0).nonzero()[0].item()


def test_prompts_without_outputs_are_refused():
    with pytest.raises(ValueError, match="3 prompts and 1 outputs"):
        tokenize_prompt_and_output(PROMPTS, ["x"], Letters())
    with pytest.raises(ValueError, match="no token"):
        tokenize_prompt_and_output([], [], Letters())


def test_gpt2s_tokenizer_ours_and_transformers_give_the_same(shared_data, tmp_path):
    transformers = pytest.importorskip("transformers")
    folder = shared_data / "tokenizer"
    ours = Tokenizer.from_files(folder / "gpt2_vocab.json.gz", folder / "gpt2_merges.txt.gz", ["<|endoftext|>"])
    ours.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    prompts = ["Hello, world!", "This is a test.", "This is another test."]
    outputs = ["Hello, world!", "This is a test.", "This is another test."]
    mine, other = (tokenize_prompt_and_output(prompts, outputs, each) for each in (ours, theirs))
    assert all(torch.equal(mine[name], other[name]) for name in mine)
    ids = [theirs.encode(text, add_special_tokens=False) for text in prompts]
    assert mine["input_ids"][0].tolist() == (ids[0] + ids[0] + [50256] * 9)[: len(mine["input_ids"][0])]
    assert mine["response_mask"].sum(1).tolist() == [len(row) for row in ids]
