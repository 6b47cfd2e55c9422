"""WARC records: written reproducibly, read whole, and damage costs one record."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import time
import tracemalloc
import zlib
from collections import Counter
from pathlib import Path

import pytest
from fastwarc.warc import ArchiveIterator

from cs336.crawl.warc import Record, Skipped, read_record_at, read_records, write_record
from cs336.files import UserError

HTML = b"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\n"


def member(url: str = "http://a.test/", body: bytes = b"<p>hello", head: bytes = HTML, **options) -> bytes:
    file = io.BytesIO()
    content_type = "application/http; msgtype=response"
    write_record(file, "response", url=url, content_type=content_type, block=head + b"\r\n" + body, **options)
    return file.getvalue()


def read(tmp_path: Path, data: bytes, **options) -> list[Record | Skipped]:
    path = tmp_path / "a.warc"
    path.write_bytes(data)
    return list(read_records(path, **options))


def reasons(items: list[Record | Skipped]) -> list[str | None]:
    """The payload of what was read, the reason for what was not."""
    return [item.reason if isinstance(item, Skipped) else item.payload.decode() for item in items]


def test_a_written_record_is_read_back_with_all_its_fields(tmp_path):
    (record,) = read(tmp_path, member(body=b"<p>hello", date="2026-01-02T03:04:05Z"))
    assert isinstance(record, Record)
    assert (record.kind, record.url, record.payload) == ("response", "http://a.test/", b"<p>hello")
    assert (record.http_status, record.mime_type, record.offset) == (200, "text/html", 0)
    assert record.date == "2026-01-02T03:04:05Z"
    assert record.http_headers == {"content-type": "text/html; charset=utf-8"}


def test_the_same_record_is_written_with_the_same_bytes_and_another_url_gets_another_id():
    assert member() == member()
    first, second = (gzip.decompress(member(url)).split(b"\r\n")[2] for url in ("http://a.test/", "http://b.test/"))
    assert first.startswith(b"WARC-Record-ID: <urn:uuid:")
    assert first != second


def test_digests_are_sha1_in_base32_of_the_block_and_of_the_http_body():
    text = gzip.decompress(member(body=b"<p>hello"))
    block, body = (
        "sha1:" + base64.b32encode(hashlib.sha1(data).digest()).decode()
        for data in (HTML + b"\r\n<p>hello", b"<p>hello")
    )
    assert f"WARC-Block-Digest: {block}\r\n".encode() in text
    assert f"WARC-Payload-Digest: {body}\r\n".encode() in text


def test_a_line_break_in_a_header_is_an_error():
    with pytest.raises(ValueError, match="line break"):
        member("http://a.test/\r\nWARC-Type: x")


def test_a_missing_file_is_named_in_one_line(tmp_path):
    with pytest.raises(UserError, match=r"b\.warc: not found"):
        list(read_records(tmp_path / "b.warc"))


def test_an_empty_file_has_no_records(tmp_path):
    assert read(tmp_path, b"") == []


def test_every_record_is_found_again_at_its_offset(tmp_path):
    path = tmp_path / "a.warc.gz"
    path.write_bytes(b"".join(member(f"http://a.test/{i}", body=b"x" * i) for i in range(5)))
    for record in read_records(path):
        assert read_record_at(path, record.offset) == record
    with pytest.raises(ValueError, match="byte 7"):
        read_record_at(path, 7)


def test_records_of_a_file_compressed_as_a_whole_share_its_offset_and_are_told_apart_by_id(tmp_path):
    path = tmp_path / "a.warc.gz"
    path.write_bytes(gzip.compress(b"".join(gzip.decompress(member(f"http://a.test/{i}")) for i in range(3))))
    records = list(read_records(path))
    assert [record.url for record in records] == [f"http://a.test/{i}" for i in range(3)]
    for record in records:
        assert read_record_at(path, 0, record_id=record.id) == record


@pytest.mark.parametrize("compressed", [True, False])
def test_a_truncated_file_gives_the_whole_records_and_one_skip(tmp_path, compressed):
    parts = [member(f"http://a.test/{i}", body=b"<p>%d" % i) for i in range(3)]
    data = b"".join(parts) if compressed else b"".join(map(gzip.decompress, parts))
    found = reasons(read(tmp_path, data[:-20] if compressed else data[:-6]))
    assert found == ["<p>0", "<p>1", "truncated gzip member" if compressed else "truncated record"]


def test_a_flipped_bit_costs_the_record_it_is_in_and_no_other(tmp_path):
    parts = [member(f"http://a.test/{i}", body=b"<p>%d" % i) for i in range(3)]
    broken = bytearray(parts[1])
    broken[len(broken) // 2] ^= 0x10
    found = reasons(read(tmp_path, parts[0] + bytes(broken) + parts[2]))
    assert found[0] == "<p>0" and found[2] == "<p>2" and len(found) == 3
    assert "damaged" in found[1]


def test_a_wrong_checksum_is_noticed_although_the_text_inflates(tmp_path):
    data = bytearray(member(body=b"<p>hello"))
    data[-8] ^= 1  # CRC-32, the first of the last eight bytes
    assert reasons(read(tmp_path, bytes(data) + member(body=b"<p>next"))) == ["damaged gzip member", "<p>next"]


def test_garbage_between_members_is_counted_and_passed_over(tmp_path):
    data = member(body=b"<p>1") + b"garbage \x1f\x8b\x08 garbage" + member(body=b"<p>2")
    assert reasons(read(tmp_path, data)) == ["<p>1", "bytes between gzip members", "<p>2"]


@pytest.mark.parametrize("change", [-3, +6, +200])
def test_a_wrong_length_in_a_plain_file_costs_one_record(tmp_path, change):
    plain = [gzip.decompress(member(f"http://a.test/{i}", body=b"<p>%d" % i)) for i in range(3)]
    length = len(HTML) + 2 + 4
    plain[1] = plain[1].replace(b"Content-Length: %d" % length, b"Content-Length: %d" % (length + change))
    found = reasons(read(tmp_path, b"".join(plain)))
    assert found[0] == "<p>0" and found[-1] == "<p>2" and len(found) == 3
    assert found[1].startswith("damaged record")


def test_a_record_without_a_length_costs_one_record(tmp_path):
    plain = [gzip.decompress(member(f"http://a.test/{i}", body=b"<p>%d" % i)) for i in range(3)]
    plain[1] = plain[1].replace(b"Content-Length", b"Content-Lost")
    assert reasons(read(tmp_path, b"".join(plain))) == ["<p>0", "damaged record: no Content-Length", "<p>2"]


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize(
    ("digits", "reason"),
    [
        ("9" * 5_000, "damaged record: Content-Length beyond any file"),
        ("9" * 30, "damaged record: Content-Length beyond any file"),
        ("20000000", "truncated record"),
    ],
)
def test_a_length_that_no_file_has_costs_one_record(tmp_path, compressed, digits, reason):
    plain = [gzip.decompress(member(f"http://a.test/{i}", body=b"<p>%d" % i)) for i in range(5)]
    plain[1] = plain[1].replace(b"Content-Length: %d" % (len(HTML) + 6), b"Content-Length: " + digits.encode())
    assert digits.encode() in plain[1]
    data = b"".join(map(gzip.compress, plain)) if compressed else b"".join(plain)
    found = read(tmp_path, data, max_record_bytes=10_000_000)
    assert reasons(found) == ["<p>0", reason, "<p>2", "<p>3", "<p>4"]
    assert found[1].url == "http://a.test/1"


@pytest.mark.parametrize(
    "line",
    [
        b"http://a 1.1.1.1 20200101000000 x " + b"a" * 60_000 + b" b",
        b"http://a 1.1.1.1 20200101000000 x " + b"a " * 30_000 + b"\t",
        b"http://a 1.1.1.1 20200101000000" + b" " * 60_000 + b"\x00\r\x00",
        b"http:" * 12_000,
    ],
)
def test_a_long_line_that_might_be_an_arc_header_takes_no_time(tmp_path, line):
    start = time.process_time()
    (found,) = read(tmp_path, gzip.compress(line + b"\n"))
    assert isinstance(found, Skipped)
    assert time.process_time() - start < 0.5


def test_an_arc_header_of_version_2_has_its_length_last_and_may_lack_a_type(tmp_path):
    lines = [b"text/html 200 checksum - 120 a file.arc.gz", b"text/html; charset=utf-8", b"", None]
    for fields in lines:
        middle = b"" if fields is None else fields + b" "
        (page,) = read(tmp_path, b"gopher://a.test/ 1.2.3.4 20080430204826 " + middle + b"5\nhello\n")
        assert (page.url, page.payload) == ("gopher://a.test/", b"hello")
        assert page.mime_type == ("text/html" if fields else "")


def test_arc_records_are_read_like_warc_records(tmp_path):
    http = HTML + b"\r\n<p>arc"
    head = b"filedesc://a.arc 0.0.0.0 20080430204825 text/plain 20\n1 1 InternetArchive\n"
    data = head + b"\nhttp://a.test/ 1.2.3.4 20080430204826 text/html %d\n" % len(http) + http + b"\n"
    for stored in (data, gzip.compress(data)):
        info, page = read(tmp_path, stored)
        assert (info.kind, info.date) == ("warcinfo", "2008-04-30T20:48:25Z")
        assert (page.kind, page.url, page.payload, page.http_status) == ("response", "http://a.test/", b"<p>arc", 200)


def bomb(num_bytes: int) -> bytes:
    """A gzip member that says it holds one record of this size, all zeros."""
    head = gzip.decompress(member()).replace(b"Content-Length: 67", b"Content-Length: %d" % num_bytes)
    assert b"%d" % num_bytes in head
    packer = zlib.compressobj(9, wbits=31)
    pieces = [packer.compress(head.partition(b"\r\n\r\n")[0] + b"\r\n\r\n")]
    pieces += [packer.compress(bytes(2**20)) for _ in range(num_bytes >> 20)]
    return b"".join([*pieces, packer.compress(b"\r\n\r\n"), packer.flush()])


def test_a_gzip_bomb_is_one_skip_in_bounded_memory_and_reading_goes_on(tmp_path):
    limit = 2**20
    inner = gzip.compress(bytes(100 * 2**20), 9)
    data = bomb(100 * 2**20) + member(head=HTML + b"Content-Encoding: gzip\r\n", body=inner) + member(body=b"<p>next")
    path = tmp_path / "bomb.warc.gz"
    path.write_bytes(data)
    del inner
    tracemalloc.start()
    found = reasons(list(read_records(path, max_record_bytes=limit)))
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == ["record over 1,048,576 bytes", "content over 1,048,576 bytes when decoded", "<p>next"]
    assert peak_bytes < 8 * limit


def test_a_bomb_that_claims_more_than_a_gibibyte_is_not_even_inflated(tmp_path):
    head = gzip.decompress(bomb(2**20))[:2000].replace(b"Content-Length: 1048576", b"Content-Length: 5000000000")
    found = reasons(read(tmp_path, gzip.compress(head) + member(body=b"<p>next")))
    assert found == ["record over 1,073,741,824 bytes", "<p>next"]


def test_a_page_of_100_mb_is_one_skip_in_a_plain_file_too(tmp_path):
    path = tmp_path / "large.warc"
    block = HTML + b"\r\n" + b"<p>word" * 15_000_000
    with open(path, "wb") as file:
        file.write(b"WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: http://a.test/large\r\n")
        file.write(b"Content-Type: application/http\r\nContent-Length: %d\r\n\r\n" % len(block))
        file.write(block + b"\r\n\r\n" + gzip.decompress(member(body=b"<p>next")))
    del block
    tracemalloc.start()
    large, following = read_records(path)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert large == Skipped("record over 33,554,432 bytes", 0, "http://a.test/large")
    assert following.payload == b"<p>next"
    assert peak_bytes < 8 * 2**20


def samples(shared_data: Path) -> list[tuple[Path, str]]:
    """Real WARC and ARC files, each with what an independent reader said of it."""
    entries = json.loads((shared_data / "MANIFEST.json").read_text())["entries"]
    return [
        (shared_data / entry["path"], entry["what"]) for entry in entries if entry["path"].startswith("web/warc/dev/")
    ]


# Where that other reader stopped, or took something else for a record.
DIFFERENT = {
    # It took the rest of a picture whose length is wrong for two more responses.
    "ipwb__broken.warc": Counter(warcinfo=1, request=2, metadata=1, response=1, skipped=1),
    # No usable length: it counted them as empty records.
    "pywb__bad.arc": Counter(response=1, skipped=3),
    # The response is split over two gzip members; behind it follows a request that it did not reach.
    "warcio__example-wrong-chunks.warc.gz": Counter(request=1, skipped=1),
    # It stopped at Brotli.
    "webarchive-discovery__transfer_compression_brotli.warc.gz": Counter(
        warcinfo=1, request=1, response=1, metadata=1, resource=1
    ),
}


def test_real_files_give_the_records_that_an_independent_reader_counted(shared_data):
    found_samples = samples(shared_data)
    assert len(found_samples) == 23
    for path, what in found_samples:
        kinds = Counter("skipped" if isinstance(item, Skipped) else item.kind for item in read_records(path))
        listed = what.partition("records ")[2].partition("}")[0] + "}"
        expected = DIFFERENT.get(path.name) or Counter(json.loads(listed.replace("'", '"')))
        assert kinds == expected, path.name


def test_payloads_of_real_files_equal_fastwarcs_where_it_can_read_them(shared_data):
    num_compared = 0
    for path, _ in samples(shared_data):
        if path.name in DIFFERENT or ".arc" in path.name:
            continue
        ours = [item for item in read_records(path) if isinstance(item, Record)]
        theirs = [
            (record.record_id, record.http_headers.status_code if record.http_headers else None, record.reader.read())
            for record in ArchiveIterator(str(path), parse_http=True)
        ]
        assert len(ours) == len(theirs), path.name
        for one, (identity, status, payload) in zip(ours, theirs, strict=True):
            assert one.id == identity
            if one.kind == "response" and not {"transfer-encoding", "content-encoding"} & set(one.http_headers):
                assert (one.http_status, one.payload) == (status, payload)
                num_compared += 1
    assert num_compared > 400


def test_real_records_are_found_again_at_their_offsets(shared_data):
    for path, _ in samples(shared_data):
        if path.stat().st_size < 200_000:
            for record in read_records(path):
                if isinstance(record, Record):
                    assert read_record_at(path, record.offset, record_id=record.id) == record
