"""Extraction: the library's text byte for byte, whatever the encoding, and a full account of skips."""

from __future__ import annotations

import gzip
import json
import re
import tarfile
from collections import Counter

import pytest
from resiliparse.extract.html2text import extract_plain_text
from resiliparse.parse.encoding import detect_encoding

from cs336.crawl.warc import Record, read_records, write_record
from cs336.extract.html import ExtractConfig, _extract_page, decode_text, extract_shard, extract_text

PAGE = (
    "<html><body><h1>Title</h1><p>One  two\n<a href='/x'>three</a>.</p><ul><li>item</li></ul><img src=a></body></html>"
)


def test_blocks_are_apart_white_space_is_collapsed_and_items_have_bullets():
    assert extract_text(PAGE.encode()) == "Title\n\nOne two three.\n\n  • item"


def test_strict_utf8_comes_first_then_the_detected_encoding():
    text = "Les élèves étaient très fatigués après la journée passée à l'école. " * 5
    assert extract_text(f"<p>{text}".encode()) == text.strip()
    assert extract_text(f"<p>{text}".encode("latin-1")) == text.strip()


@pytest.mark.parametrize("data", [b"", b"\xff\xfe", bytes(range(256)) * 20, b"<p>ok \xff\xff ok", b"\x00" * 1000])
def test_no_bytes_make_it_raise(data):
    assert isinstance(extract_text(data), str)
    decode_text(data).encode()  # no lone surrogates, which nothing downstream could store


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


def test_a_page_that_breaks_the_parser_is_counted(monkeypatch):
    def explode(*args, **options):
        raise RuntimeError("too strange")

    monkeypatch.setattr("cs336.extract.html.extract_plain_text", explode)
    page = Record(
        id="1", kind="response", url="", date="", offset=0, payload=b"<p>one", mime_type="text/html", http_status=200
    )
    assert _extract_page(ExtractConfig(), "a.warc.gz", page) == "extraction failed: RuntimeError"


def test_a_page_on_which_the_parser_hangs_costs_itself_alone(tmp_path):
    hostile = b"<p " + b" ".join(b"a%d=1" % number for number in range(200_000)) + b">"  # quadratic in any parser
    html = OK + "text/html"
    records = [("response", html, b"<p>one"), ("response", html, hostile), ("response", html, b"<p>two")]
    path = tmp_path / "a.warc.gz"
    write_shard(path, records)
    documents, skipped = extract_shard(path, ExtractConfig(max_page_seconds=0.5))
    assert [document.text for document in documents] == ["one", "two"]
    assert skipped == {"extraction failed: over 0.5 s of CPU time": 1}


def test_main_content_leaves_out_the_menu():
    html = b"<body><nav><a href=/>Home</a></nav><main><p>The text itself.</p></main></body>"
    assert "Home" in extract_text(html)
    assert extract_text(html, main_content=True) == "The text itself."


def real_pages(shared_data):
    """Name and bytes of every real page."""
    with tarfile.open(shared_data / "web/pages/dev.tar.xz") as archive:
        for member in archive:
            if member.isfile():
                yield member.name.removeprefix("./").removeprefix("dev/"), archive.extractfile(member).read()


def is_utf8(data):
    try:
        data.decode()
        return True
    except UnicodeDecodeError:
        return False


def test_all_real_pages_give_the_librarys_text_byte_for_byte(shared_data):
    num_utf8 = num_other = 0
    for _, html in real_pages(shared_data):
        num_utf8 += is_utf8(html)
        num_other += not is_utf8(html)
        text = html.decode() if is_utf8(html) else html.decode(detect_encoding(html), "replace")
        assert extract_text(html) == extract_plain_text(text)
    assert (num_utf8, num_other) == (2406, 26)


def test_real_pages_in_other_encodings_are_read_as_what_they_declare(shared_data):
    # What a browser takes for these names (WHATWG): latin-1 is windows-1252.
    same = {"iso-8859-1": "cp1252", "iso-8859-15": "cp1252", "windows-1252": "cp1252"}
    num_right, wrong = 0, []
    for name, html in real_pages(shared_data):
        if is_utf8(html):
            continue
        declared = re.search(rb"charset\s*=\s*[\"']?\s*([A-Za-z0-9_-]+)", html[:8192])
        codec = declared and same.get(declared[1].decode().lower(), declared[1].decode().lower())
        if codec and decode_text(html) == html.decode(codec, "replace"):
            num_right += 1
        else:
            wrong.append((name, codec))
    assert num_right >= 22 and len(wrong) <= 4, wrong


# Legacy encodings by the language of a page.
ENCODINGS = {
    "de": ["cp1252", "iso-8859-15"],
    "es": ["cp1252"],
    "fr": ["cp1252"],
    "pl": ["iso-8859-2", "cp1250"],
    "cs": ["cp1250"],
    "hu": ["iso-8859-2"],
    "ru": ["cp1251", "koi8-r"],
    "tr": ["cp1254"],
    "ar": ["cp1256"],
    "ja": ["shift_jis", "euc-jp"],
    "zh": ["gb18030", "big5"],
}


def test_real_pages_written_in_legacy_encodings_are_detected(shared_data):
    with gzip.open(shared_data / "web/pages/dev_index.jsonl.gz", "rt") as lines:
        languages = {row["name"]: row["lang_guess"] for row in map(json.loads, lines)}
    right, tried = Counter(), Counter()
    for name, html in real_pages(shared_data):
        language = languages.get(name)
        if language not in ENCODINGS or tried[language] >= 20 or len(html) > 300_000:
            continue
        for encoding in ENCODINGS[language] if is_utf8(html) else []:
            legacy = html.decode().encode(encoding, "xmlcharrefreplace")
            if not is_utf8(legacy):
                tried[language] += 1
                right[language] += decode_text(legacy) == legacy.decode(encoding)
    assert set(tried) == set(ENCODINGS) and tried.total() > 120
    assert right.total() / tried.total() > 0.97, right
    assert all(right[language] >= 0.9 * tried[language] for language in tried), right


# Pages of a sample that are HTML and 200 by its manifest but give no document, and why.
FEWER = {
    "warcio__example-wrong-chunks.warc.gz": 1,  # the only response is split over two gzip members
}


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
