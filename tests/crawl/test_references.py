"""Sampling addresses, and fetching them from a real server on loopback."""

import sys
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from cs336.crawl.crawler import Politeness
from cs336.crawl.references import POLITE, fetch_pages, sample_urls
from cs336.crawl.warc import Record, read_records

sys.path.insert(0, str(Path(__file__).parents[1]))
from file_server import FileServer

QUICK = Politeness(timeout_seconds=0.5, max_attempts=1)
DATE = "2026-01-01T00:00:00Z"


def test_a_sample_is_distinct_and_the_same_whatever_the_order():
    urls = [f"https://site{n}.org/" for n in range(500)]
    sample = sample_urls(urls * 2, 50, seed=3)
    assert len(set(sample)) == 50
    assert set(sample) <= set(urls)
    assert sample == sample_urls(reversed(urls), 50, seed=3)
    assert sample != sample_urls(urls, 50, seed=4)


def test_every_address_is_as_likely_as_any_other():
    urls = [f"http://x{n}.org/" for n in range(20)]
    counts = Counter(url for seed in range(400) for url in sample_urls(urls, 5, seed=seed))
    # 100 expected each, standard deviation 8.7.
    assert min(counts.values()) > 60
    assert max(counts.values()) < 140


def test_what_is_no_web_address_is_left_out_and_too_few_are_all():
    assert sample_urls(["ftp://a/", "", "http://b/", "http://b/"], 5) == ["http://b/"]
    with pytest.raises(ValueError, match="at least 1"):
        sample_urls(["http://b/"], 0)


def test_pages_arrive_in_warc_files_and_failures_are_counted(tmp_path: Path):
    with FileServer() as server:
        names = [f"/page{n}.html" for n in range(12)]
        server.files |= {name: f"<p>Text of {name}</p>".encode() for name in names}
        server.files["/robots.txt"] = b"User-agent: *\nDisallow: /page3.html\n"
        port = int(server.url("").rpartition(":")[2])
        hosts = {f"site{n}.test": ("127.0.0.1", port) for n in range(4)}
        urls = [f"http://site{n % 4}.test{name}" for n, name in enumerate(names)] + ["http://site0.test/gone.html"]
        stats = fetch_pages(urls, tmp_path, date=DATE, num_files=3, politeness=QUICK, hosts=hosts)
    assert stats.num_fetches == {"200": 11, "robots.txt": 1, "404": 1}
    files = sorted(tmp_path.iterdir())
    assert [path.name for path in files] == [f"references-0{n}.warc.gz" for n in range(3)]
    places: dict[str, set[str]] = {}
    bodies = {}
    for path in files:
        for record in read_records(path):
            assert isinstance(record, Record)
            if record.kind == "response" and record.http_status == 200:
                places.setdefault((record.url or "").split("/")[2], set()).add(path.name)
                bodies[record.url] = record.payload
    assert all(len(own) == 1 for own in places.values())  # a host is one file's
    assert bodies["http://site1.test/page1.html"] == b"<p>Text of /page1.html</p>"
    assert len(bodies) == 11


def test_a_site_that_never_answers_costs_one_timeout_and_stops_nothing(tmp_path: Path):
    release = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.headers["Host"] == "slow.test":
                release.wait(10)
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"ok")

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        hosts = dict.fromkeys(("slow.test", "fast.test"), ("127.0.0.1", server.server_port))
        urls = ["http://slow.test/a", "http://fast.test/a"]
        stats = fetch_pages(urls, tmp_path, date=DATE, num_files=2, politeness=QUICK, hosts=hosts)
    finally:
        release.set()
        server.shutdown()
        server.server_close()
    assert stats.num_fetches["200"] == 1
    assert stats.fetch_seconds < 5


def test_the_handouts_five_seconds_and_manners():
    assert (POLITE.timeout_seconds, POLITE.max_page_seconds, POLITE.max_attempts) == (5.0, 5.0, 1)
    assert POLITE.delay_seconds >= 1.0
