"""Normalization, hashes and shingles by hand; the kernels against the plain version, on any Unicode."""

import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cs336.dedup import shingles
from cs336.dedup.reference import EMPTY, jaccard, normalize, shingle_hashes, signature
from cs336.dedup.shingles import shingle_sets, signatures_of
from cs336.filters.character_table import CHARACTER_BYTES
from cs336.filters.ngrams import hash_bytes, ngram_hashes

NUM_HASHES, SEED = 32, 3
ALPHABET = st.one_of(
    st.characters(categories=None, exclude_categories=()),  # surrogates, too
    st.sampled_from(
        "aAZ09 \t\n\x00\x1c'_-.\x85\xa0Éé\u0301ΣσςİıßẞǅΩÅ가힣한\u3000中\u2028\u200d\ufb01\U0001d400\U0001f600"
    ),
)


def by_kernel(texts: list[str], n: int, num_threads: int = 1) -> np.ndarray:
    batches = signatures_of(texts, n=n, num_hashes=NUM_HASHES, seed=SEED, num_threads=num_threads)
    return np.concatenate([np.empty((0, NUM_HASHES), np.uint32), *batches])


def plainly(texts: list[str], n: int) -> np.ndarray:
    return np.array([signature(text, n, NUM_HASHES, SEED) for text in texts], np.uint32).reshape(-1, NUM_HASHES)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  Héllo,\n WORLD! ", "hello world"),
        ("don't — stop: “it” $5", "dont stop it 5"),
        ("cafe\u0301 ＡＢ", "cafe ａｂ"),
        ("a+b = c_d", "ab cd"),
        ("ΟΔΟΣ ΟΔΟΣΟ", "οδος οδοσο"),  # the last letter of a word is lower-cased otherwise
        ("İ", "i"),
        ("...", ""),
    ],
)
def test_normalization_drops_case_accents_marks_and_gaps(text: str, expected: str):
    assert normalize(text) == expected
    assert np.array_equal(by_kernel([text], 1), by_kernel([expected], 1))


def test_jaccard_by_hand():
    # bigrams: {ab, bc, cd} and {bc, cd, de}: 2 shared of 4
    assert jaccard("a b c d", "B c, d e", 2) == 0.5
    assert jaccard("a b c", "a b c", 5) == 1.0  # shorter than n: the whole text is one shingle
    assert jaccard("a b c", "a b", 5) == 0.0
    assert jaccard("", "", 2) == 0.0


def test_shingles_are_as_many_as_distinct_ngrams():
    text = "a b a b a b c"
    assert len(set(shingle_hashes(text, 2).tolist())) == 3  # ab ba bc
    assert len(shingle_hashes("a b", 5)) == 1
    assert len(shingle_hashes("", 5)) == 0


def test_hashes_are_the_same_everywhere():
    # One step of SplitMix64's finalizer by hand: 0 stays 0, and the length is added.
    assert hash_bytes(b"") == 0
    assert hash_bytes(b"\0") == 0x9E3779B97F4A7C15
    assert hash_bytes(b"\x15\x7c\x4a\x7f\xb9\x79\x37\x9e") == (0xE220A8397B1DCDAF + 8 * 0x9E3779B97F4A7C15) % 2**64
    assert len({hash_bytes(b"ab"), hash_bytes(b"ab\0"), hash_bytes(b"abcdefgh"), hash_bytes(b"abcdefgh\0")}) == 4


@given(st.lists(st.text(ALPHABET, max_size=60), max_size=6), st.integers(1, 6))
@settings(deadline=None, max_examples=300)
def test_kernels_compute_what_the_plain_version_does(texts: list[str], n: int):
    assert np.array_equal(by_kernel(texts, n), plainly(texts, n))
    sets, ends = shingle_sets(texts, n)
    for text, own in zip(texts, np.split(sets, ends[:-1]), strict=False):
        assert own.tolist() == sorted(set(shingle_hashes(text, n).tolist()))


def test_characters_are_normalized_as_in_a_text():
    # Each between letters of a word, so that one wrong character would show. All of the planes in use take a minute.
    points = [*range(0x3400), *range(0xA000, 0xB000), *range(0xD7A0, 0x10000, 3), *range(0x10000, 0x110000, 331)]
    text = "".join(f"x{chr(point)}y " for point in points if point != 0x3A3)
    words = [hash_bytes(word.encode("utf-8", "surrogatepass")) for word in normalize(text).split()]
    assert np.array_equal(shingle_sets([text], 1)[0], np.unique(ngram_hashes(np.array(words, np.uint64), 1)))


def test_no_character_needs_more_bytes_than_its_row_has():
    longest = max(len(unicodedata.normalize("NFD", chr(point)).encode()) for point in range(0xAC00, 0xD7A4))
    assert longest == 9 <= CHARACTER_BYTES


def test_results_depend_neither_on_batches_nor_on_threads(monkeypatch: pytest.MonkeyPatch):
    texts = [f"text {number} with some words {number * 7} and é {chr(0x4E00 + 97 * number)}" for number in range(200)]
    whole, sets = by_kernel(texts, 3), shingle_sets(texts, 3)
    monkeypatch.setattr(shingles, "_BATCH_CHARS", 100)
    assert np.array_equal(whole, by_kernel(texts, 3, num_threads=3))
    assert all(map(np.array_equal, sets, shingle_sets(texts, 3, num_threads=3)))
    assert np.array_equal(whole, plainly(texts, 3))


def test_texts_without_a_word_are_empty():
    assert (by_kernel(["", "?!", " \n", "a"], 5)[:3] == EMPTY).all()
    assert by_kernel([], 5).shape == (0, NUM_HASHES)
    assert shingle_sets([], 5)[0].shape == (0,)
    assert shingle_sets(["", "a", ""], 5)[1].tolist() == [0, 1, 1]
