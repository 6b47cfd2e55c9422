"""Examples for the quality classifier from saved pages whose article people have marked.

Positives are pages with an article, as they come: menus and all. Negatives are pages of other kinds,
pages of small crawls, and what is left of an article's page without its article: menus, notices,
log-in forms. Those left-overs make forum indexes and log-in pages of sites never seen count as crawl
pages; without them, log-in pages pass for articles (measured).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

from cs336.extract.html import extract_text
from cs336.extract.shard import ExtractConfig, extract_shard
from cs336.filters.labelled import GoldPage, read_gold_pages
from cs336.filters.language import LanguageModel
from cs336.filters.quality import host_of
from cs336.processes import map_ordered
from cs336.progress import Progress, silent

ARTICLE, RECIPE, CRAWL_PAGE, LEFT_OVER, UNKNOWN = "article", "recipe", "crawl page", "left over", "unknown"
_MIN_LEFT_OVER_WORDS = 20


class Example(NamedTuple):
    """One extracted text and what it is.

    Attributes:
        kind: "article", "recipe", "crawl page", "left over", or "unknown": most of those are articles
            too, so they are neither positives nor negatives.
        site: pages of one site share it.
    """

    kind: str
    site: str
    url: str
    text: str


def gold_examples(
    pages: Mapping[str, Path],
    warcs: Sequence[Path],
    *,
    language_model: Path | None,
    min_confidence: float,
    num_workers: int = 1,
    progress: Progress = silent,
) -> Iterator[Example]:
    """English examples, all through the pipeline's own extractor.

    Args:
        pages: files of the catalogue entry `gold-pages`, by name.
        warcs: files of `crawl-samples`.
        language_model: None takes resiliparse's detector.
        min_confidence: for English; others are left out, as the pipeline would.
    """
    language = LanguageModel(language_model)

    def is_english(text: str) -> bool:
        code, confidence = language.identify(text)
        return code == "en" and confidence >= min_confidence

    watched = progress(read_gold_pages(pages), unit="pages", label="gold pages")
    for examples in map_ordered(_examples_of, watched, num_workers=num_workers, per_task=8):
        yield from (example for example in examples if is_english(examples[0].text))
    for path in warcs:
        documents, _ = extract_shard(path, ExtractConfig(), num_workers=1)
        for document in documents:
            if is_english(document.text):
                yield Example(CRAWL_PAGE, host_of(document.url), document.url, document.text)


def negatives_of(examples: Sequence[Example], count: int) -> list[Example]:
    """Crawl pages and left-overs, and so many recipes as make up the count: in their number, recipes would be all that
    the classifier learns to tell."""
    chosen = [example for example in examples if example.kind in (CRAWL_PAGE, LEFT_OVER)]
    recipes = [example for example in examples if example.kind == RECIPE]
    recipes.sort(key=lambda example: blake2b(example.text.encode(errors="replace"), digest_size=8).digest())
    return chosen + recipes[: max(0, count - len(chosen))]


def left_over(text: str, article: str) -> str:
    """The lines of a page that do not stand in its article; "" where they are few words."""
    words = f" {_words(article)} "
    lines = [line for line in text.splitlines() if (own := _words(line)) and f" {own} " not in words]
    kept = "\n".join(lines)
    return kept if len(kept.split()) >= _MIN_LEFT_OVER_WORDS else ""


def _examples_of(page: GoldPage) -> list[Example]:
    text = extract_text(page.html)
    is_article = bool(page.kinds & {"text", "html", "segments"})
    kind = ARTICLE if is_article else RECIPE if "recipe" in page.kinds else UNKNOWN
    examples = [Example(kind, page.site, page.url, text)]
    article = extract_text(page.article_html.encode()) if page.article_html else page.article
    if article and (rest := left_over(text, article)):
        examples.append(Example(LEFT_OVER, page.site, page.url, rest))
    return examples


_WORD = re.compile(r"[^\W_]+")  # marks differ between a page and its article: list dots, quotes


def _words(text: str) -> str:
    return " ".join(_WORD.findall(text.lower()))
