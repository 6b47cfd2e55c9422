"""From WARC records to plain text."""

from __future__ import annotations

import importlib.util
from collections import Counter
from pathlib import Path

from cs336 import catalog
from cs336.documents import DOCUMENTS_FILE, Document, read_table, write_documents
from cs336.extract.gold import read_gold, score_extractors
from cs336.extract.records import DOCUMENT, RecordRow, count_outcomes, write_records
from cs336.extract.shard import ExtractConfig, extract_records
from cs336.files import read_json, write_json
from cs336_assets.asset import Metadata, Step, asset, check
from cs336_assets.crawl import commonest, table, warc_files

QUALITY_REPORT = "quality.json"
OFF = "off, no data"
OURS = ("default", "main content")
MIN_RECALL = 0.95  # measured: see `extraction_keeps_the_main_text`


@asset(group="extract", kinds={"python", "parquet"}, owner="team:data", per_shard=True)
def extracted_text(step: Step, crawl: Path, extract: ExtractConfig) -> Metadata:
    """The text of every page, with its address and its place in the WARC file.

    HTML responses with status 200 are decoded (UTF-8, else detected) and extracted; ready texts
    (`conversion` records) pass as they are. Every other record is counted with the reason why it
    was passed over: broken records, bombs and oversized pages among them. Beside the documents,
    `records.parquet` has a row for every record with its outcome: `cs336 why URL` reads it.
    """
    documents: list[Document] = []
    rows: list[RecordRow] = []
    ids: set[str] = set()
    for path in warc_files(crawl):
        found, records = extract_records(path, extract, ids=ids, num_workers=step.num_workers, progress=step.progress)
        documents += found
        rows += records
    write_documents(step.folder, documents)
    write_records(step.folder, rows)
    counts = Counter(row.outcome for row in rows if row.outcome != DOCUMENT)
    return {
        "num_documents": len(documents),
        "num_records": len(rows),
        "num_characters": sum(len(document.text) for document in documents),
        "skipped": table(["reason", "records"], counts.most_common()),
        "first_document": {"markdown": preview(documents[0].text) if documents else "*none*"},
    }


@check(asset="extracted_text", blocking=True, of_shards="some")
def crawl_holds_text(extracted_text: list[Path]) -> tuple[bool, Metadata]:
    """Some page gave text: a crawl without any is broken, or of the wrong kind of files."""
    num_documents = sum(_rows_by_shard(extracted_text).values())
    outcomes = commonest(count_outcomes(extracted_text))
    nothing = "There is no record; `cs336 show crawl/SHARD` counts what was left out before, and why."
    return num_documents > 0, {"num_documents": num_documents, "outcomes": outcomes or nothing}


@check(asset="extracted_text", of_shards="each")
def records_are_readable(extracted_text: list[Path]) -> tuple[bool, Metadata]:
    """Every record can be read. One that is damaged, cut off or too large stops nothing, and is in the ledger."""
    broken = {folder.name: count_outcomes([folder], of_unreadable=True) for folder in extracted_text}
    named = [f"{name}: {commonest(outcomes)}" for name, outcomes in broken.items() if outcomes]
    return not named, {"unreadable": "; ".join(named)}


@check(asset="extracted_text", of_shards="each")
def every_shard_holds_text(extracted_text: list[Path]) -> tuple[bool, Metadata]:
    """No shard is empty. One that is, such as a broken file, stops nothing: its records are in the ledger."""
    empty = [name for name, count in _rows_by_shard(extracted_text).items() if count == 0]
    return not empty, {"empty_shards": empty}


def _rows_by_shard(extracted_text: list[Path]) -> dict[str, int]:
    return {folder.name: read_table(folder / DOCUMENTS_FILE).height for folder in extracted_text}


@asset(group="extract", kinds={"python"}, owner="team:data", datasets=("web-gold",))
def extraction_quality(step: Step) -> Metadata:
    """How much of known main texts the extractor gives, and how much besides them.

    On real pages with gold: word 4-grams against whole texts, and segments that must or must not be
    there; both of our modes, and trafilatura where it is installed (shown, no part of the artifact).
    """
    gold, pages = (catalog.find_file("web-gold", name) for name in ("gold.jsonl.gz", "pages.tar.xz"))
    if gold is None or pages is None:
        write_json(step.folder / QUALITY_REPORT, {"state": OFF, "scores": {}})
        return {"state": OFF}
    peers = ("trafilatura",) if importlib.util.find_spec("trafilatura") else ()
    scores = score_extractors(
        read_gold(gold, pages), OURS + peers, num_workers=step.num_workers, progress=step.progress
    )
    ours = {name: {kind: score._asdict() for kind, score in scores[name].items()} for name in OURS}
    write_json(step.folder / QUALITY_REPORT, {"state": "on", "scores": ours})
    header = ["gold", "extractor", "pages", "precision", "recall", "F1", "must found", "must not found"]
    rows = [
        [kind, name, score[0], *("" if value is None else round(value, 3) for value in score[1:])]
        for kind in scores[OURS[0]]
        for name in scores
        for score in [scores[name][kind]]
    ]
    return {"state": "on", "scores": table(header, rows), "trafilatura": "on" if peers else "not installed"}


@check(asset="extraction_quality")
def extraction_keeps_the_main_text(extraction_quality: Path) -> tuple[bool, Metadata]:
    """By default the extractor loses hardly anything of the main text; cleaning up is for the filters."""
    report = read_json(extraction_quality / QUALITY_REPORT)
    recalls = {kind: score["recall"] for kind, score in report["scores"].get("default", {}).items()}
    return all(recall >= MIN_RECALL for recall in recalls.values()), {"state": report["state"], "recall": recalls}


def preview(text: str, length: int = 600) -> str:
    """The beginning of a text, fenced so that Markdown shows it as it is."""
    cut = text[:length].replace("```", "'''")
    return f"```\n{cut}{'...' if len(text) > length else ''}\n```"
