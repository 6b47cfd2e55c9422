"""The embedded source: a real crawl of a small site, the same bytes every time."""

from __future__ import annotations

import getpass
import gzip
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from cs336.crawl.local_docs import LocalDocs
from cs336.crawl.warc import Record, read_records
from cs336.extract.shard import ExtractConfig, extract_shard
from cs336.files import UserError


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> LocalDocs:
    lock = tmp_path_factory.mktemp("lock") / "requirements.lock"
    lock.write_text("pytest==9.2.0\n")
    return LocalDocs(sample=0.05, num_shards=2, lock_file=str(lock))


@pytest.fixture(scope="module")
def crawled(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("crawl")
    shard = source.plan()[0]
    return shard, source.fetch(shard, folder), folder / f"{shard.name}.warc.gz"


def test_the_plan_is_a_fixed_sample_spread_over_the_shards(source):
    plan = source.plan()
    assert plan == source.plan()
    assert [shard.name for shard in plan] == ["docs-00000", "docs-00001"]
    sizes = [len(shard.items) for shard in plan]
    assert min(sizes) > 10 and len({item for shard in plan for item in shard.items}) == sum(sizes)
    larger = {item for shard in replace(source, sample=0.2).plan() for item in shard.items}
    assert {item for shard in plan for item in shard.items} < larger
    assert {item for shard in replace(source, seed=1).plan() for item in shard.items} != larger


def test_each_page_of_the_shard_is_accounted_for(crawled):
    shard, stats, path = crawled
    records = [record for record in read_records(path) if isinstance(record, Record)]
    num_answers = stats.num_fetches.total() - stats.num_fetches["robots.txt"]
    assert stats.num_records == {"warcinfo": 1, "request": num_answers, "response": num_answers}
    assert len(records) == 1 + 2 * num_answers
    # Each page is asked for or closed by robots.txt; a redirect's target comes on top.
    assert stats.num_fetches.total() == len(shard.items) + stats.num_fetches["301"]
    assert stats.num_bytes == path.stat().st_size


def test_what_robots_txt_closes_is_counted_and_not_in_the_file(crawled):
    shard, stats, path = crawled
    num_closed = sum(item.startswith("/tests/") for item in shard.items)
    assert stats.num_fetches["robots.txt"] == num_closed > 0
    assert not any("/tests/" in (record.url or "") for record in read_records(path))


def test_redirects_are_met_and_recorded(crawled):
    _, stats, path = crawled
    assert stats.num_fetches["301"] > 0
    (redirect, *_) = [record for record in read_records(path) if record.http_status == 301]
    assert redirect.http_headers["location"].startswith("http://docs.localhost/")
    urls = [record.url for record in read_records(path) if record.kind == "response"]
    assert redirect.http_headers["location"] in urls


def test_the_same_bytes_come_out_again_whatever_the_number_of_workers(source, crawled, tmp_path):
    shard, _, path = crawled
    source.fetch(shard, tmp_path, num_workers=2)
    assert (tmp_path / path.name).read_bytes() == path.read_bytes()


def test_nothing_of_the_machine_is_inside(crawled):
    text = gzip.decompress(crawled[2].read_bytes())
    places = {sys.prefix, sys.base_prefix, str(Path.home()), str(Path.cwd()), str(crawled[2].parent), "127.0.0.1:"}
    for place in places:
        if len(place) > 4:
            assert place.encode() not in text, place
    assert b"\r\nDate:" not in text and b"\r\nServer:" not in text
    user = getpass.getuser()
    assert user == "root" or f"/{user}/".encode() not in text


def test_the_pages_give_text_of_prose(crawled):
    documents, skipped = extract_shard(crawled[2], ExtractConfig())
    assert len(documents) == crawled[1].num_fetches["200"]
    assert sum(len(document.text) for document in documents) > 10_000
    assert skipped["request record"] == crawled[1].num_records["request"]


def test_identity_names_versions_and_settings_but_no_place(source):
    identity = replace(source, lock_file="requirements.lock", delay_seconds=1.0).identity()
    assert identity == replace(source, lock_file="requirements.lock").identity()
    assert identity["packages"]["fastwarc"] == "2.0.1"
    assert identity["python"].startswith(f"{sys.version_info[0]}.{sys.version_info[1]}.")
    assert str(Path.cwd()) not in repr(identity)


@pytest.mark.parametrize("options", [{"sample": 0.0}, {"sample": 1.5}, {"num_shards": 0}])
def test_impossible_settings_are_an_error(options):
    with pytest.raises(ValueError, match="give"):
        LocalDocs(**options)


def test_a_missing_lock_file_is_named():
    with pytest.raises(UserError, match=r"nowhere\.lock: not found"):
        LocalDocs(lock_file="nowhere.lock").identity()
