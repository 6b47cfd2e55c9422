"""Texts to measure on: real ones joined, made-up ones, and longer ones whose vocabulary keeps growing.

A longer text must not be the shorter one again and again: then the work on distinct pre-tokens, which is
most of learning a vocabulary, would stop growing. `write_grown` starts with the whole base text and goes on
with its pieces (cut where white space follows a visible character, so the pre-tokens stay those of the base)
in random order, each as likely as any other; and before some of the pieces it puts a coined word, two halves
of real ones joined, as often as keeps the number of distinct pre-tokens at Heaps' law

    V(n) = V(base) * (n / bytes of base) ** beta

with beta fitted on the base's documents in random order. Half of the places for coined words get a new one,
the others one that an earlier such place got (Simon's process, 1955), so they are as unevenly frequent as
rare words are.
"""

from __future__ import annotations

import gzip
import hashlib
import itertools
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cs336.files import UserError, replacing
from cs336.tokenizer.bpe import END_OF_TEXT
from cs336.tokenizer.segments import PADDING, cut_segments

BOOKS_AND_IMDB = ("books/train", "books/valid", "imdb/train", "imdb/test")
_END = END_OF_TEXT.encode()
_PIECE = re.compile(rb"(?s)\s*.{40,}?[!-~](?=[ \n])")  # sentences, more or less
_PIECES_A_DOCUMENT = 16
_PIECES_A_BLOCK = 1 << 16  # written at a time
_SHARE_NEW = 0.5  # of the places for coined words


class Growth(NamedTuple):
    """How the number of distinct pre-tokens grows.

    Attributes:
        sizes: bytes of text.
        distinct: pre-tokens among them.
        beta: slope of the line through their logarithms.
    """

    sizes: list[int]
    distinct: list[int]
    beta: float


def write_books_and_imdb(path: Path, data: Path) -> None:
    """Books and film reviews of a folder of data sets as one file, `<|endoftext|>` after each text.

    Raises:
        UserError: `data` lacks one of `text/{books,imdb}/*.jsonl.gz`.
    """
    with replacing(path) as file:
        for name in BOOKS_AND_IMDB:
            source = data / "text" / f"{name}.jsonl.gz"
            if not source.exists():
                raise UserError(f"{source}: not found; leave CS336_DATA unset to measure on a made-up text")
            with gzip.open(source, "rt", encoding="utf-8") as lines:
                for line in lines:
                    file.write(json.loads(line)["text"].encode() + _END)


def generated_text(num_bytes: int, *, seed: int = 0) -> str:
    """Documents of made-up words, as frequent as Zipf's law has it, with numbers, signs and accents.

    Needs no data and is the same everywhere; real text is a better measure.
    """
    generator = random.Random(seed)
    letters, weights = "etaoinshrdlucmfwypvbgkjqxzéüñ", [30 - place for place in range(29)]
    words = ["".join(generator.choices(letters, weights, k=generator.randint(2, 10))) for _ in range(20_000)]
    frequencies = list(itertools.accumulate(1 / place for place in range(1, len(words) + 1)))
    ends = [".", ".", ".", "!", "?", ":", "...", ".\n", ".\n\n", " (1,024)", "'s", " — 42 %", " 中文"]
    parts: list[str] = []
    size = 0
    while size < num_bytes:
        sentence = " ".join(generator.choices(words, cum_weights=frequencies, k=generator.randint(4, 20))).capitalize()
        part = sentence + generator.choice(ends) + (END_OF_TEXT if generator.random() < 0.05 else " ")
        parts.append(part)
        size += len(part.encode())
    return "".join(parts)


def write_grown(path: Path, base: Path, num_bytes: int, *, seed: int = 0) -> None:
    """Write a text of about `num_bytes` that goes on as the base does (see above), in little memory beyond the base.

    The same bytes every time for the same base, size and seed.

    Raises:
        ValueError: the base is longer than `num_bytes`.
    """
    text = base.read_bytes()
    if len(text) > num_bytes:
        raise ValueError(f"{base} has {len(text):,} bytes, more than the {num_bytes:,} asked for; cut it instead")
    beta = heaps_law(text, seed=seed).beta
    words = distinct_pretokens(text)
    pieces = _PIECE.findall(text.replace(_END, b"\n"))
    coiner = _Coiner(words, seed)
    lengths = np.fromiter(map(len, pieces), np.int64, len(pieces))
    random_words = np.random.PCG64(seed)  # raw words: unlike Generator's methods, the same with every NumPy
    size, num_distinct = len(text), float(len(words))
    with replacing(path) as file:
        file.write(text)
        while size < num_bytes:
            drawn = _below(len(pieces), random_words.random_raw(_PIECES_A_BLOCK))
            places = size + np.cumsum(lengths[drawn])
            wanted = len(words) * (places / len(text)) ** beta  # distinct pre-tokens up to the end of each piece
            slots = np.floor((wanted - num_distinct) / _SHARE_NEW).astype(np.int64)
            parts = [pieces[number] for number in drawn.tolist()]
            for number in np.flatnonzero(np.diff(slots, prepend=0)).tolist():
                for _ in range(int(slots[number] - (slots[number - 1] if number else 0))):
                    parts[number] = coiner.next_word() + parts[number]
            for number in range(_PIECES_A_DOCUMENT - 1, len(parts), _PIECES_A_DOCUMENT):
                parts[number] += _END
            block = b"".join(parts)
            if size + len(block) > num_bytes:
                block = block[: max(block.rfind(_END, 0, num_bytes - size), 0)] + _END
                size = num_bytes  # it is the last
            file.write(block)
            size += len(block)
            num_distinct += slots[-1] * _SHARE_NEW


class _Coiner:
    """New words that no word of the text equals, and old ones again."""

    def __init__(self, words: set[bytes], seed: int) -> None:
        self._random = random.Random(seed)
        self._known = set(words)
        self._parts = sorted(word for word in words if re.fullmatch(rb" [a-z]{6,12}", word))
        self._coined: list[bytes] = []
        self._is_new = False

    def next_word(self) -> bytes:
        """Every second time a new word (with its space), else one of those given before, however often."""
        self._is_new = not self._is_new
        if self._is_new or not self._parts:
            word = self._coin()
        else:
            word = self._coined[int(self._random.random() * len(self._coined))]
        self._coined.append(word)
        return word

    def _coin(self) -> bytes:
        while True:
            first, second = (self._parts[int(self._random.random() * len(self._parts))] for _ in range(2))
            word = first[: 1 + len(first) // 2] + second[1 + len(second) // 2 :]
            if word not in self._known:
                self._known.add(word)
                return word


def _below(limit: int, words: np.ndarray) -> np.ndarray:
    """Random 64-bit words as whole numbers below a limit (of at most 32 bits)."""
    return ((words >> np.uint64(32)) * np.uint64(limit) >> np.uint64(32)).astype(np.int64)


def heaps_law(text: bytes, *, seed: int = 0, num_sizes: int = 12) -> Growth:
    """Growth of the distinct pre-tokens of a text's documents, taken in random order, from 1/64 of it on."""
    documents = text.split(_END)
    random.Random(seed).shuffle(documents)
    return growth(
        _END.join(documents), [int(len(text) / 64 ** (1 - step / (num_sizes - 1))) for step in range(num_sizes)]
    )


def growth(text: bytes, sizes: list[int]) -> Growth:
    """Distinct pre-tokens of the first bytes of a text (up to a document's end), and the slope of their growth."""
    from cs336.tokenizer import compiled

    table = compiled.empty_table()
    compiled.warm_up()
    measured, distinct, start = [], [], 0
    for size in sizes:
        end = len(text) if size >= len(text) else text.rfind(_END, start, size) + len(_END)
        if end <= start + len(_END):
            continue
        table = _count(text[start:end], table)
        measured.append(end)
        distinct.append(table[1])
        start = end
    if len(measured) < 2:
        raise ValueError(f"a text of {len(text):,} bytes is too short to see its vocabulary grow; give a longer one")
    slope, _ = np.polyfit(np.log(measured), np.log(distinct), 1)
    return Growth(measured, distinct, float(slope))


def distinct_pretokens(text: bytes) -> set[bytes]:
    """The pre-tokens of a text, each once."""
    from cs336.tokenizer import compiled

    words, starts, _ = compiled.counted_words(*_count(text, compiled.empty_table())[:3])
    flat = words.tobytes()
    return {flat[start:end] for start, end in itertools.pairwise(starts.tolist())}


def _count(text: bytes, table: tuple) -> tuple:
    from cs336.tokenizer import compiled

    segments = cut_segments(bytearray(text) + bytes(PADDING), {_END: 0})
    return compiled.count_segments(segments.buffer, segments.starts, segments.ends, compiled.classes(), *table)


def write_beginning(path: Path, base: Path, num_bytes: int) -> None:
    """Write the first documents of a text, about `num_bytes` of them."""
    with open(base, "rb") as file:
        text = file.read(num_bytes)
        text += file.read(10_000_000).partition(_END)[0] if len(text) == num_bytes else b""
    end = text.rfind(_END, 0, num_bytes)
    with replacing(path) as file:
        file.write(text[:end] + _END if end > 0 else text + _END)


def write_shards(folder: Path, path: Path, num_files: int) -> None:
    """Cut a text into files of whole documents, of about the same length; into fewer where a document is longer."""
    size = path.stat().st_size
    folder.mkdir(parents=True, exist_ok=True)
    with open(path, "rb") as file:
        rest = b""
        for number in range(num_files):
            goal = size * (number + 1) // num_files - size * number // num_files
            text = rest + file.read(goal)
            end = len(text) if number == num_files - 1 else text.rfind(_END) + len(_END)
            if end >= len(_END):
                (folder / f"{number:02}.txt").write_bytes(text[:end])
                text = text[end:]
            rest = text


def documents_of(path: Path, *, limit_bytes: int | None = None) -> Iterator[str]:
    """The documents of a file, one by one, read in blocks; empty ones left out.

    Args:
        limit_bytes: stop at the end of the document that reaches this.
    """
    with open(path, "rb") as file:
        rest, size = b"", 0
        while block := file.read(8_000_000):
            *whole, rest = (rest + block).split(_END)
            for document in whole:
                if document:
                    yield document.decode()
                size += len(document)
                if limit_bytes is not None and size >= limit_bytes:
                    return
        if rest:
            yield rest.decode()


def sha256_of(path: Path) -> str:
    """Checksum of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
