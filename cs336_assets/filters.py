"""Which documents are worth training on: measure everything, then decide."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl

from cs336 import catalog
from cs336.crawl.references import fetch_pages, sample_urls
from cs336.documents import Document, read_documents, read_table, write_documents, write_table
from cs336.evals.questions import READERS, eval_texts
from cs336.evals.task import sample_path
from cs336.extract.records import count_outcomes
from cs336.extract.shard import ExtractConfig
from cs336.files import read_json, write_json
from cs336.filters.c4 import C4Config
from cs336.filters.contamination import missing_texts
from cs336.filters.decontaminate import EvalIndex
from cs336.filters.labelled import read_language_sentences, read_toxic_comments
from cs336.filters.pipeline import NOT_WANTED, FilterConfig, FilterModels, apply, decide, ledger, measure_documents
from cs336.filters.quality import QualityConfig, host_of, hosts_of, is_reference, read_url_list, train_quality
from cs336.filters.references import CLEANING, clean_pages
from cs336.filters.toxicity import ToxicityConfig, train_toxicity
from cs336.filters.trained import OFF, Report
from cs336.store import MANIFEST
from cs336_assets import plots
from cs336_assets.asset import Metadata, Step, asset, check
from cs336_assets.crawl import commonest, table, warc_files

QUALITY_FILE = "quality.ftz"
TOXICITY_FILE = "toxicity.ftz"
INDEX_FILE = "evals.npz"
SCORES_FILE = "scores.parquet"
DECISIONS_FILE = "decisions.parquet"
MAX_SHARDS = 100  # that the quality classifier learns from: random ones, which have far more documents than it takes


@asset(
    group="filters",
    kinds={"fasttext"},
    owner="team:data",
    datasets=("labelled-toxicity", "labelled-languages", "dolma-toxic"),
)
def toxicity_classifier(step: Step, toxicity: ToxicityConfig) -> Metadata:
    """fastText that tells insulting and hateful remarks from others, for where Dolma's model is not at hand.

    Trained on labelled tweets and comments, with plain English sentences among the negatives; the
    score is a probability, calibrated on remarks that trained nothing. Without labelled remarks, or
    where Dolma's model is, there is no model.
    """
    found = catalog.find("labelled-toxicity")
    state = NOT_WANTED if not toxicity.enabled else "off, Dolma's model is here" if catalog.find("dolma-toxic") else ""
    if state or found is None:
        write_json(step.folder / "report.json", {"state": state or "off, no data"})
        return {"state": state or "off, no data"}
    comments = [row for path in catalog.require_files("labelled-toxicity") for row in read_toxic_comments(path)]
    languages = catalog.find("labelled-languages")
    prose = read_language_sentences(languages)["en"] if languages else []
    report = train_toxicity(comments, prose, step.folder / TOXICITY_FILE, toxicity)
    write_json(step.folder / "report.json", report._asdict())
    return classifier_figures(report, step.folder)


@asset(group="filters", kinds={"python"}, owner="team:data", datasets=("wikipedia-urls",))
def reference_pages(step: Step, quality: QualityConfig) -> Metadata:
    """Pages that Wikipedia cites, drawn from the published list and fetched to WARC files.

    One attempt of five seconds a page, robots.txt obeyed, a second between two pages of one host. Off
    unless the preset says how many.
    """
    found = catalog.find(quality.reference_list) if quality.reference_list else None
    state = NOT_WANTED if not quality.num_reference_pages else "off, no data" if found is None else ""
    if state or found is None:
        write_json(step.folder / "report.json", {"state": state})
        return {"state": state}
    urls = sample_urls(read_url_list(found), quality.num_reference_pages, seed=quality.seed)
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    stats = fetch_pages(step.progress(urls, unit="addresses", label="references"), step.folder, date=now)
    return {
        "state": "on",
        "num_addresses": len(urls),
        "fetches": table(["outcome", "requests"], stats.num_fetches.most_common()),
        "num_bytes": stats.num_bytes,
    }


@asset(
    group="filters",
    kinds={"polars", "fasttext"},
    owner="team:data",
    datasets=("lid176", "dolma-nsfw", "dolma-toxic"),
)
def reference_text(step: Step, reference_pages: Path, toxicity_classifier: Path, extract: ExtractConfig) -> Metadata:
    """What is left of the fetched reference pages: the right language, harmless, prose by Gopher's rules.

    The same extractor and filters as the crawl's pages go through, or the quality classifier would
    learn the extractor. At the filters' default bounds, not the preset's: trying another threshold
    must not train another classifier. Empty where no pages were fetched.
    """
    warcs = warc_files(reference_pages)
    kept, reasons = clean_pages(
        warcs, extract, _models(toxicity_classifier, filters=CLEANING), FilterConfig(), num_workers=step.num_workers
    )
    write_documents(step.folder, kept)
    return {
        "state": "on" if warcs else "off, no pages",
        "num_documents": len(kept),
        "left_out": table(["reason", "records"], reasons.most_common()),
    }


@asset(group="filters", kinds={"fasttext"}, owner="team:data", datasets=("wikipedia-urls",))
def quality_classifier(
    step: Step, extracted_text: list[Path], reference_text: Path, quality: QualityConfig
) -> Metadata:
    """fastText that tells reference pages from ordinary ones.

    Positives are the reference pages that were fetched, or else pages of this crawl that a reference
    names (a list of addresses such as those Wikipedia cites, or a pattern); negatives are the crawl's
    other pages, through the same extractor; of a large crawl, those of 100 random shards. Without a
    reference, or enough of either, there is no model, and the filter is recorded as off.
    """
    references = catalog.find(quality.reference_list) if quality.reference_list else None
    if references is None and not quality.reference_pattern:  # nothing to look for in the texts
        state = f"{OFF}: no {quality.reference_list} here" if quality.reference_list else OFF
        write_json(step.folder / "report.json", {"state": state})
        return {"state": state, "num_positives": 0, "num_negatives": 0}
    hosts = hosts_of(read_url_list(references)) if references else frozenset()
    num_shards = len(extracted_text)
    drawn = sorted(random.Random(quality.seed).sample(range(num_shards), min(MAX_SHARDS, num_shards)))

    def texts(reference: bool) -> Iterator[tuple[str, str]]:
        if quality.num_reference_pages and reference:
            yield from ((host_of(document.url), document.text) for document in read_documents(reference_text))
            return
        for document in all_documents(extracted_text[place] for place in drawn):
            if is_reference(document.url, quality, hosts) == reference:
                yield host_of(document.url), document.text

    report = train_quality(texts(True), texts(False), step.folder / QUALITY_FILE, quality)
    write_json(step.folder / "report.json", report._asdict())
    return classifier_figures(report, step.folder)


@asset(
    group="filters",
    kinds={"numpy"},
    owner="team:data",
    datasets=tuple(READERS),
    files=(sample_path("mmlu"), sample_path("gsm8k")),
)
def eval_index(step: Step) -> Metadata:
    """13-word n-grams of every evaluation's texts, against which all text is checked.

    Of each evaluation in the catalogue that is on this machine, and always of the project's own
    sample questions; and every text whole, which tells a copied document from one that quotes.
    """
    texts = eval_texts()
    index = EvalIndex.build(texts)
    index.save(step.folder / INDEX_FILE)
    return {
        "num_ngrams": index.num_ngrams,
        "evals": table(["eval", "texts"], [[name, len(questions)] for name, questions in texts.items()]),
    }


@check(asset="eval_index", blocking=True)
def the_validation_text_is_indexed(eval_index: Path, validation: str) -> tuple[bool, Metadata]:
    """Every document of the text that the preset only evaluates on is in the index, so none of it is trained on."""
    if not validation:
        return True, {"state": "the preset holds documents of its own text out"}
    texts = [text for _, text in catalog.read_paloma(catalog.require(validation))]
    missing = missing_texts(texts, EvalIndex.load(eval_index / INDEX_FILE), validation)
    return bool(texts) and not missing, {"num_documents": len(texts), "num_missing": len(missing)}


@asset(
    group="filters",
    kinds={"polars", "fasttext"},
    owner="team:data",
    per_shard=True,
    datasets=("lid176", "dolma-nsfw", "dolma-toxic"),
)
def document_scores(
    step: Step,
    extracted_text: Path,
    quality_classifier: Path,
    toxicity_classifier: Path,
    eval_index: Path,
    measured_filters: tuple[str, ...],
    c4: C4Config,
) -> Metadata:
    """What every filter measures on every document, whatever the other filters say.

    Language and confidence, NSFW and toxicity scores, Gopher's figures, quality, overlap with
    evaluations, personal data. A filter whose model is not there is recorded as *off, no model*, one that the
    preset leaves out as *off, by the preset*.
    """
    quality = quality_classifier / QUALITY_FILE
    models = replace(
        _models(toxicity_classifier, filters=measured_filters),
        quality=quality if quality.exists() else None,
        evals=eval_index / INDEX_FILE,
        c4=c4,
    )
    scores, seconds, states = measure_documents(
        read_documents(extracted_text), models, num_workers=step.num_workers, progress=step.progress
    )
    write_table(step.folder / SCORES_FILE, scores)
    write_json(step.folder / "states.json", states)
    languages = scores["language"].value_counts(sort=True).head(8)
    return {
        "num_documents": scores.height,
        "filters": table(["filter", "state"], list(states.items())),
        "languages": table(["language", "documents"], list(languages.iter_rows())),
        "filter_seconds": {name: round(value, 3) for name, value in seconds.items()},
    }


@asset(group="filters", kinds={"polars"}, owner="team:data", per_shard=True)
def filtered_text(
    step: Step, extracted_text: Path, document_scores: Path, filters: FilterConfig, c4: C4Config
) -> Metadata:
    """The documents that pass every filter, with e-mail, IP and phone numbers masked.

    Decides on the stored measurements, so another threshold needs no model and takes seconds. The
    decision on each document, kept or not, is stored with its reason.
    """
    decisions = decide(read_table(document_scores / SCORES_FILE), filters)
    write_table(step.folder / DECISIONS_FILE, decisions)
    kept = write_documents(step.folder, apply(read_documents(extracted_text), decisions, filters, c4=c4))
    reasons = Counter(decisions["reason"].drop_nulls())
    dropped = decisions.filter(~pl.col("kept")).sample(n=min(5, decisions.height - kept), seed=0)
    return {
        "num_seen": decisions.height,
        "num_documents": kept,
        "share_kept": round(kept / max(1, decisions.height), 4),
        "num_masked": int(decisions["num_masked"].sum()),
        "dropped": table(["reason", "documents"], reasons.most_common()),
        "dropped_examples": table(["reason", "url"], list(dropped.select("reason", "url").iter_rows())),
    }


@check(asset="filtered_text", blocking=True, of_shards="some")
def filters_leave_text(filtered_text: list[Path]) -> tuple[bool, Metadata]:
    """The filters left something of the crawl: nothing at all means a wrong language or threshold."""
    left = {folder.name: read_table(folder / "documents.parquet").height for folder in filtered_text}
    reasons: Counter[str] = Counter()
    for folder in filtered_text if not any(left.values()) else ():
        reasons.update(read_table(folder / DECISIONS_FILE)["reason"].drop_nulls())
    return sum(left.values()) > 0, {
        "num_documents": sum(left.values()),
        "empty_shards": [n for n, c in left.items() if not c],
        "reasons": commonest(dict(reasons.most_common())),
    }


@asset(group="filters", kinds={"polars"}, owner="team:data")
def filter_ledger(
    step: Step, extracted_text: list[Path], filtered_text: list[Path], document_scores: list[Path]
) -> Metadata:
    """What became of everything that entered, over all shards.

    Of records: how many gave a document, and why the others did not, broken and hostile ones among them. For each
    filter: documents seen, kept, dropped, its share of all drops, seconds.
    """
    records = count_outcomes(extracted_text)
    decisions = pl.concat([read_table(folder / DECISIONS_FILE) for folder in filtered_text])
    states = read_json(document_scores[0] / "states.json")
    seconds: Counter[str] = Counter()
    for folder in document_scores:
        seconds.update(read_json(folder / MANIFEST)["metadata"]["filter_seconds"])
    rows = ledger(decisions, states, seconds)
    # Seconds vary from run to run: they are shown, but are no part of the artifact.
    write_json(step.folder / "ledger.json", [{k: v for k, v in row.items() if k != "seconds"} for row in rows])
    write_json(step.folder / "records.json", records)
    plots.ledger_bars(rows, step.folder / "ledger.png")
    columns = ["filter", "state", "seen", "kept", "dropped", "share_of_discards", "would_drop", "num_masked", "seconds"]
    return {
        "num_records": sum(records.values()),
        "num_seen": decisions.height,
        "num_kept": int(decisions["kept"].sum()),
        "records": table(["outcome", "records"], list(records.items())),
        "ledger": table(columns, [[_cell(row[column]) for column in columns] for row in rows]),
        "dropped": {"image": "ledger.png"},
    }


def _models(toxicity_classifier: Path, *, filters: tuple[str, ...]) -> FilterModels:
    """Those of language and harm that are on this machine."""
    own_toxic = toxicity_classifier / TOXICITY_FILE
    return FilterModels(
        filters=filters,
        language=catalog.find("lid176"),
        nsfw=catalog.find("dolma-nsfw"),
        toxic=catalog.find("dolma-toxic"),
        own_toxic=own_toxic if own_toxic.exists() else None,
    )


def classifier_figures(report: Report, folder: Path) -> Metadata:
    """What the UI shows of a trained classifier: counts, held-out precision and recall, calibration."""
    shown: Metadata = {
        "state": report.state,
        "num_positives": report.num_positives,
        "num_negatives": report.num_negatives,
    }
    if not report.held_out:
        return shown
    plots.precision_recall({"held-out texts": report.held_out}, folder / "curve.png")
    rows = [
        [t.threshold, "-" if t.precision is None else round(t.precision, 3), round(t.recall, 3)]
        for t in report.thresholds
    ]
    return shown | {
        "num_held_out": report.num_held_out,
        "split_by": report.split_by,
        "average_precision": None if report.average_precision is None else round(report.average_precision, 4),
        "calibration_error": [None if value is None else round(value, 4) for value in report.calibration_error],
        "held_out": table(["threshold", "precision", "recall"], rows),
        "curve": {"image": "curve.png"},
    }


def all_documents(folders: Iterable[Path]) -> Iterator[Document]:
    """The documents of all shards, in order."""
    for folder in folders:
        yield from read_documents(folder)


def _cell(value: Any) -> Any:
    return "" if value is None else round(value, 3) if isinstance(value, float) else value
