"""How good extracted text is, by pages whose main text is known.

Three kinds of gold data, each scored as its origin does:

text      the whole article by annotators (article-extraction-benchmark of Scrapinghub): word
          4-grams of gold and extract as multisets, normalized page by page, precision and recall
          averaged over pages, F1 of the two averages.
html      the main content as HTML (readability's regression tests): rendered by our own
          extractor, then scored like `text`.
segments  strings that must, or must not, be in the extract (trafilatura's evaluation): each is one
          decision, counted over all pages; white space is collapsed on both sides.

The gold texts are main contents, so an extractor that keeps menus has high recall and low precision.

Source: github.com/scrapinghub/article-extraction-benchmark, `evaluate.py`; github.com/adbar/trafilatura,
`tests/evaluate.py`.
"""

from __future__ import annotations

import functools
import gzip
import json
import re
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from cs336.extract.html import extract_text
from cs336.files import UserError
from cs336.processes import map_ordered
from cs336.progress import Progress, silent

KINDS = ("text", "html", "segments")
SHINGLE_WORDS = 4  # of article-extraction-benchmark
_WORD = re.compile(r"\w+")


class GoldPage(NamedTuple):
    """One page and what its main text is known to be.

    Attributes:
        name: of the page in its archive.
        kind: one of `KINDS`.
        html: the page's bytes.
        text: the whole main text; None of `segments`.
        must, must_not: strings that the extract must and must not hold; of `segments` only.
    """

    name: str
    kind: str
    html: bytes
    text: str | None = None
    must: tuple[str, ...] = ()
    must_not: tuple[str, ...] = ()


class Score(NamedTuple):
    """Figures of one extractor on all gold of one kind.

    Attributes:
        num_pages: pages with such gold.
        precision, recall, f1: in [0, 1]; 0 where nothing was extracted at all.
        must_found: share of the must segments that are in the extracts; None of whole texts.
        must_not_found: share of the must-not segments that are, too (lower is better); likewise.
    """

    num_pages: int
    precision: float
    recall: float
    f1: float
    must_found: float | None = None
    must_not_found: float | None = None


def read_gold(gold: Path, pages: Path) -> Iterator[GoldPage]:
    """Pages with gold of a kind in `KINDS`, in the archive's order; a page with two kinds comes twice.

    Args:
        gold: gzipped JSON lines with `name`, `kind`, and `text`, `html` or `data` (`with`, `without`).
        pages: tar.xz of the pages by name.

    Raises:
        UserError: a file is missing, or gold names a page that the archive lacks.
    """
    for path in (gold, pages):
        if not path.is_file():
            raise UserError(f"{path}: not found; set CS336_DATA to a folder with the gold pages")
    by_name: dict[str, list[dict]] = {}
    with gzip.open(gold, "rt", encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            if row["kind"] in KINDS:
                by_name.setdefault(row["name"], []).append(row)
    with tarfile.open(pages) as archive:
        for member in archive:
            name = member.name.removeprefix("./").removeprefix("dev/")
            file = archive.extractfile(member) if name in by_name else None
            if file is not None:
                html = file.read()
                yield from (_gold_page(row, html) for row in by_name.pop(name))
    if by_name:
        raise UserError(f"{pages}: lacks {len(by_name)} pages that {gold.name} names, such as {min(by_name)}")


def _gold_page(row: dict, html: bytes) -> GoldPage:
    if row["kind"] == "segments":
        must, must_not = row["data"].get("with") or (), row["data"].get("without") or ()
        return GoldPage(row["name"], "segments", html, must=tuple(must), must_not=tuple(must_not))
    text = row["text"] if row["kind"] == "text" else extract_text(row["html"].encode())
    return GoldPage(row["name"], row["kind"], html, text=text)


def score_extractors(
    pages: Iterable[GoldPage], names: Sequence[str], *, num_workers: int = 1, progress: Progress = silent
) -> dict[str, dict[str, Score]]:
    """Extractor -> kind of gold -> score; kinds without a page are missing.

    Args:
        names: of `EXTRACTORS`.

    Raises:
        ValueError: no such extractor.
        ImportError: an extractor's package is not installed.
    """
    unknown = sorted(set(names) - EXTRACTORS.keys())
    if unknown:
        raise ValueError(f"there is no extractor {unknown[0]!r}; there are {', '.join(EXTRACTORS)}")
    counts: dict[str, dict[str, list[_Counts]]] = {name: {} for name in names}
    watched = progress(pages, unit="pages", label="score extraction")
    work = functools.partial(_count_page, tuple(names))
    for kind, of_page in map_ordered(work, watched, num_workers=num_workers, per_task=4):
        for name, found in zip(names, of_page, strict=True):
            counts[name].setdefault(kind, []).append(found)
    return {
        name: {kind: _score(kind, by_kind[kind]) for kind in KINDS if kind in by_kind}
        for name, by_kind in counts.items()
    }


class _Counts(NamedTuple):
    """Shares of a page's 4-grams, or numbers of its segments."""

    right: float  # in both, or a must segment that is there
    extra: float  # in the extract only, or a must-not segment that is there
    missed: float  # in the gold only, or a must segment that is not there
    rejected: float = 0.0  # a must-not segment that is not there


def _count_page(names: tuple[str, ...], page: GoldPage) -> tuple[str, list[_Counts]]:
    return page.kind, [compare(page, EXTRACTORS[name](page.html)) for name in names]


def compare(page: GoldPage, extract: str) -> _Counts:
    """One page's extract against its gold."""
    return compare_segments(page, extract) if page.text is None else compare_texts(page.text, extract)


def compare_texts(gold: str, extract: str) -> _Counts:
    """Word 4-grams of two texts as multisets, as shares of all of them; a shorter text is one gram."""
    true, found = _shingles(gold), _shingles(extract)
    right = (true & found).total()
    extra, missed = found.total() - right, true.total() - right
    total = right + extra + missed
    return _Counts(right / total, extra / total, missed / total)


def _shingles(text: str) -> Counter[tuple[str, ...]]:
    words = _WORD.findall(text)
    return Counter(
        tuple(words[start : start + SHINGLE_WORDS]) for start in range(max(1, len(words) - SHINGLE_WORDS + 1))
    )


def compare_segments(page: GoldPage, extract: str) -> _Counts:
    """How many must segments are there, and how many must-not segments are not."""
    text = " ".join(extract.split())
    found = sum(" ".join(segment.split()) in text for segment in page.must)
    leaked = sum(" ".join(segment.split()) in text for segment in page.must_not)
    return _Counts(found, leaked, len(page.must) - found, len(page.must_not) - leaked)


def _score(kind: str, counts: list[_Counts]) -> Score:
    if kind == "segments":
        right, extra, missed, rejected = (sum(column) for column in zip(*counts, strict=True))
        precision, recall = _ratio(right, right + extra), _ratio(right, right + missed)
        found, leaked = recall, _ratio(extra, extra + rejected)
        return Score(len(counts), precision, recall, _f1(precision, recall), found, leaked)
    # Every text has at least one gram, the empty text the empty one: a page without extract scores 0 twice.
    precision = sum(c.right / (c.right + c.extra) for c in counts) / len(counts)
    recall = sum(c.right / (c.right + c.missed) for c in counts) / len(counts)
    return Score(len(counts), precision, recall, _f1(precision, recall))


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _f1(precision: float, recall: float) -> float:
    return _ratio(2 * precision * recall, precision + recall)


def _main_content(html: bytes) -> str:
    return extract_text(html, main_content=True)


def _trafilatura(html: bytes) -> str:
    import trafilatura

    # Comments are no part of any of the gold; its own evaluation leaves them out, too.
    return trafilatura.extract(html, include_comments=False) or ""


EXTRACTORS: dict[str, Callable[[bytes], str]] = {
    "default": extract_text,
    "main content": _main_content,
    "trafilatura": _trafilatura,
}
