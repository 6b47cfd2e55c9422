"""Gzip members: inflated one at a time, found again after damage."""

from __future__ import annotations

import gzip
import io

import pytest

from cs336.crawl.gzip_members import BadGzipError, MemberReader, find_member, starts_member


def open_bytes(data: bytes) -> io.BufferedReader:
    return io.BufferedReader(io.BytesIO(data))  # type: ignore[arg-type]


def test_a_member_ends_where_the_next_begins():
    first, second = gzip.compress(b"one" * 50_000), gzip.compress(b"two")
    file = open_bytes(first + second)
    reader = MemberReader(file, 0)
    assert io.BufferedReader(reader).read() == b"one" * 50_000
    assert reader.end == len(first)
    assert io.BufferedReader(MemberReader(file, reader.end)).read() == b"two"


@pytest.mark.parametrize(
    ("data", "message"),
    [(gzip.compress(b"abc", mtime=0)[:-3], "truncated"), (gzip.compress(b"abc", mtime=0)[:-8] + bytes(8), "damaged")],
)
def test_a_member_that_does_not_end_well_is_an_error(data, message):
    with pytest.raises(BadGzipError, match=message):
        io.BufferedReader(MemberReader(open_bytes(data), 0)).read()


def test_looking_for_a_member_leaves_the_position():
    file = open_bytes(gzip.compress(b"abc"))
    assert starts_member(file) and file.tell() == 0


@pytest.mark.parametrize("num_before", [1, 2**20 - 1, 2**20, 3 * 2**20 + 5])
def test_the_next_member_that_starts_well_is_found_across_reads(num_before):
    wrong = gzip.compress(b"something else")
    data = wrong + b"\x1f\x8b\x08" + b"." * num_before + gzip.compress(b"WARC/1.0")
    expected = len(wrong) + 3 + num_before
    assert find_member(open_bytes(data), 1, lambda text: text.startswith(b"WARC")) == expected
    assert find_member(open_bytes(data), expected + 1, lambda text: text.startswith(b"WARC")) is None
