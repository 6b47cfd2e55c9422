"""Bodies of stored HTTP responses: undo chunking and compression, with a bound on the result."""

from __future__ import annotations

import io
import re
import zlib

from fastwarc.warc import ArchiveIterator


class UndecodableError(ValueError):
    """A body is not in the encoding its header names, or too large; the message is of bounded variety."""


def decode_body(body: bytes, headers: dict[str, str], *, max_bytes: int) -> bytes:
    """Undo Transfer-Encoding, then Content-Encoding.

    Many crawlers store the decoded body under the original header; a body that does not even start
    like the announced encoding is therefore taken as it is.

    Args:
        headers: of the response, names in lower case.
        max_bytes: never decode more than this.

    Raises:
        UndecodableError: damaged, truncated, or larger than `max_bytes` once decoded.
    """
    if "chunked" in headers.get("transfer-encoding", "").lower():
        body = _dechunk(body)
    encodings = [name.strip().lower() for name in headers.get("content-encoding", "").split(",")]
    for encoding in reversed(encodings):  # they were applied in the order they are listed
        if encoding in ("gzip", "x-gzip"):
            body = _inflate(body, 31, encoding, max_bytes) if body.startswith(b"\x1f\x8b") else body
        elif encoding == "deflate":
            body = _inflate_deflate(body, max_bytes)
        elif encoding == "br":
            body = _decode_brotli(body, max_bytes)
        elif encoding not in ("", "identity", "none", "utf-8"):
            raise UndecodableError("unknown content encoding")
    return body


def _dechunk(body: bytes) -> bytes:
    chunks: list[bytes] = []
    position = 0
    while True:
        end = body.find(b"\n", position, position + 1024)
        size_text = body[position:end].partition(b";")[0].strip()
        if end < 0 or not re.fullmatch(rb"[0-9A-Fa-f]{1,8}", size_text):
            if position == 0:
                return body
            raise UndecodableError("wrong chunking")
        size = int(size_text, 16)
        if size == 0:
            return b"".join(chunks)
        chunk = body[end + 1 : end + 1 + size]
        if len(chunk) < size:
            raise UndecodableError("wrong chunking")
        chunks.append(chunk)
        position = end + 1 + size
        position += 2 if body.startswith(b"\r\n", position) else body.startswith(b"\n", position)


def _inflate(body: bytes, window_bits: int, encoding: str, max_bytes: int) -> bytes:
    inflater = zlib.decompressobj(window_bits)
    try:
        payload = inflater.decompress(body, max_bytes + 1)
    except zlib.error:
        raise UndecodableError(f"damaged {encoding} content") from None
    if len(payload) > max_bytes:
        raise UndecodableError(f"content over {max_bytes:,} bytes when decoded")
    if not inflater.eof:
        raise UndecodableError(f"truncated {encoding} content")
    return payload


def _inflate_deflate(body: bytes, max_bytes: int) -> bytes:
    """HTTP's "deflate" means zlib's format, but some servers send it without zlib's header."""
    if not body or body[:1] == b"<":
        return body
    has_zlib_header = body[0] & 0x0F == 8 and int.from_bytes(body[:2], "big") % 31 == 0  # RFC 1950
    return _inflate(body, zlib.MAX_WBITS if has_zlib_header else -zlib.MAX_WBITS, "deflate", max_bytes)


def _decode_brotli(body: bytes, max_bytes: int) -> bytes:
    """Python's library has no Brotli; FastWARC has, for records only, so wrap the body in one."""
    http = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Encoding: br\r\n\r\n" + body
    head = b"WARC/1.0\r\nWARC-Type: response\r\nContent-Type: application/http; msgtype=response\r\n"
    raw = head + b"Content-Length: %d\r\n\r\n" % len(http) + http + b"\r\n\r\n"
    payload = bytearray()
    try:
        reader = next(ArchiveIterator(io.BytesIO(raw), parse_http=True, auto_decode="content")).reader
        while piece := reader.read(2**16):
            payload += piece
            if len(payload) > max_bytes:
                raise UndecodableError(f"content over {max_bytes:,} bytes when decoded")
    except (OSError, ValueError, StopIteration):
        if not payload and body.lstrip()[:1] == b"<":  # stored already decoded
            return body
        raise UndecodableError("damaged br content") from None
    return bytes(payload)
