"""Stored HTTP bodies: decoded within bounds, or refused with a reason."""

from __future__ import annotations

import gzip
import zlib

import pytest

from cs336.crawl.http_bodies import UndecodableError, decode_body

RAW = zlib.compressobj(wbits=-15)
RAW_DEFLATE = RAW.compress(b"<p>hello") + RAW.flush()
# "<p>hello" as one uncompressed Brotli meta-block, by hand (RFC 7932, section 9): window bits of
# 16 (1 bit: 0), ISLAST 0, MNIBBLES 4 (00), MLEN - 1 = 7 in 16 bits, ISUNCOMPRESSED 1, padding;
# the text; then an empty last meta-block.
BROTLI = (0 | 7 << 4 | 1 << 20).to_bytes(3, "little") + b"<p>hello" + b"\x03"


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({}, b"<p>hello"),
        ({"content-encoding": "gzip"}, gzip.compress(b"<p>hello", mtime=0)),
        ({"content-encoding": "deflate"}, zlib.compress(b"<p>hello")),
        ({"content-encoding": "deflate"}, RAW_DEFLATE),
        ({"content-encoding": "br"}, BROTLI),
        ({"transfer-encoding": "chunked"}, b"3\r\n<p>\r\n5;note=1\r\nhello\r\n0\r\n\r\n"),
        ({"transfer-encoding": "chunked", "content-encoding": "gzip"}, b"1c\r\n%b\r\n0\r\n\r\n"),
        ({"content-encoding": "gzip, br"}, None),
        ({"transfer-encoding": "chunked"}, b"<p>hello"),  # stored already decoded, under the old header
        ({"content-encoding": "gzip"}, b"<p>hello"),
        ({"content-encoding": "br"}, b"<p>hello"),
        ({"content-encoding": "deflate"}, b"<p>hello"),
    ],
)
def test_every_encoding_that_servers_send_gives_the_same_text(headers, body):
    packed = gzip.compress(b"<p>hello", mtime=0)
    if body is None:  # applied in the listed order: gzip, then Brotli (one uncompressed block)
        body = (0 | (len(packed) - 1) << 4 | 1 << 20).to_bytes(3, "little") + packed + b"\x03"
    elif body.startswith(b"1c"):
        body = body.replace(b"1c", b"%x" % len(packed)) % packed
    assert decode_body(body, headers, max_bytes=100) == b"<p>hello"


@pytest.mark.parametrize(
    ("headers", "body", "reason"),
    [
        ({"transfer-encoding": "chunked"}, b"5\r\nhello\r\nzz\r\nmore", "wrong chunking"),
        ({"transfer-encoding": "chunked"}, b"50\r\nhello", "wrong chunking"),
        ({"content-encoding": "gzip"}, gzip.compress(b"hello", mtime=0)[:-4], "truncated gzip content"),
        ({"content-encoding": "gzip"}, gzip.compress(b"hello", mtime=0)[:-8] + bytes(8), "damaged gzip content"),
        ({"content-encoding": "br"}, b"\xff\xff\xff\xff", "damaged br content"),
        ({"content-encoding": "zstd"}, b"hello", "unknown content encoding"),
        ({"content-encoding": "gzip"}, gzip.compress(b"x" * 101, mtime=0), "content over 100 bytes when decoded"),
        ({"content-encoding": "deflate"}, zlib.compress(b"x" * 101), "content over 100 bytes when decoded"),
    ],
)
def test_a_body_that_cannot_be_decoded_says_why(headers, body, reason):
    with pytest.raises(UndecodableError, match=f"^{reason}$"):
        decode_body(body, headers, max_bytes=100)


def test_a_body_of_exactly_the_limit_passes():
    assert decode_body(gzip.compress(b"x" * 100), {"content-encoding": "gzip"}, max_bytes=100) == b"x" * 100
