"""Learnt merges by hand, against a naive trainer, and whatever the number of workers."""

from __future__ import annotations

import gzip
import itertools
import random
import resource
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cs336.files import UserError
from cs336.tokenizer.bpe import Tokenizer
from cs336.tokenizer.pretokenize import pretokens
from cs336.tokenizer.reference import learn_merges
from cs336.tokenizer.train import BpeConfig, train_bpe, train_bpe_from_documents

END = "<|endoftext|>"


def test_the_handouts_toy_corpus_gives_its_merges():
    merges = learn_merges({"low": 5, "lower": 2, "widest": 3, "newest": 6}, 12)
    assert [(left + b"+" + right).decode() for left, right in merges] == [
        "s+t", "e+st", "o+w", "l+ow", "w+est", "n+e", "ne+west", "w+i", "wi+d", "wid+est", "low+e", "lowe+r",
    ]  # fmt: skip


def test_equally_frequent_pairs_go_by_their_bytes_first_part_first():
    # AB, AC, BZZ and BAA hold each pair once, once Z+Z and A+A are entries.
    merges = learn_merges({"ZZ": 9, "BA": 8, "BAA": 1, "BZZ": 1, "AC": 1, "AB": 1}, 5)
    assert merges[:2] == [(b"Z", b"Z"), (b"B", b"A")]
    assert merges[2:] == [(b"BA", b"A"), (b"B", b"ZZ"), (b"A", b"C")]


def test_ties_compare_bytes_not_printable_stand_ins():
    # Byte 0xC3 (of "é") is greater than "z"; in GPT-2's stand-ins a space ("Ġ") would win over both.
    assert learn_merges({"zz": 1, " z": 1, "é": 1}, 1) == [(b"\xc3", b"\xa9")]


def test_training_stops_early_when_no_pair_is_left(tmp_path: Path):
    path = tmp_path / "text.txt"
    path.write_text("abab")
    vocab, merges = train_bpe(path, 1_000, [END])
    assert merges == [(b"a", b"b"), (b"ab", b"ab")]
    assert vocab == {0: END.encode()} | {1 + b: bytes([b]) for b in range(256)} | {257: b"ab", 258: b"abab"}


@settings(max_examples=150, deadline=None)
@given(st.lists(st.text(alphabet="aab é'1 \n", max_size=30), max_size=6), st.integers(0, 40))
def test_merges_equal_those_of_the_naive_trainer(texts: list[str], num_merges: int):
    config = BpeConfig(vocab_size=256 + num_merges, special_tokens=())
    vocab, merges = train_bpe_from_documents(texts, config)
    assert merges == naive_merges(texts, num_merges)
    assert list(vocab.values())[256:] == [left + right for left, right in merges]


def test_merges_of_a_longer_text_equal_those_of_the_naive_trainer():
    text = random_words(6_000, seed=1)
    config = BpeConfig(vocab_size=256 + 150, special_tokens=())
    assert train_bpe_from_documents([text], config)[1] == naive_merges([text], 150)


def test_special_tokens_are_boundaries_and_are_not_counted(tmp_path: Path):
    path = tmp_path / "text.txt"
    path.write_text(f"ab{END}cd{END}{END}ab" + "<|pad|>" * 50)
    vocab, merges = train_bpe(path, 260, [END, "<|pad|>"])
    assert merges == [(b"a", b"b"), (b"c", b"d")]
    assert [vocab[0], vocab[1]] == [END.encode(), b"<|pad|>"]


def test_each_document_ends_at_a_boundary():
    config = BpeConfig(vocab_size=1_000, special_tokens=())
    assert train_bpe_from_documents(["a", "b", "a", "b"], config)[1] == []


def test_the_number_of_workers_changes_nothing(tmp_path: Path):
    words = random_words(400_000, seed=2).split(" ")
    documents = [" ".join(words[i : i + 500]) for i in range(0, len(words), 500)]
    path = tmp_path / "text.txt"
    path.write_text(END.join(documents), newline="")
    assert path.stat().st_size > 2_000_000  # more than one task
    in_process = train_bpe(path, 400, [END])
    assert train_bpe(path, 400, [END], num_workers=2) == in_process
    assert train_bpe_from_documents(documents, BpeConfig(vocab_size=400)) == in_process


def test_line_ends_are_not_translated(tmp_path: Path):
    path = tmp_path / "text.txt"
    path.write_bytes(b"\r\n" * 4)
    assert train_bpe(path, 257, [])[1] == [(b"\r", b"\n")]


def test_a_vocabulary_too_small_for_the_bytes_is_an_error(tmp_path: Path):
    with pytest.raises(ValueError, match="257"):
        train_bpe(tmp_path / "never-read", 256, [END])


def test_a_missing_file_and_one_that_is_not_utf8_end_in_one_line(tmp_path: Path):
    with pytest.raises(UserError, match=r"absent.txt: not found"):
        train_bpe(tmp_path / "absent.txt", 300, [])
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 au lait")
    with pytest.raises(UserError, match=r"latin.txt: not UTF-8"):
        train_bpe(tmp_path / "latin.txt", 300, [])


def test_a_small_corpus_is_learnt_within_the_handouts_limit(tmp_path: Path):
    path = tmp_path / "text.txt"
    path.write_text(random_words(20_000, seed=3))
    assert path.stat().st_size > 100_000
    command = [sys.executable, "-c", f"from cs336.tokenizer.train import train_bpe; train_bpe({str(path)!r}, 500, [])"]
    subprocess.run(command, check=True)  # whatever is compiled only once is there then
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # CPU time, start of the process included: other work on the machine does not stretch it as it does the clock's.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.5


def test_real_stories_are_learnt_losslessly(shared_data: Path, tmp_path: Path):
    with gzip.open(shared_data / "text/tinystories/train.txt.gz", "rt", encoding="utf-8", newline="") as file:
        text = file.read(200_000)
    (tmp_path / "text.txt").write_text(text, newline="")
    vocab, merges = train_bpe(tmp_path / "text.txt", 1_000, [END])
    assert len(vocab) == 1_000
    assert not [token for token in vocab.values() if b"<|" in token and token != END.encode()]
    assert merges[:100] == naive_merges(text.split(END), 100)
    tokenizer = Tokenizer(vocab, merges, [END])
    assert tokenizer.decode(tokenizer.encode(text)) == text


def random_words(num_words: int, *, seed: int) -> str:
    """Text with words of uneven frequency."""
    generator = random.Random(seed)
    words = ["".join(generator.choices("etaoinshré", k=generator.randint(1, 9))) for _ in range(2_000)]
    return " ".join(generator.choices(words, [1 / n for n in range(1, 2_001)], k=num_words))


def naive_merges(texts: list[str], num_merges: int) -> list[tuple[bytes, bytes]]:
    """BPE training as its definition reads, without special tokens: all counts taken anew before every merge."""
    words = Counter(
        tuple(bytes([byte]) for byte in pretoken.encode()) for text in texts for pretoken in pretokens(text)
    )
    merges = []
    for _ in range(num_merges):
        pairs: Counter[tuple[bytes, bytes]] = Counter()
        for word, frequency in words.items():
            for pair in itertools.pairwise(word):
                pairs[pair] += frequency
        if not pairs:
            break
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        merged_words: Counter[tuple[bytes, ...]] = Counter()
        for word, frequency in words.items():
            merged_words[merge_word(word, best)] += frequency
        words = merged_words
    return merges


def merge_word(word: tuple[bytes, ...], pair: tuple[bytes, bytes]) -> tuple[bytes, ...]:
    """Replace a pair left to right."""
    result: list[bytes] = []
    place = 0
    while place < len(word):
        if word[place : place + 2] == pair:
            result.append(pair[0] + pair[1])
            place += 2
        else:
            result.append(word[place])
            place += 1
    return tuple(result)
