"""The sheets of a finished project: random, the same each time, with the scores, and made again for a verdict."""

from __future__ import annotations

import polars as pl
import pytest

from cs336.crawl.warc import write_record
from cs336.documents import Document, read_documents, write_documents, write_table
from cs336.extract.records import write_records
from cs336.extract.shard import ExtractConfig, extract_records
from cs336.files import read_json, write_json
from cs336.filters.pipeline import FilterConfig, FilterModels, decide, measure_documents
from cs336.store import MANIFEST
from cs336_assets.asset import Step
from cs336_assets.dedup import DROPPED, DROPPED_FILE
from cs336_assets.filters import DECISIONS_FILE
from cs336_assets.sheets import PAGE_FILE, SHEETS, inspection_sheets


def shown(project):
    return read_json(project.artifacts / "inspection_sheets" / MANIFEST)["metadata"]


def test_all_sheets_are_made_and_none_is_read(finished):
    metadata = shown(finished)
    assert metadata["not_read"] == list(SHEETS)
    assert all("not read yet" in metadata[name]["markdown"] for name in SHEETS)
    assert metadata["language"]["markdown"].count("language_confidence: ") == 20
    assert metadata["records"]["markdown"].count("fate: ") == 25
    assert "nsfw: off, no model" in metadata["harm"]["markdown"]
    page = (finished.artifacts / "inspection_sheets" / PAGE_FILE).read_text()
    assert page.count("<section ") == len(SHEETS) and page.count("<article>") == metadata["num_entries"]
    assert page.count("not read yet") == len(SHEETS)


def test_gophers_sheet_has_pages_of_both_verdicts(finished):
    decisions = pl.read_parquet(finished.artifacts / "filtered_text" / "*" / DECISIONS_FILE)
    page = shown(finished)["gopher"]["markdown"]
    assert f"Passing: {decisions['passes_gopher'].sum()} of {decisions.height}" in page
    drops = decisions.filter(~pl.col("passes_gopher"))["url"].to_list()
    assert sum(f"`{url}`" in page for url in drops) == 10


@pytest.mark.slow
def test_a_verdict_makes_the_sheets_again_and_nothing_else(copied):
    url = shown(copied)["language"]["markdown"].split("`")[1]
    folder = copied.folder / "sheets"
    folder.mkdir()
    copied.environment["CS336_SHEETS"] = str(folder)
    text = f'[language]\nverdict = "All of it is English."\nlabels = {{"{url}" = "en"}}\n'
    (folder / "micro.toml").write_text(text)
    made = [line for line in copied.run("data").splitlines() if ": made in" in line]
    assert [line.partition(":")[0] for line in made] == ["micro/inspection_sheets"]
    page = shown(copied)["language"]["markdown"]
    assert "**Verdict:** All of it is English." in page and "of 1 labels agree" in page
    assert "language" not in shown(copied)["not_read"]


TEXT = " ".join(f"the {word} of the morning was quiet and long" for word in ("harbour", "garden", "street")) * 4


@pytest.fixture
def stages(tmp_path):
    """One shard with a page, its WET text, a page with an address in it, and one without use."""
    folders = {name: tmp_path / name / "s" for name in ("crawl", "extracted", "scores", "filtered", "final")}
    for folder in folders.values():
        folder.mkdir(parents=True)
    html = "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n<p>{}</p>"
    pages = {"http://a/1": TEXT, "http://a/2": f"{TEXT} Ask ann@example.org at noon.", "http://a/3": "1 2 3"}
    with open(folders["crawl"] / "s.warc.gz", "wb") as file:
        for url, text in pages.items():
            block = html.format(text).encode()
            write_record(file, "response", url=url, content_type="application/http; msgtype=response", block=block)
        write_record(file, "conversion", url="http://a/1", content_type="text/plain", block=b"ready " + TEXT.encode())
    documents, rows = extract_records(folders["crawl"] / "s.warc.gz", ExtractConfig())
    write_documents(folders["extracted"], documents)
    write_records(folders["extracted"], rows)
    scores, _, states = measure_documents(documents, FilterModels())
    write_json(folders["scores"] / "states.json", states)
    decisions = decide(scores, FilterConfig(languages=()))
    write_table(folders["filtered"] / DECISIONS_FILE, decisions)
    final = [each for each, kept in zip(documents, decisions["kept"], strict=True) if kept]
    write_documents(folders["final"], [each._replace(text="as trained") for each in final])
    write_table(folders["final"] / DROPPED_FILE, pl.DataFrame(schema=DROPPED))
    return folders


def sheets_of(stages, folder, seed=0):
    folder.mkdir()
    names = ("crawl", "extracted_text", "document_scores", "filtered_text", "deduplicated_text")
    inputs = {name: [stage] for name, stage in zip(names, stages.values(), strict=True)}
    return inspection_sheets(Step(folder, preset="none"), **inputs, seed=seed)


def test_own_text_stands_beside_the_crawls_and_replacements_in_their_context(stages, tmp_path, monkeypatch):
    monkeypatch.setenv("CS336_SHEETS", str(tmp_path))
    made = sheets_of(stages, tmp_path / "one")
    extraction = made["extraction"]["markdown"]
    assert "1 of 4 pages have a WET text too." in extraction
    assert extraction.count("`http://a/1`") == 1 and "ready the harbour" in extraction
    assert "at noon." in made["pii"]["markdown"] and "[ann@example.org]" in made["pii"]["markdown"]
    assert "was: ann@example.org" in made["pii"]["markdown"]
    assert "as trained" in made["kept"]["markdown"]
    assert "gopher:too_few_words" in made["dropped"]["markdown"]
    assert "<p>the harbour" in made["first_look"]["markdown"], "the source as it was sent"
    assert made == sheets_of(stages, tmp_path / "again"), "the same records each time"
    assert made["records"] != sheets_of(stages, tmp_path / "other", seed=1)["records"]


def test_what_went_after_the_filters_is_told_with_its_reason(stages, tmp_path, monkeypatch):
    monkeypatch.setenv("CS336_SHEETS", str(tmp_path))
    first, _, *others = read_documents(stages["final"])
    write_documents(stages["final"], others)
    rows = [(first.id, first.url, first.offset, "near-duplicate")]
    write_table(stages["final"] / DROPPED_FILE, pl.DataFrame(rows, schema=DROPPED, orient="row"))
    told = sheets_of(stages, tmp_path / "one")["dropped"]["markdown"]
    assert "by: near-duplicate" in told and "by: too few words without repeated lines" in told


def test_a_crawl_without_documents_has_empty_sheets(stages, tmp_path, monkeypatch):
    monkeypatch.setenv("CS336_SHEETS", str(tmp_path))
    nothing: list[Document] = []
    write_documents(stages["extracted"], nothing)
    write_records(stages["extracted"], [])
    write_documents(stages["final"], nothing)
    scores, _, _ = measure_documents(nothing, FilterModels())
    write_table(stages["filtered"] / DECISIONS_FILE, decide(scores, FilterConfig()))
    assert sheets_of(stages, tmp_path / "none")["num_entries"] == 0
