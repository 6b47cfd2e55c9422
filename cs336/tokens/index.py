"""Where a token came from: one JSON line a document beside each file of ids, found by bisection."""

from __future__ import annotations

import json
import sys
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

from cs336.files import UserError


class IndexedDocument(NamedTuple):
    """Where one document's tokens lie, and where its text was read.

    Attributes:
        split: "train" or "valid", the name of the file of ids; not in the file itself.
        first_token: place of its first token there.
        num_tokens: with the closing `<|endoftext|>`.
        num_text_bytes: of its text in UTF-8.
        row: its place among the shard's documents.
        id: the record it was read from.
        url: the page's address.
        warc: file name of the WARC file.
        offset: byte offset of the record in that file.
    """

    split: str
    first_token: int
    num_tokens: int
    num_text_bytes: int
    row: int
    id: str
    url: str
    warc: str
    offset: int


def index_path(tokens: Path) -> Path:
    """The index of a file of ids: `train.bin` has `train.jsonl`."""
    return tokens.with_suffix(".jsonl")


def index_line(document: IndexedDocument) -> str:
    """One document as a line of the index."""
    fields = document._asdict()
    del fields["split"]
    return json.dumps(fields) + "\n"  # ASCII alone: addresses may hold lone surrogates


def read_index(folder: Path, split: str, *, start: int = 0, stop: int | None = None) -> Iterator[IndexedDocument]:
    """The documents of one split, in their order.

    Args:
        start, stop: only those with a token in this stretch of the split; the first is found by
            bisection, so a few documents out of millions take no longer than out of a few.

    Raises:
        UserError: the index is missing or damaged.
    """
    path = index_path(folder / f"{split}.bin")
    try:
        with open(path, "rb") as file:
            if start > 0:
                file.seek(_line_of(file, path, start))
            for line in file:
                document = _document(line, path)
                if stop is not None and document.first_token >= stop:
                    return
                yield document
    except FileNotFoundError:
        raise UserError(
            f"{path}: not found; `cs336 tokenizer encode --out` or the asset token_shards makes it"
        ) from None


def locate(folder: Path, split: str, position: int) -> IndexedDocument:
    """The document that a token belongs to.

    Args:
        folder: of one shard.
        position: place of the token in the split's file of ids.

    Raises:
        IndexError: the split has no such place.
        UserError: the index is missing or damaged.
    """
    found = next(read_index(folder, split, start=max(position, 0), stop=position + 1), None)
    if found is None or position >= found.first_token + found.num_tokens:
        raise IndexError(f"{folder / split}.bin has no token {position:,}")
    return found


def _line_of(file: IO[bytes], path: Path, position: int) -> int:
    """Where the line begins of the last document that starts at or before a token."""

    def first_token_from(place: int) -> int:
        """Of the first line that begins at this byte or later."""
        file.seek(max(place - 1, 0))
        if place:
            file.readline()
        line = file.readline()
        return _document(line, path).first_token if line else sys.maxsize

    size = file.seek(0, 2)
    return max(0, bisect_right(range(size), position, key=first_token_from) - 1)


def _document(line: bytes, path: Path) -> IndexedDocument:
    try:
        return IndexedDocument(split=path.stem, **json.loads(line))
    except (ValueError, TypeError):
        raise UserError(f"{path}: {line[:60]!r} is no line of an index; delete its folder and run again") from None
