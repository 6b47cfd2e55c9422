"""Overlap with evaluation questions."""

import random
from pathlib import Path

import numpy as np
import pytest

from cs336.files import UserError, read_jsonl
from cs336.filters.decontaminate import EvalIndex, _only_words, _words
from cs336.filters.ngrams import word_hashes
from cs336.filters.overlap import words_and_lines

LONG = "Natalia sold clips to forty eight of her friends in April and then half as many in May, how many clips?"
SHORT = "What is the boiling point of water?"


@pytest.fixture
def index() -> EvalIndex:
    return EvalIndex.build({"gsm8k": [LONG], "mmlu": [SHORT, LONG, "..."]})


def test_a_question_copied_into_a_page_hits_once_for_each_of_its_ngrams(index: EvalIndex):
    words = LONG.split()
    assert len(words) == 21
    text = f"Here is a task.\n{LONG.upper().replace(' ', '  ')}\nWell?"
    assert index.num_hits(text) == 21 - 13 + 1
    assert index.count(text) == {"gsm8k": 9, "mmlu": 9}


def test_thirteen_words_in_a_row_hit_and_twelve_do_not(index: EvalIndex):
    words = LONG.split()
    assert index.num_hits("so " + " ".join(words[3:16]) + " so") == 1
    assert index.num_hits("so " + " ".join(words[3:15]) + " so") == 0


def test_a_short_question_hits_only_as_a_whole_line_or_document(index: EvalIndex):
    assert index.count("Quiz\n\n  * what is the BOILING point of water\nEnd") == {"mmlu": 1}
    assert index.count("What is the\nboiling point of water?") == {"mmlu": 1}
    assert index.count("Some ask: what is the boiling point of water? It depends.") == {}
    assert index.count("What is the boiling point of water at sea level?") == {}


def test_a_document_that_is_a_whole_text_is_told_from_one_that_quotes(index: EvalIndex, tmp_path: Path):
    index.save(tmp_path / "evals.npz")
    for each in (index, EvalIndex.load(tmp_path / "evals.npz")):
        assert each.copies(LONG.upper().replace(" ", "\n")) == ("gsm8k", "mmlu")
        assert each.copies(SHORT) == ("mmlu",)
        assert each.copies(f"{LONG} Indeed.") == each.copies("Quiz\n" + SHORT) == each.copies("") == ()


def test_numbers_in_a_row_are_no_copy_but_one_word_among_them_is():
    numbers = " ".join(map(str, range(1, 16)))
    index = EvalIndex.build({"math": [f"What follows {numbers}"]})
    assert index.num_hits(f"Pages: {numbers} next") == 0
    assert index.num_hits(f"Pages follows {numbers} next") == 1


def test_empty_texts_neither_hit_nor_are_lost_silently(index: EvalIndex):
    assert index.num_empty == 1
    assert index.num_hits("") == index.num_hits("\n ... \n") == 0
    assert EvalIndex.build({}).num_hits("any text") == 0


def test_counts_agree_with_sets_of_words_on_random_texts():
    generator = random.Random(0)
    vocabulary = ["ein", "zwei", "drei", "Vier", "fünf"]
    questions = [" ".join(generator.choices(vocabulary, k=generator.randint(1, 9))) for _ in range(60)]
    index = EvalIndex.build({"q": questions}, n=4)
    asked = [question.lower().split() for question in questions]
    ngrams = {tuple(words[i : i + 4]) for words in asked for i in range(len(words) - 3)}
    short = {tuple(words) for words in asked if len(words) < 4}
    for _ in range(200):
        lines = [" ".join(generator.choices(vocabulary, k=generator.randint(0, 6))) for _ in range(3)]
        words = " ".join(lines).lower().split()
        expected = sum(tuple(words[i : i + 4]) in ngrams for i in range(len(words) - 3))
        expected += sum(tuple(line.lower().split()) in short for line in lines if line)
        if sum(map(bool, lines)) > 1 and len(words) < 4:
            expected += tuple(words) in short
        assert index.num_hits("\n".join(lines)) == expected
        assert index.num_hits("\n".join(lines) + "\n") == expected


def random_texts(seed: int, count: int) -> list[str]:
    """Words of many scripts and cases, numbers and marks, between spaces, line breaks and what looks like them."""
    generator = random.Random(seed)
    words = [
        "the",
        "THE",
        "Straße",
        "STRASSE",
        "ΣΟΦΟΣ",
        "σοφός",
        "İstanbul",
        "ı",
        "мост",
        "МОСТ",
        "桥",
        "สะพาน",
        "क्षेत्र",
    ]
    words += [
        "क्षेत्र",
        "12",
        "٣",
        "x²",
        "e\u0301",
        "don't",
        "snake_case",
        "ﬁ",
        "ǅ",
        "𝔘",
        "🌉",
        "\ud800",
        "a" * 8,
        "b" * 17,
    ]
    gaps = [" "] * 8 + ["\n", "\n\n", "\r\n", "\t", ", ", "\u00a0", "\u2028", "\x85", "\x1c", "\0", "", "-"]
    return [
        "".join(generator.choice(words) + generator.choice(gaps) for _ in range(generator.randrange(60)))
        for _ in range(count)
    ]


def test_the_compiled_count_is_the_plain_one_on_text_of_any_kind():
    questions = random_texts(1, 300)
    index = EvalIndex.build({"even": questions[::2], "odd": questions[1::2]}, n=3)
    assert 0 < index.num_short < index.num_ngrams
    hits = 0
    for text in [*questions[:50], *random_texts(2, 500), "", "\n", "Σ", "ΑΣ ΑΣ.", "the", "\nthe\n"]:
        assert index.count(text) == index.plain_count(text), text
        hits += index.num_hits(text)
    assert hits > 1_000


@pytest.mark.slow
def test_the_compiled_count_is_the_plain_one_on_sentences_of_many_languages(shared_data: Path):
    rows = list(read_jsonl(shared_data / "labelled" / "langid" / "dev" / "lingua_sentences.jsonl.gz"))
    texts = [row["text"] for row in rows]
    index = EvalIndex.build({"some": texts[::3], "others": texts[1::3]})
    pages = ["\n".join(texts[start : start + 20]) for start in range(0, len(texts), 20)]
    for text in [*pages, *texts[::11], "\n".join(texts).upper()]:
        assert index.count(text) == index.plain_count(text), text[:80]
    assert len({row["lang"] for row in rows}) > 60


def test_a_word_hashes_in_the_compiled_scan_as_in_the_index():
    for text in random_texts(3, 200):
        hashes, line_ends = words_and_lines(text, _words())
        plain = _only_words(text)
        assert hashes.tolist() == word_hashes(plain.split()).tolist()
        assert np.diff(line_ends, prepend=0).tolist() == [len(line.split()) for line in plain.split("\n")]


def test_an_index_of_an_earlier_format_is_built_again_rather_than_never_matching(tmp_path: Path, index: EvalIndex):
    index.save(tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz") as arrays:
        old = dict(arrays)
    np.savez(tmp_path / "other.npz", **(old | {"format": np.array(1)}))
    del old["format"]
    np.savez(tmp_path / "first.npz", **old)
    for name in ("other", "first"):
        with pytest.raises(UserError, match="build it again"):
            EvalIndex.load(tmp_path / f"{name}.npz")


def test_a_saved_index_gives_the_same_answers_and_the_same_bytes(tmp_path: Path, index: EvalIndex):
    index.save(tmp_path / "a.npz")
    index.save(tmp_path / "b.npz")
    again = EvalIndex.load(tmp_path / "a.npz")
    assert again.count(LONG) == index.count(LONG)
    assert (again.n, again.evals, again.num_ngrams, again.num_short) == (13, ("gsm8k", "mmlu"), 9, 1)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_the_index_does_not_depend_on_the_order_of_the_questions(tmp_path: Path):
    EvalIndex.build({"a": [LONG, SHORT], "b": [SHORT]}).save(tmp_path / "a.npz")
    EvalIndex.build({"b": [SHORT], "a": [SHORT, LONG]}).save(tmp_path / "b.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_a_missing_or_broken_index_is_one_line(tmp_path: Path):
    with pytest.raises(UserError, match="not found"):
        EvalIndex.load(tmp_path / "none.npz")
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(UserError, match=r"bad\.npz"):
        EvalIndex.load(tmp_path / "bad.npz")


def test_wrong_arguments_are_errors():
    with pytest.raises(ValueError, match="at least 1"):
        EvalIndex.build({}, n=0)
    with pytest.raises(ValueError, match="64"):
        EvalIndex.build({str(number): [] for number in range(65)})
