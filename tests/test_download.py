import errno
import fcntl
import hashlib
import os
import random
import sys
import threading
import time
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path

import pytest

from cs336.download import cached_sha256, copy_file, download, move_file, remote_file
from cs336.files import UserError

sys.path.insert(0, str(Path(__file__).parent))
from file_server import Fault, FileServer

BODY = random.Random(1).randbytes(2_500_000)
SHA256 = hashlib.sha256(BODY).hexdigest()


@pytest.fixture
def server() -> Iterator[FileServer]:
    with FileServer() as running:
        running.files["/file"] = BODY
        yield running


def fetch(server: FileServer, path: Path, **options) -> str:
    return download(server.url("/file"), path, **{"backoff_seconds": 0.01, **options})


def test_a_file_arrives_with_its_checksum_and_nothing_else_stays_behind(server, tmp_path):
    assert fetch(server, tmp_path / "new" / "file", sha256=SHA256, num_bytes=len(BODY)) == SHA256
    assert (tmp_path / "new" / "file").read_bytes() == BODY
    assert os.listdir(tmp_path / "new") == ["file"]
    assert server.user_agents == {"cs336 (language models from scratch; teaching)"}


def test_a_file_that_is_here_with_the_right_bytes_is_not_asked_for(server, tmp_path):
    (tmp_path / "file").write_bytes(BODY)
    assert fetch(server, tmp_path / "file", sha256=SHA256) == SHA256
    assert server.requests == []


def test_a_file_that_is_here_with_wrong_bytes_is_replaced(server, tmp_path):
    (tmp_path / "file").write_bytes(BODY[::-1])
    assert fetch(server, tmp_path / "file", sha256=SHA256) == SHA256
    assert (tmp_path / "file").read_bytes() == BODY


def test_a_broken_body_is_resumed_where_it_stopped(server, tmp_path):
    server.faults["/file"] = [Fault(num_bytes=1_000_000), Fault(num_bytes=500_000)]
    assert fetch(server, tmp_path / "file") == SHA256
    starts = [int(each.removeprefix("bytes=").rstrip("-")) for each in server.ranges("/file")[1:]]
    # At most one piece of 32 KiB is lost when a connection breaks.
    assert 1_000_000 - 2**15 <= starts[0] <= 1_000_000
    assert starts[0] + 500_000 - 2**15 <= starts[1] <= starts[0] + 500_000


def test_the_next_run_goes_on_with_what_the_last_one_left(server, tmp_path):
    server.faults["/file"] = [Fault(num_bytes=1_000_000)]
    with pytest.raises(UserError, match=r"gave up after 1 tries .* bytes are kept") as caught:
        fetch(server, tmp_path / "file", retries=0)
    assert "\n" not in str(caught.value)
    assert sorted(os.listdir(tmp_path)) == ["file.part", "file.part.json"]
    kept = (tmp_path / "file.part").stat().st_size
    assert fetch(server, tmp_path / "file") == SHA256
    assert server.ranges("/file")[-1] == f"bytes={kept}-"


def test_a_complete_part_needs_no_more_bytes(server, tmp_path):
    (tmp_path / "file.part").write_bytes(BODY)
    assert fetch(server, tmp_path / "file", sha256=SHA256) == SHA256
    assert server.ranges("/file") == [f"bytes={len(BODY)}-"]


def test_a_part_longer_than_the_file_is_started_again(server, tmp_path):
    (tmp_path / "file.part").write_bytes(BODY + b"more")
    assert fetch(server, tmp_path / "file", sha256=SHA256) == SHA256


def test_a_part_of_which_nothing_is_known_is_not_trusted(server, tmp_path):
    (tmp_path / "file.part").write_bytes(b"from somewhere else")
    assert fetch(server, tmp_path / "file") == SHA256
    assert server.ranges("/file") == [None]


def test_a_server_that_ignores_ranges_sends_all_again_and_the_file_is_right(server, tmp_path):
    server.knows_ranges = False
    server.faults["/file"] = [Fault(num_bytes=1_000_000)]
    assert fetch(server, tmp_path / "file") == SHA256
    assert len(server.ranges("/file")) == 2


def test_without_etag_and_checksum_two_halves_are_never_joined(server, tmp_path):
    server.etags = False
    server.faults["/file"] = [Fault(num_bytes=1_000_000)]
    assert fetch(server, tmp_path / "file") == SHA256
    assert server.ranges("/file") == [None, None]


def test_a_file_that_changes_in_the_middle_is_taken_anew(server, tmp_path):
    server.faults["/file"] = [Fault(num_bytes=1_000_000)]
    with pytest.raises(UserError):
        fetch(server, tmp_path / "file", retries=0)
    server.files["/file"] = BODY[::-1]
    assert fetch(server, tmp_path / "file") == hashlib.sha256(BODY[::-1]).hexdigest()
    assert server.ranges("/file")[-1] is not None  # it was asked with If-Range, and the server answered in full


def test_503_with_retry_after_is_waited_for(server, tmp_path):
    server.faults["/file"] = [Fault(status=503, retry_after="1")]
    start = time.monotonic()
    assert fetch(server, tmp_path / "file") == SHA256
    assert time.monotonic() - start >= 1.0


def test_retry_after_may_be_a_date(server, tmp_path):
    server.faults["/file"] = [Fault(status=429, retry_after=formatdate(time.time() + 2, usegmt=True))]
    start = time.monotonic()
    assert fetch(server, tmp_path / "file") == SHA256
    assert time.monotonic() - start >= 0.9  # HTTP dates have whole seconds


def test_pauses_double(server, tmp_path):
    server.faults["/file"] = [Fault(status=500)] * 4
    start = time.monotonic()
    assert fetch(server, tmp_path / "file", backoff_seconds=0.05) == SHA256
    assert 0.05 + 0.1 + 0.2 + 0.4 <= time.monotonic() - start < 3


def test_tries_that_bring_nothing_new_end_in_one_line(server, tmp_path):
    server.faults["/file"] = [Fault(status=503)] * 10
    with pytest.raises(UserError, match=r"gave up after 3 tries \(status 503\); check the network") as caught:
        fetch(server, tmp_path / "file", retries=2)
    assert "\n" not in str(caught.value)
    assert len(server.requests) == 3
    assert os.listdir(tmp_path) == []


def test_tries_that_bring_something_do_not_count(server, tmp_path):
    server.faults["/file"] = [Fault(num_bytes=200_000)] * 8
    assert fetch(server, tmp_path / "file", retries=1) == SHA256


def test_a_server_that_always_breaks_at_the_same_byte_does_not_keep_us_forever(server, tmp_path):
    server.knows_ranges = False
    server.faults["/file"] = [Fault(num_bytes=100_000)] * 50
    with pytest.raises(UserError, match="gave up"):
        fetch(server, tmp_path / "file", retries=2)
    assert len(server.requests) == 3  # the one that broke new ground, and two tries after it


@pytest.mark.parametrize(("status", "words"), [(404, "check the address"), (403, "licence"), (410, "410")])
def test_a_refusal_ends_at_once(server, tmp_path, status, words):
    server.faults["/file"] = [Fault(status=status)]
    with pytest.raises(UserError, match=words):
        fetch(server, tmp_path / "file")
    assert len(server.requests) == 1
    assert os.listdir(tmp_path) == []


def test_nobody_listening_is_one_line(tmp_path):
    with FileServer() as server:
        url = server.url("/file")
    with pytest.raises(UserError, match=r"127\.0\.0\.1.*gave up.*refused") as caught:
        download(url, tmp_path / "file", retries=1, backoff_seconds=0.01)
    assert "\n" not in str(caught.value)


def test_something_that_is_no_address_is_one_line(tmp_path):
    with pytest.raises(UserError, match="not an http or https address"):
        download("ftp://example.org/file", tmp_path / "file")


def test_a_wrong_checksum_deletes_what_arrived_and_says_so(server, tmp_path):
    with pytest.raises(UserError, match=f"wrong checksum: expected sha256 {'0' * 64}, got {SHA256}.*deleted"):
        fetch(server, tmp_path / "file", sha256="0" * 64)
    assert os.listdir(tmp_path) == []


def test_a_file_of_another_size_is_refused_before_it_is_taken(server, tmp_path):
    with pytest.raises(UserError, match=r"offers 2,500,000 bytes, expected 7"):
        fetch(server, tmp_path / "file", num_bytes=7)
    assert os.listdir(tmp_path) == []


def test_a_file_with_another_etag_than_planned_is_refused(server, tmp_path):
    planned = remote_file(server.url("/file"))
    assert planned == (len(BODY), server.etag("/file"))
    server.files["/file"] = BODY[::-1]
    with pytest.raises(UserError, match="has changed since it was planned"):
        fetch(server, tmp_path / "file", num_bytes=planned.num_bytes, etag=planned.etag)


def test_redirects_are_followed(server, tmp_path):
    server.redirects["/old"] = "/file"
    assert download(server.url("/old"), tmp_path / "file") == SHA256


def test_progress_counts_mebibytes(server, tmp_path):
    seen = []

    def watch(items, *, total=None, unit="items", label=""):
        seen.append((total, unit, label))
        for item in items:
            seen.append("one")
            yield item

    fetch(server, tmp_path / "file", progress=watch)
    assert seen == [(3, "MiB", "file"), "one", "one", "one"]  # 2.4 MiB


def test_a_second_process_at_the_same_file_is_told(server, tmp_path):
    with open(tmp_path / "file.part", "wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another process"):
            fetch(server, tmp_path / "file")
    assert (tmp_path / "file.part").exists()


def test_two_downloads_at_once_leave_one_right_file(server, tmp_path):
    outcomes = []

    def run() -> None:
        try:
            outcomes.append(fetch(server, tmp_path / "file"))
        except UserError as error:
            outcomes.append(str(error))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "file").read_bytes() == BODY
    assert all(each == SHA256 or "another process" in each for each in outcomes)
    assert SHA256 in outcomes


@pytest.fixture
def full_soon(small_disk) -> Path:
    """A file system of 1 MiB."""
    return small_disk("1m")


def test_a_full_disk_is_one_line_and_no_file_takes_the_final_name(server, tmp_path, full_soon):
    with pytest.raises(UserError, match="the disk is full; free some space") as caught:
        fetch(server, full_soon / "file")
    assert str(full_soon / "file") in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (full_soon / "file").exists()


def test_a_move_to_another_disk_copies_and_a_full_one_loses_nothing(tmp_path, full_soon):
    (tmp_path / "little").write_bytes(b"little")
    move_file(tmp_path / "little", full_soon / "little")
    assert (full_soon / "little").read_bytes() == b"little"
    assert not (tmp_path / "little").exists()
    (tmp_path / "much").write_bytes(BODY)
    with pytest.raises(UserError, match="the disk is full"):
        move_file(tmp_path / "much", full_soon / "much")
    assert os.listdir(full_soon) == ["little"]
    assert (tmp_path / "much").read_bytes() == BODY


def test_a_copy_has_the_same_bytes(tmp_path):
    (tmp_path / "a").write_bytes(BODY)
    copy_file(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == BODY


def test_a_checksum_is_remembered_until_the_file_changes(tmp_path, monkeypatch):
    monkeypatch.setenv("CS336_DOWNLOADS", str(tmp_path / "downloads"))
    file = tmp_path / "file"
    file.write_bytes(b"one")
    assert cached_sha256(file) == hashlib.sha256(b"one").hexdigest()
    note = next((tmp_path / "downloads" / "checksums").iterdir())
    note.write_text(note.read_text().replace(hashlib.sha256(b"one").hexdigest(), "remembered"))
    assert cached_sha256(file) == "remembered"
    file.write_bytes(b"another")
    assert cached_sha256(file) == hashlib.sha256(b"another").hexdigest()


def test_a_checksum_cache_that_cannot_be_written_costs_only_time(tmp_path, monkeypatch):
    (tmp_path / "occupied").write_text("a file, not a folder")
    monkeypatch.setenv("CS336_DOWNLOADS", str(tmp_path / "occupied"))
    (tmp_path / "file").write_bytes(b"one")
    assert cached_sha256(tmp_path / "file") == hashlib.sha256(b"one").hexdigest()


def test_errors_of_the_disk_other_than_full_keep_their_own_name(server, tmp_path):
    (tmp_path / "file.part").mkdir()
    with pytest.raises(OSError) as caught:
        fetch(server, tmp_path / "file")
    assert caught.value.errno == errno.EISDIR
