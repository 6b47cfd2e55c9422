"""The documents that deduplication is measured on, the whole chain on them, and the subject's command line."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import dedup_corpus
from cs336.dedup.minhash import MinHashConfig, TextSets, find_duplicates, similarities
from cs336.dedup.reference import jaccard
from cs336.documents import Texts, read_documents

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def sentences() -> list[str]:
    return dedup_corpus.sentences(None)


def test_planted_documents_are_the_same_every_time_and_as_similar_as_planned(sentences: list[str]):
    made = dedup_corpus.planted(sentences, 1_000)
    texts = list(made.texts)
    assert texts == list(dedup_corpus.planted(sentences, 1_000).texts)
    assert texts != list(dedup_corpus.planted(sentences, 1_000, seed=1).texts)
    copies = np.flatnonzero(made.plan != np.arange(1_000))
    assert 50 < len(copies) < 110
    similar = [jaccard(texts[copy], texts[made.plan[copy]], 5) for copy in copies]
    assert min(similar) > 0.75 and np.median(similar) > 0.9
    assert (made.plan[made.plan] == made.plan).all()  # the first member is its own


def test_the_whole_chain_finds_what_all_pairs_would(sentences: list[str]):
    made = dedup_corpus.planted(sentences, 800, seed=2)
    texts = list(made.texts)
    config = MinHashConfig()
    found = find_duplicates(texts, [str(number) for number in range(800)], config)
    pairs = np.array(list(itertools.combinations(range(800), 2)))
    similarity = similarities(pairs, TextSets(texts, config.ngrams))
    near = pairs[similarity >= 0.3]
    plainly = np.array([jaccard(texts[left], texts[right], config.ngrams) for left, right in near.tolist()])
    assert np.array_equal(similarity[similarity >= 0.3], plainly)
    duplicates = near[plainly >= config.jaccard_threshold]
    assert (plainly < config.jaccard_threshold).sum() > 10  # decoys there are
    same = found.clusters[duplicates[:, 0]] == found.clusters[duplicates[:, 1]]
    assert len(duplicates) > 80 and same.mean() > 0.99  # recall: 99.9 % expected at 0.8, more above
    joined = np.flatnonzero(found.clusters != np.arange(800))
    linked = set(map(tuple, duplicates.tolist()))
    for document in joined.tolist():  # precision: each is linked with another of its cluster, exactly
        mates = np.flatnonzero(found.clusters == found.clusters[document]).tolist()
        assert any((min(document, mate), max(document, mate)) in linked for mate in mates)


def test_shards_are_read_as_they_were_planted(tmp_path: Path, sentences: list[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(dedup_corpus, "SHARD_DOCUMENTS", 40)
    folders = dedup_corpus.write_planted(tmp_path, sentences, 100)
    expected = list(dedup_corpus.planted(sentences, 100).texts)
    assert [document.text for folder in folders for document in read_documents(folder)] == expected
    texts = Texts(folders)
    assert len(texts) == 100 and [texts[number] for number in (0, 39, 40, 99, 3)] == [
        expected[number] for number in (0, 39, 40, 99, 3)
    ]
    assert len(np.load(tmp_path / dedup_corpus.PLAN_FILE)) == 100


@pytest.mark.slow
def test_the_subject_measures_all_cases(tmp_path: Path):
    arguments = ["--sizes", "300", "600", "--repeats", "1", "--contenders", "datasketch"]
    folders = ["--results", str(tmp_path / "results"), "--cache", str(tmp_path / "cache")]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "dedup", *arguments, *folders],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name != "CS336_DATA"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [json.loads(line) for line in (tmp_path / "results" / "dedup.jsonl").read_text().splitlines()]
    ours = {row["case"]: row for row in rows if row["contender"] == "ours"}
    assert list(ours) == [
        *("signature-300", "signature-600", "cluster-300", "cluster-600", "exact-600"),
        *("lines-0.33MB", "lines-0.66MB"),
    ]
    assert all("figure" in row for row in ours.values())
    assert ours["signature-600"]["ratios"]["datasketch"] > 1
    assert ours["signature-600"]["estimate_rmse"] < 0.06
    assert ours["cluster-600"]["recall"] > 0.95 and ours["cluster-600"]["share_joined_as_planned"] > 0.95
    assert ours["exact-600"]["recall"] > 0.95
    assert 0.4 < ours["lines-0.66MB"]["share_of_bytes_kept"] < 0.7 and ours["lines-0.66MB"]["within_limits"]
    assert (tmp_path / "results" / "dedup_cluster.png").exists()
