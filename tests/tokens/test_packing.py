"""Packed instructions: by hand, against the definition on real data, with our tokenizer and transformers'."""

import gzip
import json

import pytest
import torch

from cs336.files import UserError
from cs336.tokenizer.bpe import Tokenizer
from cs336.tokens.packing import PackedBatches, PackedInstructions, shuffled
from tests.posttrain.tokenizers import BOS, END, Letters, TheirLetters

TEMPLATE = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{}\n\n### Response:\n{}"
)
ROWS = [{"prompt": f"say {word}", "response": word} for word in ("a", "bb", "ccc", "dddd", "eeeee")]


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "train.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return file


def _stream(rows, bos=()):
    documents = [[*bos, *Letters().encode(TEMPLATE.format(row["prompt"], row["response"])), END] for row in rows]
    return [number for document in documents for number in document]


@pytest.mark.parametrize(
    ("tokenizer", "bos"), [(Letters(), ()), (TheirLetters(), (BOS,))], ids=["ours", "transformers"]
)
@pytest.mark.parametrize("seq_length", [1, 7, 64, 100_000])
def test_rows_are_cut_from_one_stream(path, tokenizer, bos, seq_length):
    dataset = PackedInstructions(tokenizer, path, seq_length, shuffle=False)
    stream = _stream(ROWS, bos)
    assert dataset.tokens.tolist() == stream
    assert len(dataset) == (len(stream) - 1) // seq_length
    items = list(dataset)  # bare iteration ends
    assert len(items) == len(dataset)
    for number, item in enumerate(items):
        start = number * seq_length
        assert set(item) == {"input_ids", "labels"}
        assert item["input_ids"].tolist() == stream[start : start + seq_length]
        assert item["labels"].tolist() == stream[start + 1 : start + seq_length + 1]
        assert item["input_ids"].dtype == item["labels"].dtype == torch.int64
        assert item["input_ids"].shape == item["labels"].shape == (seq_length,)


class Words(Letters):
    """Three tokens of a document whatever its text."""

    def encode(self, text):
        return [4, 5]


@pytest.mark.parametrize(("num_documents", "length"), [(0, 0), (1, 0), (2, 1), (3, 2), (4, 2), (5, 3)])
def test_every_row_has_all_its_labels(tmp_path, num_documents, length):
    """3, 6, 9, 12, 15 tokens in rows of 4 make 0, 1, 2, 2, 3: the last label must be there."""
    path = tmp_path / "few.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS[:num_documents]))
    dataset = PackedInstructions(Words(), path, 4, shuffle=False)
    assert len(dataset) == length
    for index in (length, length + 1, -length - 1):
        with pytest.raises(IndexError):
            dataset[index]


def test_documents_are_shuffled_whole_by_the_seed(path):
    dataset = PackedInstructions(Letters(), path, 8, shuffle=True, seed=3)
    order = shuffled(5, seed=3, epoch=0)
    assert order != [0, 1, 2, 3, 4]
    assert dataset.tokens.tolist() == _stream([ROWS[place] for place in order])
    assert dataset.tokens.tolist() != PackedInstructions(Letters(), path, 8, shuffle=True, seed=4).tokens.tolist()


def test_batches_are_sized_keep_the_short_one_and_pass_over_all(path):
    dataset = PackedInstructions(Letters(), path, 50, shuffle=False)
    assert len(dataset) % 4
    batches = PackedBatches(dataset, 4, False)
    assert len(batches) == -(-len(dataset) // 4) == len(list(batches))
    for name in ("input_ids", "labels"):
        joined = torch.cat([batch[name] for batch in batches])
        assert torch.equal(joined, torch.stack([item[name] for item in dataset])) and joined.dtype == torch.int64
    assert [len(batch["labels"]) for batch in batches] == [4] * (len(dataset) // 4) + [len(dataset) % 4]


def test_shuffled_batches_hold_each_row_once_in_another_order_each_pass(path):
    dataset = PackedInstructions(Letters(), path, 20, shuffle=False)
    rows = [tuple(item["input_ids"].tolist()) for item in dataset]
    batches = PackedBatches(dataset, batch_size=3, shuffle=True, seed=1)
    passes = [[tuple(row) for batch in batches for row in batch["input_ids"].tolist()] for _ in range(2)]
    assert sorted(passes[0]) == sorted(passes[1]) == sorted(rows)
    assert passes[0] != passes[1] and rows not in passes
    again = PackedBatches(dataset, 3, True, seed=1)
    assert [tuple(row) for batch in again for row in batch["input_ids"].tolist()] == passes[0]


def test_wrong_settings_and_records_are_named(path, tmp_path):
    with pytest.raises(ValueError, match="seq_length must be at least 1"):
        PackedInstructions(Letters(), path, 0, False)
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        PackedBatches([], 0, False)
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"prompt": "a", "response": "b"}\n{"prompt": "a", "response": null}\n')
    with pytest.raises(UserError, match=r"bad\.jsonl: record 2 has no texts"):
        PackedInstructions(Letters(), bad, 4, False)
    with pytest.raises(UserError, match=r"gone\.jsonl: not found"):
        PackedInstructions(Letters(), tmp_path / "gone.jsonl", 4, False)


def test_gzipped_real_instructions_are_the_same_by_our_tokenizer_and_transformers(shared_data, tmp_path):
    transformers = pytest.importorskip("transformers")
    folder = shared_data / "tokenizer"
    ours = Tokenizer.from_files(folder / "gpt2_vocab.json.gz", folder / "gpt2_merges.txt.gz", ["<|endoftext|>"])
    ours.save(tmp_path / "tokenizer")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    path = tmp_path / "train.jsonl.gz"
    with gzip.open(shared_data / "sft/t0_sample.jsonl.gz", "rt") as file, gzip.open(path, "wt") as out:
        for row in (json.loads(next(file)) for _ in range(40)):
            response = row["completion"].removesuffix("<|endoftext|>")  # which this file's texts end with
            out.write(json.dumps({"prompt": row["prompt"], "response": response}) + "\n")
    a, b = (PackedInstructions(each, path, 64, shuffle=False) for each in (ours, theirs))
    assert len(a) > 50 and a.tokens.tolist() == b.tokens.tolist()
    assert (a.tokens == ours.end_of_text_id).sum() == 40
