"""HTML bytes to text, and WARC files to documents, with every record accounted for."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from resiliparse.extract.html2text import extract_plain_text
from resiliparse.parse.encoding import detect_encoding

from cs336.crawl.warc import Record, Skipped, read_records
from cs336.documents import Document
from cs336.extract.records import DOCUMENT, RecordRow, row_of
from cs336.isolation import map_isolated
from cs336.progress import Progress, silent

_HTML_TYPES = frozenset({"text/html", "application/xhtml+xml"})
# Sent to a worker at once: enough to hide the cost of a message, little enough to stay in memory.
_BATCH_BYTES = 2 * 2**20
_BATCH_RECORDS = 64
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


def extract_text(html: bytes, *, main_content: bool = False) -> str:
    """The visible text of a page, whatever its bytes; equal to resiliparse's, byte for byte.

    Blocks are set apart by blank lines, white space is collapsed, list items start with "  • ",
    links lose their address; no newline at the end.

    Args:
        html: strict UTF-8 is tried first, then the detected encoding with replacement characters.
        main_content: leave out what looks like menus, headers and footers.

    Source: resiliparse 2.0.1, `extract_plain_text` with default options.
    """
    return extract_plain_text(decode_text(html), main_content=main_content)


def decode_text(data: bytes) -> str:
    """Bytes of unknown encoding to text; never raises."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        pass
    try:
        return data.decode(detect_encoding(data) or "utf-8", "replace")
    except LookupError:  # a name of the WHATWG's list that Python does not know
        return data.decode("utf-8", "replace")


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
    num_workers: int = 1,
    progress: Progress = silent,
) -> tuple[list[Document], list[RecordRow]]:
    """As `extract_shard`, but with a row for every record of the file, in file order."""
    name = warc_name or warc_path.name
    records = progress(
        read_records(warc_path, max_record_bytes=config.max_page_bytes), unit="records", label=f"extract {name}"
    )
    waiting: deque[tuple[RecordRow, Document | str | None]] = deque()  # what comes after a page that is being parsed

    def pages() -> Iterator[Record]:
        for record in records:
            outcome = _outcome_unparsed(record, name)
            waiting.append((row_of(record, name), outcome))
            if outcome is None:
                assert isinstance(record, Record)
                yield replace(record, http_headers={})

    documents: list[Document] = []
    rows: list[RecordRow] = []

    def note(row: RecordRow, outcome: Document | str) -> None:
        if isinstance(outcome, str):
            rows.append(row._replace(outcome=outcome))
        else:
            rows.append(row._replace(id=outcome.id, num_characters=len(outcome.text), outcome=DOCUMENT))
            documents.append(outcome)

    for parsed in map_isolated(
        partial(_extract_page, config, name),
        _batches(pages()),
        cpu_seconds=config.max_page_seconds,
        lost=_failed,
        num_workers=num_workers,
    ):
        row, outcome = waiting.popleft()
        while outcome is not None:
            note(row, outcome)
            row, outcome = waiting.popleft()
        note(row, parsed)
    for row, outcome in waiting:
        assert outcome is not None
        note(row, outcome)
    if not rows:
        note(row_of(Skipped(offset=0, url=None, reason=""), name), "unreadable record: empty file")
    return documents, rows


def _outcome_unparsed(record: Record | Skipped, warc_name: str) -> Document | str | None:
    """The document of a record of plain text, or why a record gives none; None if it is a page to be parsed.

    Decided here, so that images and ready texts do not travel to other processes.
    """
    reason = _reason_to_skip(record)
    if reason or isinstance(record, Skipped):
        return reason
    return None if record.mime_type in _HTML_TYPES else _document(record, decode_text(record.payload), warc_name)


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


def _batches(pages: Iterator[Record]) -> Iterator[list[Record]]:
    batch: list[Record] = []
    num_bytes = 0
    for page in pages:
        if len(batch) >= _BATCH_RECORDS or (batch and num_bytes + len(page.payload) > _BATCH_BYTES):
            yield batch
            batch, num_bytes = [], 0
        batch.append(page)
        num_bytes += len(page.payload)
    if batch:
        yield batch


def _extract_page(config: ExtractConfig, warc_name: str, page: Record) -> Document | str:
    """The page's document, or the reason why there is none."""
    try:
        text = extract_text(page.payload, main_content=config.main_content)
    except Exception as error:  # whatever a strange page makes the parser do must not end the crawl
        return _failed(type(error).__name__)
    return _document(page, text, warc_name)


def _failed(reason: str) -> str:
    return f"extraction failed: {reason}"


def _document(record: Record, text: str, warc_name: str) -> Document | str:
    if not text.strip():
        return "empty text"
    return Document(id=record.id, url=record.url or "", warc=warc_name, offset=record.offset, text=text)
