"""From WARC records to plain text."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from cs336.documents import DOCUMENTS_FILE, Document, read_table, write_documents
from cs336.extract.html import ExtractConfig, extract_records
from cs336.extract.records import DOCUMENT, RecordRow, write_records
from cs336_assets.asset import Metadata, Step, asset, check
from cs336_assets.crawl import table, warc_files


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
    for path in warc_files(crawl):
        found, records = extract_records(path, extract, num_workers=step.num_workers, progress=step.progress)
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


@check(asset="extracted_text", blocking=True)
def shards_hold_text(extracted_text: list[Path]) -> tuple[bool, Metadata]:
    """No shard is empty: an empty one means a broken crawl or the wrong kind of file."""
    rows = {folder.name: read_table(folder / DOCUMENTS_FILE).height for folder in extracted_text}
    empty = [name for name, count in rows.items() if count == 0]
    return not empty, {"empty_shards": empty, "num_documents": sum(rows.values())}


def preview(text: str, length: int = 600) -> str:
    """The beginning of a text, fenced so that Markdown shows it as it is."""
    cut = text[:length].replace("```", "'''")
    return f"```\n{cut}{'...' if len(text) > length else ''}\n```"
