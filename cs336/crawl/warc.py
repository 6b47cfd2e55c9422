"""WARC files: records written like Common Crawl's, and read so that damage costs one record.

The framing (gzip members, record headers, lengths) is done here, and FastWARC parses the framed
records. FastWARC alone stops at the first damaged record, hands over truncated payloads as whole
ones, and reads no ARC; over millions of pages from other people's crawlers all three matter.

Reading is bounded: no more than `max_record_bytes` of a record are kept at any stage (inflated
gzip member, record block, decoded payload), and each stage holds at most one copy.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import os
import re
import uuid
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, NamedTuple

from fastwarc.warc import ArchiveIterator

from cs336.crawl.gzip_members import BadGzipError, MemberReader, find_member, starts_member
from cs336.crawl.http_bodies import UndecodableError, decode_body
from cs336.files import UserError

# Common Crawl cuts pages at 1 MiB (5 MiB since 2025); other crawlers keep PDFs of some 10 MB.
MAX_RECORD_BYTES = 32 * 2**20
_MAX_HEADER_BYTES = 64 * 2**10
_MAX_LENGTH_DIGITS = 18  # an offset of a file has no more, and Python refuses to read numbers of thousands
# An oversized record is inflated and thrown away to reach the next one, up to here: about 3 s of
# work. Beyond it, it is a bomb, and reading goes on at the next gzip member that starts a record.
_MAX_DISCARDED_BYTES = 2**30
_KINDS = frozenset(["warcinfo", "response", "resource", "request", "metadata", "revisit", "conversion", "continuation"])

_WARC_LINE = re.compile(rb"WARC/\d")
# URL, IP address, date of 14 digits (some writers: more), MIME type (version 2: more fields), length. A lazy `.*?`
# in place of `(?:.* )?` would take time that grows with the square of the line's length.
_ARC_LINE = re.compile(rb"([A-Za-z][A-Za-z0-9+.\-]*:\S*) (\S+) (\d{12,20}) (?:(\S*) (?:.* )?)?(\S+)\s*$")


@dataclass(frozen=True)
class Record:
    """One whole record.

    Attributes:
        kind: WARC-Type, such as "response", or "unknown" for what WARC 1.1 does not define; an ARC
            file's header counts as "warcinfo", its pages as "response".
        id: WARC-Record-ID with its angle brackets; made from address, date and offset if missing.
        url: WARC-Target-URI, None if there is none.
        date: WARC-Date as written.
        offset: byte offset of the record in its file; of its gzip member, when compressed.
        mime_type: lower case, without parameters; of a response, what its HTTP header says.
        http_status: of HTTP responses only.
        http_headers: names in lower case; of repeated ones the last; of HTTP responses only.
        payload: of HTTP responses the body, dechunked and decompressed; else the block as it is.
    """

    kind: str
    id: str
    url: str | None
    date: str
    offset: int
    mime_type: str
    payload: bytes
    http_status: int | None = None
    http_headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Skipped:
    """One record that could not be read, or was too large; `reason` never holds a URL."""

    reason: str
    offset: int
    url: str | None = None


def write_record(
    file: IO[bytes],
    kind: str,
    *,
    url: str | None,
    content_type: str,
    block: bytes,
    record_id: str | None = None,
    date: str = "2026-01-01T00:00:00Z",
    extra: dict[str, str] | None = None,
) -> None:
    """Append one record as a gzip member of its own; same arguments, same bytes.

    Args:
        kind: WARC-Type.
        url: WARC-Target-URI; None leaves the header out.
        content_type: of the block, such as "application/http; msgtype=response".
        block: what follows the header: for HTTP responses status line, headers and body.
        record_id: WARC-Record-ID; by default a UUID made from `kind` and `url` (without a URL,
            from the block), so a file that holds one URL twice must pass its own.
        date: WARC-Date; UTC, to the second.
        extra: further WARC headers.

    Raises:
        ValueError: a header would contain a line break.
    """
    headers = {"WARC-Type": kind, "WARC-Record-ID": record_id or _default_id(kind, url, block), "WARC-Date": date}
    if url is not None:
        headers["WARC-Target-URI"] = url
    headers |= extra or {}
    headers |= {"Content-Type": content_type, "WARC-Block-Digest": _digest(block)}
    if kind == "response":
        headers["WARC-Payload-Digest"] = _digest(block.partition(b"\r\n\r\n")[2])
    headers["Content-Length"] = str(len(block))
    for name, value in headers.items():
        if "\n" in value or "\r" in value:
            raise ValueError(f"line break in WARC header {name}: {value!r}; encode the address first")
    head = "WARC/1.0\r\n" + "".join(f"{name}: {value}\r\n" for name, value in headers.items()) + "\r\n"
    file.write(gzip.compress(head.encode() + block + b"\r\n\r\n", compresslevel=6, mtime=0))


def read_records(path: Path, *, max_record_bytes: int = MAX_RECORD_BYTES) -> Iterator[Record | Skipped]:
    """All records of a WARC or ARC file, gzipped or not, in file order; damage never raises.

    After a damaged spot, reading goes on at the next gzip member (or, in a plain file, the next
    line) that starts a record.

    Args:
        max_record_bytes: larger blocks, and payloads that decode to more, come out as `Skipped`.

    Raises:
        UserError: no such file.
    """
    with _open(path) as file:
        for item in _frames(file, 0, max_record_bytes):
            yield item if isinstance(item, Skipped) else _parse(item, max_record_bytes)


def read_record_at(
    path: Path, offset: int, *, record_id: str | None = None, max_record_bytes: int = MAX_RECORD_BYTES
) -> Record:
    """The record that `read_records` reported at this offset.

    Args:
        record_id: needed only where one gzip member holds many records (a WARC file compressed as
            a whole): they share its offset.

    Raises:
        ValueError: no readable record there.
        UserError: no such file.
    """
    with _open(path) as file:
        for item in _frames(file, offset, max_record_bytes):
            found = item if isinstance(item, Skipped) else _parse(item, max_record_bytes)
            if found.offset != offset:
                break
            if isinstance(found, Record) and record_id in (None, found.id):
                return found
            if isinstance(found, Skipped) and record_id is None:
                raise ValueError(f"{path.name}: record at byte {offset} cannot be read: {found.reason}")
    raise ValueError(f"{path.name}: no record at byte {offset}; offsets come from read_records")


# ---- framing: where each record starts and ends ------------------------------------------------


class _Frame(NamedTuple):
    """A record still in one piece: a WARC header block, and the block it announces."""

    offset: int
    headers: dict[bytes, bytes]
    head: bytes
    block: bytes


class _BrokenError(Exception):
    """The stream cannot be followed further.

    Attributes:
        reason: for `Skipped`.
        in_previous: nothing that looks like a record follows the last one, so that one is broken.
        url: of the broken record, when known.
    """

    def __init__(self, reason: str, *, in_previous: bool = False, url: str | None = None) -> None:
        super().__init__(reason)
        self.reason, self.in_previous, self.url = reason, in_previous, url


def _frames(file: io.BufferedReader, start: int, limit: int) -> Iterator[_Frame | Skipped]:
    """Records from byte `start` on."""
    file.seek(start)
    if starts_member(file):
        yield from _frames_in_members(file, start, limit)
    else:
        yield from _frames_in_plain_file(file, start, limit)


def _frames_in_members(file: io.BufferedReader, start: int, limit: int) -> Iterator[_Frame | Skipped]:
    offset: int | None = start
    while offset is not None:
        file.seek(offset)
        if not file.peek(1):
            return
        if not starts_member(file):
            if any(file.read(_MAX_HEADER_BYTES)) or file.peek(1):  # a tail of zeros is mere padding
                yield Skipped("bytes between gzip members", offset)
            offset = find_member(file, offset + 1, _starts_record)
            continue
        member = MemberReader(file, offset)
        damage = yield from _frames_in_stream(io.BufferedReader(member, 2**16), member_offset=offset, limit=limit)
        offset = find_member(file, offset + 1, _starts_record) if damage is not None else member.end


def _frames_in_plain_file(file: io.BufferedReader, start: int, limit: int) -> Iterator[_Frame | Skipped]:
    file.seek(start)
    while True:
        damage = yield from _frames_in_stream(file, member_offset=None, limit=limit)
        if damage is None:
            return
        file.seek(damage + 1)
        file.readline()  # what is left of the broken record's first line
        while True:
            position = file.tell()
            line = file.readline(_MAX_HEADER_BYTES)
            if not line:
                return
            if _starts_record(line):
                file.seek(position)
                break


def _frames_in_stream(
    stream: io.BufferedReader, *, member_offset: int | None, limit: int
) -> Generator[_Frame | Skipped, None, int | None]:
    """Records of one decompressed stream; the generator returns where it broke, None at a clean end.

    Each record is held back until its successor (or the end) has been seen, for only that shows
    that its length, and its gzip member's checksum, are right.
    """
    previous: _Frame | Skipped | None = None
    while True:
        start = 0 if member_offset is None else member_offset
        try:
            _skip_blank_lines(stream)
            start = stream.tell() if member_offset is None else member_offset
            item = _read_frame(stream, start, seekable=member_offset is None, limit=limit)
        except _BrokenError as broken:
            if previous is not None and broken.in_previous:
                url = previous.url if isinstance(previous, Skipped) else _url(previous.headers)
                yield Skipped(broken.reason, previous.offset, url)
                return previous.offset
            if previous is not None:
                yield previous
            yield Skipped(broken.reason, start, broken.url)
            return start
        if previous is not None:
            yield previous
        if item is None:
            return None
        previous = item


def _skip_blank_lines(stream: io.BufferedReader) -> None:
    """Move to what follows a record's end, two line breaks by the standard, more or fewer in the wild."""
    try:
        for _ in range(_MAX_HEADER_BYTES):
            if stream.peek(1)[:1] not in (b"\r", b"\n"):
                return
            stream.read(1)
    except BadGzipError as error:
        raise _BrokenError(str(error), in_previous=True) from None
    raise _BrokenError("damaged record: only blank lines after it", in_previous=True)


def _read_frame(stream: io.BufferedReader, offset: int, *, seekable: bool, limit: int) -> _Frame | Skipped | None:
    """The next record, or None at the end of the stream."""
    url = None
    in_header = True
    try:
        line = stream.readline(_MAX_HEADER_BYTES)
        if not line:
            return None
        if not _starts_record(line):
            raise _BrokenError("damaged record: its length does not lead to another record", in_previous=True)
        head, headers = _read_header(stream, line)
        url = _url(headers)
        in_header = False
        length_text = headers.get(b"content-length", b"")
        if not length_text.isdigit():
            raise _BrokenError("damaged record: no Content-Length", url=url)
        if len(length_text) > _MAX_LENGTH_DIGITS:
            raise _BrokenError("damaged record: Content-Length beyond any file", url=url)
        length = int(length_text)
        if length > limit:
            _discard(stream, length, url, seekable=seekable)
            return Skipped(f"record over {limit:,} bytes", offset, url)
        block = stream.read(length)
    except BadGzipError as error:
        raise _BrokenError(str(error), in_previous=in_header, url=url) from None
    if len(block) < length:
        raise _BrokenError("truncated record", url=url)
    return _Frame(offset, headers, head, block)


def _read_header(stream: io.BufferedReader, line: bytes) -> tuple[bytes, dict[bytes, bytes]]:
    """The header block, an ARC line translated to WARC's form, as bytes and by lower-case name."""
    if not _WARC_LINE.match(line):
        head = _header_of_arc(line)
    else:
        lines = [line.strip()]
        num_bytes = len(line)
        while (line := stream.readline(_MAX_HEADER_BYTES)).strip():
            lines.append(line.rstrip())
            num_bytes += len(line)
            if num_bytes > _MAX_HEADER_BYTES:
                raise _BrokenError(f"damaged record: header over {_MAX_HEADER_BYTES:,} bytes")
        head = b"\r\n".join(lines) + b"\r\n\r\n"
    headers = {}
    for line in head.split(b"\r\n")[1:]:
        name, colon, value = line.partition(b":")
        if colon:
            headers[name.strip().lower()] = value.strip()
    return head, headers


def _header_of_arc(line: bytes) -> bytes:
    match = _ARC_LINE.match(line)
    assert match is not None, line
    url, address, date, mime_type, length = match.groups()
    is_http = url.lower().startswith((b"http:", b"https:"))
    day = b"%b-%b-%bT%b:%b:%bZ" % tuple(date[a:b] for a, b in ((0, 4), (4, 6), (6, 8), (8, 10), (10, 12), (12, 14)))
    fields = [
        (b"WARC-Type", b"warcinfo" if url.startswith(b"filedesc:") else b"response"),
        (b"WARC-Target-URI", url),
        (b"WARC-IP-Address", address),
        (b"WARC-Date", day),
        (b"Content-Type", b"application/http; msgtype=response" if is_http else mime_type or b""),
        (b"Content-Length", length),
    ]
    return b"WARC/1.0\r\n" + b"".join(b"%b: %b\r\n" % pair for pair in fields) + b"\r\n"


def _starts_record(first_bytes: bytes) -> bool:
    line = first_bytes.lstrip(b"\r\n").split(b"\n", 1)[0]
    return bool(_WARC_LINE.match(line) or _ARC_LINE.match(line))


def _discard(stream: io.BufferedReader, length: int, url: str | None, *, seekable: bool) -> None:
    """Move past a block that is not wanted, holding 1 MiB of it at most."""
    if seekable:
        if stream.seek(length, io.SEEK_CUR) > os.fstat(stream.fileno()).st_size:  # a seek past the end is no error
            raise _BrokenError("truncated record", url=url)
        return
    if length > _MAX_DISCARDED_BYTES:
        raise _BrokenError(f"record over {_MAX_DISCARDED_BYTES:,} bytes", url=url)
    while length > 0:
        piece = stream.read(min(length, 2**20))
        if not piece:
            raise _BrokenError("truncated record", url=url)
        length -= len(piece)


# ---- parsing: what a framed record says --------------------------------------------------------


def _parse(frame: _Frame, limit: int) -> Record | Skipped:
    url = _url(frame.headers)
    date = frame.headers.get(b"warc-date", b"").decode("utf-8", "replace")
    identity = frame.headers.get(b"warc-record-id", b"").decode("utf-8", "replace")
    kind = frame.headers.get(b"warc-type", b"").decode("utf-8", "replace").lower()
    record = Record(
        kind=kind if kind in _KINDS else "unknown",
        id=identity or _uuid(f"{url} {date} {frame.offset}"),
        url=url,
        date=date,
        offset=frame.offset,
        mime_type=_mime_type(frame.headers.get(b"content-type", b"").decode("latin-1")),
        payload=frame.block,
    )
    if record.kind != "response" or record.mime_type != "application/http":
        return record
    try:
        parsed = next(ArchiveIterator(io.BytesIO(frame.head + frame.block), parse_http=True))
        body = parsed.reader.read()
    except (OSError, ValueError, StopIteration):
        return Skipped("unreadable HTTP header", frame.offset, url)
    if parsed.http_headers is None:
        return Skipped("unreadable HTTP header", frame.offset, url)
    headers = {name.lower(): value for name, value in parsed.http_headers.to_tuples()}
    try:
        payload = decode_body(body, headers, max_bytes=limit)
    except UndecodableError as broken:
        return Skipped(str(broken), frame.offset, url)
    return Record(
        kind=record.kind,
        id=record.id,
        url=url,
        date=date,
        offset=frame.offset,
        mime_type=_mime_type(headers.get("content-type", "")),
        payload=payload,
        http_status=parsed.http_headers.status_code,
        http_headers=headers,
    )


# ---- small things ------------------------------------------------------------------------------


def _open(path: Path) -> io.BufferedReader:
    try:
        return io.BufferedReader(io.FileIO(path), 2**20)
    except FileNotFoundError:
        raise UserError(f"{path}: not found; crawl or download it first") from None


def _url(headers: dict[bytes, bytes]) -> str | None:
    value = headers.get(b"warc-target-uri")
    # WARC 1.0's own example wraps the address in angle brackets, and wget does as it says.
    return None if value is None else value.decode("utf-8", "replace").removeprefix("<").removesuffix(">")


def _mime_type(content_type: str) -> str:
    return content_type.partition(";")[0].strip().lower()


def _digest(data: bytes) -> str:
    return "sha1:" + base64.b32encode(hashlib.sha1(data).digest()).decode()


def _default_id(kind: str, url: str | None, block: bytes) -> str:
    return _uuid(f"{kind} {url if url is not None else _digest(block)}")


def _uuid(name: str) -> str:
    return f"<urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, name)}>"
