"""Files from the web: resumed, retried, checked, and there whole or not at all.

`download` keeps what has arrived in `<name>.part` beside the target, with the server's validator
(ETag or Last-Modified) in `<name>.part.json`; the next try, or the next run, asks only for the rest.
"""

from __future__ import annotations

import contextlib
import email.utils
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple, TypeVar

from cs336.files import UserError, name_full_disk, read_json, replacing, sha256_of_file, sync_folder, write_json
from cs336.progress import Progress, silent

if TYPE_CHECKING:
    import requests

T = TypeVar("T")

USER_AGENT = "cs336 (language models from scratch; teaching)"
TIMEOUT_SECONDS = (15, 60)  # to connect; between two pieces of a body
PIECE_BYTES = 1 << 15  # written at once; at most this much is lost when a connection breaks
MEBIBYTE = 1 << 20
LONGEST_PAUSE_SECONDS = 120.0  # neither back-off nor Retry-After may hold us up for longer


class RemoteFile(NamedTuple):
    """What a server says about a file before it is taken; None where it does not say."""

    num_bytes: int | None
    etag: str | None


def download(
    url: str,
    path: Path,
    *,
    sha256: str | None = None,
    num_bytes: int | None = None,
    etag: str | None = None,
    headers: Mapping[str, str] | None = None,
    retries: int = 6,
    progress: Progress = silent,
    backoff_seconds: float = 1.0,
) -> str:
    """Download `url` to `path` and return the file's SHA-256.

    A file already at `path` is kept when it has the size and checksum asked for. Tries count only
    while nothing new arrives, so a long file on a bad line gets through.

    Args:
        sha256: hex checksum that the whole file must have.
        num_bytes: size that it must have.
        etag: the server's ETag that it must have, as `remote_file` reported it.
        headers: more request headers, such as an authorization.
        retries: further tries without progress after a broken connection, a short body, 429 or 5xx.
        progress: counts MiB.
        backoff_seconds: pause before the first retry; doubled every time, and never shorter than the
            server's Retry-After.

    Raises:
        UserError: the server refuses, keeps failing, or offers another file than the one asked for; the
            checksum is wrong (what arrived is deleted); the disk is full; another process is at it.
    """
    if path.exists() and (num_bytes is None or path.stat().st_size == num_bytes):
        actual = sha256_of_file(path)
        if sha256 is None or actual == sha256:
            return actual
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    state = path.with_name(f"{path.name}.part.json")
    expected = RemoteFile(num_bytes, etag)
    with name_full_disk(path), open(part, "ab") as file, _only_one(file, part, state):
        _with_retries(
            url,
            lambda: _fetch_rest(url, file, state, expected, sha256 is not None, headers or {}, progress),
            retries=retries,
            backoff_seconds=backoff_seconds,
            position=lambda: file.tell(),
        )
        file.flush()
        os.fsync(file.fileno())
        actual = sha256_of_file(part)
        if sha256 is not None and actual != sha256:
            part.unlink()
            state.unlink(missing_ok=True)
            raise UserError(
                f"{url}: wrong checksum: expected sha256 {sha256}, got {actual}; what arrived was deleted,"
                " run again, and if it stays so the file at its origin has changed"
            )
        os.replace(part, path)
        state.unlink(missing_ok=True)
        sync_folder(path.parent)
    return actual


def remote_file(
    url: str, *, headers: Mapping[str, str] | None = None, retries: int = 6, backoff_seconds: float = 1.0
) -> RemoteFile:
    """Size and ETag of a file, by a HEAD request.

    Raises:
        UserError: as `download`.
    """

    def ask() -> RemoteFile:
        with _request("HEAD", url, headers or {}) as response:
            length = response.headers.get("Content-Length")
            return RemoteFile(int(length) if length else None, response.headers.get("ETag"))

    return _with_retries(url, ask, retries=retries, backoff_seconds=backoff_seconds)


def downloads_folder() -> Path:
    """Where downloads are kept: CS336_DOWNLOADS, by default `~/.cache/cs336`."""
    return Path(os.environ.get("CS336_DOWNLOADS") or "~/.cache/cs336").expanduser()


def cached_sha256(path: Path) -> str:
    """SHA-256 of a file, remembered in the download folder by path, inode, size and modification time."""
    path = path.resolve()
    status = path.stat()
    key = [str(path), status.st_ino, status.st_size, status.st_mtime_ns]
    note = downloads_folder() / "checksums" / f"{hashlib.sha256(str(path).encode()).hexdigest()[:32]}.json"
    with contextlib.suppress(OSError, UserError, KeyError, TypeError):
        known = read_json(note)
        if known["key"] == key:
            return known["sha256"]
    sha256 = sha256_of_file(path)
    # A download folder that cannot be written only costs hashing the file again next time.
    with contextlib.suppress(OSError, UserError):
        write_json(note, {"key": key, "sha256": sha256})
    return sha256


def move_file(source: Path, target: Path) -> None:
    """Give a finished file its place: a rename, or on another disk a copy that appears whole."""
    try:
        os.replace(source, target)
        sync_folder(target.parent)
    except OSError:
        copy_file(source, target)
        source.unlink()


def copy_file(source: Path, target: Path) -> None:
    """Copy a file's bytes; the target appears whole or not at all."""
    with open(source, "rb") as reading, replacing(target) as writing:
        shutil.copyfileobj(reading, writing, MEBIBYTE)


class _Transient(Exception):
    """A failure that may pass; `pause_seconds` is what the server asked for."""

    def __init__(self, reason: str, pause_seconds: float = 0.0) -> None:
        super().__init__(reason)
        self.pause_seconds = pause_seconds


@contextlib.contextmanager
def _only_one(file: IO[bytes], part: Path, state: Path) -> Iterator[None]:
    """Two processes appending to one part file would interleave; the second one is told."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # The other may have finished, and renamed the file we hold, just before the lock.
        taken = not part.exists() or os.fstat(file.fileno()).st_ino != part.stat().st_ino
    except BlockingIOError:
        taken = True
    if taken:
        raise UserError(f"{part}: another process is downloading this file; wait for it, then run again")
    try:
        yield
    except BaseException:
        if file.tell() == 0:  # nothing to go on from: leave no trace
            part.unlink(missing_ok=True)
            state.unlink(missing_ok=True)
        raise


def _with_retries(
    url: str,
    attempt: Callable[[], T],
    *,
    retries: int,
    backoff_seconds: float,
    position: Callable[[], int] = lambda: 0,
) -> T:
    furthest = position()
    failures = 0
    while True:
        try:
            return attempt()
        except _Transient as error:
            if position() > furthest:
                furthest, failures = position(), 0
            if failures >= retries:
                kept = f"; {position():,} bytes are kept and the next run goes on from there" if position() else ""
                raise UserError(
                    f"{url}: gave up after {failures + 1} tries ({error}); check the network and run again{kept}"
                ) from None
            pause = max(error.pause_seconds, backoff_seconds * 2**failures)
            failures += 1
            time.sleep(min(pause, LONGEST_PAUSE_SECONDS))


def _fetch_rest(
    url: str,
    file: IO[bytes],
    state: Path,
    expected: RemoteFile,
    has_checksum: bool,
    headers: Mapping[str, str],
    progress: Progress,
) -> None:
    """One request for what `file` still lacks, appended to it; returns once the file is complete."""
    position, validator = file.tell(), _read_validator(state, url)
    if position and validator is None and not has_checksum:
        _restart(file)  # nothing could tell whether the two halves belong together
        position = 0
    range_headers = {"Range": f"bytes={position}-"} if position else {}
    if position and validator:
        range_headers["If-Range"] = validator
    with _request("GET", url, {**headers, **range_headers}, allowed=(416,)) as response:
        total = _total_bytes(response)
        if response.status_code == 416:  # we hold the last byte already, or more than there is
            if total == position and expected.num_bytes in (None, total):
                return
            _restart(file)
            raise _Transient("the server's file is shorter than the part that was kept")
        offered = response.headers.get("ETag")
        if expected.etag is not None and offered is not None and offered != expected.etag:
            raise UserError(f"{url}: the file has changed since it was planned (ETag {offered}); plan the crawl again")
        if expected.num_bytes is not None and total is not None and total != expected.num_bytes:
            raise UserError(f"{url}: the server offers {total:,} bytes, expected {expected.num_bytes:,}; pin it anew")
        if response.status_code == 206 and not _continues(response, position, validator):
            _restart(file)
            raise _Transient("the server sent another part of the file, or of another file")
        if response.status_code != 206:  # the file changed, or the server knows no ranges
            _restart(file)
            _write_validator(state, url, _validator(response))
        remaining = -(-(total - file.tell()) // MEBIBYTE) if total is not None else None
        for _ in progress(_receive(response, file), total=remaining, unit="MiB", label=Path(url).name):
            pass
    wanted = total if total is not None else expected.num_bytes
    if wanted is not None and file.tell() != wanted:
        if file.tell() > wanted:
            _restart(file)
        raise _Transient(f"the body ended after {file.tell():,} of {wanted:,} bytes")


def _receive(response: requests.Response, file: IO[bytes]) -> Iterator[None]:
    """Append the body to `file`, yielding once a MiB."""
    import requests
    import urllib3

    unreported = 0
    # The bytes as stored: a server that labels a .gz file "Content-Encoding: gzip" must not unpack it.
    pieces = response.raw.stream(PIECE_BYTES, decode_content=False)
    while True:
        try:
            piece = next(pieces, None)
        except (urllib3.exceptions.HTTPError, requests.RequestException, ConnectionError, TimeoutError) as error:
            raise _Transient(_reason(error)) from None
        if piece is None:
            break
        file.write(piece)
        unreported += len(piece)
        while unreported >= MEBIBYTE:
            unreported -= MEBIBYTE
            yield
    if unreported:
        yield


@contextlib.contextmanager
def _request(
    method: str, url: str, headers: Mapping[str, str], *, allowed: tuple[int, ...] = ()
) -> Iterator[requests.Response]:
    import requests

    try:
        response = requests.request(
            method,
            url,
            headers={"User-Agent": USER_AGENT, "Accept-Encoding": "identity", **headers},
            stream=True,
            timeout=TIMEOUT_SECONDS,
            allow_redirects=True,
        )
    except (requests.exceptions.InvalidURL, requests.exceptions.MissingSchema, requests.exceptions.InvalidSchema):
        raise UserError(f"{url}: not an http or https address; correct it") from None
    except requests.RequestException as error:
        raise _Transient(_reason(error)) from None
    with response:
        status = response.status_code
        if status in (408, 425, 429) or status >= 500:
            raise _Transient(f"status {status}", _retry_after(response.headers.get("Retry-After")))
        if status in (401, 403):
            raise UserError(f"{url}: access refused (status {status}); accept its licence or give a valid token")
        if status >= 400 and status not in allowed:
            raise UserError(f"{url}: the server answers {status} {response.reason}; check the address")
        yield response


def _reason(error: BaseException) -> str:
    """The innermost cause in one line: requests and urllib3 wrap it several times."""
    inner = getattr(error, "reason", None) or (error.args[0] if error.args else None)
    if isinstance(inner, BaseException) and inner is not error:
        return _reason(inner)
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def _retry_after(value: str | None) -> float:
    """Seconds asked for by a Retry-After header, a number or an HTTP date; 0 when there is none."""
    if not value:
        return 0.0
    if value.strip().isdigit():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return 0.0


def _total_bytes(response: requests.Response) -> int | None:
    """Size of the whole file, not of this answer."""
    content_range = response.headers.get("Content-Range", "")
    if response.status_code in (206, 416):
        total = content_range.rpartition("/")[2]
        return int(total) if total.isdigit() else None
    length = response.headers.get("Content-Length", "")
    return int(length) if length.isdigit() else None


def _continues(response: requests.Response, position: int, validator: str | None) -> bool:
    start = response.headers.get("Content-Range", "").removeprefix("bytes").strip().partition("-")[0]
    etag = response.headers.get("ETag")
    same_file = not (validator and etag and validator.startswith('"')) or etag == validator
    return start == str(position) and same_file


def _validator(response: requests.Response) -> str | None:
    """What If-Range may carry: a strong ETag, else the modification date."""
    etag = response.headers.get("ETag")
    if etag and not etag.startswith("W/"):
        return etag
    return response.headers.get("Last-Modified")


def _read_validator(state: Path, url: str) -> str | None:
    try:
        known: Any = json.loads(state.read_text(encoding="utf-8"))
        return known["validator"] if known["url"] == url else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write_validator(state: Path, url: str, validator: str | None) -> None:
    write_json(state, {"url": url, "validator": validator})


def _restart(file: IO[bytes]) -> None:
    file.seek(0)
    file.truncate()
