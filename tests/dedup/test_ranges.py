"""Deduplication in parts: as many as there are shards, and the same as all at once."""

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from cs336.dedup.exact_lines import exact_line_deduplication
from cs336.dedup.minhash import MinHashConfig, find_duplicates
from cs336.dedup.ranges import hashes_of_range, own_range, write_hashes
from cs336.documents import Document, read_documents, write_documents
from cs336.filters.decontaminate import EvalIndex
from cs336.filters.pipeline import FilterConfig
from cs336.preset_values import changed
from cs336.presets import TINY
from cs336.store import Store
from cs336_assets.asset import Step
from cs336_assets.dedup import (
    CONTAMINATED,
    DROPPED_FILE,
    NEAR_DUPLICATE,
    no_document_is_an_evaluation_text,
    no_evaluation_leaked,
)
from cs336_assets.filters import INDEX_FILE
from cs336_assets.flow import STAGES
from tests.dedup.test_minhash import WORDS, near_copy

ASSETS = ("line_hashes", "repeated_lines", "unique_lines", "minhash_signatures", "candidate_pairs")
ASSETS += ("candidate_shingles", "duplicate_pairs", "near_duplicates", "deduplicated_text")


@pytest.mark.parametrize("num_parts", [1, 2, 7, 300])
def test_the_parts_have_each_hash_once(num_parts: int):
    generator = np.random.default_rng(0)
    hashes = np.sort(generator.integers(0, 1 << 64, 2_000, dtype=np.uint64))
    hashes[0], hashes[-1] = 0, 2**64 - 1
    parts = [hashes[own_range(hashes, part, num_parts)] for part in range(num_parts)]
    assert np.array_equal(np.concatenate(parts), hashes)
    assert max(map(len, parts)) < 2 * len(hashes) / num_parts + 30


def test_a_shard_keeps_two_of_each_line(tmp_path: Path):
    hashes = np.array([5, 2**63, 5, 5, 1, 2**63 + 1], np.uint64)
    assert write_hashes(tmp_path, hashes.copy()) == 5
    halves = [hashes_of_range(tmp_path, part, 2).tolist() for part in (0, 1)]
    assert halves == [[1, 5, 5], [2**63, 2**63 + 1]]
    assert write_hashes(tmp_path, hashes[:0]) == len(hashes_of_range(tmp_path, 0, 2)) == 0


def crawl(num_pages: int) -> list[Document]:
    """Pages with a menu each, a third of them near-copies of others, twelve of them about one text, one empty."""
    generator = random.Random(7)
    texts = [" ".join(generator.choices(WORDS, k=120)) for _ in range(num_pages)]
    texts += [near_copy(generator.choice(texts), 0.01, generator) for _ in range(num_pages // 2)]
    texts += [texts[0]] * 12
    texts = ["\n".join([f"home about menu{number % 3}", *_lines(text, number)]) for number, text in enumerate(texts)]
    generator.shuffle(texts)
    return [
        Document(f"<{number}>", f"http://pages/{number}", "crawl.warc.gz", number, text)
        for number, text in enumerate([*texts, "menu alone\nmenu alone"])
    ]


def _lines(text: str, number: int) -> list[str]:
    """Each line ends with a word of its own, so that only menus repeat."""
    words = text.split()
    return [" ".join([*words[start : start + 30], f"p{number}l{start}"]) for start in range(0, len(words), 30)]


def run(root: Path, documents: list[Document], num_shards: int, questions: Sequence[str] = (), **settings) -> Path:
    """All assets from the filtered text to the deduplicated one, called as plain functions."""
    preset = changed(TINY, settings)
    shards = [f"shard-{number:02}" for number in range(num_shards)]
    store = Store("tiny", root)
    EvalIndex.build({"quiz": questions}).save(store.path("eval_index") / INDEX_FILE)
    bounds = np.linspace(0, len(documents), num_shards + 1).astype(int)
    for shard, start, end in zip(shards, bounds[:-1], bounds[1:], strict=True):
        store.path("filtered_text", shard).mkdir(parents=True)
        write_documents(store.path("filtered_text", shard), documents[start:end])
    for name in ASSETS:
        stage = STAGES[name]
        for shard in shards if stage.per_shard else [None]:
            inputs = {
                upstream: [store.path(upstream, each) for each in shards]
                if everything
                else store.path(upstream, shard if STAGES[upstream].per_shard else None)
                for upstream, everything in stage.inputs.items()
            }
            folder = store.path(name, shard)
            folder.mkdir(parents=True)
            given = {setting: getattr(preset, setting) for setting in stage.settings}
            stage.function(Step(folder, part=shard), **inputs, **given)
    return store.folder


def texts_of(artifacts: Path, name: str) -> list[Document]:
    return [document for folder in sorted((artifacts / name).iterdir()) for document in read_documents(folder)]


@pytest.mark.parametrize("exempt_blank", [False, True])
def test_the_result_does_not_depend_on_the_number_of_shards_and_is_that_of_all_at_once(tmp_path: Path, exempt_blank):
    documents = crawl(60)
    settings = {
        "lines": {"min_words": 1, "exempt_blank": exempt_blank},
        "minhash": {"ngrams": 3, "jaccard_threshold": 0.5},
    }
    made = {number: run(tmp_path / str(number), documents, number, **settings) for number in (1, 7)}
    unique = texts_of(made[1], "unique_lines")
    assert texts_of(made[7], "unique_lines") == unique
    assert texts_of(made[7], "deduplicated_text") == texts_of(made[1], "deduplicated_text")
    clusters = [(artifacts / "near_duplicates" / "clusters.parquet") for artifacts in made.values()]
    assert _but_shards(clusters[0]) == _but_shards(clusters[1])

    for number, document in enumerate(documents):
        (tmp_path / f"{number:04}").write_text(document.text)
    exact_line_deduplication([tmp_path / f"{number:04}" for number in range(len(documents))], tmp_path / "lines")
    kept = [path.read_text() for path in sorted((tmp_path / "lines").iterdir())]
    assert [document.text for document in unique] == [text for text in kept if text.split()]

    config = changed(TINY, settings).minhash
    assert isinstance(config, MinHashConfig)
    keys = [f"{document.warc} {document.offset} {document.id}" for document in unique]
    found = find_duplicates([document.text for document in unique], keys, config)
    survivors = [document for document, stays in zip(unique, found.kept, strict=True) if stays]
    assert texts_of(made[7], "deduplicated_text") == survivors
    assert 60 <= len(survivors) < len(unique) - 30
    assert max(Counter(found.clusters.tolist()).values()) > 3


def _but_shards(path: Path) -> list[tuple]:
    return pl.read_parquet(path).drop("shard", "row").rows()


def test_of_documents_that_share_an_id_only_the_near_duplicate_goes(tmp_path: Path):
    generator = random.Random(3)
    text, other, last = (" ".join(generator.choices(WORDS, k=120)) for _ in range(3))
    texts = [other, text, near_copy(text, 0.01, generator), last]
    documents = [Document("<same>", f"http://pages/{row}", "crawl.warc.gz", 0, each) for row, each in enumerate(texts)]
    made = run(tmp_path, documents, 1, minhash={"ngrams": 3, "jaccard_threshold": 0.5})
    kept = [document.url for document in texts_of(made, "deduplicated_text")]
    assert kept in ([f"http://pages/{row}" for row in (0, one, 3)] for one in (1, 2))


QUESTION = "which of the seven grey herons on the old pier flew first towards the harbour lights"


def test_a_document_that_holds_a_question_once_its_repeated_lines_went_goes_too(tmp_path: Path):
    words = QUESTION.split()
    own_words = " ".join(f"word{number}" for number in range(60))
    text = "\n".join([" ".join(words[:8]), "menu alone", " ".join(words[8:]), own_words])
    pages = [Document("<torn>", "http://pages/torn", "crawl.warc.gz", 0, text), *crawl(10)]
    index = EvalIndex.build({"quiz": [QUESTION]})
    assert not index.num_hits(pages[0].text), "the filters let it pass"
    settings = {"lines": {"min_words": 1}, "minhash": {"ngrams": 3, "jaccard_threshold": 0.5}}
    made = run(tmp_path / "made", pages, 2, questions=[QUESTION], **settings)
    unique, kept = texts_of(made, "unique_lines"), texts_of(made, "deduplicated_text")
    assert [each.id for each in unique if index.num_hits(each.text)] == [pages[0].id]
    dropped = pl.concat(pl.read_parquet(path / DROPPED_FILE) for path in (made / "deduplicated_text").iterdir())
    reasons = dict(zip(dropped["id"], dropped["reason"], strict=True))
    assert reasons.pop(pages[0].id) == CONTAMINATED
    assert reasons and set(reasons.values()) == {NEAR_DUPLICATE}
    assert sorted(each.id for each in unique) == sorted([*(each.id for each in kept), *dropped["id"]])
    folders = sorted((made / "deduplicated_text").iterdir())
    assert no_evaluation_leaked(folders, [], made / "eval_index", FilterConfig())[0]
    as_it_is = settings | {"filters": {"max_eval_hits": 100}}
    assert pages[0].id in [
        each.id for each in texts_of(run(tmp_path / "all", pages, 2, [QUESTION], **as_it_is), "deduplicated_text")
    ]


def test_a_document_that_becomes_an_evaluation_text_goes_however_many_hits_are_allowed(tmp_path: Path):
    pages = crawl(10)
    pages[0] = pages[0]._replace(text=f"menu alone\n{QUESTION}\nmenu alone")
    assert not EvalIndex.build({"quiz": [QUESTION]}).copies(pages[0].text)
    settings = {"lines": {"min_words": 1}, "filters": {"max_eval_hits": 100}}
    made = run(tmp_path, pages, 2, questions=[QUESTION], **settings)
    folders = sorted((made / "deduplicated_text").iterdir())
    assert no_document_is_an_evaluation_text(folders, made / "eval_index", FilterConfig(max_eval_hits=100))[0]
    assert pages[0].id not in [each.id for each in texts_of(made, "deduplicated_text")]


def test_off_means_that_all_stays(tmp_path: Path):
    documents = crawl(10)
    off = {"lines": {"enabled": False, "min_words": 0}, "minhash": {"enabled": False}}
    assert texts_of(run(tmp_path, documents, 3, **off), "deduplicated_text") == documents


def test_shards_without_documents_are_no_obstacle(tmp_path: Path):
    assert texts_of(run(tmp_path, [], 2), "deduplicated_text") == []
    (only,) = crawl(10)[:1]
    assert [each.id for each in texts_of(run(tmp_path / "one", [only], 2), "deduplicated_text")] == [only.id]
