"""A polite HTTP crawler that records what it fetches as WARC, in Common Crawl's shape."""

from __future__ import annotations

import functools
import http.client
import io
import ipaddress
import socket
import time
import urllib.parse
import urllib.robotparser
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import IO, Any

from cs336.crawl.source import CrawlStats
from cs336.crawl.warc import write_record
from cs336.progress import Progress, silent

_REDIRECTS = (301, 302, 303, 307, 308)
_TRY_AGAIN = (429, 503)


@dataclass(frozen=True, kw_only=True)
class Politeness:
    """How the crawler behaves.

    Attributes:
        user_agent: its name, which robots.txt files are asked about.
        delay_seconds: the least time between two requests to one host; a longer `Crawl-delay` in
            its robots.txt wins.
        timeout_seconds: for connecting, and for each read.
        max_page_seconds: for all reads of one answer, so that a server that sends a byte at a time holds up nothing.
        max_page_bytes: bodies are cut here; the record says so. Common Crawl's limit since 2025.
        max_redirects: hops from one address; RFC 2616 recommended 5.
        max_attempts: of one request that meets a 429, a 503 or a network error.
        retry_seconds: before the second attempt; doubled for each further one.
        max_wait_seconds: where a server asks for more with Retry-After, or its robots.txt with Crawl-delay, the
            address is given up.
    """

    user_agent: str = "cs336-crawler"
    delay_seconds: float = 0.0
    timeout_seconds: float = 10.0
    max_page_seconds: float = 60.0
    max_page_bytes: int = 5 * 2**20
    max_redirects: int = 5
    max_attempts: int = 3
    retry_seconds: float = 0.5
    max_wait_seconds: float = 30.0


def crawl(
    urls: Iterable[str],
    file: IO[bytes],
    *,
    name: str,
    politeness: Politeness,
    date: str,
    hosts: Mapping[str, tuple[str, int]] | None = None,
    progress: Progress = silent,
) -> CrawlStats:
    """Fetch pages one after another and append their records to a WARC file.

    robots.txt of every host is read first and obeyed. Redirects are followed, each hop with a
    request and a response record of its own, but none from a public host into a private network; an
    address reached twice is fetched once. Errors are counted and never raised.

    Args:
        file: opened for writing; gets a `warcinfo` record, then the pages.
        name: of the WARC file, for its `warcinfo` record.
        date: written into every record, so that equal answers give equal bytes.
        hosts: where to connect for a host (its name as in the URL), instead of asking DNS.

    Returns:
        Records by type, and requests by outcome: the HTTP status, "robots.txt" or "crawl delay" for
        addresses that were not asked for, "bad address", "too many redirects", "redirect to a private
        address", or the name of a network error.
    """
    start = time.monotonic()
    session = _Session(file, politeness, date, hosts or {}, CrawlStats(), f"<urn:uuid:{_uuid(name)}>")
    session.write_info(name)
    for url in progress(urls, unit="pages", label=f"crawl {name}"):
        _follow(url, session)
    for connection in session.connections.values():
        connection.close()
    session.stats.num_bytes = file.tell()
    session.stats.fetch_seconds = time.monotonic() - start
    return session.stats


@dataclass(frozen=True)
class _Answer:
    status: int
    reason: str
    version: int
    headers: list[tuple[str, str]]
    body: bytes
    is_cut: bool

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key.lower() == name), None)


@dataclass
class _Session:
    """What lasts from page to page."""

    file: IO[bytes]
    politeness: Politeness
    date: str
    hosts: Mapping[str, tuple[str, int]]
    stats: CrawlStats
    info_id: str
    connections: dict[str, http.client.HTTPConnection] = field(default_factory=dict)
    robots: dict[str, _Rules] = field(default_factory=dict)
    last_request_seconds: dict[str, float] = field(default_factory=dict)
    seen: set[str] = field(default_factory=set)
    is_public: dict[str, bool] = field(default_factory=dict)
    is_sent_by_public_host: bool = False  # what is being asked for

    def write_info(self, name: str) -> None:
        lines = {
            "software": self.politeness.user_agent,
            "format": "WARC File Format 1.0",
            "conformsTo": "http://bibnum.bnf.fr/WARC/WARC_ISO_28500_version1_latestdraft.pdf",
            "isPartOf": name,
            "robots": "checked by urllib.robotparser",
        }
        block = "".join(f"{key}: {value}\r\n" for key, value in lines.items()).encode()
        self.write("warcinfo", None, "application/warc-fields", block, self.info_id, {"WARC-Filename": name})

    def write(
        self, kind: str, url: str | None, content_type: str, block: bytes, record_id: str, extra: dict[str, str]
    ) -> None:
        write_record(
            self.file,
            kind,
            url=url,
            content_type=content_type,
            block=block,
            record_id=record_id,
            date=self.date,
            extra=extra,
        )
        self.stats.num_records[kind] += 1


class _GivenUpError(Exception):
    """An address that is not asked for; says why."""


def _follow(url: str, session: _Session) -> None:
    """Fetch one address and what it redirects to."""
    session.is_sent_by_public_host = False
    for _ in range(session.politeness.max_redirects + 1):
        if url in session.seen:
            return
        session.seen.add(url)
        try:
            answer = _ask(url, session)
        except _GivenUpError as reason:
            session.stats.num_fetches[str(reason)] += 1
            return
        except (OSError, ValueError, http.client.HTTPException) as error:
            session.stats.num_fetches[type(error).__name__] += 1
            return
        session.stats.num_fetches[str(answer.status)] += 1
        _record(url, answer, session)
        location = answer.header("location")
        if answer.status not in _REDIRECTS or not location:
            return
        session.is_sent_by_public_host = session.is_public[urllib.parse.urlsplit(url).netloc]
        try:
            url = urllib.parse.urldefrag(urllib.parse.urljoin(url, location)).url
            scheme = urllib.parse.urlsplit(url).scheme
        except ValueError:
            session.stats.num_fetches["bad address"] += 1
            return
        if scheme not in ("http", "https"):
            return
    session.stats.num_fetches["too many redirects"] += 1


def _ask(url: str, session: _Session) -> _Answer:
    """The answer to one address, if its host's robots.txt allows."""
    polite = session.politeness
    try:
        robots = _robots_of(url, session)
        is_open = robots.can_fetch(polite.user_agent, url)
    except ValueError:  # an address that is none, such as a port that is no number
        raise _GivenUpError("bad address") from None
    if not is_open:
        raise _GivenUpError("robots.txt")
    asked_seconds = int(robots.crawl_delay(polite.user_agent) or 0)  # may be too large for a float
    if asked_seconds > polite.max_wait_seconds:
        raise _GivenUpError("crawl delay")
    return _request(url, session, max(polite.delay_seconds, float(asked_seconds)))


class _Rules(urllib.robotparser.RobotFileParser):
    """A host's robots.txt, with names for what its type stubs leave out."""

    allow_all: bool
    disallow_all: bool


def _robots_of(url: str, session: _Session) -> _Rules:
    """The rules of the address's host, fetched once (RFC 9309: none if absent, closed if failing)."""
    host = urllib.parse.urlsplit(url).netloc
    if host not in session.robots:
        rules = _Rules()
        try:
            answer = _request(urllib.parse.urljoin(url, "/robots.txt"), session, session.politeness.delay_seconds)
        except (OSError, http.client.HTTPException):
            rules.disallow_all = True
        else:
            _apply(answer, rules)
        session.robots[host] = rules
    return session.robots[host]


def _apply(robots: _Answer, rules: _Rules) -> None:
    if robots.status == 200:
        try:
            rules.parse(robots.body.decode("utf-8", "replace").splitlines())
        except ValueError:  # what looks like a number or an address, and is none
            rules.disallow_all = True
    elif robots.status >= 500:
        rules.disallow_all = True
    else:
        rules.allow_all = True


def _request(url: str, session: _Session, delay_seconds: float) -> _Answer:
    """One GET, repeated politely while the server is busy or the network fails."""
    polite = session.politeness
    for attempt in range(1, polite.max_attempts + 1):
        wait_seconds = polite.retry_seconds * 2 ** (attempt - 1)
        _wait_turn(url, session, delay_seconds)
        try:
            answer = _get(url, session)
        except (OSError, http.client.HTTPException):
            if connection := session.connections.pop(urllib.parse.urlsplit(url).netloc, None):
                connection.close()
            if attempt == polite.max_attempts:
                raise
        else:
            if answer.status not in _TRY_AGAIN or attempt == polite.max_attempts:
                return answer
            asked = answer.header("retry-after") or ""
            wait_seconds = float(asked) if asked.isdecimal() else wait_seconds
            if wait_seconds > polite.max_wait_seconds:
                return answer
        time.sleep(wait_seconds)
    raise AssertionError("unreachable: the last attempt returns or raises")


def _wait_turn(url: str, session: _Session, delay_seconds: float) -> None:
    host = urllib.parse.urlsplit(url).netloc
    now = time.monotonic()
    if delay_seconds > 0 and host in session.last_request_seconds:
        time.sleep(max(0.0, session.last_request_seconds[host] + delay_seconds - now))
    session.last_request_seconds[host] = time.monotonic()


def _get(url: str, session: _Session) -> _Answer:
    deadline = time.monotonic() + session.politeness.max_page_seconds
    connection = _connection(url, session)
    connection.response_class = functools.partial(_TimedResponse, deadline)  # type: ignore[assignment]
    connection.putrequest("GET", _target(url), skip_host=True, skip_accept_encoding=True)
    for name, value in _request_headers(url, session.politeness):
        connection.putheader(name, value)
    connection.endheaders()
    response = connection.getresponse()
    body = response.read(session.politeness.max_page_bytes + 1)
    is_cut = len(body) > session.politeness.max_page_bytes
    if is_cut:  # the rest would arrive before the next answer
        body = body[: session.politeness.max_page_bytes]
        connection.close()
    return _Answer(response.status, response.reason, response.version, response.getheaders(), body, is_cut)


def _connection(url: str, session: _Session) -> http.client.HTTPConnection:
    """An open connection to the address's host."""
    parts = urllib.parse.urlsplit(url)
    if not parts.hostname:  # would be taken for this machine
        raise ValueError(f"{url}: names no host")
    if parts.netloc not in session.connections:
        address = session.hosts.get(parts.netloc, (parts.hostname, parts.port))
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        session.connections[parts.netloc] = kind(*address, timeout=session.politeness.timeout_seconds)
    connection = session.connections[parts.netloc]
    is_open = connection.sock is not None
    if not is_open:
        connection.connect()
        # Of the connection, not of the name: a name can change its address between a check and its use.
        session.is_public[parts.netloc] = _is_public(connection.sock.getpeername()[0])
    if session.is_sent_by_public_host and not session.is_public[parts.netloc]:
        connection.close()
        raise _GivenUpError("redirect to a private address")
    connection.sock.settimeout(session.politeness.timeout_seconds)
    return connection


def _is_public(address: str) -> bool:
    """Whether an IP address is one of the whole internet, not of this machine, its network or its cloud."""
    ip = ipaddress.ip_address(address)
    return ((ip.ipv4_mapped if ip.version == 6 else None) or ip).is_global


class _TimedResponse(http.client.HTTPResponse):
    """An answer that has arrived at a deadline, or reading it is a timeout."""

    def __init__(self, deadline: float, sock: socket.socket, *arguments: Any, **options: Any) -> None:
        super().__init__(sock, *arguments, **options)
        self.fp.close()
        self.fp = io.BufferedReader(_TimedReader(sock, deadline))


class _TimedReader(io.RawIOBase):
    """What a socket receives until a deadline."""

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self._socket, self._deadline, self._timeout = sock, deadline, sock.gettimeout() or 0.0
        self._raw = sock.makefile("rb", buffering=0)  # keeps the socket open when its connection is closed early

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left_seconds = self._deadline - time.monotonic()
        if left_seconds <= 0:
            raise TimeoutError("the answer takes too long")
        self._socket.settimeout(min(left_seconds, self._timeout))
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


def _record(url: str, answer: _Answer, session: _Session) -> None:
    """Write the request and the response, as Common Crawl does."""
    request_id, response_id = (f"<urn:uuid:{_uuid(f'{kind} {url}')}>" for kind in ("request", "response"))
    sent = f"GET {_target(url)} HTTP/1.1\r\n" + "".join(
        f"{name}: {value}\r\n" for name, value in _request_headers(url, session.politeness)
    )
    extra = {"WARC-Warcinfo-ID": session.info_id, "WARC-Concurrent-To": response_id}
    session.write(
        "request", url, "application/http; msgtype=request", (sent + "\r\n").encode("latin-1"), request_id, extra
    )
    version = "1.0" if answer.version == 10 else "1.1"
    lines = [f"HTTP/{version} {answer.status} {answer.reason}"]
    is_chunked = answer.header("transfer-encoding") is not None
    for name, value in answer.headers:
        # The stored body is no longer chunked; Common Crawl keeps the original header under this name.
        lines.append(f"X-Crawl-{name}: {value}" if name.lower() == "transfer-encoding" else f"{name}: {value}")
    if is_chunked:
        lines.append(f"Content-Length: {len(answer.body)}")
    head = "".join(f"{' '.join(line.split())}\r\n" for line in lines) + "\r\n"
    extra = {"WARC-Warcinfo-ID": session.info_id, "WARC-Concurrent-To": request_id}
    if answer.is_cut:
        extra["WARC-Truncated"] = "length"
    block = head.encode("latin-1", "replace") + answer.body
    session.write("response", url, "application/http; msgtype=response", block, response_id, extra)


def _request_headers(url: str, politeness: Politeness) -> list[tuple[str, str]]:
    return [
        ("Host", urllib.parse.urlsplit(url).netloc),
        ("User-Agent", politeness.user_agent),
        ("Accept", "text/html,application/xhtml+xml,text/plain;q=0.9,*/*;q=0.1"),
        ("Accept-Encoding", "identity"),
        ("Connection", "Keep-Alive"),
    ]


def _target(url: str) -> str:
    """Path and query, percent-encoded where a request line needs it."""
    parts = urllib.parse.urlsplit(url)
    target = urllib.parse.urlunsplit(("", "", parts.path or "/", parts.query, ""))
    return urllib.parse.quote(target, safe="/%?=&+;:@!$'()*,~#[]")


def _uuid(text: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, text))
