"""Gzip files as a sequence of members: inflate one at a time, and find the next after damage."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

from isal import isal_zlib  # zlib's interface, at more than twice its speed

_MAGIC = b"\x1f\x8b\x08"  # RFC 1952: two bytes of identification, then method 8, deflate
_INFLATE_ERROR: type[Exception] = isal_zlib.error  # type: ignore[assignment]  # its stub declares an instance
_GZIP_WINDOW = 31  # zlib's way to say: gzip header and checksum, window of 32 KiB


class BadGzipError(OSError):
    """A gzip member ends too early, or its bytes or checksum are wrong."""


class MemberReader(io.RawIOBase):
    """Inflates one gzip member as it is read; wrap it in `io.BufferedReader`.

    Nothing is inflated that was not asked for, so a bomb costs no more than what a caller reads.

    Attributes:
        end: offset of the byte after the member, once its end has been read; else None.
    """

    def __init__(self, file: io.BufferedReader, offset: int) -> None:
        """Start at byte `offset` of `file`, whose position then belongs to this reader."""
        file.seek(offset)
        self.end: int | None = None
        self._file = file
        self._inflater = isal_zlib.decompressobj(_GZIP_WINDOW)
        self._compressed = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer as far as one step of inflating goes; 0 at the member's end.

        Raises:
            BadGzipError: the member is truncated or damaged.
        """
        while self.end is None:
            if not self._compressed:
                self._compressed = self._file.read(2**14)
                if not self._compressed:
                    raise BadGzipError("truncated gzip member")
            try:
                data = self._inflater.decompress(self._compressed, len(buffer))
            except _INFLATE_ERROR:
                raise BadGzipError("damaged gzip member") from None
            self._compressed = self._inflater.unconsumed_tail
            if self._inflater.eof:
                self.end = self._file.tell() - len(self._inflater.unused_data)
            if data:
                buffer[: len(data)] = data
                return len(data)
        return 0


def starts_member(file: io.BufferedReader) -> bool:
    """Whether a gzip member starts at the file's position, which stays where it is."""
    return file.peek(len(_MAGIC))[: len(_MAGIC)] == _MAGIC


def find_member(file: io.BufferedReader, start: int, starts_well: Callable[[bytes], bool]) -> int | None:
    """Offset of the first gzip member at or after `start` whose content starts well; None if none does.

    Args:
        starts_well: judges the first 1,024 inflated bytes. Compressed data holds the three magic
            bytes by chance once in 16 MiB; hardly ever do they start something that inflates.
    """
    position = start
    tail = b""
    while True:
        file.seek(position)
        piece = file.read(2**20)
        if not piece:
            return None
        window = tail + piece
        base = position - len(tail)
        found = window.find(_MAGIC)
        while found >= 0:
            if starts_well(_first_bytes(file, base + found)):
                return base + found
            found = window.find(_MAGIC, found + 1)
        tail = window[-(len(_MAGIC) - 1) :]
        position += len(piece)


def _first_bytes(file: io.BufferedReader, offset: int) -> bytes:
    file.seek(offset)
    try:
        return isal_zlib.decompressobj(_GZIP_WINDOW).decompress(file.read(2**13), 1024)
    except _INFLATE_ERROR:
        return b""
