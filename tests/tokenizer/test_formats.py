"""Files of tokenizers: other programs read the same ids from them, any bytes survive, damage is one line."""

from __future__ import annotations

import base64
import gzip
import itertools
import json
import random
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cs336.files import UserError
from cs336.tokenizer.bpe import Tokenizer
from cs336.tokenizer.formats import Stored, printable, write_hugging_face
from cs336.tokenizer.pretokenize import PATTERN
from cs336.tokenizer.reference import apply_merges
from cs336.tokenizer.train import BpeConfig, train_bpe_from_documents

END = "<|endoftext|>"
SPECIALS = [END, END * 2, "<|pad|>", " \n", "<é>"]
BYTES = {byte: bytes([byte]) for byte in range(256)}

# Characters that the Unicode tables of all sides know: Python's are the oldest here.
known_text = st.lists(
    st.one_of(
        st.sampled_from(
            [*SPECIALS, "<|", "endoftext", "|>", "the ", " cat", "'s", "''ll", "\n\n", "  ", "\u3000", "😀"]
        ),
        st.text(st.characters(exclude_categories=["Cs", "Cn"]), max_size=5),
    ),
    max_size=25,
).map("".join)


@pytest.fixture(scope="module")
def small() -> Tokenizer:
    texts = ["the cat sat on the mat, and that's that.\n\n" * 3, "naïve café 😀 1,024 times  the\nкот и кот 中文中文\n"]
    vocab, merges = train_bpe_from_documents(texts, BpeConfig(vocab_size=340, special_tokens=tuple(SPECIALS)))
    return Tokenizer(vocab, merges, SPECIALS)


@pytest.fixture(scope="module")
def saved(small: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    small.save(folder)
    small.save_tiktoken(folder / "ranks.tiktoken")
    return folder


@pytest.fixture(scope="module")
def gpt2(shared_data: Path) -> Tokenizer:
    folder = shared_data / "tokenizer"
    return Tokenizer.from_files(folder / "gpt2_vocab.json.gz", folder / "gpt2_merges.txt.gz", [END])


@pytest.fixture(scope="module")
def real_texts(shared_data: Path) -> list[str]:
    """A sentence in each of many languages, an encyclopedia, a story, Shakespeare, and pages of a crawl."""
    texts = []
    for path in sorted((shared_data / "labelled" / "langid").rglob("*.gz")):
        with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
            texts += [json.loads(line)["text"] for line in itertools.islice(file, 0, None, 60)]
    for name in ("text/wiki_demo.txt.gz", "tokenizer/tinystories_sample.txt.gz", "text/tinyshakespeare.txt.gz"):
        with gzip.open(shared_data / name, "rt", encoding="utf-8", newline="") as file:
            texts.append(file.read(30_000))
    with gzip.open(shared_data / "text/c4_demo.jsonl.gz", "rt", encoding="utf-8") as file:
        texts += [json.loads(line)["text"] for line in itertools.islice(file, 20)]
    assert len(texts) > 60 and len({character for text in texts for character in text}) > 1_000
    return texts


# ---- Hugging Face's tokenizer.json ------------------------------------------------------------------


@pytest.fixture(scope="module")
def peers(saved: Path) -> list[Any]:
    """The saved tokenizer as `tokenizers` and the two classes of transformers open it: text to ids, and back."""
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    plain = tokenizers.Tokenizer.from_file(str(saved / "tokenizer.json"))
    fast = transformers.PreTrainedTokenizerFast(tokenizer_file=str(saved / "tokenizer.json"))
    auto = transformers.AutoTokenizer.from_pretrained(saved)
    return [
        (lambda text: plain.encode(text).ids, lambda ids: plain.decode(ids, skip_special_tokens=False)),
        (fast.encode, fast.decode),
        (auto.encode, auto.decode),
    ]


@settings(max_examples=300, deadline=None)
@given(known_text)
def test_ids_in_transformers_and_tokenizers_are_ours(small: Tokenizer, peers: list[Any], text: str):
    ids = small.encode(text)
    for encode, decode in peers:
        assert encode(text) == ids
        assert decode(ids) == text or "<é>" in text  # their decoder takes a special token's "é" for a byte


def test_ids_of_real_text_in_many_languages_are_ours(small: Tokenizer, peers: list[Any], real_texts: list[str]):
    for text in real_texts:
        ids = small.encode(text)
        for encode, decode in peers:
            assert encode(text) == ids
            assert decode(ids) == text


def test_gpt2s_ids_in_tokenizers_are_ours_from_our_file_and_from_theirs(
    gpt2: Tokenizer, real_texts: list[str], shared_data: Path, tmp_path: Path
):
    tokenizers = pytest.importorskip("tokenizers")
    gpt2.save_hugging_face(tmp_path)
    from_ours = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    theirs = gzip.decompress((shared_data / "tokenizer/gpt2_tokenizer.json.gz").read_bytes())
    from_theirs = tokenizers.Tokenizer.from_buffer(theirs)
    for text in [*real_texts, f"a{END} {END}{END}\nb"]:
        assert from_ours.encode(text).ids == gpt2.encode(text) == from_theirs.encode(text).ids


def test_overlapping_special_tokens_are_found_as_transformers_does(small: Tokenizer, peers: list[Any]):
    for text in (END * 3, END + " \n" + END * 2, " \n \n<|pad|>", "<|pad" + END, "a" + END[:-1] + END * 5):
        assert all(encode(text) == small.encode(text) for encode, _ in peers)
    assert small.encode(END * 3) == [SPECIALS.index(END * 2), SPECIALS.index(END)]


def test_every_assigned_character_is_cut_alike_in_tokenizers(saved: Path):
    # Characters of later Unicode versions are where `tokenizers` cannot agree: each program has tables of its own.
    tokenizers = pytest.importorskip("tokenizers")
    cut = tokenizers.Tokenizer.from_file(str(saved / "tokenizer.json")).pre_tokenizer.pre_tokenize_str
    points = [chr(point) for point in range(0x110000) if unicodedata.category(chr(point)) not in ("Cn", "Cs", "Co")]
    for start in range(0, len(points), 20_000):
        text = "".join(f"{point}a {point}1  {point}" for point in points[start : start + 20_000])
        assert [text[a:b] for _, (a, b) in cut(text)] == PATTERN.findall(text)


def test_the_end_of_a_text_is_named_to_transformers(saved: Path, small: Tokenizer, tmp_path: Path):
    transformers = pytest.importorskip("transformers")
    assert transformers.AutoTokenizer.from_pretrained(saved).eos_token_id == small.end_of_text_id
    Tokenizer(BYTES, [], ["<|pad|>"]).save(tmp_path)
    assert transformers.AutoTokenizer.from_pretrained(tmp_path).eos_token is None  # not whatever comes first


def test_a_special_token_that_is_an_ordinary_one_too_keeps_its_merges(tmp_path: Path):
    tokenizers, tiktoken = pytest.importorskip("tokenizers"), pytest.importorskip("tiktoken")
    merges = [(b"t", b"h"), (b" ", b"th"), (b" th", b"e"), (b" the", b"n")]
    vocab = dict(enumerate([*BYTES.values(), *(left + right for left, right in merges)]))
    tokenizer = Tokenizer(vocab, merges, [" the", "x"])
    tokenizer.save_hugging_face(tmp_path)
    tokenizer.save_tiktoken(tmp_path / "ranks")
    peer = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    again = Tokenizer.from_tiktoken(tmp_path / "ranks", {" the": 258, "x": 120})
    ranks = tiktoken_ranks(tmp_path / "ranks")
    specials = {" the": 258, "x": 120}
    encoding = tiktoken.Encoding("t", pat_str=PATTERN.pattern, mergeable_ranks=ranks, special_tokens=specials)
    for text in ("then then the\n the", "the thxth", " then"):
        ids = tokenizer.encode(text)
        assert peer.encode(text).ids == ids == again.encode(text) == encoding.encode(text, allowed_special="all")
    for loaded in (Tokenizer.from_hugging_face(tmp_path / "tokenizer.json"), again):
        assert (loaded.vocab, loaded.merges) == (tokenizer.vocab, tokenizer.merges)


def test_what_tokenizer_json_cannot_tell_apart_is_refused_and_saved_without_it(tmp_path: Path):
    clash = Tokenizer(BYTES | {256: b" a"}, [(b" ", b"a")], ["Ġa"])  # the name of " a" there
    double = Tokenizer(BYTES | {256: b"ab", 257: b"ab"}, [(b"a", b"b")])
    for number, tokenizer in enumerate((clash, double)):
        with pytest.raises(ValueError, match=r"use bpe\.json"):
            tokenizer.save_hugging_face(tmp_path)
        folder = tmp_path / str(number)
        tokenizer.save(folder)
        assert not (folder / "tokenizer.json").exists()
        loaded = Tokenizer.load(folder)
        assert (loaded.vocab, loaded.special_tokens) == (tokenizer.vocab, tokenizer.special_tokens)


# ---- tiktoken ---------------------------------------------------------------------------------------


def tiktoken_ranks(path: Path) -> dict[bytes, int]:
    """As `tiktoken.load.load_tiktoken_bpe` reads it."""
    lines = path.read_bytes().splitlines()
    return {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines)}


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Any]:
    """A tokenizer and tiktoken's of it; special tokens do not overlap, since tiktoken finds any of those."""
    tiktoken = pytest.importorskip("tiktoken")
    specials = [token for token in SPECIALS if token != END * 2]
    texts = ["the cat sat on the mat, and that's that.\n\n" * 3, "naïve café 😀 1,024 times  the\nкот и кот 中文中文\n"]
    vocab, merges = train_bpe_from_documents(texts, BpeConfig(vocab_size=340, special_tokens=tuple(specials)))
    tokenizer = Tokenizer(vocab, merges, specials)
    path = tmp_path_factory.mktemp("apart") / "ranks"
    tokenizer.save_tiktoken(path)
    ids = {token: number for number, token in enumerate(specials)}
    return tokenizer, tiktoken.Encoding(
        "ours", pat_str=PATTERN.pattern, mergeable_ranks=tiktoken_ranks(path), special_tokens=ids
    )


@settings(max_examples=200, deadline=None)
@given(text=known_text)
def test_ids_in_tiktoken_are_ours(apart: tuple[Tokenizer, Any], text: str):
    tokenizer, peer = apart
    assert peer.encode(text, allowed_special="all") == tokenizer.encode(text)


def test_ids_of_real_text_in_tiktoken_are_ours(apart: tuple[Tokenizer, Any], real_texts: list[str]):
    tokenizer, peer = apart
    for text in real_texts:
        assert peer.encode(text, allowed_special="all") == tokenizer.encode(text)


def test_tiktokens_file_comes_back_as_the_same_tokenizer(small: Tokenizer, saved: Path):
    specials = {token: number for number, token in enumerate(SPECIALS)}
    loaded = Tokenizer.from_tiktoken(saved / "ranks.tiktoken", specials)
    assert (loaded.vocab, loaded.merges, loaded.special_tokens) == (small.vocab, small.merges, small.special_tokens)


def test_merges_that_tiktoken_would_not_find_again_are_refused(tmp_path: Path):
    # "abc" is merged from "ab" and "c"; by their ids alone it would be from "a" and "bc".
    vocab = BYTES | {256: b"bc", 257: b"ab", 258: b"abc"}
    tokenizer = Tokenizer(vocab, [(b"a", b"b"), (b"b", b"c"), (b"ab", b"c")])
    with pytest.raises(ValueError, match="order of the ids"):
        tokenizer.save_tiktoken(tmp_path / "ranks")
    with pytest.raises(ValueError, match="order of the ids"):
        Tokenizer(vocab | {259: b"bc"}, [(b"b", b"c")]).save_tiktoken(tmp_path / "ranks")
    assert list(tmp_path.iterdir()) == []


# ---- the same tokenizer by every route --------------------------------------------------------------


def test_gpt2s_own_files_give_one_tokenizer_by_every_route(gpt2: Tokenizer, shared_data: Path, tmp_path: Path):
    gpt2.save(tmp_path)
    gpt2.save_tiktoken(tmp_path / "ranks")
    routes = {
        "their tokenizer.json": Tokenizer.from_hugging_face(shared_data / "tokenizer/gpt2_tokenizer.json.gz"),
        "our tokenizer.json": Tokenizer.from_hugging_face(tmp_path / "tokenizer.json"),
        "bpe.json": Tokenizer.load(tmp_path),
        "vocab.json and merges.txt": Tokenizer.from_files(tmp_path / "vocab.json", tmp_path / "merges.txt", [END]),
        "tiktoken": Tokenizer.from_tiktoken(tmp_path / "ranks", {END: 50_256}),
    }
    assert gpt2.vocab_size == 50_257 and len(gpt2.merges) == 50_000
    for name, tokenizer in routes.items():
        assert tokenizer.vocab == gpt2.vocab, name
        assert tokenizer.merges == gpt2.merges, name
        assert tokenizer.special_tokens == (END,) and tokenizer.end_of_text_id == 50_256, name


@pytest.mark.parametrize("seed", range(3))
def test_arbitrary_bytes_survive_every_format(seed: int, tmp_path: Path):
    generator = random.Random(seed)
    tokens, merges = list(BYTES.values()), []
    ranks: dict[tuple[int, int], int] = {}
    while len(merges) < 400:
        left, right = generator.randrange(len(tokens)), generator.randrange(len(tokens))
        token = tokens[left] + tokens[right]
        if apply_merges(list(token), ranks, list(range(256, len(tokens)))) == [left, right]:  # as training would
            ranks[left, right] = len(merges)
            merges.append((tokens[left], tokens[right]))
            tokens.append(token)
    tokenizer = Tokenizer(dict(enumerate(tokens)), merges, [END, "<with space>", "<é>", "中\n"])
    tokenizer.save(tmp_path)
    tokenizer.save_tiktoken(tmp_path / "ranks")
    specials = {token: 656 + number for number, token in enumerate(tokenizer.special_tokens)}
    for loaded in (
        Tokenizer.load(tmp_path),
        Tokenizer.from_hugging_face(tmp_path / "tokenizer.json"),
        Tokenizer.from_files(tmp_path / "vocab.json", tmp_path / "merges.txt", tokenizer.special_tokens),
        Tokenizer.from_tiktoken(tmp_path / "ranks", specials),
    ):
        assert (loaded.vocab, loaded.merges) == (tokenizer.vocab, tokenizer.merges)
        assert loaded.special_tokens == tokenizer.special_tokens


# ---- damage -----------------------------------------------------------------------------------------

READERS = {
    "bpe.json": lambda path: Tokenizer.load(path.parent),
    "tokenizer.json": Tokenizer.from_hugging_face,
    "vocab.json": lambda path: Tokenizer.from_files(path, path.with_name("merges.txt")),
    "merges.txt": lambda path: Tokenizer.from_files(path.with_name("vocab.json"), path),
    "ranks.tiktoken": lambda path: Tokenizer.from_tiktoken(path, {END: 0}),
}


@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_is_one_line_that_names_it_or_still_a_tokenizer(name: str, saved: Path, tmp_path: Path):
    for path in saved.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    whole = (saved / name).read_bytes()
    generator = random.Random(0)
    num_errors = 0
    for _ in range(150):
        start = generator.randrange(len(whole))
        stop = start + generator.choice([1, 1, 5, 300, len(whole)])
        filling = generator.choice(
            [b"", b"x", b'"', b"-", b"]", b"\xff", b"\\ud800", "Ġ €".encode(), whole[start // 2 :]]
        )
        (tmp_path / name).write_bytes(whole[:start] + filling + whole[stop:])
        try:
            READERS[name](tmp_path / name).encode("the cat")
        except UserError as error:
            num_errors += 1
            assert len(str(error).splitlines()) == 1
            assert (str(tmp_path) in str(error) and ".txt" in str(error)) or name in str(error)
        except ValueError as error:  # a whole file that has lost a byte's own entry
            assert "is not in the vocabulary" in str(error)
    assert num_errors > 50


def edited(path: Path, change: Any) -> Path:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v["model"].update(type="WordPiece"), "not byte-level BPE ('WordPiece')"),
        (lambda v: v["model"].update(byte_fallback=True), "not byte-level BPE"),
        (lambda v: v["model"].update(end_of_word_suffix="</w>"), "not byte-level BPE"),
        (lambda v: v["model"].pop("vocab"), "not a whole tokenizer file (KeyError: 'vocab')"),
        (lambda v: v.pop("model"), "not a whole tokenizer file (KeyError: 'model')"),
        (lambda v: v.update(normalizer={"type": "NFC"}), "another pattern"),
        (lambda v: v.update(pre_tokenizer={"type": "Whitespace"}), "another pattern"),
        (lambda v: v["pre_tokenizer"]["pretokenizers"][0].update(pattern={"Regex": r"\w+"}), "another pattern"),
        (lambda v: v["added_tokens"][0].update(lstrip=True), "take in what is beside them"),
        (lambda v: v["model"]["vocab"].update({"a": "0"}), "is no id"),
        (lambda v: v["model"]["merges"].append(["q", "q"]), "b'qq' is not in the vocabulary"),
    ],
)
def test_a_foreign_or_incomplete_tokenizer_json_is_refused(saved: Path, tmp_path: Path, change: Any, message: str):
    (tmp_path / "tokenizer.json").write_bytes((saved / "tokenizer.json").read_bytes())
    with pytest.raises(UserError) as caught:
        Tokenizer.from_hugging_face(edited(tmp_path / "tokenizer.json", change))
    assert message in str(caught.value) and str(caught.value).startswith(str(tmp_path / "tokenizer.json"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("YQ== 0\n!!! 1\n", ":2: not a token in base64"),
        ("YQ== 0\nYWI= 1\n", "token 1 (b'ab') is not made of two earlier ones"),  # no "b"
        ("YQ== 0\nYWFh 1\n", "token 1 (b'aaa') is not made of two"),
        ("YQ==\n", ":1: not a token in base64"),
        ("YQ== -1\n", "-1 is no id"),
    ],
)
def test_a_damaged_tiktoken_file_is_one_line(tmp_path: Path, content: str, message: str):
    (tmp_path / "ranks").write_text(content)
    with pytest.raises(UserError) as caught:
        Tokenizer.from_tiktoken(tmp_path / "ranks", {})
    assert message in str(caught.value) and str(tmp_path / "ranks") in str(caught.value)


def test_a_torn_gzip_file_and_a_folder_are_one_line(saved: Path, tmp_path: Path):
    packed = gzip.compress((saved / "tokenizer.json").read_bytes())
    for number, content in enumerate((packed[:-20], b"\x1f\x8b" + packed[2:40] + b"\x00" * 60, b"plain")):
        path = tmp_path / f"{number}.json.gz"
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"json\.gz: not a readable tokenizer file"):
            Tokenizer.from_hugging_face(path)
    with pytest.raises(UserError, match="not a readable tokenizer file"):
        Tokenizer.from_hugging_face(tmp_path)
    with pytest.raises(UserError, match="not found"):
        Tokenizer.from_tiktoken(tmp_path / "nowhere", {})


def test_equal_tokenizers_give_equal_bytes_of_tokenizer_json(small: Tokenizer, tmp_path: Path):
    shuffled = list(small.vocab.items())
    random.Random(1).shuffle(shuffled)
    for name, vocab in (("one", small.vocab), ("two", dict(shuffled))):
        write_hugging_face(tmp_path / name, Stored(vocab, small.merges, small.special_tokens))
    assert (tmp_path / "one/tokenizer.json").read_bytes() == (tmp_path / "two/tokenizer.json").read_bytes()
    assert printable(b" the") in json.loads((tmp_path / "one/tokenizer.json").read_text())["model"]["vocab"]
