"""MinHash: signatures against the truth and against datasketch, and the chain over files."""

import itertools
import random
from pathlib import Path

import numpy as np
import pytest
from datasketch import MinHash

from cs336.dedup.lsh import candidate_pairs
from cs336.dedup.minhash import (
    MinHashConfig,
    TextSets,
    confirm,
    find_duplicates,
    minhash_deduplication,
    signature_bands,
    signatures,
)
from cs336.dedup.reference import EMPTY, jaccard

WORDS = [f"word{number}" for number in range(500)]


def near_copy(text: str, share: float, generator: random.Random) -> str:
    """The text with a share of its words replaced."""
    return " ".join(generator.choice(WORDS) if generator.random() < share else word for word in text.split())


def planted(num_originals: int, seed: int) -> list[str]:
    """Random texts, each followed by two near-copies, the further the later."""
    generator = random.Random(seed)
    texts = []
    for number in range(num_originals):
        original = " ".join(generator.choices(WORDS, k=150))
        share = 0.08 * number / num_originals
        texts += [original, near_copy(original, share / 2, generator), near_copy(original, share, generator)]
    return texts


def test_estimates_agree_with_the_truth_and_with_datasketch():
    config = MinHashConfig(num_hashes=256, num_bands=32, ngrams=3)
    ours, theirs, datasketchs = [], [], []
    texts = planted(40, seed=0)
    for start in range(0, len(texts), 3):
        left, right = texts[start], texts[start + 2]
        a, b = (MinHash(scheme="legacy", hashvalues=row) for row in signatures([left, right], config))
        ours.append(a.jaccard(b) - jaccard(left, right, 3))
        sketches = []
        for text in (left, right):
            words = text.split()
            sketch = MinHash(num_perm=256)
            sketch.update_batch([" ".join(words[i : i + 3]).encode() for i in range(len(words) - 2)])
            sketches.append(sketch)
        datasketchs.append(sketches[0].jaccard(sketches[1]))
        theirs.append(a.jaccard(b) - datasketchs[-1])
    # The standard error of one estimate is at most sqrt(0.25 / 256) = 0.031; 40 of them, and differences of two.
    assert abs(np.mean(ours)) < 0.016
    assert np.sqrt(np.mean(np.square(ours))) < 0.04
    assert np.sqrt(np.mean(np.square(theirs))) < 0.05
    assert min(datasketchs) < 0.7 < 0.95 < max(datasketchs)  # the pairs do span the range


def test_each_hash_function_picks_its_own_shingle():
    config = MinHashConfig(num_hashes=200, num_bands=20, ngrams=1)
    text = " ".join(WORDS[:50])
    picked = []
    *rows, whole = signatures([*WORDS[:50], text], config)
    for row in rows:
        picked.append(int((row == whole).sum()))
    assert sum(picked) == 200  # every minimum belongs to exactly one word
    assert max(picked) < 20  # 4 expected


def test_signatures_depend_on_text_and_seed_alone():
    texts = [*planted(12, seed=1), "", "?!"]
    config = MinHashConfig()
    one = signatures(texts, config)
    assert one.shape == (38, 100)
    assert one.dtype == np.uint32
    assert np.array_equal(one, signatures(iter(texts), config, num_workers=2))
    assert not np.array_equal(one, signatures(texts, MinHashConfig(seed=1)))
    assert (one[-2:] == EMPTY).all()
    assert (one[:-2] != EMPTY).all()
    assert signatures([], config).shape == (0, 100)


def test_planted_near_duplicates_are_found_and_nothing_else():
    texts = planted(100, seed=2)
    config = MinHashConfig(ngrams=3, jaccard_threshold=0.7)
    words = [text.split() for text in texts]
    sets = [{" ".join(own[start : start + 3]) for start in range(len(own) - 2)} for own in words]
    exact = {
        (i, j)
        for i, j in itertools.combinations(range(300), 2)
        if len(sets[i] & sets[j]) >= 0.7 * len(sets[i] | sets[j])
    }
    candidates = candidate_pairs(signature_bands(texts, config))
    confirmed = confirm(candidates, TextSets(texts, config.ngrams), config.jaccard_threshold)
    found = {(i, j) for i, j in confirmed.tolist()}
    assert len(exact) > 150
    assert found <= exact  # precision 1: candidates are confirmed exactly
    assert len(found) / len(exact) > 0.97  # 97.5 % at the threshold, more above it


def test_one_of_each_cluster_survives_and_empty_texts_all_do():
    texts = ["same text here", "", "Same text, here!", "other", "", "SAME TEXT HERE"]
    result = find_duplicates(texts, list("abcdef"), MinHashConfig())
    assert result.clusters.tolist() == [0, 1, 0, 3, 4, 0]
    assert result.kept[[0, 2, 5]].sum() == 1
    assert result.kept[[1, 3, 4]].all()
    assert (result.num_candidates, result.num_confirmed) == (3, 3)


def test_survivors_do_not_depend_on_the_order_of_the_documents():
    texts = planted(20, seed=3)
    keys = [f"id{number}" for number in range(60)]
    config = MinHashConfig(ngrams=3, seed=5)
    kept = {key for key, keep in zip(keys, find_duplicates(texts, keys, config).kept, strict=True) if keep}
    again = find_duplicates(texts[::-1], keys[::-1], config)
    assert {key for key, keep in zip(keys[::-1], again.kept, strict=True) if keep} == kept
    assert 20 <= len(kept) < 60


LICENCE = "Permission to use, copy, modify and distribute this software is granted to anyone, provided that "
CLAUSES = [f"clause {n}: the {WORDS[n]} of any {WORDS[n + 40]} shall not exceed {WORDS[n + 80]}" for n in range(30)]


def test_files_of_one_licence_collapse_and_others_survive(tmp_path: Path):
    body = "\n".join([LICENCE, *CLAUSES])
    contents = {
        "one.txt": f"The First Licence\nCopyright Ann\n{body}",
        "two.txt": f"THE 2ND LICENCE\n\nCopyright Bob\n{body.replace(' shall', chr(10) + 'shall')}",
        "other.txt": "A different licence. " + " ".join(WORDS[200:400]),
        "menu-a.html": "Home About Contact Imprint " + " ".join(WORDS[400:440]),
        "menu-b.html": "Home About Contact Imprint " + " ".join(WORDS[440:480]),
        "line-a": "exactly one line\n",
        "line-b": "exactly one line\n",
    }
    similarity = jaccard(contents["one.txt"], contents["two.txt"], 5)
    assert 0.8 < similarity < 1
    for name, content in contents.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    minhash_deduplication([tmp_path / name for name in contents], 500, 50, 5, 0.8, tmp_path / "out" / "kept")
    kept = {path.name: path.read_bytes() for path in (tmp_path / "out" / "kept").iterdir()}
    assert {"other.txt", "menu-a.html", "menu-b.html"} < set(kept)
    assert len(set(kept) & {"one.txt", "two.txt"}) == len(set(kept) & {"line-a", "line-b"}) == 1
    assert len(kept) == 5
    assert all(content == (tmp_path / name).read_bytes() for name, content in kept.items())


def test_a_threshold_of_one_means_exact_copies(tmp_path: Path):
    for name, content in {"a": "x y z", "b": "X, y z", "c": "x y z w"}.items():
        (tmp_path / name).write_text(content)
    minhash_deduplication([tmp_path / name for name in "abc"], 50, 50, 1, 1.0, tmp_path / "out")
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names in (["a", "c"], ["b", "c"])


@pytest.mark.parametrize(
    "wrong", [{"num_hashes": 100, "num_bands": 30}, {"ngrams": 0}, {"jaccard_threshold": 1.5}, {"num_bands": 0}]
)
def test_a_config_that_cannot_work_is_an_error(wrong: dict[str, float]):
    with pytest.raises(ValueError, match=r"\d"):
        MinHashConfig(**wrong)  # type: ignore[arg-type]
