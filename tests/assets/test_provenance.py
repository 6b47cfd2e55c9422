"""Following a page, a token and a threshold through a finished project, as a user does: by commands."""

from __future__ import annotations

import re
import shutil
import tomllib
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from cs336.cli import main
from cs336.files import read_json
from cs336.filters.pipeline import FilterConfig
from cs336.preset_values import changed
from cs336.presets import TINY
from cs336.store import MANIFEST
from cs336.tokens.batches import Batches
from cs336.tokens.index import read_index
from cs336.tokens.shards import concatenate
from cs336_assets.dedup import CLUSTERS_FILE, CONTAMINATED, cluster_table
from cs336_assets.what_if import _as_toml, changed_filters
from cs336_assets.why import Found, bounds_of, leaves


@pytest.fixture
def ask(capsys, monkeypatch):
    """What a command prints about a project; of one that fails its one line."""

    def run(project, *arguments, fails=False):
        for name, value in project.environment.items():
            monkeypatch.setenv(name, value)
        assert main([*arguments, "--preset", "micro"]) == fails
        printed = capsys.readouterr()
        if fails:
            assert len(printed.err.splitlines()) == 1, printed.err
        return printed.err if fails else printed.out

    return run


@pytest.fixture(scope="module")
def shards(finished):
    return sorted(path.name for path in (finished.artifacts / "crawl").iterdir())


@pytest.fixture(scope="module")
def records(finished, shards):
    folders = [finished.artifacts / "extracted_text" / shard for shard in shards]
    return pl.concat([pl.read_parquet(folder / "records.parquet") for folder in folders])


@pytest.fixture(scope="module")
def decisions(finished, shards):
    folders = [finished.artifacts / "filtered_text" / shard for shard in shards]
    return pl.concat([pl.read_parquet(folder / "decisions.parquet") for folder in folders])


def test_every_record_of_the_crawl_has_a_row(finished, shards, records):
    crawled = sum(
        read_json(finished.artifacts / "crawl" / shard / MANIFEST)["metadata"]["num_records"] for shard in shards
    )
    assert records.height == crawled
    assert not records["outcome"].is_null().any() and not (records["outcome"] == "").any()
    for shard in shards:
        folder = finished.artifacts / "extracted_text" / shard
        documents = pl.read_parquet(folder / "documents.parquet")
        of_documents = pl.read_parquet(folder / "records.parquet").filter(pl.col("outcome") == "document")
        assert of_documents.select("id", "url", "warc", "offset").equals(documents.drop("text"))
        assert of_documents["num_characters"].to_list() == documents["text"].str.len_chars().to_list()


def test_a_kept_page_is_followed_to_its_tokens(ask, finished, shards):
    place = next(read_index(finished.artifacts / "token_shards" / shards[0], "train"))
    printed = ask(finished, "why", place.url)
    assert f"{place.warc} at byte {place.offset:,}" in printed and "status 200, text/html" in printed
    last = place.first_token + place.num_tokens - 1
    assert printed.splitlines()[-1] == (
        f"-> kept: token_shards/{shards[0]}/train.bin, tokens {place.first_token:,} to {last:,}"
    )
    for part in ("language_confidence", "at least 0.65", "nsfw", "lines ", "duplicates"):
        assert part in printed
    assert len(printed.splitlines()) < 30, "one screen"


def test_a_dropped_page_names_its_rule_and_every_measurement(ask, finished, decisions):
    row = decisions.filter(pl.col("reason") == "gopher:few_alphabetic_words").row(0, named=True)
    printed = ask(finished, "why", row["url"])
    assert printed.splitlines()[-1] == "-> dropped by the filters: gopher:few_alphabetic_words"
    assert re.search(r"alphabetic_spaced_word_fraction +0\.\d+ +at least 0.8 +FAILS", printed)
    assert re.search(r"num_spaced_words +\d+ +at least 50, at most 100,000 +passes", printed)
    assert re.search(r"num_eval_hits +0 +at most 0 +passes", printed), "also what comes after the rule that failed"


def test_a_record_without_text_says_why(ask, finished, records):
    record = records.filter(pl.col("outcome").str.starts_with("status")).row(0, named=True)
    printed = ask(finished, "why", record["url"])
    assert printed.splitlines()[-1] == f"-> dropped by extraction: {record['outcome']}"


def test_a_part_of_an_address_lists_its_pages_with_their_fates(ask, finished, records):
    printed = ask(finished, "why", "docs.localhost").splitlines()
    assert re.fullmatch(r"\d+ records, the first 20 of them:", printed[0]) and len(printed) == 22
    assert any(line.startswith("  kept (train)") for line in printed)
    only = records.filter(pl.col("outcome") == "document")["url"][0]
    assert ask(finished, "why", only[8:]).startswith(f"{only}\n"), "the only match is told at once"
    offset = records.filter(pl.col("url") == only)["offset"].max()
    assert f" at byte {offset:,} " in ask(finished, "why", "docs.localhost", "--at", str(offset))
    assert "has 'docs.localhost' in it at byte 7;" in ask(finished, "why", "docs.localhost", "--at", "7", fails=True)
    assert "no record's address has 'http://no.such'" in ask(finished, "why", "http://no.such", fails=True)


@pytest.mark.parametrize(("command", "num_found"), [("why", 1), ("why", 2), ("trace", 0)])
def test_an_address_or_a_text_cannot_command_the_terminal(capsys, monkeypatch, command, num_found):
    url = "http://a.test/\x1b]0;owned\x07\x9b2J"
    records = [Found("docs", 0, {"url": url, "warc": "a.warc", "offset": n}) for n in range(num_found)]
    monkeypatch.setattr("cs336_assets.why.find_records", lambda store, address: records)
    monkeypatch.setattr("cs336_assets.why.fate", lambda store, found: "kept")
    monkeypatch.setattr("cs336_assets.why.tell", lambda store, preset, found: iter([url]))
    monkeypatch.setattr("cs336_assets.trace.trace_token", lambda *place: iter([url]))
    assert main([command, *(["docs", "1"] if command == "trace" else ["a.test"]), "--preset", "tiny"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("http://a.test/\ufffd]0;owned\ufffd\ufffd2J") == max(1, num_found)
    assert not set(printed) & {"\x1b", "\x07", "\x9b"}


def test_what_is_missing_is_named_with_its_remedy(ask, copied, decisions):
    kept = decisions.filter(pl.col("kept"))["url"][0]
    shutil.rmtree(copied.artifacts / "near_duplicates")
    assert "near_duplicates: not there yet; `cs336 run --preset micro --job data`" in ask(
        copied, "why", kept, fails=True
    )
    shutil.rmtree(copied.artifacts / "crawl_plan")
    for command in (["why", kept], ["trace", "docs-00000", "0"], ["what-if", "max_nsfw_score=1"]):
        assert "crawl_plan: not there yet; `cs336 run" in ask(copied, *command, fails=True)


def test_a_token_leads_to_its_record(ask, finished, shards):
    folder = finished.artifacts / "token_shards" / shards[1]
    for split in ("train", "valid"):
        document = list(read_index(folder, split))[-1]
        printed = ask(finished, "trace", shards[1], f"{document.first_token + 2:,}", "--split", split)
        assert document.url in printed and f"{document.warc} at byte {document.offset:,}, {document.id}" in printed
        assert f"this is its token 3 of {document.num_tokens:,}" in printed
    assert "give a position from 0 to" in ask(finished, "trace", shards[1], "99999999", fails=True)
    assert "micro has no shard 'x'; there are docs-" in ask(finished, "trace", "x", "1", fails=True)
    assert "give SHARD and POSITION of a token, or --batch STEP" in ask(finished, "trace", "x", fails=True)


def test_a_training_batch_is_the_one_that_training_drew(ask, finished, shards):
    run = read_json(finished.artifacts / "base_model" / "run.json")
    folders = [finished.artifacts / "token_shards" / shard for shard in shards]
    tokens = concatenate(folders, "train")
    starts = Batches(tokens, batch_size=4, context_length=64, seed=run["seed"], device="cpu").starts(6).tolist()
    printed = ask(finished, "trace", "--batch", "7", "-n", "0")
    assert printed.startswith("step 7 of 30, seed 0: 4 stretches of 64 tokens\n")
    first = len(concatenate(folders[:1], "train"))
    places = [(shards[0], start) if start < first else (shards[1], start - first) for start in starts]
    assert re.findall(r"^ +\d+  (\S+), 64 tokens from ([\d,]+):", printed, re.MULTILINE) == [
        (shard, f"{start:,}") for shard, start in places
    ]
    for shard, start in places:
        url = next(read_index(finished.artifacts / "token_shards" / shard, "train", start=start)).url
        assert f"      {url} (" in printed
    assert "training has 30 steps" in ask(finished, "trace", "--batch", "31", fails=True)


def test_a_batch_says_when_the_tokens_are_not_those_of_the_training(ask, copied, shards):
    assert "note:" not in ask(copied, "trace", "--batch", "1")
    manifest = copied.artifacts / "token_shards" / shards[0] / MANIFEST
    manifest.write_text(re.sub(r'("sha256": ")[0-9a-f]{4}', r"\g<1>0000", manifest.read_text()))
    assert "note: the token shards were made again" in ask(copied, "trace", "--batch", "1")


def test_other_thresholds_are_tried_without_writing(ask, finished, decisions):
    before = {path: path.stat().st_mtime_ns for path in finished.artifacts.rglob("*")}
    printed = ask(finished, "what-if", "min_language_confidence=0.9", "gopher.min_alphabetic_word_fraction=0")
    assert {path: path.stat().st_mtime_ns for path in finished.artifacts.rglob("*")} == before
    confident = decisions["language_confidence"] >= 0.9
    english = decisions["language"] == "en"
    dropped = [int((decisions["reason"] == "language").sum()), int((~(confident & english)).sum())]
    assert re.search(rf"^language +{dropped[0]} +{dropped[1]} +\+{dropped[1] - dropped[0]} ", printed, re.MULTILINE)
    assert "min_language_confidence: 0.65 -> 0.9" in printed
    assert (
        "dropped now: " in printed and "kept now, dropped before: " in printed and "http://docs.localhost/" in printed
    )
    wanted = "filters = {min_language_confidence = 0.9, gopher.min_alphabetic_word_fraction = 0.0}"
    assert wanted in printed
    same = ask(finished, "what-if", "languages=en", "max_eval_hits=0", "filters.mask_pii=true")
    assert "no setting differs" in same and "dropped now" not in same


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            "min_words=3",
            "the filters have no setting 'min_words'; there are languages, min_language_confidence, gopher.",
        ),
        ("mask_pii", "'mask_pii' is not setting=value; there are languages"),
        ("gopher.min_words=2.5", "min_words must be int, got 2.5"),
        ("gopher.min_words=many", "'many' is no number, true, false or quoted text"),
        ("max_nsfw_score=none", "only max_eval_hits, min_quality_score can be none"),
        ("min_quality_score=true", "min_quality_score=true: give a number, or none"),
    ],
)
def test_a_wrong_setting_is_one_line(ask, finished, change, message):
    assert message in ask(finished, "what-if", change, fails=True)


@pytest.mark.parametrize(
    "changes", [["languages=en,de", "max_eval_hits=none"], ["min_quality_score=0.5"], ["mask_pii=false"]]
)
def test_changed_thresholds_are_told_as_a_preset_has_them(changes):
    strict = FilterConfig(min_quality_score=0.2)
    new = changed_filters(strict, changes)
    assert new != strict
    told = tomllib.loads(_as_toml(strict, new))
    assert changed(replace(TINY, filters=strict), told).filters == new


def members(rows):
    columns = {"document": pl.UInt32, "shard": pl.String, "row": pl.UInt32}
    return pl.DataFrame(rows, schema=columns | dict.fromkeys(["id", "url", "key"], pl.String), orient="row")


def test_the_members_of_clusters_are_told_with_the_one_that_stays():
    rows = [
        (3, "a", 3, "x", "X", "1"),
        (5, "b", 0, "y", "Y", "2"),
        (8, "b", 3, "z", "Z", "3"),
        (9, "b", 4, "w", "W", "4"),
    ]
    told = cluster_table(members(rows), np.array([0, 1, 1, 0]), seed=0)
    assert told.drop("kept").rows() == [
        ("a", 3, "x", "X", 3),
        ("b", 0, "y", "Y", 5),
        ("b", 3, "z", "Z", 5),
        ("b", 4, "w", "W", 3),
    ]
    assert told.filter("kept")["cluster"].sort().to_list() == [3, 5]
    assert cluster_table(members([]), np.zeros(0, np.int64), seed=0).is_empty()


def test_a_near_duplicate_names_the_one_that_stays(ask, copied, shards):
    folder, (one, other) = copied.artifacts / "near_duplicates", shards
    documents = pl.read_parquet(copied.artifacts / "unique_lines" / one / "documents.parquet")[:1]
    theirs = copied.artifacts / "unique_lines" / other / "documents.parquet"
    stays = pl.read_parquet(theirs)
    words = " ".join(f"word{i}" for i in range(200))
    for path, table, text in (
        (copied.artifacts / "unique_lines" / one / "documents.parquet", documents, f"{words} more"),
        (theirs, stays[:1], words),
    ):
        table.with_columns(text=pl.lit(text)).write_parquet(path)
    origins = pl.concat([documents.with_columns(shard=pl.lit(one)), stays[:1].with_columns(shard=pl.lit(other))])
    clusters = origins.select("shard", "id", "url").with_columns(row=0, cluster=0, kept=pl.Series([False, True]))
    clusters.write_parquet(folder / CLUSTERS_FILE)
    printed = ask(copied, "why", documents["url"][0])
    assert (
        f"one of 2 near-identical documents; {stays['url'][0]} stays (Jaccard similarity 0.995)" in printed
    )  # 196/197
    assert printed.splitlines()[-1] == "-> dropped by deduplication: near-duplicate"
    assert "the one that stays of 2 near-identical documents" in ask(copied, "why", stays["url"][0])


def test_a_document_that_went_after_deduplication_says_why(ask, copied, shards):
    path = copied.artifacts / "deduplicated_text" / shards[0] / "documents.parquet"
    documents = pl.read_parquet(path)
    documents[1:].write_parquet(path)
    printed = ask(copied, "why", documents["url"][0])
    assert printed.splitlines()[-1] == f"-> dropped after deduplication: {CONTAMINATED}"
    listed = ask(copied, "why", documents["url"][0].rpartition("/")[0])
    assert f"  {CONTAMINATED:<37} {documents['url'][0]} " in listed


def test_bounds_are_found_by_the_names_of_settings():
    settings = leaves(FilterConfig())
    assert bounds_of("num_spaced_words", "gopher", settings) == (50, 100_000)
    assert bounds_of("mean_spaced_word_length", "gopher", settings) == (3.0, 10.0)
    assert bounds_of("language_confidence", "language", settings) == (0.65, None)
    assert bounds_of("num_eval_hits", "contaminated", settings) == (None, 0)
    assert bounds_of("min_words", "c4", settings | {"c4.min_words": 3}) == (None, None)
    assert bounds_of("num_words", "c4", settings | {"c4.min_words": 3})[0] == 3
