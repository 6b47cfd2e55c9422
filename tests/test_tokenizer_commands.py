"""`cs336 tokenizer`: the library and others read what it writes; mistakes are one line and leave nothing."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

import pytest

from cs336 import tokenizer_commands
from cs336.cli import main
from cs336.tokenizer.bpe import Tokenizer
from cs336.tokenizer.train import train_bpe
from cs336.tokenizer_commands import _open
from cs336.tokens.index import locate
from cs336.tokens.shards import open_tokens

END = "<|endoftext|>"
WORDS = ["the", "cat", "sat", "naïve", "café", "мат", "中文", "😀", "1,024", "it's"]


def text_of(num_words: int, *, seed: int) -> str:
    generator = random.Random(seed)
    return "".join(generator.choice(WORDS) + generator.choice([" ", " ", "  ", "\r\n", END]) for _ in range(num_words))


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "book.txt"
    path.write_text(text_of(3_000, seed=0), newline="")
    return path


@pytest.fixture(scope="module")
def folder(text: Path) -> Path:
    folder = text.parent / "tokenizer"
    assert main(["tokenizer", "train", str(text), "--vocab-size", "300", "--out", str(folder)]) == 0
    return folder


def test_training_gives_the_librarys_vocabulary_and_says_what_it_took(text: Path, tmp_path: Path, capsys: Any):
    assert main(["tokenizer", "train", str(text), "--vocab-size", "300", "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    learnt = Tokenizer.load(tmp_path / "out")
    assert (learnt.vocab, learnt.merges) == train_bpe(text, 300, [END])
    num_tokens = len(learnt.encode(text.read_bytes().decode()))
    assert "300 entries, 43 of them merges" in printed and "peak memory" in printed
    assert f"{text.stat().st_size / num_tokens:.2f} bytes per token" in printed
    assert repr(max((left + right for left, right in learnt.merges), key=len).decode()) in printed
    names = {"bpe.json", "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names


def test_several_files_gzipped_or_not_are_learnt_from_with_a_boundary_between_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tokenizer_commands, "_CHUNK_BYTES", 7)  # characters and special tokens are torn
    parts = [text_of(400, seed=seed).rstrip() for seed in range(3)]
    for number, part in enumerate(parts):
        (tmp_path / f"{number}.txt").write_text(part, newline="")
    (tmp_path / "1.txt.gz").write_bytes(gzip.compress(parts[1].encode()))
    files = [str(tmp_path / name) for name in ("0.txt", "1.txt.gz", "2.txt")]
    (tmp_path / "joined.txt").write_text(END.join(parts), newline="")
    out = tmp_path / "out"
    assert main(["tokenizer", "train", *files, "--vocab-size", "320", "--out", str(out), "--threads", "2"]) == 0
    assert Tokenizer.load(out).merges == train_bpe(tmp_path / "joined.txt", 320, [END])[1]


def test_special_tokens_of_ones_own_and_too_large_a_vocabulary(tmp_path: Path, capsys: Any):
    (tmp_path / "text.txt").write_text("ab<x>ab<y>")
    arguments = ["tokenizer", "train", str(tmp_path / "text.txt"), "--out", str(tmp_path / "out")]
    assert main([*arguments, "--special", "<x>", "--special", "<y>", "--special", "<x>"]) == 0
    assert Tokenizer.load(tmp_path / "out").special_tokens == ("<x>", "<y>")
    assert "259 entries, 1 of them merges" in (printed := capsys.readouterr().out)
    assert "fewer than the 32,000 asked for" in printed


def test_ids_are_encodes_and_decode_to_the_same_bytes(
    text: Path, folder: Path, tmp_path: Path, capfdbinary: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tokenizer_commands, "_CHUNK_BYTES", 100)
    assert main(["tokenizer", "encode", str(folder), str(text)]) == 0
    printed = capfdbinary.readouterr()
    ids = Tokenizer.load(folder).encode(text.read_bytes().decode())
    assert [int(word) for word in printed.out.split()] == ids
    assert f"{len(ids):,} tokens".encode() in printed.err
    (tmp_path / "ids").write_bytes(printed.out.rstrip())
    for source in (["ids"], []):  # from a file, and from standard input
        with open(tmp_path / "ids") as stdin:
            monkeypatch.setattr("sys.stdin", stdin)
            assert main(["tokenizer", "decode", str(folder), *(str(tmp_path / name) for name in source)]) == 0
        assert capfdbinary.readouterr().out == text.read_bytes()


def test_pieces_show_what_each_id_stands_for(folder: Path, tmp_path: Path, capsys: Any):
    (tmp_path / "text.txt").write_text(f"the ü\n{END}")
    assert main(["tokenizer", "encode", str(folder), str(tmp_path / "text.txt"), "--pieces"]) == 0
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [int(number) for number, _ in rows] == Tokenizer.load(folder).encode(f"the ü\n{END}")
    assert [shown for _, shown in rows] == ["'the'", "' '", r"b'\xc3'", r"b'\xbc'", r"'\n'", f"'{END}'"]


def test_a_file_of_ids_comes_with_an_index_and_decodes(text: Path, folder: Path, tmp_path: Path, capfdbinary: Any):
    out = tmp_path / "train.bin"
    assert main(["tokenizer", "encode", str(folder), str(text), "--out", str(out), "--threads", "2"]) == 0
    printed = capfdbinary.readouterr().out.decode()
    ids = open_tokens(out).tolist()
    tokenizer, whole = Tokenizer.load(folder), text.read_bytes()
    assert ids == tokenizer.encode(whole.decode())
    assert (
        f"{len(ids):,} tokens of {whole.decode().count(END) + (not whole.endswith(END.encode())):,} documents"
        in printed
    )
    document = locate(tmp_path, "train", 1_234)
    assert document.first_token <= 1_234 < document.first_token + document.num_tokens
    begin, end = document.offset, document.offset + document.num_text_bytes
    assert whole[begin:end].decode() in tokenizer.decode(ids[document.first_token :][: document.num_tokens])
    assert whole[:begin].endswith(END.encode()) and whole[end:].startswith(END.encode())
    assert main(["tokenizer", "decode", str(folder), str(out)]) == 0
    assert capfdbinary.readouterr().out == whole


def test_exports_are_read_by_others_and_by_the_command_itself(folder: Path, tmp_path: Path, capsys: Any):
    tokenizers, tiktoken = pytest.importorskip("tokenizers"), pytest.importorskip("tiktoken")
    loading = pytest.importorskip("tiktoken.load")
    tokenizer, sample = Tokenizer.load(folder), f"the café{END} sat 中文"
    for name in ("huggingface", "tiktoken", "gpt2"):
        out = tmp_path / name
        assert main(["tokenizer", "export", str(folder), "--format", name, "--out", str(out)]) == 0
        assert (
            main(["tokenizer", "export", str(out), "--format", "gpt2", "--out", str(tmp_path / f"{name} again")]) == 0
        )
        again = Tokenizer.from_files(
            tmp_path / f"{name} again/vocab.json", tmp_path / f"{name} again/merges.txt", [END]
        )
        assert (again.vocab, again.merges) == (tokenizer.vocab, tokenizer.merges)
        assert _open(out).special_tokens == _open(tmp_path / f"{name} again").special_tokens == (END,)
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "huggingface/tokenizer.json"))
    assert theirs.encode(sample).ids == tokenizer.encode(sample)
    # As the command prints it.
    ranks = loading.load_tiktoken_bpe(str(tmp_path / "tiktoken/ranks.tiktoken"))
    encoding = tiktoken.Encoding(
        "mine", mergeable_ranks=ranks, **json.loads((tmp_path / "tiktoken/encoding.json").read_text())
    )
    assert encoding.encode(sample, allowed_special="all") == tokenizer.encode(sample)
    printed = capsys.readouterr().out
    assert "AutoTokenizer.from_pretrained" in printed and "load_tiktoken_bpe" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "nowhere.txt", "--out", "new"], "nowhere.txt: not found"),
        (["train", ".", "--out", "new"], ".: is a folder; name its files"),
        (["train", "text.txt", "--out", "full"], "full: is there already; name a new folder"),
        (["train", "text.txt", "--out", "new", "--vocab-size", "9"], "vocab_size 9 is too small"),
        (["train", "text.txt", "--out", "new", "--special", ""], "a special token is empty"),
        (["train", "text.txt", "--out", "new", "--threads", "-1"], "--threads is -1; give 1 or more"),
        (["train", "empty.txt", "--out", "new"], "empty.txt: no text to learn from"),
        (["train", "latin1.txt", "--out", "new"], "latin1.txt: not UTF-8 at byte 4;"),
        (["train", "text.txt", "latin1.txt", "--out", "new"], "latin1.txt: not UTF-8 at byte 4;"),
        (["train", "torn.gz", "--out", "new"], "torn.gz: not a whole gzip file"),
        (["encode", "nowhere", "text.txt"], "nowhere: holds no tokenizer; `cs336 tokenizer train` makes one"),
        (["encode", "full", "text.txt"], "full: holds no tokenizer"),
        (["encode", "small", "nowhere.txt"], "nowhere.txt: not found"),
        (["encode", "small", "cut.txt"], "cut.txt: ends within a character"),
        (["encode", "small", "latin1.txt", "--out", "new.bin"], "latin1.txt: not UTF-8 at byte 4;"),
        (["encode", "small", "text.txt", "--out", "new"], "new: name a file that ends with .bin"),
        (["encode", "small", "text.txt", "--out", "old.bin"], "old.jsonl: is there already"),
        (["decode", "small", "text.txt"], "text.txt: 'ab' is no token id"),
        (
            ["decode", "small", "ids.txt"],
            "ids.txt: id 999 is not in the vocabulary of 257 entries; it was encoded with",
        ),
        (["decode", "small", "odd.bin"], "odd.bin: 3 bytes are not whole uint16 tokens"),
        (["export", "nowhere", "--format", "gpt2", "--out", "new"], "nowhere: holds no tokenizer"),
        (["export", "double", "--format", "huggingface", "--out", "new"], "two ids have the same bytes"),
        (["export", "double", "--format", "tiktoken", "--out", "new"], "the merges do not follow"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tokenizer_commands, "_CHUNK_BYTES", 5)
    contents = {
        "text.txt": b"ab ab",
        "empty.txt": b"",
        "latin1.txt": b"ab c\xc3\xe9",
        "cut.txt": b"ab \xe4\xb8",
    }
    contents |= {"torn.gz": gzip.compress(b"ab" * 99)[:-9], "ids.txt": b"97 999", "odd.bin": b"abc", "old.jsonl": b""}
    for name, content in contents.items():
        Path(name).write_bytes(content)
    Path("full").mkdir()
    Path("full/file").touch()
    vocab = {byte: bytes([byte]) for byte in range(256)}
    Tokenizer(vocab, [], [END]).save(Path("small"))
    Tokenizer(vocab | {256: b"ab", 257: b"ab"}, [(b"a", b"b")]).save(Path("double"))
    before = sorted(tmp_path.rglob("*"))
    assert main(["tokenizer", *arguments]) == 1
    printed = capsys.readouterr().err
    lines = [line for line in printed.splitlines() if "MiB" not in line]
    assert len(lines) == 1 and lines[0].startswith("cs336: ") and message in lines[0]
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("action", ["train", "encode", "decode", "export"])
def test_help_teaches_by_examples(action: str, capsys: Any):
    with pytest.raises(SystemExit) as caught:
        main(["tokenizer", action, "--help"])
    assert caught.value.code == 0
    assert "cs336 tokenizer" in capsys.readouterr().out.partition("\n\n")[2]


def test_the_commands_load_neither_torch_nor_dagster(text: Path, folder: Path):
    import subprocess
    import sys

    code = f"import sys; from cs336.cli import main; main(['tokenizer', 'encode', {str(folder)!r}, {str(text)!r}])"
    code += "; assert not {'torch', 'dagster', 'polars'} & set(sys.modules), 'loaded'"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
