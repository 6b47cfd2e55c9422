"""Pages and texts as one crawl."""

from pathlib import Path

import pytest

from cs336.crawl.local_files import TextFiles, WarcFiles
from cs336.crawl.several import Several
from cs336.extract.shard import ExtractConfig, extract_records
from cs336.files import UserError
from cs336_assets.asset import Step
from cs336_assets.crawl import crawl_plan


def _texts(folder: Path, name: str, *texts: str) -> TextFiles:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("<|endoftext|>".join(texts))
    return TextFiles(paths=(str(folder / name),))


def test_each_shard_is_fetched_by_its_own_source(tmp_path):
    (tmp_path / "pages").mkdir()
    _texts(tmp_path / "raw", "a.txt", "a page").fetch(
        _texts(tmp_path / "raw", "a.txt", "a page").plan()[0], tmp_path / "pages"
    )
    source = Several(
        sources=(
            WarcFiles(paths=(str(tmp_path / "pages" / "*.warc.gz"),)),
            _texts(tmp_path / "news", "b.txt", "first", "second"),
        )
    )
    shards = source.plan()
    assert [shard.name for shard in shards] == ["a", "b"]
    read = []
    for shard in shards:
        folder = tmp_path / "fetched" / shard.name
        folder.mkdir(parents=True)
        stats = source.fetch(shard, folder)
        assert stats.num_fetches["file"] == 1
        documents, _ = extract_records(folder / f"{shard.name}.warc.gz", ExtractConfig())
        read.append([document.text for document in documents])
    assert read == [["a page"], ["first", "second"]]


def test_a_source_more_leaves_the_shards_of_the_others_as_they_are(tmp_path):
    first, second = _texts(tmp_path, "a.txt", "one"), _texts(tmp_path, "b.txt", "two")
    both = Several(sources=(first, second))
    more = Several(sources=(first, second, _texts(tmp_path, "c.txt", "three")))
    assert more.plan()[:2] == both.plan() and more.shard_identity() == both.shard_identity()
    assert more.identity() != both.identity()
    otherwise = Several(sources=(first, TextFiles(paths=second.paths, separator="w")))
    assert otherwise.plan()[0] == both.plan()[0] and otherwise.plan()[1] != both.plan()[1]


def test_a_plan_has_as_many_items_as_its_sources(tmp_path):
    first, second = _texts(tmp_path, "a.txt", "one"), _texts(tmp_path, "b.txt", "two")
    both = Several(sources=(first, second))
    assert [len(shard.items) for shard in both.plan()] == [1, 1]
    (tmp_path / "plan").mkdir()
    told = crawl_plan(Step(tmp_path / "plan"), source=both)
    assert told["num_shards"] == told["num_items"] == 2


def test_a_plan_of_other_sources_is_one_line(tmp_path):
    first, second, third = (_texts(tmp_path, f"{name}.txt", name) for name in "abc")
    _, of_second, of_third = Several(sources=(first, second, third)).plan()
    with pytest.raises(UserError, match="c: the sources have changed since it was planned; plan the crawl again"):
        Several(sources=(first, second)).fetch(of_third, tmp_path)
    with pytest.raises(UserError, match="b: the sources have changed"):
        Several(sources=(first, TextFiles(paths=second.paths, separator="w"))).fetch(of_second, tmp_path)


def test_two_shards_of_one_name_and_a_single_source_are_errors(tmp_path):
    first, second = _texts(tmp_path / "x", "a.txt", "one"), _texts(tmp_path / "y", "a.txt", "two")
    with pytest.raises(UserError, match="two sources have a shard 'a'"):
        Several(sources=(first, second)).plan()
    with pytest.raises(ValueError, match="at least two"):
        Several(sources=(first,))
