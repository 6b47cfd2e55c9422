"""Hashes of word spans."""

import numpy as np
import pytest

from cs336.filters.ngrams import ngram_hashes, span_hashes, word_hashes


def test_hashes_never_change_between_machines_and_versions():
    # By an independent computation: bytes mixed by SplitMix64, polynomial in Python's integers.
    assert word_hashes(["the", "cat"]).tolist() == [_word("the"), _word("cat")]
    assert word_hashes(["extraordinarily", "größte"]).tolist() == [_word("extraordinarily"), _word("größte")]
    assert ngram_hashes(word_hashes(["a", "the", "cat"]), 2).tolist() == [_span("a", "the"), _span("the", "cat")]


def test_equal_words_hash_equally_wherever_they_stand():
    words = ["x", "y", "z", "w", "x", "y", "z", "v", "x", "z", "y"]
    hashes = ngram_hashes(word_hashes(words), 3)
    assert hashes[0] == hashes[4]  # x y z
    assert len(set(hashes.tolist())) == len({tuple(words[i : i + 3]) for i in range(len(words) - 2)})


def test_order_and_length_count():
    hashes = word_hashes(["a", "b", "a"])
    spans = span_hashes(hashes, np.array([0, 1, 0, 0]), np.array([2, 3, 1, 3]))
    assert len(set(spans.tolist())) == 4


def test_a_million_spans_have_no_collision():
    hashes = word_hashes([str(number) for number in range(200_000)])
    spans = np.concatenate([ngram_hashes(hashes, n) for n in (1, 2, 3, 5, 13)])
    assert len(np.unique(spans)) == len(spans)


def test_fewer_than_n_words_have_no_ngram_and_n_must_be_positive():
    assert len(ngram_hashes(word_hashes(["a"]), 2)) == 0
    assert len(ngram_hashes(word_hashes([]), 2)) == 0
    with pytest.raises(ValueError, match="at least 1"):
        ngram_hashes(word_hashes(["a"]), 0)


def _word(word: str) -> int:
    mask = (1 << 64) - 1
    data = word.encode()
    value = 0
    for start in range(0, len(data), 8):
        value ^= sum(byte << 8 * place for place, byte in enumerate(data[start : start + 8]))
        value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & mask
        value = (value ^ value >> 27) * 0x94D049BB133111EB & mask
        value ^= value >> 31
    return (value + len(data) * 0x9E3779B97F4A7C15) & mask


def _span(*words: str) -> int:
    mask = (1 << 64) - 1
    value = sum(_word(word) * 0x9E3779B97F4A7C15**power for power, word in enumerate(words)) + len(words) & mask
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        value = (value ^ (value >> shift)) * factor & mask
    return value ^ (value >> 31)
