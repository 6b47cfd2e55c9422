"""One row for every WARC record that was read: where it stood, what it was, and what became of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import polars as pl

from cs336.crawl.warc import Record, Skipped
from cs336.documents import write_table

RECORDS_FILE = "records.parquet"
DOCUMENT = "document"  # the outcome of a record that gave one


class RecordRow(NamedTuple):
    """A record and its outcome.

    Attributes:
        id: that of the record's document; of records that gave none None, for they are many.
        url: the page's address, where the record has one.
        warc: file name of the WARC file.
        offset: byte offset of the record in that file.
        kind: WARC-Type; None for a record that could not be read, as what follows.
        http_status, mime_type: of HTTP responses.
        num_bytes: of the payload, decoded.
        num_characters: of the text that was taken out of it.
        outcome: "document", or why there is none.
    """

    id: str | None
    url: str | None
    warc: str
    offset: int
    kind: str | None
    http_status: int | None
    mime_type: str | None
    num_bytes: int | None
    num_characters: int | None
    outcome: str


SCHEMA = {
    "id": pl.String,
    "url": pl.String,
    "warc": pl.String,
    "offset": pl.Int64,
    "kind": pl.String,
    "http_status": pl.Int64,
    "mime_type": pl.String,
    "num_bytes": pl.Int64,
    "num_characters": pl.Int64,
    "outcome": pl.String,
}


def row_of(record: Record | Skipped, warc: str) -> RecordRow:
    """What is known of a record before its outcome is."""
    if isinstance(record, Skipped):
        return RecordRow(None, record.url, warc, record.offset, None, None, None, None, None, "")
    facts = record.kind, record.http_status, record.mime_type, len(record.payload)
    return RecordRow(None, record.url, warc, record.offset, *facts, None, "")


def write_records(folder: Path, rows: Iterable[RecordRow]) -> int:
    """Write `folder/records.parquet`, whole or not at all; returns the number of records."""
    return write_table(folder / RECORDS_FILE, pl.DataFrame(list(rows), schema=SCHEMA, orient="row"))


def count_outcomes(folders: Iterable[Path], *, of_unreadable: bool = False) -> dict[str, int]:
    """How many records of all the shards had each outcome, the commonest first; equally common ones by name.

    Args:
        of_unreadable: only records that are damaged, cut off or too large, so that nothing is known of them.
    """
    counts: Counter[str] = Counter()
    for folder in folders:
        records = pl.scan_parquet(folder / RECORDS_FILE)
        if of_unreadable:
            records = records.filter(pl.col("kind").is_null())
        outcomes = records.group_by("outcome").len().collect()
        counts.update(dict(outcomes.iter_rows()))
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
