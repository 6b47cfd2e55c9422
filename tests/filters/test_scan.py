"""The compiled scanner counts what the plain rules count."""

from __future__ import annotations

import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cs336.documents import Document
from cs336.extract.html import extract_text
from cs336.filters.heuristics import measure_gopher, split_words
from cs336.filters.scan import classes, find_lines, scan_gopher, scan_text

ALPHABET = [*"aZsSmdtlrev'’..--…,:09_ \n\r\t\x0b\x1c\x85\u2028\xa0()[]\"é²Ⅷ中ſK٣́\ud800\U0001f600"]
PIECES = [*ALPHABET, "'s ", "'ll", "'RE", "'ve\n", "...", "....", "--", "1,000", "3.14", "e.g.", "isn't", "'ſ"]


def assert_equal(text: str) -> None:
    assert scan_gopher(text) == (measure_gopher(text), measure_gopher(text, marks_are_words=False))


@settings(max_examples=2_000, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=30).map("".join))
def test_equals_the_plain_rules_on_what_they_are_made_of(text: str):
    assert_equal(text)


@settings(max_examples=500, deadline=None)
@given(st.text())
def test_equals_the_plain_rules_on_any_text(text: str):
    assert_equal(text)


@settings(max_examples=2_000, deadline=None)
@given(
    st.lists(st.sampled_from([*PIECES, *"[]..  \n"]), max_size=30).map("".join),
    st.integers(0, 3),
    st.integers(1, 5),
    st.sampled_from(["", ".]”"]),
)
def test_lines_are_those_that_python_splits_and_strips(text: str, min_words: int, max_length: int, marks: str):
    def passes(line: str) -> bool:
        ends = not marks or (line[-1] in marks and not line.endswith("..."))
        words = line.split()
        return "[" in line or (ends and len(words) >= min_words and max(map(len, words)) <= max_length)

    lines = [line.strip() for line in text.splitlines() if line.strip()]
    found = find_lines(text, min_words=min_words, max_word_length=max_length, end_marks=marks)
    assert found.num_lines == len(lines)
    passing = [line for line in lines if passes(line)]
    assert [text[start:end] for start, end in found.spans] == passing
    assert found.has_bracket == ["[" in line for line in passing]


def test_counts_by_hand():
    # It / 's / a / - / 3.14 / ... and one more line
    counts = scan_text("It's a - 3.14...\n\n (b) …\n")
    assert counts == (10, 4, 6, 3, 17, 2, 2)


def test_every_single_character_is_classed_as_python_does():
    table = classes()
    for point in range(0x110000):
        mark = chr(point)
        kind = int(table[point])
        assert bool(kind & 1) == mark.isspace(), hex(point)
        assert bool(kind & 4) == mark.isalpha(), hex(point)
        assert bool(kind & 8) == (mark.isalnum() or mark == "_"), hex(point)
        assert bool(kind & 2) == (len(f"a{mark}b".splitlines()) == 2), hex(point)


@pytest.mark.parametrize("text", ["", "\n", "x" * 5_000_000, "." * 5_000_000, "'" * 1_000_000, "a." * 1_000_000])
def test_hostile_texts_are_counted_in_one_pass(text: str):
    assert scan_text(text).num_words == len(split_words(text))


@pytest.mark.slow
def test_equals_the_plain_rules_on_real_pages(shared_data):
    num_pages = 0
    with tarfile.open(shared_data / "web/pages/dev.tar.xz") as archive:
        for member in archive:
            file = archive.extractfile(member) if member.isfile() else None
            if file is not None:
                text = extract_text(file.read())
                assert_equal(text)
                lines = [line.strip() for line in text.splitlines() if line.strip()]
                spans = find_lines(text, min_words=0, max_word_length=len(text), end_marks="").spans
                assert [text[start:end] for start, end in spans] == lines
                num_pages += 1
    assert num_pages > 2_000


def test_documents_without_text_have_no_words():
    document = Document(id="", url="", warc="", offset=0, text=" \n\t")
    assert scan_text(document.text) == (0,) * 7
