"""Exact-line deduplication, over files and over texts."""

import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from cs336.dedup import exact_lines
from cs336.dedup.exact_lines import (
    LineConfig,
    deduplicate_lines,
    exact_line_deduplication,
    line_hashes,
    repeated_hashes,
)
from cs336.dedup.repeated import SortedHashes
from cs336.filters.ngrams import hash_bytes


def run(tmp_path: Path, contents: dict[str, bytes], **options) -> dict[str, bytes]:
    paths = [tmp_path / "in" / name for name in contents]
    (tmp_path / "in").mkdir()
    for path, content in zip(paths, contents.values(), strict=True):
        path.write_bytes(content)
    exact_line_deduplication(paths, tmp_path / "new" / "out", **options)
    return {path.name: path.read_bytes() for path in (tmp_path / "new" / "out").iterdir()}


def test_all_copies_of_a_repeated_line_go_the_first_one_too(tmp_path: Path):
    contents = {"a": b"menu\nalpha\nmenu\n", "b": b"menu\nbeta\n\ngamma\n\n", "c": b"alpha\n"}
    assert run(tmp_path, contents) == {"a": b"", "b": b"beta\ngamma\n", "c": b""}


def test_a_last_line_without_a_terminator_equals_its_twin(tmp_path: Path):
    assert run(tmp_path, {"a": b"one\ntwo", "b": b"two\r\nthree"}) == {"a": b"one\n", "b": b"three"}


def test_kept_bytes_do_not_change_whatever_they_are(tmp_path: Path):
    content = b"\xff\xfe broken\r\n  spaces \t\nform\x0cfeed\rold\nlast"
    assert run(tmp_path, {"a": content, "b": b"", "c": b" \n"}) == {"a": content, "b": b"", "c": b" \n"}


@pytest.mark.parametrize("memory_bytes", [1 << 30, 4_096, 64])
@pytest.mark.parametrize("block_bytes", [8_000_000, 5])
def test_random_files_agree_with_counting_whole_lines_however_small_the_memory(
    tmp_path: Path, memory_bytes: int, block_bytes: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(exact_lines, "_BLOCK_BYTES", block_bytes)
    generator = random.Random(0)
    contents = {
        f"{number}.txt": b"".join(b"%d\n" % generator.randint(0, 300) for _ in range(generator.randint(0, 40)))
        for number in range(20)
    }
    contents["long.txt"] = b"x" * 1000 + b"\r\n" + b"y" * 333
    counts = Counter(line for content in contents.values() for line in content.splitlines())
    expected = {
        name: b"".join(line for line in content.splitlines(keepends=True) if counts[line.rstrip()] == 1)
        for name, content in contents.items()
    }
    assert run(tmp_path, contents, memory_bytes=memory_bytes) == expected
    assert 0 < sum(map(len, expected.values())) < sum(map(len, contents.values()))


def test_two_inputs_of_one_name_are_an_error(tmp_path: Path):
    with pytest.raises(ValueError, match=r"'a\.txt'"):
        exact_line_deduplication([tmp_path / "x" / "a.txt", tmp_path / "y" / "a.txt"], tmp_path / "out")


def test_an_output_never_overwrites_its_input(tmp_path: Path):
    (tmp_path / "a.txt").write_text("x\nx\n")
    with pytest.raises(ValueError, match="another folder"):
        exact_line_deduplication([tmp_path / "a.txt"], tmp_path)
    assert (tmp_path / "a.txt").read_text() == "x\nx\n"


def test_line_hashes_are_the_same_everywhere():
    text = "abc\r\n\n\rx\r\ny\r\n漢字 and more than sixteen bytes\n12345678\nlast\r"
    lines = ["abc", "", "\rx", "y", "漢字 and more than sixteen bytes", "12345678", "last\r"]
    assert line_hashes(text).tolist() == [hash_bytes(line.encode()) for line in lines]
    assert line_hashes("abc\n").tolist() == line_hashes("abc").tolist() == [0x92C11FE0E76812F5]
    assert line_hashes("").shape == (0,)


def test_hashes_seen_in_two_shards_or_twice_in_one_are_repeated():
    arrays = [line_hashes("a\nb\nb"), line_hashes(""), line_hashes("c\na")]
    assert repeated_hashes(arrays).tolist() == sorted({*line_hashes("a").tolist(), *line_hashes("b").tolist()})
    assert repeated_hashes([]).dtype == np.uint64


def without(folder: Path, text: str, repeated: np.ndarray, memory_bytes: int = 1 << 20, **settings) -> str | None:
    repeated.tofile(folder / "table")
    config = LineConfig(**{"min_words": 0} | settings)
    (kept,) = deduplicate_lines([text], SortedHashes([folder / "table"], memory_bytes), config)
    return kept


def test_blank_lines_can_be_exempt(tmp_path: Path):
    text = "title\n\nfirst\n \n\nsecond"
    repeated = repeated_hashes([line_hashes(text), line_hashes("first\n ")])
    assert without(tmp_path, text, repeated) == "title\nsecond"
    assert without(tmp_path, text, repeated, exempt_blank=True) == "title\n\n \n\nsecond"
    assert without(tmp_path, text, repeated_hashes([])) == text


def test_documents_left_too_short_are_dropped(tmp_path: Path):
    repeated = repeated_hashes([line_hashes("menu\nmenu")])
    text = "menu\none two three\n"
    assert without(tmp_path, text, repeated, min_words=3) == "one two three\n"
    assert without(tmp_path, text, repeated, min_words=4) is None
    assert without(tmp_path, "menu\n", repeated) is None


def test_any_unicode_survives(tmp_path: Path):
    text = "naïve 漢字 \u2028 \ud800\nrest"
    assert without(tmp_path, text, line_hashes("rest")) == "naïve 漢字 \u2028 \ud800\n"


@pytest.mark.parametrize("memory_bytes", [1 << 20, 128])
def test_many_documents_are_looked_up_together_and_stay_apart(tmp_path: Path, memory_bytes: int):
    texts = ["a\nb", "", "b", "c\nd\n", "a", "e\n\nf"]
    np.sort(line_hashes("b\nd\na")).tofile(tmp_path / "table")
    table = SortedHashes([tmp_path / "table"], memory_bytes)
    kept = [None, None, None, "c\n", None, "e\n\nf"]
    assert list(deduplicate_lines(iter(texts), table, LineConfig(min_words=0))) == kept
