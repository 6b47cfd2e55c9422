"""A row for every record of a WARC file, whatever became of it."""

from __future__ import annotations

import polars as pl
import pytest

from cs336.crawl.warc import write_record
from cs336.extract.records import RECORDS_FILE, count_outcomes, write_records
from cs336.extract.shard import ExtractConfig, extract_records, extract_shard

OK = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n"
BLOCKS = {
    "page": OK + b"<p>one two",
    "empty": OK + b"<p> </p>",
    "missing": b"HTTP/1.1 404 Not Found\r\nContent-Type: text/html\r\n\r\n<p>no",
    "long": OK + b"x" * 60_000,
    "pdf": b"HTTP/1.1 200 OK\r\nContent-Type: application/pdf\r\n\r\n%PDF",
    "last": OK + "<p>höher".encode(),
}


@pytest.fixture
def warc(tmp_path):
    path = tmp_path / "a.warc.gz"
    with open(path, "wb") as file:
        for name, block in BLOCKS.items():
            for kind in ("request", "response"):
                content_type = f"application/http; msgtype={kind}"
                url = f"http://x/{name}"
                write_record(file, kind, url=url, content_type=content_type, block=block if kind == "response" else b"")
        file.write(b"no gzip member")
    return path


@pytest.mark.parametrize("num_workers", [1, 2])
def test_every_record_has_a_row_in_file_order(warc, num_workers):
    config = ExtractConfig(max_page_bytes=50_000)
    documents, rows = extract_records(warc, config, num_workers=num_workers)
    assert (documents, {row.outcome for row in rows} - {"document"}) == (
        extract_shard(warc, config)[0],
        set(extract_shard(warc, config)[1]),
    )
    outcomes = {(row.kind, row.url): row.outcome for row in rows}
    assert outcomes["response", "http://x/page"] == outcomes["response", "http://x/last"] == "document"
    assert outcomes["request", "http://x/page"] == "request record"
    assert outcomes["response", "http://x/empty"] == "empty text"
    assert outcomes["response", "http://x/missing"] == "status 404"
    assert outcomes["response", "http://x/pdf"] == "not HTML: application/pdf"
    assert outcomes[None, "http://x/long"].startswith("unreadable record: record over 50,000")
    assert outcomes[None, None] == "unreadable record: bytes between gzip members"
    assert [row.offset for row in rows] == sorted(row.offset for row in rows)
    of_documents = [row for row in rows if row.outcome == "document"]
    assert [(row.id, row.offset) for row in of_documents] == [(each.id, each.offset) for each in documents]
    assert [row.num_characters for row in of_documents] == [7, 5]
    assert [row.num_bytes for row in of_documents] == [10, 9]
    missing = next(row for row in rows if row.outcome == "status 404")
    assert (missing.http_status, missing.mime_type, missing.id) == (404, "text/html", None)


def test_rows_are_stored_beside_the_documents(warc, tmp_path):
    rows = extract_records(warc, ExtractConfig())[1]
    assert write_records(tmp_path, rows) == len(rows)
    assert pl.read_parquet(tmp_path / RECORDS_FILE).rows() == [tuple(row) for row in rows]
    counts = count_outcomes([tmp_path, tmp_path])
    assert counts.pop("document") == 6 and sum(counts.values()) + 6 == 2 * len(rows)
    assert list(counts.items()) == sorted(counts.items(), key=lambda item: (-item[1], item[0]))
