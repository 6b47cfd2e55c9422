"""WARC files to documents: every record is one, or counted with its reason."""

from __future__ import annotations

import gzip
import json
import subprocess
from collections import Counter

import pytest

from cs336 import isolation
from cs336.crawl.warc import read_records, write_record
from cs336.extract import shard
from cs336.extract.shard import ExtractConfig, extract_shard


def write_shard(path, records):
    with open(path, "wb") as file:
        for number, (kind, head, body) in enumerate(records):
            block = f"{head}\r\n\r\n".encode() + body if head else body
            content_type = f"application/http; msgtype={kind}" if head else "text/plain"
            write_record(file, kind, url=f"http://a.test/{number}", content_type=content_type, block=block)


OK = "HTTP/1.1 200 OK\r\nContent-Type: "
RECORDS = [
    ("warcinfo", "", b"software: x"),
    ("request", "GET / HTTP/1.1", b""),
    ("response", OK + "text/html; charset=utf-8", b"<p>one"),
    ("response", OK + "application/xhtml+xml", b"<p>two"),
    ("response", OK + "text/plain", b"<p>three"),
    ("conversion", "", "vier – 四".encode()),
    ("response", OK + "text/html", b"<p> </p>"),
    ("response", OK + "application/pdf", b"%PDF"),
    ("response", OK + "Application/X-Strange-17", b"?"),
    ("response", "HTTP/1.1 404 Not Found\r\nContent-Type: text/html", b"<p>no"),
    ("response", OK + "text/html", b"<p>" + b"long " * 30_000),
    ("response", OK + "text/html\r\nContent-Encoding: gzip", gzip.compress(bytes(10**6))),
    ("metadata", "", b"fetchTimeMs: 1"),
]


@pytest.mark.parametrize("num_workers", [1, 2])
def test_every_record_becomes_a_document_or_a_counted_reason(tmp_path, num_workers):
    path = tmp_path / "a.warc.gz"
    write_shard(path, RECORDS)
    config = ExtractConfig(max_page_bytes=100_000)
    documents, skipped = extract_shard(path, config, warc_name="shard-0", num_workers=num_workers)
    assert [document.text for document in documents] == ["one", "two", "<p>three", "vier – 四"]
    assert {document.warc for document in documents} == {"shard-0"}
    assert skipped == {
        "warcinfo record": 1,
        "request record": 1,
        "metadata record": 1,
        "empty text": 1,
        "not HTML: application/pdf": 1,
        "not HTML: other": 1,
        "status 404": 1,
        "unreadable record: record over 100,000 bytes": 1,
        "unreadable record: content over 100,000 bytes when decoded": 1,
    }
    assert len(documents) + skipped.total() == len(RECORDS)


def test_a_document_points_to_its_record(tmp_path):
    path = tmp_path / "a.warc.gz"
    write_shard(path, RECORDS)
    records = {record.id: record for record in read_records(path)}
    for document in extract_shard(path, ExtractConfig())[0]:
        assert (document.url, document.offset) == (records[document.id].url, records[document.id].offset)
        assert document.warc == "a.warc.gz"


def test_no_two_documents_of_a_shard_have_one_id(tmp_path):
    record = (
        "WARC/1.0\r\nWARC-Type: conversion\r\nWARC-Target-URI: http://a.test/\r\nContent-Length: 4\r\n\r\ntex{}\r\n\r\n"
    )
    whole = gzip.compress("".join(record.format(number) for number in range(3)).encode())
    ids: set[str] = set()
    for name in ("a.warc.wet.gz", "b.warc.wet.gz"):  # records without an id, all at the offset of the one gzip member
        (tmp_path / name).write_bytes(whole)
        documents, rows = shard.extract_records(tmp_path / name, ExtractConfig(), ids=ids)
        assert [document.text for document in documents] == ["tex0", "tex1", "tex2"]
        assert [row.id for row in rows] == [document.id for document in documents]
    assert len(ids) == 6 and all(id.startswith("<urn:uuid:") for id in ids)


def test_a_page_on_which_the_parser_hangs_costs_itself_alone(tmp_path):
    hostile = b"<p " + b" ".join(b"a%d=1" % number for number in range(200_000)) + b">"  # quadratic in any parser
    html = OK + "text/html"
    records = [("response", html, b"<p>one"), ("response", html, hostile), ("response", html, b"<p>two")]
    path = tmp_path / "a.warc.gz"
    write_shard(path, records)
    documents, skipped = extract_shard(path, ExtractConfig(max_page_seconds=0.5))
    assert [document.text for document in documents] == ["one", "two"]
    assert skipped == {"extraction failed: over 0.5 s of CPU time": 1}


# Pages of a sample that are HTML and 200 by its manifest but give no document, and why.
FEWER = {
    "warcio__example-wrong-chunks.warc.gz": 1,  # the only response is split over two gzip members
}


def test_no_parser_lives_on_when_extraction_fails(tmp_path, monkeypatch):
    path = tmp_path / "a.warc.gz"
    write_shard(path, [("response", OK + "text/html", b"<p>page")] * 200)  # four batches, of which two are being parsed
    started, start = [], subprocess.Popen
    monkeypatch.setattr(isolation, "_spare", [])
    monkeypatch.setattr(
        subprocess, "Popen", lambda *args, **kwargs: started.append(start(*args, **kwargs)) or started[-1]
    )
    monkeypatch.setattr(shard, "_document", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError) as raised:
        extract_shard(path, ExtractConfig(), num_workers=2)
    spare = [worker._process for worker in isolation._spare]
    assert started and all(process in spare or process.poll() is not None for process in started)
    assert raised.tb  # whoever holds the traceback, as Dagster does, holds no process


def test_real_warc_files_give_the_documents_that_an_independent_reader_counted(shared_data):
    entries = json.loads((shared_data / "MANIFEST.json").read_text())["entries"]
    for entry in entries:
        if not entry["path"].startswith("web/warc/dev/"):
            continue
        path = shared_data / entry["path"]
        documents, skipped = extract_shard(path, ExtractConfig())
        assert len(documents) + skipped.total() == sum(1 for _ in read_records(path)), path.name
        num_plain = sum(
            getattr(record, "kind", "") == "conversion"
            or (getattr(record, "http_status", None) == 200 and record.mime_type == "text/plain")
            for record in read_records(path)
        )
        num_html = int(entry["what"].partition("html 200 responses ")[2].partition(";")[0])
        # Plain text and WET records are kept besides HTML; HTML pages without any text are not.
        num_expected = num_html - FEWER.get(path.name, 0)
        assert num_expected <= len(documents) + skipped["empty text"] <= num_expected + num_plain, path.name


def test_an_empty_file_counts_as_one_unreadable_record(tmp_path):
    path = tmp_path / "empty.warc.gz"
    path.write_bytes(b"")
    assert extract_shard(path, ExtractConfig()) == ([], Counter({"unreadable record: empty file": 1}))
