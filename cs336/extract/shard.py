"""WARC files to documents, with every record accounted for."""

from __future__ import annotations

import uuid
from collections import Counter, deque
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from cs336.crawl.warc import Record, Skipped, read_records
from cs336.documents import Document
from cs336.extract.html import decode_text, extract_text
from cs336.extract.records import DOCUMENT, RecordRow, row_of
from cs336.isolation import map_isolated
from cs336.progress import Progress, silent

_HTML_TYPES = frozenset({"text/html", "application/xhtml+xml"})
# Sent to a worker at once: enough to hide the cost of a message, little enough to stay in memory.
_BATCH_BYTES = 2 * 2**20
_BATCH_PAGES = 64
# MIME types come from servers and are of any form; the ledger names the common ones.
_NAMED_TYPES = frozenset(
    [
        "application/atom+xml",
        "application/javascript",
        "application/json",
        "application/octet-stream",
        "application/pdf",
        "application/rss+xml",
        "application/x-javascript",
        "application/xml",
        "application/x-shockwave-flash",
        "application/zip",
        "image/gif",
        "image/jpeg",
        "image/png",
        "image/svg+xml",
        "image/webp",
        "image/x-icon",
        "text/calendar",
        "text/css",
        "text/csv",
        "text/dns",
        "text/javascript",
        "text/xml",
        "video/mp4",
        "audio/mpeg",
    ]
)


@dataclass(frozen=True, kw_only=True)
class ExtractConfig:
    """How text is taken out of pages.

    Attributes:
        main_content: keep only what resiliparse takes for the main content, without menus and
            footers. False is the handout's choice: the filters downstream are meant to do that.
        max_page_bytes: larger pages (decoded) are skipped. Common Crawl's limit is 1 MiB, 5 MiB
            since 2025; above 10 MB are log files and dumps rather than pages.
        max_page_seconds: CPU time for one page, after which it counts as failed. Real pages of 10 MB take 1.5 s; some
            markup makes any parser of HTML take time that grows with the square of its length.
    """

    main_content: bool = False
    max_page_bytes: int = 10_000_000
    max_page_seconds: float = 30.0

    def __post_init__(self) -> None:
        if self.max_page_bytes < 1:
            raise ValueError(f"max_page_bytes must be at least 1, got {self.max_page_bytes}")
        if not self.max_page_seconds > 0:
            raise ValueError(f"max_page_seconds must be above 0, got {self.max_page_seconds}")


def extract_shard(
    warc_path: Path,
    config: ExtractConfig,
    *,
    warc_name: str | None = None,
    num_workers: int = 1,
    progress: Progress = silent,
) -> tuple[list[Document], Counter[str]]:
    """The documents of one WARC file, and why its other records gave none.

    HTML responses are extracted, plain-text responses decoded, `conversion` records (WET) taken as
    they are. Every record of the file is counted once: the documents and the counted reasons add
    up to the records seen; a file without any counts as one that is unreadable.

    Args:
        warc_name: what documents give as their `warc`; by default the file's name.
        num_workers: processes; never changes the result.

    Returns:
        Documents in file order, and skipped records by reason (no reason contains an address).

    Raises:
        UserError: no such file.
    """
    documents, rows = extract_records(
        warc_path, config, warc_name=warc_name, num_workers=num_workers, progress=progress
    )
    return documents, Counter(row.outcome for row in rows if row.outcome != DOCUMENT)


def extract_records(
    warc_path: Path,
    config: ExtractConfig,
    *,
    warc_name: str | None = None,
    ids: set[str] | None = None,
    num_workers: int = 1,
    progress: Progress = silent,
) -> tuple[list[Document], list[RecordRow]]:
    """As `extract_shard`, but with a row for every record of the file, in file order.

    Args:
        ids: those of the shard's other files; a document with one of them, or one of this file, gets an id of its own.
            Those of this file are added.
    """
    ids = set() if ids is None else ids
    name = warc_name or warc_path.name
    records = progress(
        read_records(warc_path, max_record_bytes=config.max_page_bytes), unit="records", label=f"extract {name}"
    )
    waiting: deque[tuple[RecordRow, Record | Document | str]] = deque()  # from the first page that is being parsed

    def pages() -> Iterator[bytes]:
        for record in records:
            outcome = _outcome_unparsed(record, name)
            if isinstance(outcome, Record):
                waiting.append((row_of(record, name), replace(outcome, payload=b"", http_headers={})))
                yield outcome.payload
            else:
                waiting.append((row_of(record, name), outcome))

    documents: list[Document] = []
    rows: list[RecordRow] = []

    def note(row: RecordRow, outcome: Document | str) -> None:
        if isinstance(outcome, str):
            rows.append(row._replace(outcome=outcome))
        else:
            if outcome.id in ids:
                own = uuid.uuid5(uuid.NAMESPACE_URL, f"{name} {len(rows)} {outcome.id}")
                outcome = outcome._replace(id=f"<urn:uuid:{own}>")
            ids.add(outcome.id)
            rows.append(row._replace(id=outcome.id, num_characters=len(outcome.text), outcome=DOCUMENT))
            documents.append(outcome)

    texts: Generator[str | _Failed, None, None] = map_isolated(
        partial(extract_text, main_content=config.main_content),
        _batches(pages()),
        cpu_seconds=config.max_page_seconds,
        lost=_Failed,
        num_workers=num_workers,
    )
    with closing(texts):  # whatever ends the loop early ends the workers, too
        for text in texts:
            row, outcome = waiting.popleft()
            while not isinstance(outcome, Record):
                note(row, outcome)
                row, outcome = waiting.popleft()
            if isinstance(text, _Failed):
                note(row, f"extraction failed: {text.reason}")
            else:
                note(row, _document(outcome, text, name))
    for row, outcome in waiting:
        assert not isinstance(outcome, Record)
        note(row, outcome)
    if not rows:
        note(row_of(Skipped(offset=0, url=None, reason=""), name), "unreadable record: empty file")
    return documents, rows


@dataclass(frozen=True)
class _Failed:
    """What a page gives instead of text."""

    reason: str


def _outcome_unparsed(record: Record | Skipped, warc_name: str) -> Record | Document | str:
    """A page that has to be parsed, as it is; of plain text the document; of anything else why it gives none.

    Decided here, so that images and ready texts do not travel to other processes.
    """
    reason = _reason_to_skip(record)
    if reason or isinstance(record, Skipped):
        return reason
    return record if record.mime_type in _HTML_TYPES else _document(record, decode_text(record.payload), warc_name)


def _reason_to_skip(record: Record | Skipped) -> str:
    """Why a record gives no document; empty if it may."""
    if isinstance(record, Skipped):
        return f"unreadable record: {record.reason}"
    if record.kind == "conversion":
        return ""
    if record.kind != "response":
        return f"{record.kind} record"
    if record.http_status is None:
        return "not HTTP"
    if record.http_status != 200:
        return f"status {record.http_status}"
    if record.mime_type in _HTML_TYPES or record.mime_type == "text/plain":
        return ""
    if not record.mime_type:
        return "not HTML: no content type"
    return f"not HTML: {record.mime_type if record.mime_type in _NAMED_TYPES else 'other'}"


def _batches(pages: Iterator[bytes]) -> Iterator[list[bytes]]:
    batch: list[bytes] = []
    num_bytes = 0
    for page in pages:
        if len(batch) >= _BATCH_PAGES or (batch and num_bytes + len(page) > _BATCH_BYTES):
            yield batch
            batch, num_bytes = [], 0
        batch.append(page)
        num_bytes += len(page)
    if batch:
        yield batch


def _document(record: Record, text: str, warc_name: str) -> Document | str:
    if not text.strip():
        return "empty text"
    return Document(id=record.id, url=record.url or "", warc=warc_name, offset=record.offset, text=text)
