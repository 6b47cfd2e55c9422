"""Texts of a corpus by the side of its split."""

from pathlib import Path

from cs336.documents import Document, write_documents
from cs336.tokens.shards import SplitConfig, document_key, is_held_out
from cs336.tokens.texts import read_texts, sample_texts

SPLIT = SplitConfig(valid_fraction=0.3)


def corpus(folder: Path, order: list[int]) -> list[Path]:
    folders = []
    for shard in range(2):
        rows = [Document(f"<{i}>", f"http://x/{i}", "a.warc", i, f"text {i}") for i in order if i % 2 == shard]
        folders.append(folder / str(shard))
        write_documents(folders[-1], rows)
    return folders


def test_both_sides_together_are_the_corpus(tmp_path):
    folders = corpus(tmp_path, list(range(40)))
    held_out = {f"text {i}" for i in range(40) if is_held_out(document_key(f"http://x/{i}", f"<{i}>"), SPLIT)}
    assert 0 < len(held_out) < 40
    assert set(read_texts(folders, SPLIT, held_out=True)) == held_out
    training = list(read_texts(folders, SPLIT, held_out=False))
    assert len(training) == 40 - len(held_out) and not held_out & set(training)
    places = [int(text.split()[1]) for text in training]
    assert places == sorted(places, key=lambda i: (i % 2, i))  # shard after shard, in stored order


def test_a_sample_is_held_out_text_and_independent_of_order(tmp_path):
    folders = corpus(tmp_path / "a", list(range(40)))
    sample = sample_texts(folders, SPLIT, 4, seed=1)
    assert len(sample) == 4 and set(sample) <= set(read_texts(folders, SPLIT, held_out=True))
    assert sample_texts(corpus(tmp_path / "b", list(range(39, -1, -1))), SPLIT, 4, seed=1) == sample
    assert sample_texts(folders, SPLIT, 4, seed=2) != sample
    assert len(sample_texts(folders, SPLIT, 1_000, seed=1)) < 40  # all there are
