"""A crawl of broken, huge, hostile and empty files: no shard stops, and everything is in the ledger."""

from __future__ import annotations

import gzip
import importlib
import inspect
import random
from pathlib import Path

import pytest

from cs336.crawl.warc import write_record
from cs336.documents import read_documents
from cs336.files import read_json
from cs336.preset_lookup import find_preset
from cs336.store import Store
from cs336_assets.asset import shard_names
from cs336_assets.binding import evaluate
from cs336_assets.flow import CHECKS
from tests.assets.conftest import ROOT, make_project

pytestmark = pytest.mark.slow  # a minute for the crawl

OK = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n"
MODULES = (
    "argparse",
    "ast",
    "bdb",
    "calendar",
    "codecs",
    "collections",
    "copy",
    "csv",
    "datetime",
    "decimal",
    "difflib",
)
MODULES += ("doctest", "fractions", "heapq", "inspect", "json", "locale", "logging", "optparse", "pathlib", "pickle")
PRESET = """
[hostile]
base = "micro"
source = {{kind = "warc", paths = ["{crawl}/*.warc.gz", "{crawl}/*.warc"]}}
extract = {{max_page_seconds = 2, max_page_bytes = 3000000}}
"""


def page(number: int, body: bytes, head: bytes = b"") -> tuple[str, bytes]:
    return f"http://test.example/{number}", OK + head + b"\r\n" + body


def hostile_pages() -> list[bytes]:
    return [
        b"<p " + b" ".join(b"a%d=1" % number for number in range(300_000)) + b">",  # the parser takes quadratic time
        b"<div>" * 400_000,
        b"<b><i>" * 300_000,
        b"a" * 2_000_000,
        b"a@" * 1_000_000,
        b"\n" * 2_000_000,
        b"\0" * 100_000,
        random.Random(0).randbytes(500_000),
        b"\xed\xa0\x80\\ud800" * 10_000,
        b"x" * 3_000_001,
    ]


def hostile_headers() -> list[bytes]:
    """Gzip members whose first lines cost or claim what no file holds."""
    return [
        gzip.compress(b"WARC/1.0\r\nWARC-Type: response\r\nContent-Length: " + b"9" * 5_000 + b"\r\n\r\n<p>\r\n\r\n"),
        gzip.compress(b"http://a 1.1.1.1 20200101000000 x " + b"a" * 65_000 + b" b\n"),
    ]


def write_file(path: Path, pages: list[tuple[str, bytes]]) -> None:
    with path.open("wb") as file:
        for url, block in pages:
            write_record(file, "response", url=url, content_type="application/http; msgtype=response", block=block)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """A project made of good pages, and beside them what a crawl may bring."""
    folder = tmp_path_factory.mktemp("hostile")
    crawl = folder / "crawl"
    crawl.mkdir()
    docs = [inspect.getdoc(value) or "" for name in MODULES for value in vars(importlib.import_module(name)).values()]
    texts = sorted({text for text in docs if len(text) > 400})
    good = [page(number, b"<pre>" + text.encode()) for number, text in enumerate(texts)]
    write_file(crawl / "a-good.warc.gz", good)
    bomb = page(1_000, gzip.compress(bytes(10**8)), b"Content-Encoding: gzip\r\n")
    write_file(crawl / "b-hostile.warc.gz", [good[0], *map(page, range(900, 1_000), hostile_pages()), bomb, good[1]])
    with (crawl / "b-hostile.warc.gz").open("ab") as file:
        file.writelines(hostile_headers())
    (crawl / "c-empty.warc.gz").write_bytes(b"")
    (crawl / "d-garbage.warc.gz").write_bytes(random.Random(1).randbytes(100_000))
    (crawl / "e-not-found.warc.gz").write_bytes(b"<html>404</html>")
    whole = (crawl / "a-good.warc.gz").read_bytes()
    (crawl / "f-truncated.warc.gz").write_bytes(whole[: len(whole) // 2])
    claims = b"WARC/1.0\r\nWARC-Type: response\r\nContent-Length: 20000000\r\n\r\n<p>\r\n\r\n"
    write_file(crawl / "g-plain.warc", good[:1])
    (crawl / "g-plain.warc").write_bytes(claims + gzip.decompress((crawl / "g-plain.warc").read_bytes()))
    presets = folder / "presets.toml"
    presets.write_text((ROOT / "tests" / "presets.toml").read_text() + PRESET.format(crawl=crawl))
    project = make_project(folder / "project", CS336_PRESETS=str(presets))
    project.run("data", "hostile")
    return project.folder / "artifacts" / "hostile"


def test_every_shard_is_made_and_what_is_good_comes_through(hostile):
    shards = sorted(path.name for path in (hostile / "token_shards").iterdir())
    assert [name[0] for name in shards] == list("abcdefg")
    urls = [document.url for document in read_documents(hostile / "extracted_text" / shards[1])]
    assert urls[0].endswith("/0") and urls[-1].endswith("/1")
    assert not list(read_documents(hostile / "deduplicated_text" / shards[2]))
    assert [document.url for document in read_documents(hostile / "extracted_text" / shards[6])] == urls[:1]


def test_an_empty_shard_alone_stops_nothing_even_if_it_is_the_first(hostile, monkeypatch):
    monkeypatch.setenv("CS336_PRESETS", str(hostile.parents[2] / "presets.toml"))
    preset, store = find_preset("hostile"), Store("hostile", hostile.parent)
    empty = next(name for name in shard_names(store) if name.startswith("c-"))
    some = [check for check in CHECKS.values() if check.of_shards != "all"]
    for check in some:  # after the others
        passed, facts = evaluate(check, preset, store, [empty])
        assert passed or not check.blocking, (check.function.__name__, facts)
    manifests = list(hostile.glob("*/[abdefg]-*/manifest.json"))
    for manifest in manifests:
        manifest.rename(manifest.with_suffix(".away"))
    try:
        for check in some:  # and before them
            passed, facts = evaluate(check, preset, store, [empty])
            assert passed or not check.blocking, (check.function.__name__, facts)
    finally:
        for manifest in manifests:
            manifest.with_suffix(".away").rename(manifest)


def test_everything_is_in_the_ledger(hostile):
    records = read_json(hostile / "filter_ledger" / "records.json")
    expected = {
        "extraction failed: over 2 s of CPU time": 1,
        "unreadable record: record over 3,000,000 bytes": 1,
        "unreadable record: content over 3,000,000 bytes when decoded": 1,
        "unreadable record: empty file": 1,
        "unreadable record: truncated gzip member": 1,
        "unreadable record: truncated record": 1,
        "unreadable record: damaged record: Content-Length beyond any file": 1,
        "unreadable record: damaged record: no Content-Length": 1,
    }
    assert expected.items() <= records.items(), records
    manifests = [read_json(folder / "manifest.json") for folder in (hostile / "extracted_text").iterdir()]
    assert sum(records.values()) == sum(manifest["metadata"]["num_records"] for manifest in manifests)
    ledger = read_json(hostile / "filter_ledger" / "ledger.json")
    assert ledger[0]["seen"] == records["document"]


def test_a_check_names_what_could_not_be_read_by_shard(hostile, monkeypatch):
    monkeypatch.setenv("CS336_PRESETS", str(hostile.parents[2] / "presets.toml"))
    preset, store = find_preset("hostile"), Store("hostile", hostile.parent)
    said = {}
    for name in shard_names(store):
        passed, facts = evaluate(CHECKS["records_are_readable"], preset, store, [name])
        assert passed == (not facts["unreadable"])
        said[name[0]] = facts["unreadable"]
    assert not said["a"] or "over" in said["a"]
    everything = " ".join(said.values())
    assert "empty file (1)" in everything and "truncated gzip member (1)" in everything
    assert "status" not in everything and "over 2 s" not in everything, "what was read, and left out, is none of these"
