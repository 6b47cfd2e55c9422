"""Fetched reference pages, cleaned as the handout asks: the quality classifier's positives."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cs336.documents import Document
from cs336.extract.shard import ExtractConfig, extract_shard
from cs336.filters.pipeline import FilterConfig, FilterModels, decide, measure_documents

CLEANING = ("language", "nsfw", "toxic", "gopher")


def clean_pages(
    warcs: Sequence[Path],
    extract: ExtractConfig,
    models: FilterModels,
    filters: FilterConfig,
    *,
    num_workers: int = 1,
) -> tuple[list[Document], Counter[str]]:
    """The pages worth learning from: the right language, harmless, prose by Gopher's rules.

    Extracted by the pipeline's own extractor, so that the classifier cannot tell the classes by it.

    Args:
        warcs: what `cs336.crawl.references.fetch_pages` wrote.
        models: those of language and harm are used; no other filter is run.

    Returns:
        The kept documents, unmasked, and how many were not kept, by reason: records that are no page
        and pages that a filter drops.
    """
    kept: list[Document] = []
    reasons: Counter[str] = Counter()
    models = replace(models, filters=CLEANING)
    for path in warcs:
        documents, skipped = extract_shard(path, extract, num_workers=num_workers)
        reasons += skipped
        measurements, _, _ = measure_documents(documents, models, num_workers=num_workers)
        decisions = decide(measurements, filters)
        kept += [document for document, keep in zip(documents, decisions["kept"], strict=True) if keep]
        reasons.update(decisions["reason"].drop_nulls())
    return kept, reasons
