import gzip
import io
import json
import random
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cs336.crawl.common_crawl import CommonCrawl, count_records, pin_shard, write_manifest
from cs336.crawl.source import Shard
from cs336.crawl.warc import Record, read_records, write_record
from cs336.files import UserError

sys.path.insert(0, str(Path(__file__).parents[1]))
from file_server import Fault, FileServer

SNAPSHOT = "CC-MAIN-2025-18"
NUM_FILES = 12


def warc_bytes(number: int, kind: str) -> bytes:
    """A small file of Common Crawl's shape: one gzip member per record."""
    file = io.BytesIO()
    write_record(file, "warcinfo", url=None, content_type="application/warc-fields", block=b"software: test\r\n")
    for page in range(40):
        url = f"https://example.org/{number}/{page}"
        if kind == "wet":
            write_record(file, "conversion", url=url, content_type="text/plain", block=f"Page {page}.".encode() * 300)
            continue
        body = random.Random(1_000 * number + page).randbytes(3_000)  # does not shrink under gzip
        block = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n" + body
        write_record(file, "response", url=url, content_type="application/http; msgtype=response", block=block)
    return file.getvalue()


def path_of(number: int, kind: str) -> str:
    """Three files to a segment, as the real list has some hundreds."""
    ending = {"warc": "warc.gz", "wet": "warc.wet.gz"}[kind]
    return f"crawl-data/{SNAPSHOT}/segments/{number // 3}/{kind}/CC-MAIN-2025-{number:05d}.{ending}"


@pytest.fixture
def server(tmp_path, monkeypatch) -> Iterator[FileServer]:
    monkeypatch.setenv("CS336_DOWNLOADS", str(tmp_path / "downloads"))
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # retries need not be waited for here
    with FileServer() as running:
        for kind in ("warc", "wet"):
            paths = [path_of(number, kind) for number in range(NUM_FILES)]
            listing = "".join(path + "\n" for path in paths).encode()
            running.files[f"/crawl-data/{SNAPSHOT}/{kind}.paths.gz"] = gzip.compress(listing)
            for number, path in enumerate(paths):
                running.files["/" + path] = warc_bytes(number, kind)
        yield running


def source(server: FileServer, **options) -> CommonCrawl:
    return CommonCrawl(**{"snapshot": SNAPSHOT, "num_files": 3, "base_url": server.url(""), **options})


def test_a_plan_pins_path_size_and_etag_of_each_file(server):
    shards = source(server, first_file=0).plan()
    assert [shard.name for shard in shards] == ["CC-MAIN-2025-00000", "CC-MAIN-2025-00001", "CC-MAIN-2025-00002"]
    path = path_of(1, "warc")
    assert shards[1].items == ({"path": path, "bytes": len(server.files["/" + path]), "etag": server.etag("/" + path)},)


def test_a_sample_comes_from_several_segments_and_depends_on_the_seed_alone(server):
    numbers = [[int(shard.name[-5:]) for shard in source(server, seed=seed).plan()] for seed in (0, 0, 1)]
    assert numbers[0] == numbers[1] != numbers[2]
    assert numbers[0] == sorted(set(numbers[0]))
    assert len({number // 3 for number in numbers[0]}) > 1


def test_consecutive_files_can_be_asked_for_instead(server):
    shards = source(server, num_files=2, first_file=7).plan()
    assert [shard.name[-5:] for shard in shards] == ["00007", "00008"]


def test_more_files_than_the_snapshot_has_is_one_line(server):
    with pytest.raises(UserError, match="the list of 12 gives 12; lower num_files"):
        source(server, num_files=13).plan()
    with pytest.raises(UserError, match="the list of 12 gives 1;"):
        source(server, num_files=2, first_file=11).plan()


def test_an_unknown_snapshot_is_one_line(server):
    with pytest.raises(UserError, match=r"CC-MAIN-1999-01/warc\.paths\.gz: the server answers 404"):
        source(server, snapshot="CC-MAIN-1999-01").plan()


def test_a_path_list_that_is_none_is_one_line(server):
    server.files[f"/crawl-data/{SNAPSHOT}/warc.paths.gz"] = b"<html>maintenance</html>"
    with pytest.raises(UserError, match="not a gzipped list of paths"):
        source(server).plan()


@pytest.mark.parametrize(("kind", "record_type"), [("warc", "response"), ("wet", "conversion")])
def test_a_fetched_shard_is_the_servers_file_and_its_records_are_counted(server, tmp_path, kind, record_type):
    crawl = source(server, kind=kind)
    shard = crawl.plan()[0]
    stats = crawl.fetch(shard, tmp_path / "shard")
    file = tmp_path / "shard" / f"{shard.name}.warc.gz"
    assert file.read_bytes() == server.files["/" + shard.items[0]["path"]]
    assert stats.num_records == Counter({"warcinfo": 1, record_type: 40})
    assert stats.num_fetches == {"file": 1}
    assert stats.num_bytes == file.stat().st_size
    assert sum(isinstance(record, Record) for record in read_records(file)) == 41
    assert list((tmp_path / "downloads").rglob("*.warc*")) == []  # moved, not held twice


def test_files_are_grouped_into_shards_fetched_together_and_pinned(server, tmp_path):
    crawl = source(server, num_files=5, files_per_shard=2, first_file=0, kind="wet")
    shards = crawl.plan()
    assert [shard.name[-5:] for shard in shards] == ["00000", "00002", "00004"]
    assert [[item["path"] for item in shard.items] for shard in shards] == [
        [path_of(number, "wet") for number in numbers] for numbers in ((0, 1), (2, 3), (4,))
    ]
    assert [item for shard in shards for item in shard.items] == [
        item for shard in replace(crawl, files_per_shard=1).plan() for item in shard.items
    ]
    for shard in shards:
        stats = crawl.fetch(shard, tmp_path / shard.name)
        assert stats.num_fetches == {"file": len(shard.items)}
        assert stats.num_records == {"warcinfo": len(shard.items), "conversion": 40 * len(shard.items)}
        files = sorted((tmp_path / shard.name).iterdir())
        assert [file.read_bytes() for file in files] == [server.files["/" + item["path"]] for item in shard.items]
        assert stats.num_bytes == sum(file.stat().st_size for file in files)
    write_manifest(tmp_path / "cc.json", crawl, [pin_shard(shard, tmp_path / shard.name) for shard in shards])
    replayed = replace(crawl, manifest=str(tmp_path / "cc.json"))
    assert [[item["path"] for item in shard.items] for shard in replayed.plan()] == [
        [item["path"] for item in shard.items] for shard in shards
    ]
    assert len(replace(replayed, files_per_shard=5).plan()) == 1
    assert replace(replayed, files_per_shard=5).identity() != replayed.identity()


def test_errors_and_truncated_bodies_are_retried_and_resumed(server, tmp_path):
    crawl = source(server)
    shard = crawl.plan()[0]
    path = "/" + shard.items[0]["path"]
    server.faults[path] = [
        Fault(status=503, retry_after="1"),
        Fault(num_bytes=70_000),
        Fault(status=503),
        Fault(num_bytes=20_000),
    ]
    crawl.fetch(shard, tmp_path / "shard")
    assert (tmp_path / "shard" / f"{shard.name}.warc.gz").read_bytes() == server.files[path]
    first, second, *resumed = server.ranges(path)
    assert (first, second, len(resumed)) == (None, None, 3)
    assert all(each is not None for each in resumed)


def test_a_killed_fetch_is_gone_on_with_and_leaves_nothing_in_the_shards_folder(server, tmp_path):
    crawl = source(server)
    shard = crawl.plan()[0]
    path = "/" + shard.items[0]["path"]
    server.faults[path] = [Fault(num_bytes=50_000), *[Fault(status=503)] * 7]
    with pytest.raises(UserError, match="the next run goes on from there"):
        crawl.fetch(shard, tmp_path / "shard")
    assert not (tmp_path / "shard").exists()
    crawl.fetch(shard, tmp_path / "shard")
    assert server.ranges(path)[-1] not in (None, "bytes=0-")


def test_a_retry_fetches_only_the_files_of_a_shard_that_are_not_there_whole(server, tmp_path):
    crawl = source(server, files_per_shard=3, first_file=0, kind="wet")
    (shard,) = crawl.plan()
    paths = ["/" + item["path"] for item in shard.items]
    server.faults[paths[2]] = [Fault(status=404)]
    with pytest.raises(UserError, match="answers 404"):
        crawl.fetch(shard, tmp_path / "shard")
    here = sorted((tmp_path / "shard").iterdir())
    assert [file.read_bytes() for file in here] == [server.files[path] for path in paths[:2]]
    damaged = bytearray(here[1].read_bytes())
    damaged[len(damaged) // 2] ^= 1  # of the right size
    here[1].write_bytes(damaged)
    server.requests.clear()
    stats = crawl.fetch(shard, tmp_path / "shard")
    assert [path for path in paths if server.ranges(path)] == paths[1:]
    files = sorted((tmp_path / "shard").iterdir())
    assert [file.read_bytes() for file in files] == [server.files[path] for path in paths]
    assert stats.num_records == {"warcinfo": 3, "conversion": 120} and stats.num_fetches == {"file": 3}
    assert stats.num_bytes == sum(file.stat().st_size for file in files)


def test_a_pinned_file_that_is_there_must_have_its_checksum(server, tmp_path):
    crawl, manifest = fetched_manifest(server, tmp_path)
    replayed = replace(crawl, manifest=str(manifest))
    shard = replayed.plan()[0]
    (tmp_path / "again").mkdir()
    file = tmp_path / "again" / f"{shard.name}.warc.gz"
    data = bytearray(server.files["/" + shard.items[0]["path"]])
    data[4] ^= 1  # the time in the first gzip header: whole, of the right size, and another file
    file.write_bytes(data)
    assert count_records(file)
    replayed.fetch(shard, tmp_path / "again")
    assert file.read_bytes() == server.files["/" + shard.items[0]["path"]]


def test_a_file_that_changed_since_the_plan_is_refused(server, tmp_path):
    crawl = source(server)
    shard = crawl.plan()[0]
    path = "/" + shard.items[0]["path"]
    server.files[path] = server.files[path][:-1] + b"\x01"
    with pytest.raises(UserError, match="has changed since it was planned"):
        crawl.fetch(shard, tmp_path / "shard")


def test_a_file_that_is_truncated_at_its_origin_is_found_out_and_not_kept(server, tmp_path):
    path = "/" + path_of(0, "warc")
    server.files[path] = server.files[path][:-40]
    crawl = source(server, first_file=0)
    with pytest.raises(UserError, match="truncated: it ends inside the gzip member"):
        crawl.fetch(crawl.plan()[0], tmp_path / "shard")
    assert [each for each in tmp_path.rglob("*") if each.is_file()] == []


def fetched_manifest(server: FileServer, tmp_path: Path) -> tuple[CommonCrawl, Path]:
    crawl = source(server)
    shards = crawl.plan()
    for shard in shards:
        crawl.fetch(shard, tmp_path / "first" / shard.name)
    write_manifest(tmp_path / "cc.json", crawl, [pin_shard(shard, tmp_path / "first" / shard.name) for shard in shards])
    return crawl, tmp_path / "cc.json"


def test_a_manifest_is_replayed_without_the_list_and_with_checksums(server, tmp_path):
    crawl, manifest = fetched_manifest(server, tmp_path)
    planned = [shard.name for shard in crawl.plan()]
    server.files[f"/crawl-data/{SNAPSHOT}/warc.paths.gz"] = b"gone"
    server.requests.clear()
    replayed = replace(crawl, manifest=str(manifest))
    shards = replayed.plan()
    assert [shard.name for shard in shards] == planned
    assert server.requests == []
    shard = shards[1]
    replayed.fetch(shard, tmp_path / "second")
    name = f"{shard.name}.warc.gz"
    assert (tmp_path / "second" / name).read_bytes() == (tmp_path / "first" / shard.name / name).read_bytes()
    # Same size, other bytes: only the checksum can tell.
    path = "/" + shards[0].items[0]["path"]
    server.files[path] = server.files[path][:-1] + b"\x01"
    with pytest.raises(UserError, match="wrong checksum"):
        replayed.fetch(shards[0], tmp_path / "third")


def test_a_manifest_names_no_folder_of_this_machine_and_no_time(server, tmp_path):
    _, manifest = fetched_manifest(server, tmp_path)
    content = json.loads(manifest.read_text())
    assert set(content) == {"snapshot", "kind", "base_url", "files"}
    assert [set(file) for file in content["files"]] == [{"path", "bytes", "etag", "sha256"}] * 3
    assert str(tmp_path) not in manifest.read_text()


def test_identity_is_the_settings_or_the_manifests_pins_wherever_it_lies(server, tmp_path):
    crawl, manifest = fetched_manifest(server, tmp_path)
    assert crawl.identity() != replace(crawl, seed=1).identity()
    assert crawl.identity() == replace(crawl, base_url=server.url("/")).identity()
    pinned = replace(crawl, manifest=str(manifest)).identity()
    manifest.rename(tmp_path / "moved.json")
    assert replace(crawl, manifest=str(tmp_path / "moved.json"), base_url="http://mirror").identity() == pinned
    assert pinned["files"][0].keys() == {"path", "bytes", "sha256"}
    assert "moved" not in json.dumps(pinned)


def test_a_manifest_of_something_else_is_one_line(server, tmp_path):
    crawl, manifest = fetched_manifest(server, tmp_path)
    pinned = replace(crawl, manifest=str(manifest))
    with pytest.raises(UserError, match=r"pins warc files of CC-MAIN-2025-18, not wet files"):
        replace(pinned, kind="wet").plan()
    with pytest.raises(UserError, match="pins 3 files, num_files asks for 4"):
        replace(pinned, num_files=4).plan()
    manifest.write_text('{"files": []}')
    with pytest.raises(UserError, match="not a manifest"):
        pinned.plan()
    with pytest.raises(UserError, match="not found"):
        replace(pinned, manifest=str(tmp_path / "none.json")).plan()


def test_a_shard_without_checksum_cannot_enter_a_manifest(server, tmp_path):
    shard = Shard("a", ({"path": "a.warc.gz", "bytes": 1, "etag": None},))
    with pytest.raises(ValueError, match="pass what pin_shard returns"):
        write_manifest(tmp_path / "cc.json", source(server), [shard])
    with pytest.raises(UserError, match="fetch the shard before pinning"):
        pin_shard(shard, tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_files": 0}, "at least 1"),
        ({"kind": "wat"}, "wat"),
        ({"files_per_shard": 0}, "at least 1"),
        ({"first_file": -1}, "start at 0"),
    ],
)
def test_impossible_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        CommonCrawl(**{"snapshot": SNAPSHOT, "num_files": 1, **options})


def test_counting_finds_every_way_a_file_can_be_cut_or_damaged(tmp_path):
    whole = warc_bytes(0, "warc")
    file = tmp_path / "a.warc.gz"
    for cut in (len(whole) - 1, len(whole) // 2, 12):
        file.write_bytes(whole[:cut])
        with pytest.raises(UserError, match="truncated"):
            count_records(file)
    file.write_bytes(whole[:-6] + bytes([whole[-6] ^ 1]) + whole[-5:])  # one bit of the last checksum
    with pytest.raises(UserError, match="damaged gzip member"):
        count_records(file)
    file.write_bytes(whole + gzip.compress(b"<html>"))
    with pytest.raises(UserError, match="holds no WARC record"):
        count_records(file)
    file.write_bytes(b"")
    with pytest.raises(UserError, match="empty"):
        count_records(file)


def test_counting_a_real_file_agrees_with_reading_it(shared_data):
    for name in ("whirlwind-python__whirlwind.warc.gz", "whirlwind-python__whirlwind.warc.wet.gz"):
        path = shared_data / "web" / "warc" / "dev" / name
        read = Counter(record.kind for record in read_records(path) if isinstance(record, Record))
        assert count_records(path) == read
