import gzip
import hashlib
import io
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from cs336.crawl.local_files import TextFiles, WarcFiles, split_stream
from cs336.crawl.source import Shard
from cs336.crawl.warc import Record, read_records
from cs336.files import UserError

sys.path.insert(0, str(Path(__file__).parents[1]))
from file_server import Fault, FileServer


@pytest.fixture(autouse=True)
def downloads(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("CS336_DOWNLOADS", str(tmp_path / "downloads"))
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    return tmp_path / "downloads"


@pytest.fixture
def server() -> Iterator[FileServer]:
    with FileServer() as running:
        yield running


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


GZIPPED = gzip.compress(b"WARC/1.0\r\n", mtime=0)


# ---- WARC files --------------------------------------------------------------------------------


def test_each_file_is_a_shard_named_after_it_and_pinned_by_its_bytes(tmp_path):
    for name in ("b.warc.gz", "a.warc", "c.arc.gz", "d.warc.wet.gz"):
        write(tmp_path / "in" / name, GZIPPED)
    shards = WarcFiles(paths=(f"{tmp_path}/in/*",)).plan()
    assert [shard.name for shard in shards] == ["a", "b", "c.arc", "d.warc.wet"]
    sha256 = hashlib.sha256(GZIPPED).hexdigest()
    assert shards[1].items == ({"name": "b.warc.gz", "bytes": len(GZIPPED), "sha256": sha256},)


def test_patterns_reach_into_folders_and_a_file_named_twice_counts_once(tmp_path):
    write(tmp_path / "in" / "deep" / "a.warc.gz", GZIPPED)
    write(tmp_path / "in" / "b.warc.gz", GZIPPED)
    paths = (f"{tmp_path}/in/**/*.warc.gz", str(tmp_path / "in" / "b.warc.gz"))
    assert [shard.name for shard in WarcFiles(paths=paths).plan()] == ["a", "b"]


def test_a_pattern_that_matches_nothing_is_one_line_that_names_it(tmp_path):
    with pytest.raises(UserError, match=r"in/\*\.warc\.gz: matches no file"):
        WarcFiles(paths=(f"{tmp_path}/in/*.warc.gz",)).plan()
    with pytest.raises(UserError, match=r"it is a folder, say .*/\*"):
        WarcFiles(paths=(str(tmp_path),)).plan()


def test_two_files_for_one_shard_name_are_refused_by_both_names(tmp_path):
    first, second = write(tmp_path / "1" / "a.warc.gz", GZIPPED), write(tmp_path / "2" / "a.warc.gz", GZIPPED)
    with pytest.raises(UserError, match=f"{first} and {second} would both be shard 'a'"):
        WarcFiles(paths=(str(first), str(second))).plan()


def test_paths_must_be_a_list(tmp_path):
    for paths in ("a.warc.gz", ()):
        with pytest.raises(ValueError, match="give a list"):
            WarcFiles(paths=paths)


def test_identity_knows_bytes_and_names_but_no_folders(tmp_path):
    write(tmp_path / "one" / "a.warc.gz", GZIPPED)
    write(tmp_path / "two" / "a.warc.gz", GZIPPED)
    identities = [WarcFiles(paths=(f"{tmp_path}/{folder}/*.gz",)).identity() for folder in ("one", "two")]
    assert identities[0] == identities[1]
    assert str(tmp_path) not in json.dumps(identities)
    write(tmp_path / "two" / "a.warc.gz", GZIPPED + GZIPPED)
    assert WarcFiles(paths=(f"{tmp_path}/two/*.gz",)).identity() != identities[0]


def test_a_file_is_linked_and_named_by_what_it_holds_not_by_its_ending(tmp_path):
    zipped = write(tmp_path / "in" / "zipped.warc", GZIPPED)
    write(tmp_path / "in" / "plain.warc.gz", b"WARC/1.0\r\n")
    crawl = WarcFiles(paths=(f"{tmp_path}/in/*",))
    for shard in crawl.plan():
        stats = crawl.fetch(shard, tmp_path / "out")
        assert stats.num_fetches == {"file": 1}
    assert sorted(os.listdir(tmp_path / "out")) == ["plain.warc", "zipped.warc.gz"]
    assert (tmp_path / "out" / "zipped.warc.gz").samefile(zipped)
    crawl.fetch(shard, tmp_path / "out")  # again, over what is there


def test_without_links_a_file_is_copied(tmp_path, monkeypatch):
    def no_links(*args, **options):
        raise OSError("this file system has no links")

    monkeypatch.setattr(os, "link", no_links)
    source = write(tmp_path / "in" / "a.warc.gz", GZIPPED)
    crawl = WarcFiles(paths=(str(source),))
    crawl.fetch(crawl.plan()[0], tmp_path / "out")
    assert (tmp_path / "out" / "a.warc.gz").read_bytes() == GZIPPED
    assert not (tmp_path / "out" / "a.warc.gz").samefile(source)


def test_a_symbolic_link_keeps_its_own_name_and_gives_the_files_bytes(tmp_path):
    write(tmp_path / "blobs" / "0123", GZIPPED)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.warc.gz").symlink_to(tmp_path / "blobs" / "0123")
    crawl = WarcFiles(paths=(f"{tmp_path}/in/*",))
    crawl.fetch(crawl.plan()[0], tmp_path / "out")
    assert not (tmp_path / "out" / "a.warc.gz").is_symlink()
    assert (tmp_path / "out" / "a.warc.gz").read_bytes() == GZIPPED


def test_a_file_that_changed_or_went_after_the_plan_is_one_line(tmp_path):
    source = write(tmp_path / "in" / "a.warc.gz", GZIPPED)
    other = write(tmp_path / "in" / "b.warc.gz", GZIPPED)
    crawl = WarcFiles(paths=(f"{tmp_path}/in/*",))
    changed, gone = crawl.plan()
    write(source, GZIPPED[:-1])
    other.unlink()
    with pytest.raises(UserError, match="has changed since the crawl was planned"):
        crawl.fetch(changed, tmp_path / "out")
    with pytest.raises(UserError, match=r"b\.warc\.gz: planned, but no longer"):
        crawl.fetch(gone, tmp_path / "out")


def test_an_address_is_downloaded_with_resume_and_pinned_by_size_and_etag(tmp_path, server, downloads):
    server.files["/crawls/a.warc.gz"] = body = GZIPPED + os.urandom(100_000)
    server.faults["/crawls/a.warc.gz"] = [Fault(status=503), Fault(num_bytes=40_000)]
    crawl = WarcFiles(paths=(server.url("/crawls/a.warc.gz"),))
    (shard,) = crawl.plan()
    assert shard.items[0]["bytes"] == len(body)
    assert shard.items[0]["etag"] == server.etag("/crawls/a.warc.gz")
    crawl.fetch(shard, tmp_path / "out")
    assert (tmp_path / "out" / "a.warc.gz").read_bytes() == body
    assert server.ranges("/crawls/a.warc.gz")[-1] not in (None, "bytes=0-")
    server.files["/crawls/a.warc.gz"] = body[::-1]
    with pytest.raises(UserError, match="has changed"):
        crawl.fetch(shard, tmp_path / "again")


def test_identity_of_an_address_asks_nobody(server):
    assert WarcFiles(paths=(server.url("/a.warc.gz"),)).identity()["files"] == [{"url": server.url("/a.warc.gz")}]
    assert server.requests == []


def test_real_warc_and_arc_samples_have_distinct_shards_that_read_like_the_originals(tmp_path, shared_data):
    crawl = WarcFiles(paths=(f"{shared_data}/web/warc/dev/*",))
    shards = crawl.plan()
    assert len(shards) == len(os.listdir(shared_data / "web" / "warc" / "dev"))
    for shard in shards:
        crawl.fetch(shard, tmp_path / shard.name)
        (file,) = (tmp_path / shard.name).iterdir()
        assert file.name in (f"{shard.name}.warc.gz", f"{shard.name}.warc")
        original = shared_data / "web" / "warc" / "dev" / shard.items[0]["name"]
        assert file.read_bytes() == original.read_bytes()


# ---- texts -------------------------------------------------------------------------------------


def fetched(tmp_path: Path, path: Path, **options) -> tuple[list[Record], Counter[str], bytes]:
    crawl = TextFiles(paths=(str(path),), **options)
    (shard,) = crawl.plan()
    stats = crawl.fetch(shard, tmp_path / "out")
    file = tmp_path / "out" / f"{shard.name}.warc.gz"
    records = list(read_records(file))
    assert all(isinstance(record, Record) for record in records)
    assert Counter(record.kind for record in records) == stats.num_records
    assert records[0].kind == "warcinfo"
    assert len({record.id for record in records}) == len(records)
    return records[1:], stats.num_fetches, file.read_bytes()


@pytest.mark.parametrize("is_gzip", [False, True])
def test_documents_of_a_plain_text_stand_between_separators(tmp_path, is_gzip):
    text = "Once upon a time.\n\nThe end.\n<|endoftext|>\n  Höhe 5\u2028m\n<|endoftext|>\n\n<|endoftext|>\nlast"
    content = gzip.compress(text.encode()) if is_gzip else text.encode()
    records, counts, _ = fetched(tmp_path, write(tmp_path / "stories one.txt.gz", content))
    assert [record.payload.decode() for record in records] == [
        "Once upon a time.\n\nThe end.",
        "  Höhe 5\u2028m",
        "last",
    ]
    assert [record.url for record in records] == [f"text://stories%20one.txt.gz/{number}" for number in (0, 1, 3)]
    assert {record.kind for record in records} == {"conversion"}
    assert {record.mime_type for record in records} == {"text/plain"}
    assert counts == {"file": 1, "empty document": 1}


def test_another_separator_can_be_given(tmp_path):
    records, _, _ = fetched(tmp_path, write(tmp_path / "a.txt", b"one\n%%\ntwo"), separator="\n%%\n")
    assert [record.payload for record in records] == [b"one", b"two"]


def test_rows_of_json_lines_keep_their_address_and_bad_ones_are_counted_by_reason(tmp_path):
    lines = [
        b'{"text": "first \\ud83d\\ude00", "url": "https://example.org/a"}',
        b'{"text": "second"}',
        b"not json",
        b'{"other": 1}',
        b'{"text": 5}',
        b'["text"]',
        b'{"text": "  "}',
        b"",
        b'{"text": "\xff"}',
        b'{"text": "half a pair \\ud83d"}',
        b"[" * 100_000,
        b'{"text": "a number", "n": ' + b"1" * 5_000 + b"}",
        b'{"text": "third", "url": "bad\\r\\naddress: x"}',
    ]
    records, counts, _ = fetched(tmp_path, write(tmp_path / "a.jsonl", b"\n".join(lines)))
    assert [(record.url, record.payload.decode()) for record in records] == [
        ("https://example.org/a", "first \U0001f600"),
        ("text://a.jsonl/1", "second"),
        ("text://a.jsonl/11", "third"),
    ]
    reasons = {"not valid JSON": 3, "no text field": 3, "empty document": 1, "not UTF-8": 2}
    assert counts == {"file": 1, **reasons}


def test_another_text_field_can_be_named(tmp_path):
    records, _, _ = fetched(tmp_path, write(tmp_path / "a.jsonl", b'{"body": "x"}\n'), text_field="body")
    assert [record.payload for record in records] == [b"x"]


def test_same_text_same_bytes_wherever_the_file_lies(tmp_path):
    content = b"one<|endoftext|>two"
    results = [fetched(tmp_path, write(tmp_path / folder / "a.txt", content))[2] for folder in ("x", "y")]
    assert results[0] == results[1]
    assert b"/x/" not in gzip.decompress(results[0])


def test_identity_of_texts_covers_how_they_are_read(tmp_path):
    path = str(write(tmp_path / "a.txt", b"one"))
    plain = TextFiles(paths=(path,)).identity()
    assert plain != TextFiles(paths=(path,), separator="\n").identity()
    assert plain != TextFiles(paths=(path,), text_field="body").identity()
    assert str(tmp_path) not in json.dumps(plain)


def test_two_texts_for_one_shard_name_are_refused(tmp_path):
    paths = tuple(str(write(tmp_path / name, b"x")) for name in ("a.txt", "a.jsonl"))
    with pytest.raises(UserError, match="would both be shard 'a'"):
        TextFiles(paths=paths).plan()


def test_folders_tell_files_of_one_name_apart(tmp_path):
    for folder in ("books", "news"):
        write(tmp_path / folder / "train.jsonl", json.dumps({"text": folder}).encode())
    source = TextFiles(paths=(f"{tmp_path}/*/train.jsonl",), name_parts=2)
    shards = source.plan()
    assert [shard.name for shard in shards] == ["books-train", "news-train"]
    records = []
    for shard in shards:
        source.fetch(shard, tmp_path / "out")
        records += list(read_records(tmp_path / "out" / f"{shard.name}.warc.gz"))[1:]
    assert [record.url for record in records] == ["text://books/train.jsonl/0", "text://news/train.jsonl/0"]
    assert len({record.id for record in records}) == 2
    assert source.shard_identity() != TextFiles(paths=source.paths).shard_identity()


def test_paths_below_the_data_folder_need_it_set(tmp_path, monkeypatch):
    write(tmp_path / "text" / "a.txt", b"one")
    source = TextFiles(paths=("$CS336_DATA/text/*.txt",))
    monkeypatch.setenv("CS336_DATA", str(tmp_path))
    assert [shard.name for shard in source.plan()] == ["a"]
    assert source.identity() == TextFiles(paths=(f"{tmp_path}/text/a.txt",)).identity()
    monkeypatch.delenv("CS336_DATA")
    with pytest.raises(UserError, match=r"^\$CS336_DATA/text/\*\.txt: CS336_DATA is not set; [^\n]*$"):
        source.plan()


def test_a_catalogue_entry_stands_for_its_files_wherever_they_were_found(tmp_path, downloads, monkeypatch):
    source = TextFiles(paths=("catalog:tinystories",))
    monkeypatch.setenv("CS336_DATA", str(tmp_path / "nothing"))
    with pytest.raises(UserError, match=r"^tinystories [^\n]*run `cs336 data fetch tinystories`[^\n]*$"):
        source.plan()
    for name in ("train", "valid"):
        write(downloads / "tinystories" / f"TinyStoriesV2-GPT4-{name}.txt", b"one<|endoftext|>two")
    assert [shard.name for shard in source.plan()] == ["TinyStoriesV2-GPT4-train", "TinyStoriesV2-GPT4-valid"]
    with pytest.raises(ValueError, match="the catalogue has no 'tinytales'"):
        TextFiles(paths=("catalog:tinytales",))


def test_texts_from_the_web_and_an_empty_separator_are_refused():
    with pytest.raises(ValueError, match="download it first"):
        TextFiles(paths=("https://example.org/a.txt",))
    with pytest.raises(ValueError, match="separator is empty"):
        TextFiles(paths=("a.txt",), separator="")


def test_a_truncated_gzip_file_gives_its_whole_documents_and_counts_the_damage(tmp_path):
    rows = b"".join(b'{"text": "%d %s"}\n' % (number, os.urandom(200).hex().encode()) for number in range(2_000))
    content = gzip.compress(rows)
    records, counts, _ = fetched(tmp_path, write(tmp_path / "a.jsonl.gz", content[: len(content) * 3 // 4]))
    assert 1_300 < len(records) < 1_600  # three quarters of the bytes
    assert counts == {"file": 1, "damaged gzip file": 1}
    payload = records[-1].payload.decode()
    assert payload.startswith(f"{len(records) - 1} ")
    assert len(payload) == len(f"{len(records) - 1} ") + 400  # whole


def test_pieces_are_the_same_whatever_the_blocks_a_file_is_read_in():
    class Dribble(io.BytesIO):
        def read1(self, size: int | None = -1) -> bytes:
            return super().read1(3)

    text = b"a<|>bb<|><|>ccc<<|><|"
    expected = [b"a", b"bb", b"", b"ccc<", b"<|"]
    assert list(split_stream(Dribble(text), b"<|>", max_bytes=100)) == expected
    assert list(split_stream(io.BytesIO(text), b"<|>", max_bytes=100)) == expected


def test_a_separator_across_two_blocks_is_found():
    for gap in range(12):
        text = b"x" * (2**20 - gap) + b"<|endoftext|>" + b"y"
        assert list(split_stream(io.BytesIO(text), b"<|endoftext|>", max_bytes=2**21)) == [b"x" * (2**20 - gap), b"y"]


def test_a_document_that_is_too_long_is_counted_and_the_next_ones_are_read():
    text = b"x" * (5 * 2**20) + b"|short|" + b"y" * 1_001 + b"|z"
    assert list(split_stream(io.BytesIO(text), b"|", max_bytes=1_000)) == [
        "document too long",
        b"short",
        "document too long",
        b"z",
    ]
    assert list(split_stream(io.BytesIO(b"x" * 2**21), b"|", max_bytes=1_000)) == ["document too long"]


def test_real_stories_come_out_one_record_each(tmp_path, shared_data):
    records, counts, _ = fetched(tmp_path, shared_data / "text" / "tinystories" / "valid.txt.gz")
    assert len(records) == 109  # as counted in the mirror's manifest
    assert counts == {"file": 1}
    with gzip.open(shared_data / "text" / "tinystories" / "valid.txt.gz", "rt", encoding="utf-8") as file:
        expected = [story.strip("\r\n") for story in file.read().split("<|endoftext|>")]
    assert [record.payload.decode() for record in records] == [story for story in expected if story]


def test_a_shard_planned_from_json_is_fetched_like_the_original(tmp_path):
    crawl = TextFiles(paths=(str(write(tmp_path / "a.txt", b"one")),))
    (shard,) = crawl.plan()
    reloaded = Shard(shard.name, tuple(json.loads(json.dumps(shard.items))))
    assert crawl.fetch(reloaded, tmp_path / "out").num_records == {"warcinfo": 1, "conversion": 1}
