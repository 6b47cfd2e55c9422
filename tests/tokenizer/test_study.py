"""Figures about a vocabulary, by hand and against the tokenizer itself."""

from __future__ import annotations

import itertools
import random
from functools import partial
from types import SimpleNamespace

import pytest

from cs336.tokenizer.bpe import END_OF_TEXT, Tokenizer
from cs336.tokenizer.study import (
    bytes_per_token,
    compare_vocabularies,
    compression_by_size,
    count_occurrences,
    encoding_rate,
    kind_of_token,
    longest_tokens,
    merges_sha256,
    profile_training,
)
from cs336.tokenizer.train import BpeConfig, train_bpe_from_documents

BYTES = {byte: bytes([byte]) for byte in range(256)}


def tokenizer_of(*tokens: tuple[bytes, bytes]) -> Tokenizer:
    merged = {256 + i: left + right for i, (left, right) in enumerate(tokens)}
    return Tokenizer(BYTES | merged, list(tokens), [END_OF_TEXT])


AB = tokenizer_of((b"a", b"b"), (b"ab", b"ab"))


def texts() -> list[str]:
    generator = random.Random(0)
    words = ["".join(generator.choices("abcdefghiäö", k=generator.randint(2, 9))) for _ in range(300)]
    return [" ".join(generator.choices(words, k=200)) for _ in range(40)]


@pytest.fixture(scope="module")
def trained() -> Tokenizer:
    vocab, merges = train_bpe_from_documents(texts(), BpeConfig(vocab_size=600))
    return Tokenizer(vocab, merges, [END_OF_TEXT])


def test_training_watched_in_another_process_learns_the_same(trained):
    profile = profile_training(texts, BpeConfig(vocab_size=600), num_workers=2)
    assert profile.merges_sha256 == merges_sha256(trained.merges)
    assert profile.num_bytes == sum(len(text.encode()) for text in texts())
    assert list(profile.seconds) == ["read the documents", "count pre-tokens, index their pairs", "learn merges"]
    assert all(seconds > 0 for seconds in profile.seconds.values()) and profile.load_seconds > 0
    assert profile.seconds[profile.slowest] == max(profile.seconds.values())
    # Python and NumPy alone take tens of MB; a mixed-up unit would be off by a thousand.
    assert 20e6 < profile.bytes_before <= profile.peak_bytes < 4e9


def _one_byte_more(base: BpeConfig) -> list[str]:
    return [*texts(), "q" * base.vocab_size]


def test_other_merges_or_another_order_are_another_checksum(trained):
    merges = trained.merges
    assert merges_sha256(merges) != merges_sha256([merges[1], merges[0], *merges[2:]])
    assert merges_sha256([(b"a", b"bc")]) != merges_sha256([(b"ab", b"c")])
    config = BpeConfig(vocab_size=600)
    assert profile_training(partial(_one_byte_more, config), config).num_bytes == 600 + sum(
        len(text.encode()) for text in texts()
    )


def test_longest_tokens_are_learned_ones_and_counted_as_bytes():
    assert longest_tokens(AB, 5) == [b"abab", b"ab"]
    assert count_occurrences([b"abab", b"ab", "é".encode()], ["ababab", "é ab", ""]) == [1, 4, 1]


@pytest.mark.parametrize(
    ("token", "kind"),
    [
        (b" accomplishment", "a word"),
        ("Höhe".encode(), "a word"),
        (b"----------------", "one character repeated"),
        (b"        ", "white space"),
        (b"\r\n\r\n", "white space"),
        (b" 1984", "a number"),
        (b"():", "marks"),
        (b" x_1", "a mixture"),
        (b"\xe3\x81", "part of a character"),
        (b"a", "a word"),
    ],
)
def test_kinds_of_tokens(token, kind):
    assert kind_of_token(token) == kind


def test_two_vocabularies_side_by_side():
    other = tokenizer_of((b"a", b"b"), (b"b", b"c"), (b"bc", b"d"))
    found = compare_vocabularies(AB, other)
    assert (found.num_shared, found.num_ours, found.num_theirs) == (257, 258, 259)
    assert found.longest_ours == [b"abab"] and found.longest_theirs == [b"bcd", b"bc"]
    same = compare_vocabularies(AB, AB)
    assert same.num_shared == same.num_ours and not same.longest_ours and not same.longest_theirs


def test_bytes_per_token_by_hand():
    assert bytes_per_token(AB, ["abab", "abc"]) == 7 / 3  # abab; ab, c
    assert bytes_per_token(AB, ["é"]) == 1
    with pytest.raises(ValueError, match="no byte"):
        bytes_per_token(AB, ["", ""])


def test_a_prefix_of_the_merges_is_the_smaller_vocabulary(trained):
    sample = texts()[:5]
    found = compression_by_size(trained, sample)
    assert list(found) == [512, 257 + len(trained.merges)]
    vocab, merges = train_bpe_from_documents(texts(), BpeConfig(vocab_size=512))
    assert found[512] == bytes_per_token(Tokenizer(vocab, merges, [END_OF_TEXT]), sample)
    assert list(found.values())[-1] == bytes_per_token(trained, sample)
    assert all(before <= after for before, after in itertools.pairwise(found.values()))


def test_a_vocabulary_of_bytes_alone_has_one_size():
    assert compression_by_size(tokenizer_of(), ["abc"]) == {257: 1.0}


def test_a_rate_is_bytes_over_seconds(trained, monkeypatch):
    moments = iter([10.0, 12.0])
    monkeypatch.setattr("cs336.tokenizer.study.time", SimpleNamespace(perf_counter=lambda: next(moments)))
    assert encoding_rate(trained, ["é" * 50]) == 50
