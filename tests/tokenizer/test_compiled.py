"""The compiled kernels give what plain Python gives: pre-tokens, counts, merges, ids."""

from __future__ import annotations

import gzip
import itertools
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit

from cs336.files import UserError
from cs336.tokenizer import compiled, encoder, reference, segments, train
from cs336.tokenizer.bpe import Tokenizer
from cs336.tokenizer.pretokenize import PATTERN, cut_stream, split_special_tokens
from cs336.tokenizer.segments import PADDING, cut_segments
from cs336.tokenizer.train import BpeConfig, train_bpe, train_bpe_from_documents

END = "<|endoftext|>"
SPECIALS = [END, END * 2, "<|pad|>", " \n"]
# What the scanner tells apart, and characters of two, three and four bytes of each class.
PIECES = [
    "a",
    "the",
    " ",
    "  ",
    "\n",
    "\t",
    "1",
    "٣",
    "½",
    "é",
    "中",
    "𝔸",
    "😀",
    "'",
    "'s",
    "'ll",
    "'re",
    "''",
    ".",
    "--",
]
PIECES += ["\u2003", "\u00a0", "\x1c", "\x00", "Ｘ", "internationalisation", "x" * 16, "7" * 9]

LINES = [
    "今天天气很好，我们去公园散步。",
    "吾輩は猫である。名前はまだ無い。",
    "мороз и солнце",
    "😀👍🏽",
    "…",
    "é",
    "word",
]

scanned_text = st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=3)), max_size=30).map("".join)
mixed_text = st.lists(
    st.one_of(st.sampled_from([*SPECIALS, *PIECES, "<|", "endoftext"]), st.text(max_size=4)), max_size=25
)


def compiled_pretokens(text: str) -> list[str]:
    data = text.encode()
    buffer = np.frombuffer(bytearray(data + b"x" * PADDING), np.uint8)  # not zeros: what follows must not matter
    ends = np.empty(200, np.int64)  # the least that is allowed: long texts take many calls
    places = [0]
    while places[-1] < len(data):
        number = compiled.pretoken_ends(buffer, places[-1], len(data), compiled.classes(), ends)
        places += ends[:number].tolist()
    return [data[a:b].decode() for a, b in itertools.pairwise(places)]


def test_every_code_point_falls_into_its_class_whatever_stands_beside_it():
    points = [chr(point) for point in range(0x110000) if not 0xD800 <= point < 0xE000]
    for start in range(0, len(points), 100_000):
        text = "".join(f"{point}a {point}1  {point}" for point in points[start : start + 100_000])
        assert compiled_pretokens(text) == PATTERN.findall(text)


@settings(max_examples=500, deadline=None)
@given(scanned_text)
def test_pretokens_are_those_of_the_pattern(text: str):
    assert compiled_pretokens(text) == PATTERN.findall(text)


def test_pretokens_of_real_text_in_many_languages_are_those_of_the_pattern(shared_data: Path):
    lines: list[str] = []
    for path in sorted((shared_data / "labelled" / "langid").rglob("*.gz")):
        with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
            lines += [json.loads(line)["text"] for line in itertools.islice(file, 0, None, 20)]
    text = " ".join(lines)
    assert len(text) > 100_000 and len(set(text)) > 2_000
    assert compiled_pretokens(text) == PATTERN.findall(text)


@settings(max_examples=500, deadline=None)
@given(st.one_of(st.binary(max_size=40), st.text(max_size=20).map(lambda text: text.encode()[:-1])))
def test_the_first_byte_that_is_not_utf8_is_found(data: bytes):
    try:
        data.decode()
        expected = -1
    except UnicodeDecodeError as error:
        expected = error.start
    buffer = np.frombuffer(bytearray(data + bytes(PADDING)), np.uint8)
    assert compiled.first_invalid_byte(buffer, len(data)) == expected


def test_lines_in_any_script_are_cut_into_ranges_near_the_size_asked_for(tmp_path: Path):
    path = tmp_path / "text.txt"
    for line in [*LINES[:4], "今天\u3000天气"]:
        path.write_text(f"{line}\n" * 2_000, newline="")
        sizes = [end - start for start, end in segments.file_ranges(path, [], 5_000)]
        assert max(sizes) < 5_000 + len(line.encode()) + 5, line


def test_documents_without_white_space_are_cut_behind_special_tokens(tmp_path: Path):
    path = tmp_path / "text.txt"
    path.write_text(f"今天天气很好。{END}" * 2_000)
    ranges = list(segments.file_ranges(path, [END.encode(), b"<|pad|>"], 5_000))
    assert max(end - start for start, end in ranges) < 5_050
    data = path.read_bytes()
    assert all(data[:end].endswith(END.encode()) for _, end in ranges)


def test_a_special_token_that_may_not_count_is_no_place_to_cut(tmp_path: Path):
    path = tmp_path / "text.txt"
    path.write_text("xab" * 2_000 + "cd" + "xab" * 2_000)  # in "abcd", "bc" does not count, as "ab" comes first
    cut = path.read_bytes().index(b"cd") + 1
    ranges = list(segments.file_ranges(path, [b"ab", b"bc"], 6_000))
    assert cut not in {end for _, end in ranges}
    assert len(ranges) > 1


@pytest.mark.parametrize("special_tokens", [[], [END], SPECIALS])
def test_ids_and_merges_do_not_depend_on_where_a_file_is_cut(special_tokens, tmp_path: Path, monkeypatch):
    draw = random.Random(8)
    ends = [
        "\n",
        " ",
        "\r\n",
        "\u3000",
        "\u00a0\n",
        "\u2028 ",
        "\u1680\t",
        "\u205f\n",
        "\x85 ",
        "",
        END,
        END * 2,
        "<|pad|>",
    ]
    text = "".join(draw.choice(LINES) + draw.choice(ends) for _ in range(3_000))
    path = tmp_path / "text.txt"
    path.write_text(text, newline="")
    specials = [token.encode() for token in special_tokens]
    monkeypatch.setattr(segments, "_CUT_WINDOW_BYTES", 40)
    assert len(list(segments.file_ranges(path, specials, 50))) > 500
    counts = reference.count_pretokens([text], special_tokens)
    whole = reference.learn_merges(counts, 60)
    monkeypatch.setattr(train, "_SHORT_TEXT_BYTES", 0)
    monkeypatch.setattr(train, "_TASK_BYTES", 50)
    merges = train_bpe(path, 256 + len(special_tokens) + 60, special_tokens, num_workers=2)[1]
    assert merges == whole
    monkeypatch.setattr(encoder, "_RANGE_BYTES", 50)
    vocab = dict(enumerate([*(bytes([byte]) for byte in range(256)), *(left + right for left, right in merges)]))
    tokenizer = Tokenizer(vocab, merges, special_tokens)
    (ids,) = tokenizer.encode_files([path], num_threads=2)
    assert ids.tolist() == tokenizer._encode_plainly(text)


def test_cuts_before_white_space_know_all_white_space():
    for point in range(0x80, 0x110000):
        if 0xD800 <= point < 0xE000:
            continue
        window = b"a" * 8 + chr(point).encode() + b" "
        found = segments._CUT.search(window, 8)
        is_space = compiled.classes()[point] == compiled.SPACE
        assert (found is None) == is_space, hex(point)


@settings(max_examples=300, deadline=None)
@given(st.lists(mixed_text.map("".join), min_size=1, max_size=4))
def test_segments_are_what_lies_between_special_tokens(texts: list[str]):
    specials = {token.encode(): number for number, token in enumerate(SPECIALS)}
    pattern = train.reference.compile_special_tokens(SPECIALS)
    segments = cut_segments(texts, specials)
    data = segments.buffer.tobytes()
    actual: list[list[tuple[str, bool]]] = [[]]
    for number, (start, end, special) in enumerate(zip(segments.starts, segments.ends, segments.specials, strict=True)):
        if start < end:
            actual[-1].append((data[start:end].decode(), False))
        if special >= 0:
            actual[-1].append((SPECIALS[special], True))
        if number in segments.last_of_text:
            actual.append([])
    assert actual[:-1] == [list(split_special_tokens(text, pattern)) for text in texts]


@pytest.fixture
def always_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "_SHORT_TEXT_BYTES", -1)


@settings(max_examples=150, deadline=None)
@given(st.lists(mixed_text.map("".join), min_size=1, max_size=5), st.integers(1, 60), st.integers(1, 3))
def test_merges_are_those_of_plain_python(texts: list[str], num_merges: int, num_workers: int):
    config = BpeConfig(vocab_size=256 + len(SPECIALS) + num_merges, special_tokens=tuple(SPECIALS))
    pieces = [piece for text in texts for piece in cut_stream([text], SPECIALS)]
    expected = reference.learn_merges(reference.count_pretokens(pieces, SPECIALS), num_merges)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "_SHORT_TEXT_BYTES", -1)
        assert train_bpe_from_documents(texts, config, num_workers=num_workers)[1] == expected


@pytest.mark.parametrize("alphabet", ["ab", "etaoin shr", "aé中😀 \n'1."])
def test_merges_to_the_last_pair_are_those_of_plain_python(always_compiled: None, tmp_path: Path, alphabet: str):
    # Short alphabets bring ties, overlaps ("aaa") and the same bytes by two ways; all are merged to the end.
    text = "".join(random.Random(7).choices(alphabet, k=4_000))
    expected = reference.learn_merges(reference.count_pretokens([text], []), 10_000)
    (tmp_path / "text.txt").write_text(text, newline="")
    assert train_bpe(tmp_path / "text.txt", 10_256, [])[1] == expected


def test_a_file_cut_into_many_ranges_gives_the_merges_of_the_whole(
    always_compiled: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    generator = random.Random(8)
    words = ["".join(generator.choices("etaoinshr中", k=generator.randint(1, 20))) for _ in range(300)]
    parts = [*(word + " " for word in words), *SPECIALS, "\n\n", "x" * 300]
    text = "".join(generator.choices(parts, k=5_000))
    (tmp_path / "text.txt").write_text(text, newline="")
    expected = train_bpe(tmp_path / "text.txt", 700, SPECIALS)
    monkeypatch.setattr(train, "_TASK_BYTES", 50)
    monkeypatch.setattr(segments, "_CUT_WINDOW_BYTES", 20)
    assert len(list(segments.file_ranges(tmp_path / "text.txt", [token.encode() for token in SPECIALS], 50))) > 500
    assert train_bpe(tmp_path / "text.txt", 700, SPECIALS, num_workers=3) == expected


def test_a_long_file_that_is_not_utf8_ends_in_one_line(always_compiled: None, tmp_path: Path):
    (tmp_path / "text.txt").write_bytes(b"a word " * 100 + b"caf\xe9 au lait")
    with pytest.raises(UserError, match=r"text.txt: not UTF-8 at byte 703"):
        train_bpe(tmp_path / "text.txt", 300, [])


def two_of(vocab: dict[int, bytes], merges: list[tuple[bytes, bytes]]) -> tuple[Tokenizer, Tokenizer]:
    """The same tokenizer in plain Python and compiled."""
    plain, fast = Tokenizer(vocab, merges, SPECIALS), Tokenizer(vocab, merges, SPECIALS)
    fast.prepare()
    return plain, fast


@pytest.fixture(scope="module")
def learnt() -> tuple[Tokenizer, Tokenizer]:
    texts = ["the cat sat on the mat, and that's that.\n\n" * 3, "naïve café 😀 1,024 times  the\n" + "x" * 16]
    return two_of(*train_bpe_from_documents(texts, BpeConfig(vocab_size=330, special_tokens=tuple(SPECIALS))))


@settings(max_examples=300, deadline=None)
@given(texts=st.lists(mixed_text.map("".join), min_size=1, max_size=5))
def test_ids_are_those_of_plain_python(learnt: tuple[Tokenizer, Tokenizer], texts: list[str]):
    plain, fast = learnt
    expected = [plain.encode(text) for text in texts]
    assert [ids.tolist() for ids in fast.encode_batch(texts)] == expected
    assert [fast.encode(text) for text in texts] == expected
    assert [list(fast.encode_iterable(text)) for text in texts] == expected  # character by character


def test_ids_on_threads_come_in_the_texts_order(learnt: tuple[Tokenizer, Tokenizer]):
    plain, fast = learnt
    generator = random.Random(9)
    words = ["".join(generator.choices("thecaso ", k=generator.randint(1, 40))) for _ in range(2_000)]
    texts = [" ".join(generator.choices(words, k=50_000)), "", *words, "x" * 50_000, "the end" + END]
    expected = [plain._encode_plainly(text) for text in texts]
    for num_threads in (1, 3):
        assert [ids.tolist() for ids in fast.encode_batch(texts, num_threads=num_threads)] == expected


def test_files_give_the_ids_of_their_text_however_they_are_cut(
    learnt: tuple[Tokenizer, Tokenizer], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    plain, fast = learnt
    generator = random.Random(10)
    parts = ["the ", "caf\u00e9 ", "it's\n", " \n", *SPECIALS, "1,024  times\n\n", "\u4e2d\u6587 "]
    texts = ["".join(generator.choices(parts, k=2_000)), "", "x" * 3_000, "the end"]
    paths = [tmp_path / f"{number}.txt" for number in range(len(texts))]
    for path, text in zip(paths, texts, strict=True):
        path.write_text(text, newline="")
    for range_bytes in (50, 10**6):
        monkeypatch.setattr(encoder, "_RANGE_BYTES", range_bytes)
        for num_threads in (1, 3):
            encoded = list(fast.encode_files(paths, num_threads=num_threads))
            assert [ids.tolist() for ids in encoded] == [plain.encode(text) for text in texts]
    with pytest.raises(UserError, match="missing"):
        next(fast.encode_files([tmp_path / "missing.txt"]))


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.text(alphabet="abc", min_size=1, max_size=200), min_size=1, max_size=6),
    st.randoms(use_true_random=False),
    st.integers(1, 40),
)
def test_merges_that_no_training_gives_are_applied_as_by_plain_python(
    texts: list[str], generator: random.Random, num_merges: int
):
    # Any two tokens, also ones made by a later merge or in two ways: order and overlaps must not differ.
    tokens = [bytes([byte]) for byte in b"abc"]
    merges = []
    for _ in range(num_merges):
        pair = generator.choice(tokens), generator.choice(tokens)
        merges.append(pair)
        tokens = list(dict.fromkeys([*tokens, pair[0] + pair[1]]))
    generator.shuffle(merges)
    vocab = dict(enumerate(dict.fromkeys([*(bytes([byte]) for byte in range(256)), *tokens])))
    plain, fast = two_of(vocab, merges)
    ranks, merged = plain._ranks, plain._merged
    expected = [reference.apply_merges([vocab_id(vocab, letter) for letter in text], ranks, merged) for text in texts]
    assert [ids.tolist() for ids in fast.encode_batch(texts)] == expected


def vocab_id(vocab: dict[int, bytes], letter: str) -> int:
    return next(number for number, token in vocab.items() if token == letter.encode())


def test_long_runs_are_merged_as_by_plain_python(learnt: tuple[Tokenizer, Tokenizer]):
    plain, fast = learnt
    generator = random.Random(10)
    for length in (15, 16, 63, 64, 65, 255, 256, 5_000):
        text = "".join(generator.choices("theca", k=length))
        assert fast.encode_batch([text, text])[1].tolist() == plain.encode(text)


def test_a_full_memory_changes_no_ids(learnt: tuple[Tokenizer, Tokenizer], monkeypatch: pytest.MonkeyPatch):
    from cs336.tokenizer import encoder

    plain, fast = learnt
    generator = random.Random(11)
    texts = ["".join(generator.choices("thecaté ", k=3_000)) for _ in range(4)]
    fast.clear_cache()
    monkeypatch.setattr(encoder, "_MAX_ENTRIES", 150)
    assert [ids.tolist() for ids in fast.encode_batch(texts * 2)] == [plain.encode(text) for text in texts * 2]
    fast.clear_cache()


def test_a_memory_that_grows_in_the_middle_of_a_text_changes_no_ids(learnt: tuple[Tokenizer, Tokenizer]):
    plain, fast = learnt
    generator = random.Random(12)
    # More long pre-tokens, more ids and more pre-tokens than an empty memory has room for.
    words = ["".join(generator.choices("etaoin", k=length)) for length in [200] * 1_000 + [7] * 60_000]
    text = " ".join(words)
    fast.clear_cache()
    assert fast.encode_batch([text])[0].tolist() == plain._encode_plainly(text)
    assert fast.encode_batch([text])[0].tolist() == plain._encode_plainly(text)
    fast.clear_cache()


def test_ids_beyond_those_that_the_kernels_know_are_encoded_all_the_same():
    vocab = {byte: bytes([byte]) for byte in range(256)} | {1 << 21: b"ab"}
    tokenizer = Tokenizer(vocab, [(b"a", b"b")])
    tokenizer.prepare()
    assert tokenizer.encode("abc") == [1 << 21, ord("c")]
    vocab[(1 << 21) - 2] = vocab.pop(1 << 21)
    tokenizer = Tokenizer(vocab, [(b"a", b"b")])
    tokenizer.prepare()
    assert tokenizer._encoder is not None
    assert tokenizer.encode("abc") == [(1 << 21) - 2, ord("c")]


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**64 - 1), st.integers(0, 5))
def test_places_of_bits_are_written_on_every_processor(bits: int, density: int):
    bits &= (1 << 64) - 1 >> 10 * density
    expected = [1_000 + place for place in range(64) if bits >> place & 1]
    for write in (
        (compiled._write_places_one_by_one, _write_packed)
        if compiled._packs_bytes()
        else (compiled._write_places_one_by_one,)
    ):
        written = np.full(80, -1)
        write(written, 3, np.uint64(bits), 1_000)
        places = written.tolist()
        assert places[:3] == [-1] * 3 and places[3 + 64 :] == [-1] * (80 - 67)
        assert places[3 : 3 + len(expected)] == expected


@pytest.mark.slow
def test_no_instruction_is_asked_of_a_processor_that_numba_is_told_to_do_without(tmp_path: Path):
    text = "it's 1 of  the\n\nmany words " * 50
    code = (
        "from cs336.tokenizer import compiled; from cs336.tokenizer.bpe import Tokenizer\n"
        "tokenizer = Tokenizer({n: bytes([n]) for n in range(256)} | {256: b'th'}, [(b't', b'h')])\n"
        "tokenizer.prepare()\n"
        "assert compiled._write_places is compiled._write_places_one_by_one\n"
        f"assert tokenizer.encode({text!r}) == tokenizer._encode_plainly({text!r})"
    )
    told = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": "", "NUMBA_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | told, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@njit
def _write_packed(target, number, bits, place):
    compiled._write_places_packed(target, number, bits, place)


def test_no_texts_have_no_ids(learnt: tuple[Tokenizer, Tokenizer]):
    assert [(len(ids), len(ends)) for ids, ends in learnt[1].encode_batches([[], ["a"], []])] == [
        (0, 0),
        (1, 1),
        (0, 0),
    ]


def test_a_lone_surrogate_is_an_error(learnt: tuple[Tokenizer, Tokenizer]):
    with pytest.raises(ValueError, match="surrogates"):
        learnt[1].encode_batch(["\ud800"])


def test_long_runs_of_zero_bytes_are_neither_lost_nor_taken_for_an_empty_row():
    text = ("\0" * 40 + " a" + "\0" * 16 + " " + "\0" * 300 + " a\0") * 3
    tokenizer = Tokenizer({byte: bytes([byte]) for byte in range(256)} | {256: b"\0\0"}, [(b"\0", b"\0")])
    expected = tokenizer._encode_plainly(text)
    tokenizer.prepare()
    assert tokenizer.encode(text) == expected
    found = train._count([lambda: cut_segments([text], {})], 1)
    words = [found.words[a:b].tobytes().decode() for a, b in itertools.pairwise(found.starts)]
    assert dict(zip(words, found.counts.tolist(), strict=True)) == reference.count_pretokens([text], [])
