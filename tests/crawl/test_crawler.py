"""The crawler against a real server on loopback: robots, redirects, errors, patience, limits."""

from __future__ import annotations

import contextlib
import gzip
import io
import itertools
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from cs336.crawl import crawler
from cs336.crawl.crawler import Politeness, crawl
from cs336.crawl.warc import read_records

DATE = "2026-01-01T00:00:00Z"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    robots = (200, "User-agent: *\nDisallow: /private/\n")

    def do_GET(self):
        self.server.asked.append((time.monotonic(), self.path))
        path = self.path
        if path == "/robots.txt":
            self.answer(*self.server.robots)
        elif path.startswith("/hop"):
            number = int(path[4:])
            self.answer(302, "moved", Location=f"/hop{number - 1}" if number > 1 else "/end")
        elif path == "/busy":
            times = sum(asked == path for _, asked in self.server.asked)
            self.answer(200, "at last") if times == 3 else self.answer(503, "later", **{"Retry-After": "0"})
        elif path == "/always-busy":
            self.answer(503, "later")
        elif path == "/hangs-up":
            self.close_connection = True
        elif path == "/chunked":
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(b"5\r\nhello\r\n0\r\n\r\n")
        elif path == "/large":
            self.answer(200, "x" * 100_000)
        elif path.startswith("/drips"):
            self.send_response(200)
            if path == "/drips-body":
                self.send_header("Content-Length", "1000")
                self.end_headers()
            with contextlib.suppress(OSError):
                for _ in range(100):
                    self.wfile.write(b"x")
                    time.sleep(0.05)
            self.close_connection = True
        elif path.startswith("/to/"):
            self.answer(302, "moved", Location=path[4:])
        elif path == "/missing":
            self.answer(404, "no")
        elif path == "/broken":
            self.answer(500, "<p>oops")
        else:
            self.answer(200, f"<p>page {path} – ü")

    def answer(self, status, text, **headers):
        body = text.encode()
        self.send_response(status)
        for name, value in {"Content-Type": "text/html; charset=utf-8", "Content-Length": len(body), **headers}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.asked = []
    server.robots = Handler.robots
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def run(server, tmp_path, *paths, **politeness):
    path = tmp_path / "a.warc.gz"
    with open(path, "wb") as file:
        stats = crawl(
            [f"http://site.test{one}" for one in paths],
            file,
            name=path.name,
            politeness=Politeness(**{"retry_seconds": 0.01, **politeness}),
            date=DATE,
            hosts={"site.test": server.server_address},
        )
    return stats, list(read_records(path))


def test_a_page_leaves_a_request_and_a_response_that_refer_to_each_other(server, tmp_path):
    stats, (info, request, response) = run(server, tmp_path, "/a")
    assert (info.kind, request.kind, response.kind) == ("warcinfo", "request", "response")
    assert request.payload.startswith(b"GET /a HTTP/1.1\r\nHost: site.test\r\nUser-Agent: cs336-crawler\r\n")
    assert (response.url, response.http_status, response.payload.decode()) == (
        "http://site.test/a",
        200,
        "<p>page /a – ü",
    )
    assert stats.num_fetches == {"200": 1}
    assert stats.num_records == {"warcinfo": 1, "request": 1, "response": 1}
    assert stats.num_bytes == (tmp_path / "a.warc.gz").stat().st_size
    assert not any(str(server.server_address[1]).encode() in record.payload for record in (info, request))


def test_robots_txt_is_read_first_and_what_it_closes_is_never_asked_for(server, tmp_path):
    stats, _ = run(server, tmp_path, "/private/a", "/b", "/private/c")
    assert [path for _, path in server.asked] == ["/robots.txt", "/b"]
    assert stats.num_fetches == {"robots.txt": 2, "200": 1}


@pytest.mark.parametrize(("status", "num_pages"), [(404, 1), (500, 0)])
def test_without_robots_txt_all_is_open_and_with_a_failing_one_nothing(server, tmp_path, status, num_pages):
    server.robots = (status, "?")
    stats, _ = run(server, tmp_path, "/a")
    assert stats.num_fetches["200"] == num_pages
    assert stats.num_fetches["robots.txt"] == 1 - num_pages


def test_every_hop_of_a_redirect_is_recorded_and_an_address_is_fetched_once(server, tmp_path):
    stats, records = run(server, tmp_path, "/hop2", "/end", "/hop1")
    assert [(one.url[16:], one.http_status) for one in records if one.kind == "response"] == [
        ("/hop2", 302),
        ("/hop1", 302),
        ("/end", 200),
    ]
    assert stats.num_fetches == {"302": 2, "200": 1}


def test_an_endless_redirect_is_given_up(server, tmp_path):
    stats, _ = run(server, tmp_path, "/hop9")
    assert stats.num_fetches == {"302": 6, "too many redirects": 1}


def test_a_busy_server_is_asked_again_and_finally_given_up(server, tmp_path):
    stats, records = run(server, tmp_path, "/busy", "/always-busy")
    assert stats.num_fetches == {"200": 1, "503": 1}
    assert records[2].payload == b"at last"
    assert sum(path == "/always-busy" for _, path in server.asked) == 3


def test_errors_are_counted_by_name_and_the_crawl_goes_on(server, tmp_path):
    stats, _ = run(server, tmp_path, "/hangs-up", "/missing", "/a")
    assert stats.num_fetches == {"RemoteDisconnected": 1, "404": 1, "200": 1}


def test_error_pages_are_recorded_like_any_other(server, tmp_path):
    _, records = run(server, tmp_path, "/broken", "/missing")
    assert [(one.http_status, one.payload) for one in records if one.kind == "response"] == [
        (500, b"<p>oops"),
        (404, b"no"),
    ]


def test_a_large_page_is_cut_and_marked_and_the_next_one_is_whole(server, tmp_path):
    _, records = run(server, tmp_path, "/large", "/a", max_page_bytes=1000)
    assert records[2].payload == b"x" * 1000
    assert records[4].payload.decode() == "<p>page /a – ü"
    raw = (tmp_path / "a.warc.gz").read_bytes()
    assert gzip.decompress(raw).count(b"WARC-Truncated: length") == 1


def test_a_chunked_answer_is_stored_whole_under_a_renamed_header(server, tmp_path):
    _, records = run(server, tmp_path, "/chunked")
    assert records[2].payload == b"hello"
    assert records[2].http_headers["x-crawl-transfer-encoding"] == "chunked"
    assert records[2].http_headers["content-length"] == "5"


def test_the_longer_of_the_own_delay_and_the_sites_is_kept(server, tmp_path):
    run(server, tmp_path, "/a", "/b", "/c", delay_seconds=0.15)
    times = [when for when, _ in server.asked]
    assert min(after - before for before, after in itertools.pairwise(times)) > 0.14
    server.robots = (200, "User-agent: *\nCrawl-delay: 1\n")
    server.asked.clear()
    run(server, tmp_path, "/a", "/b")
    assert server.asked[2][0] - server.asked[1][0] > 0.95


def test_a_host_that_is_not_there_is_counted(tmp_path):
    file = io.BytesIO()
    hosts = {"site.test": ("127.0.0.1", 1)}
    politeness = Politeness(retry_seconds=0.0)
    stats = crawl(["http://site.test/a"], file, name="a", politeness=politeness, date=DATE, hosts=hosts)
    assert stats.num_fetches == {"robots.txt": 1}  # what cannot be asked for its rules is left alone


@pytest.mark.parametrize(
    ("line", "outcome"),
    [
        ("Crawl-delay: 3", "crawl delay"),
        ("Crawl-delay: " + "9" * 20, "crawl delay"),
        ("Crawl-delay: " + "9" * 400, "crawl delay"),
        ("Crawl-delay: " + "9" * 5_000, "robots.txt"),
        ("Crawl-delay: \u00b2", "robots.txt"),
        ("Request-rate: 1/" + "9" * 5_000, "robots.txt"),
        ("Disallow: http://[", "robots.txt"),
    ],
)
def test_a_robots_txt_that_asks_too_much_or_is_none_closes_its_host_at_once(server, tmp_path, line, outcome):
    server.robots = (200, f"User-agent: *\n{line}\n")
    start = time.monotonic()
    stats, _ = run(server, tmp_path, "/a", "/b", max_wait_seconds=2.0)
    assert stats.num_fetches == {outcome: 2}
    assert time.monotonic() - start < 1


@pytest.mark.parametrize("path", ["/drips-header", "/drips-body"])
def test_a_server_that_sends_a_byte_at_a_time_costs_no_more_than_a_page_may(server, tmp_path, path):
    start = time.monotonic()
    stats, records = run(server, tmp_path, path, "/a", max_attempts=1, max_page_seconds=0.5)
    assert time.monotonic() - start < 2
    assert stats.num_fetches == {"TimeoutError": 1, "200": 1}
    assert records[-1].payload.decode() == "<p>page /a \u2013 ü"


def test_no_redirect_leads_from_a_public_host_into_a_private_network(server, tmp_path, monkeypatch):
    monkeypatch.setattr(crawler, "_is_public", lambda address: address == "127.0.0.1")  # and 127.0.0.2 is not
    port = server.server_address[1]
    hosts = {
        "public.test": ("127.0.0.1", port),
        "public2.test": ("127.0.0.1", port),
        "inside.test": ("127.0.0.2", port),
    }
    inner = ThreadingHTTPServer(("127.0.0.2", port), Handler)
    inner.daemon_threads = True
    inner.asked, inner.robots = [], Handler.robots
    threading.Thread(target=inner.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def fetches(*urls):
        file = io.BytesIO()
        return dict(crawl(urls, file, name="a", politeness=Politeness(), date=DATE, hosts=hosts).num_fetches)

    try:
        refused = {"302": 1, "redirect to a private address": 1}
        assert fetches("http://public.test/to/http://inside.test/secret") == refused
        assert inner.asked == []
        assert fetches("http://public.test/to/http://public2.test/a") == {"302": 1, "200": 1}
        assert fetches("http://inside.test/to/http://inside.test/a") == {"302": 1, "200": 1}
        # Nor does a refusal close a host that is asked for by itself.
        assert fetches("http://public.test/to/http://inside.test/secret", "http://inside.test/a") == refused | {
            "200": 1
        }
        assert fetches("http://public.test/to/https:///x", "http:///x") == {"302": 1, "bad address": 2}
    finally:
        inner.shutdown()
        inner.server_close()


def test_public_addresses_are_those_of_the_whole_internet():
    public = ["8.8.8.8", "2001:4860:4860::8888", "::ffff:8.8.8.8"]
    private = ["127.0.0.1", "10.1.2.3", "192.168.0.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "::1", "fe80::1%2"]
    assert [address for address in public + private + ["::ffff:127.0.0.1"] if crawler._is_public(address)] == public
