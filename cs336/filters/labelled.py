"""Readers of labelled data, on which the filters are measured and the small classifiers trained."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from cs336.catalog_loaders import open_text
from cs336.files import UserError


class PiiSentence(NamedTuple):
    """A text, and where in it personal data stands: (kind, start, end), such as ("PHONE_NUMBER", 4, 16)."""

    text: str
    spans: tuple[tuple[str, int, int], ...]


class Comment(NamedTuple):
    """A remark, and whether people found it hateful or insulting."""

    text: str
    is_toxic: bool


class GoldPage(NamedTuple):
    """A saved page, and which kinds of truth people wrote down about it.

    Attributes:
        kinds: of "text", "html" and "segments" (of its article), "date", "recipe"; none where
            nothing is known.
        article, article_html: the whole article, as text or as HTML, where somebody gave it.
    """

    name: str
    url: str
    site: str
    kinds: frozenset[str]
    html: bytes
    article: str | None = None
    article_html: str | None = None


def read_language_sentences(path: Path) -> dict[str, list[str]]:
    """Sentences by ISO 639-1 code of their language, in the file's order (`lang`, `text` a line)."""
    sentences: dict[str, list[str]] = {}
    for row in _rows(path, "lang", "text"):
        sentences.setdefault(row["lang"], []).append(row["text"])
    return sentences


def read_pii_sentences(path: Path) -> list[PiiSentence]:
    """Texts with labelled spans, from one of presidio-research's files (`full_text`, `spans` a line).

    Raises:
        UserError: no such file, a row without text, or a span whose value does not stand there.
    """
    sentences = []
    for row in _rows(path, "full_text"):
        spans = []
        for span in row["spans"]:
            start, end = span["start_position"], span["end_position"]
            if row["full_text"][start:end] != span["entity_value"]:
                raise UserError(f"{path}: {span['entity_value']!r} does not stand at {start}; fetch the file again")
            spans.append((span["entity_type"], start, end))
        sentences.append(PiiSentence(row["full_text"], tuple(sorted(spans, key=lambda span: span[1]))))
    return sentences


def read_toxic_comments(path: Path) -> list[Comment]:
    """Davidson's tweets (`tweet`, `class` 0 hate, 1 offensive, 2 neither) or Surge's comments (`text`, `is_toxic`)."""
    comments = []
    for row in _rows(path):
        if "tweet" in row:
            comments.append(Comment(row["tweet"], row["class"] != 2))
        elif "text" in row:
            comments.append(Comment(row["text"], row["is_toxic"] == "Toxic"))
        else:
            raise UserError(f"{path}: neither Davidson's tweets nor Surge's comments")
    return comments


def read_gold_pages(files: Mapping[str, Path]) -> Iterator[GoldPage]:
    """The saved pages in the archive's order, one in memory at a time.

    Args:
        files: of the catalogue entry `gold-pages`: the archive, its index, the truths.
    """
    truths: dict[str, dict[str, Any]] = {}
    for row in _rows(files["dev.jsonl"], "name", "kind"):
        truths.setdefault(row["name"], {})[row["kind"]] = row.get(row["kind"])
    index = {row["name"]: row for row in _rows(files["dev_index.jsonl"], "name")}
    with tarfile.open(files["dev.tar.xz"]) as archive:
        for member in archive:
            row = index.get(member.name)
            file = archive.extractfile(member) if row and member.isfile() else None
            if row and file:
                truth = truths.get(member.name, {})
                yield GoldPage(
                    name=row["name"],
                    url=row.get("url") or "",
                    site=row.get("site") or row["name"],
                    kinds=frozenset(truth),
                    html=file.read(),
                    article=truth.get("text"),
                    article_html=truth.get("html"),
                )


def _rows(path: Path, *fields: str) -> Iterator[Any]:
    with open_text(path) as lines:
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(f"{path}:{number}: not valid JSON ({error.msg})") from None
            missing = [field for field in fields if not isinstance(row.get(field), str)]
            if missing:
                raise UserError(f"{path}:{number}: no text field {missing[0]!r}")
            yield row
