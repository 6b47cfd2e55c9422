"""From a token back to its document: by bisection as by reading on, and damage in one line."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from cs336.files import UserError
from cs336.tokens import index
from cs336.tokens.index import IndexedDocument, index_line, locate, read_index


def write_index(folder: Path, lengths: list[int], split: str = "train") -> list[IndexedDocument]:
    """Documents of these many tokens; names of different lengths, so that lines are too."""
    generator, rows, first = random.Random(0), [], 0
    for row, length in enumerate(lengths):
        url = "http://site/" + "é" * generator.randint(0, 200)
        rows.append(IndexedDocument(split, first, length, 4 * length, row, f"<urn:{row}>", url, "a.warc.gz", 7 * row))
        first += length
    (folder / f"{split}.jsonl").write_text("".join(map(index_line, rows)))
    return rows


@pytest.mark.parametrize("seed", range(5))
def test_every_token_leads_to_its_document(tmp_path: Path, seed: int):
    generator = random.Random(seed)
    rows = write_index(tmp_path, generator.choices([1, 2, 3, 50], k=seed * 20 + 1))
    owners = [row for row in rows for _ in range(row.num_tokens)]
    for position, owner in enumerate(owners):
        assert locate(tmp_path, "train", position) == owner
    for outside in (-1, len(owners), len(owners) + 10**9):
        with pytest.raises(IndexError, match=f"no token {outside:,}"):
            locate(tmp_path, "train", outside)


def test_a_stretch_gives_the_documents_that_it_touches_and_no_others(tmp_path: Path):
    rows = write_index(tmp_path, [4, 1, 3, 6, 2], split="valid")
    assert list(read_index(tmp_path, "valid")) == rows
    for start in range(16):
        for stop in range(start + 1, 17):
            touched = [row for row in rows if row.first_token < stop and start < row.first_token + row.num_tokens]
            assert list(read_index(tmp_path, "valid", start=start, stop=stop)) == touched


def test_few_lines_are_read_out_of_very_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rows = write_index(tmp_path, [3] * 20_000)
    parsed = 0
    original = index._document

    def counted(line: bytes, path: Path) -> IndexedDocument:
        nonlocal parsed
        parsed += 1
        return original(line, path)

    monkeypatch.setattr(index, "_document", counted)
    assert locate(tmp_path, "train", 44_444) == rows[14_814]
    assert parsed < 30  # 21 halvings of 2.6 MB, and the line itself


def test_an_address_that_utf8_cannot_write_comes_back(tmp_path: Path):
    document = IndexedDocument("train", 0, 1, 0, 0, "<urn:0>", "http://site/\ud800\n", "a.warc", 0)
    (tmp_path / "train.jsonl").write_text(index_line(document))
    assert locate(tmp_path, "train", 0) == document


@pytest.mark.parametrize("damaged", ['{"first_token": 0', "[1]", '{"first_token": 0}', "\x00\x01", '{"a": 1}'])
def test_a_missing_or_damaged_index_is_one_line_that_names_it(tmp_path: Path, damaged: str):
    with pytest.raises(UserError, match=r"train.jsonl: not found"):
        locate(tmp_path, "train", 0)
    (tmp_path / "train.jsonl").write_text(damaged)
    for use in (lambda: list(read_index(tmp_path, "train")), lambda: locate(tmp_path, "train", 3)):
        with pytest.raises(UserError, match=r"train.jsonl: .*no line of an index"):
            use()
