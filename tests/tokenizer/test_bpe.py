"""Ids by hand, against tiktoken and a naive encoder; streams, files, and memory."""

from __future__ import annotations

import gzip
import itertools
import pickle
import random
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cs336.files import UserError
from cs336.tokenizer.bpe import Tokenizer
from cs336.tokenizer.formats import from_printable, printable
from cs336.tokenizer.pretokenize import PATTERN
from cs336.tokenizer.reference import apply_merges, apply_merges_with_heap
from cs336.tokenizer.train import BpeConfig, train_bpe_from_documents

END = "<|endoftext|>"
SPECIALS = [END, END * 2, "<|pad|>", " \n"]

SAMPLES = [
    "",
    " ",
    "Hello, wörld! It's 2024's 1,024th day; they'll've come.",
    "Grüße aus Köln — naïve café\n\n\n\n  \t end \n",
    "s🙃 and 👩‍👩‍👧 with 中文，日本語 ٣٤ ½ ²",
    f"{END}\n\n{END} \n{END}{END}text{END}",
    f"  {END}  a{END}\n",
    "<|endoftext| >  <|endof",
    "\r\n\x00\x1c\u00a0\u3000\ufeff",
    "a" * 500 + " " * 300 + "!?" * 200,
]

mixed_text = st.lists(
    st.one_of(
        st.sampled_from([*SPECIALS, "<|", "endoftext", "the ", " cat", "'s", "\n\n", "  ", "é", "😀"]),
        st.text(max_size=5),
    ),
    max_size=25,
).map("".join)


@pytest.fixture(scope="module")
def small() -> Tokenizer:
    texts = ["the cat sat on the mat, and that's that.\n\n" * 3, "naïve café 😀 1,024 times  the\n"]
    vocab, merges = train_bpe_from_documents(texts, BpeConfig(vocab_size=330, special_tokens=tuple(SPECIALS)))
    return Tokenizer(vocab, merges, SPECIALS)


@pytest.fixture(scope="module")
def gpt2(shared_data: Path) -> Tokenizer:
    folder = shared_data / "tokenizer"
    return Tokenizer.from_files(folder / "gpt2_vocab.json.gz", folder / "gpt2_merges.txt.gz", [END])


def test_the_handouts_example_gives_its_ids():
    words = [" ", "a", "c", "e", "h", "t", "th", " c", " a", "the", " at"]
    merges = [(b"t", b"h"), (b" ", b"c"), (b" ", b"a"), (b"th", b"e"), (b" a", b"t")]
    tokenizer = Tokenizer({number: word.encode() for number, word in enumerate(words)}, merges)
    assert tokenizer.encode("the cat ate") == [9, 7, 1, 5, 10, 3]
    assert tokenizer.decode([9, 7, 1, 5, 10, 3]) == "the cat ate"
    with pytest.raises(ValueError, match="b'z'"):
        tokenizer.encode("zebra")


@pytest.mark.parametrize("text", SAMPLES)
def test_gpt2s_ids_are_tiktokens(gpt2: Tokenizer, text: str):
    assert gpt2.encode(text) == tiktoken_of(gpt2).encode(text, allowed_special="all")


def test_gpt2s_ids_of_real_text_are_tiktokens(gpt2: Tokenizer, shared_data: Path):
    with gzip.open(shared_data / "tokenizer/tinystories_sample.txt.gz", "rt", encoding="utf-8", newline="") as file:
        text = file.read(400_000)
    with gzip.open(shared_data / "text/wiki_demo.txt.gz", "rt", encoding="utf-8", newline="") as file:
        text += file.read(400_000)
    ids = gpt2.encode(text)
    assert ids == tiktoken_of(gpt2).encode(text, allowed_special="all")
    assert list(gpt2.encode_iterable(text.splitlines(keepends=True))) == ids
    assert gpt2.decode(ids) == text


def tiktoken_of(tokenizer: Tokenizer):
    tiktoken = pytest.importorskip("tiktoken")
    end = tokenizer.end_of_text_id
    ranks = {token: number for number, token in tokenizer.vocab.items() if number != end}
    return tiktoken.Encoding("test", pat_str=PATTERN.pattern, mergeable_ranks=ranks, special_tokens={END: end})


@settings(deadline=None)
@given(mixed_text)
def test_decoding_gives_the_text_back(small: Tokenizer, text: str):
    assert small.decode(small.encode(text)) == text


@settings(max_examples=300, deadline=None)
@given(text=mixed_text, data=st.data())
def test_a_stream_gives_the_whole_texts_ids_however_it_is_cut(small: Tokenizer, text: str, data: st.DataObject):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    chunks = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert list(small.encode_iterable(chunks)) == small.encode(text)
    assert list(small.encode_iterable(text)) == small.encode(text)  # single characters


def test_a_stream_is_read_only_as_far_as_needed(small: Tokenizer):
    def endless():
        while True:
            yield "the cat "

    ids = small.encode_iterable(endless())
    assert small.decode([next(ids) for _ in range(20)]).startswith("the cat the cat")


def test_overlapping_special_tokens_the_longest_wins(small: Tokenizer):
    one, two = SPECIALS.index(END), SPECIALS.index(END * 2)
    assert small.encode(END * 3) == [two, one]
    assert small.encode(END + " " + END * 2) == [one, *small.encode(" "), two]


def test_special_tokens_not_in_the_vocabulary_get_the_next_ids_and_unlisted_ones_are_text():
    vocab = {byte: bytes([byte]) for byte in range(256)}
    tokenizer = Tokenizer(vocab, [], ["<x>", "<y>"])
    assert tokenizer.encode("<y><x>") == [257, 256]
    assert tokenizer.vocab_size == 258
    assert Tokenizer(vocab | {256: b"<x>"}, []).encode("<x>") == [60, 120, 62]


def test_half_a_character_decodes_to_the_replacement_sign_and_an_unknown_id_is_an_error(small: Tokenizer):
    first, second = small.encode("ü")
    assert small.decode([first]) == small.decode([second]) == "\ufffd"
    with pytest.raises(ValueError, match="99999"):
        small.decode([99_999])


def test_a_merge_outside_the_vocabulary_is_an_error():
    with pytest.raises(ValueError, match=r"merge 0.*b'ab' is not in the vocabulary"):
        Tokenizer({0: b"a", 1: b"b"}, [(b"a", b"b")])


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.integers(0, 5), max_size=40),
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=15, unique=True),
    st.randoms(use_true_random=False),
)
def test_the_heap_merges_as_the_plain_loop_does_even_for_merges_no_training_gives(
    ids: list[int], pairs: list[tuple[int, int]], generator: random.Random
):
    ranks = {pair: rank for rank, pair in enumerate(pairs)}
    merged = [6 + generator.randrange(4) for _ in pairs]
    expected = ids
    while candidates := [ranks[pair] for pair in itertools.pairwise(expected) if pair in ranks]:
        best = min(candidates)
        result: list[int] = []
        place = 0
        while place < len(expected):
            if tuple(expected[place : place + 2]) == pairs[best]:
                result.append(merged[best])
                place += 2
            else:
                result.append(expected[place])
                place += 1
        expected = result
    assert apply_merges(list(ids), ranks, merged) == expected
    if all(merged[rank] not in pair for rank, pair in enumerate(pairs)):  # a merge never yields its own part
        assert apply_merges_with_heap(list(ids), ranks, merged) == expected


def test_the_heap_merges_as_the_plain_loop_does_with_learnt_merges():
    generator = random.Random(6)
    words = ["".join(generator.choices("abc", [4, 2, 1], k=600)) for _ in range(5)]
    vocab, merges = train_bpe_from_documents(words, BpeConfig(vocab_size=400, special_tokens=()))
    id_of = {token: number for number, token in vocab.items()}
    ranks = {(id_of[left], id_of[right]): rank for rank, (left, right) in enumerate(merges)}
    merged = [id_of[left + right] for left, right in merges]
    for word in ["".join(generator.choices("abc", [2, 2, 1], k=600)), *words]:
        expected = apply_merges([id_of[letter.encode()] for letter in word], ranks, merged)
        assert apply_merges_with_heap([id_of[letter.encode()] for letter in word], ranks, merged) == expected
        assert len(expected) < 300


def test_a_very_long_run_takes_little_time(small: Tokenizer):
    text = "thecatsat" * 20_000
    assert small.decode(small.encode(text)) == text


def test_saved_and_loaded_any_bytes_come_back_and_equal_tokenizers_give_equal_files(tmp_path: Path):
    generator = random.Random(0)
    tokens = [bytes([byte]) for byte in range(256)]
    merges: list[tuple[bytes, bytes]] = []
    while len(merges) < 300:
        pair = generator.choice(tokens), generator.choice(tokens)
        if pair[0] + pair[1] not in tokens:
            merges.append(pair)
            tokens.append(pair[0] + pair[1])
    tokenizer = Tokenizer(dict(enumerate(tokens)), merges, [END, "<with space>", "<é>"])
    for folder in ("one", "two"):
        tokenizer.save(tmp_path / folder)
    one, two = tmp_path / "one", tmp_path / "two"
    for name in ("bpe.json", "tokenizer.json", "vocab.json", "merges.txt"):
        assert (one / name).read_bytes() == (two / name).read_bytes()
    for loaded in (
        Tokenizer.load(one),
        Tokenizer.from_hugging_face(one / "tokenizer.json"),
        Tokenizer.from_files(one / "vocab.json", one / "merges.txt", tokenizer.special_tokens),
        pickle.loads(pickle.dumps(tokenizer)),
    ):
        assert loaded.vocab == tokenizer.vocab
        assert loaded.merges == tokenizer.merges
        assert loaded.special_tokens == tokenizer.special_tokens


def test_two_merges_that_give_the_same_bytes_survive_saving(tmp_path: Path):
    vocab = {byte: bytes([byte]) for byte in range(256)} | {256: b"ab", 257: b"bc", 258: b"abc", 259: b"abc"}
    merges = [(b"a", b"b"), (b"b", b"c"), (b"ab", b"c"), (b"a", b"bc")]
    Tokenizer(vocab, merges).save(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    assert (loaded.vocab, loaded.merges) == (vocab, merges)
    assert loaded.encode("abc") == [258]


def test_a_merge_of_number_signs_is_not_taken_for_a_comment(tmp_path: Path):
    (tmp_path / "vocab.json").write_text('{"#": 0, "##": 1}')
    (tmp_path / "merges.txt").write_text("# #\n")
    assert Tokenizer.from_files(tmp_path / "vocab.json", tmp_path / "merges.txt").encode("####") == [1, 1]


@given(st.binary(max_size=50))
def test_printable_characters_are_one_a_byte_and_go_back(token: bytes):
    assert from_printable(printable(token)) == token
    assert len(printable(token)) == len(token)
    assert not any(character.isspace() or not character.isprintable() for character in printable(token))


@pytest.mark.parametrize(
    ("vocab", "merges", "message"),
    [
        ("[1]", "", "JSON object"),
        ("{", "", "not valid JSON"),
        ('{"a": "b"}', "", "not GPT-2's vocab.json; Tokenizer.load reads bpe.json"),
        ('{"a": 0}', "#version: 0.2\na b c\n", "merges.txt:2"),
    ],
)
def test_a_damaged_file_ends_in_one_line_that_names_it(tmp_path: Path, vocab: str, merges: str, message: str):
    (tmp_path / "vocab.json").write_text(vocab)
    (tmp_path / "merges.txt").write_text(merges)
    with pytest.raises(UserError, match=message):
        Tokenizer.from_files(tmp_path / "vocab.json", tmp_path / "merges.txt")
    with pytest.raises(UserError, match="not found"):
        Tokenizer.load(tmp_path / "nowhere")


STREAM_UNDER_LIMIT = """
import resource, sys
from cs336.tokenizer.bpe import Tokenizer
tokenizer = Tokenizer.load(__import__("pathlib").Path(sys.argv[1]))
if sys.argv[3] == "compiled":
    tokenizer.prepare()
    list(tokenizer.encode_iterable(["warm", " up"]))
with open(sys.argv[2], newline="") as file:
    in_use = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + 1_000_000, -1))
    print(sum(1 for _ in tokenizer.encode_iterable(iter(lambda: file.read(8_192), ""))))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space by Linux's means")
@pytest.mark.parametrize("kernels", ["plain", "compiled"])
@pytest.mark.parametrize("alphabet", ["etaoinshrdlu", "𝔢𝔱𝔞𝔬𝔦𝔫中文字"])
def test_streaming_5_megabytes_needs_no_more_than_1_megabyte(
    small: Tokenizer, tmp_path: Path, alphabet: str, kernels: str
):
    generator = random.Random(5)
    words = ["".join(generator.choices(alphabet, k=generator.randint(1, 9))) for _ in range(30_000)]
    frequencies = [1 / place for place in range(1, len(words) + 1)]
    drawn = generator.choices(words, frequencies, k=1_000_000)
    text = "".join(" ".join(drawn[i : i + 10]) + "\n" for i in range(0, len(drawn), 10))
    assert len(text) > 5_000_000
    small.save(tmp_path)
    (tmp_path / "text.txt").write_text(text)
    done = subprocess.run(
        [sys.executable, "-c", STREAM_UNDER_LIMIT, str(tmp_path), str(tmp_path / "text.txt"), kernels],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == len(small.encode(text))
