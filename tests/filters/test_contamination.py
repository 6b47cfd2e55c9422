"""Contamination of a corpus: documents that share n-grams with evaluations, and whole copies."""

from collections import Counter

import pytest

from cs336.documents import Document, write_documents
from cs336.filters.contamination import documents_sharing, measure_overlap, missing_texts, overlap_of
from cs336.filters.decontaminate import EvalIndex

LONG = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"
SHORT = "what is this"
INDEX = EvalIndex.build({"long": [LONG], "short": [SHORT, "..."]})


def test_documents_that_share_and_copies_are_counted_apart():
    texts = [f"before {LONG} after", LONG.upper(), f"a quiz\n{SHORT}?\nend", "nothing of it", LONG[:60]]
    found = overlap_of(((f"http://x.org/{n}", text) for n, text in enumerate(texts)), INDEX)
    assert (found.num_documents, found.num_sharing) == (5, 3)
    assert found.sharing == {"long": 2, "short": 1} and found.copies == {"long": 1}
    assert found.examples == ["http://x.org/0", "http://x.org/1", "http://x.org/2"]


@pytest.mark.parametrize("num_workers", [1, 2])
def test_shards_add_up_whatever_the_number_of_workers(num_workers, tmp_path):
    INDEX.save(tmp_path / "evals.npz")
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
        texts = [LONG, "nothing of it", f"{LONG} {SHORT}"]
        write_documents(folder, [Document(f"<{n}>", f"{folder.name}{n}", "w", n, text) for n, text in enumerate(texts)])
    found = measure_overlap(folders, tmp_path / "evals.npz", num_workers=num_workers)
    assert (found.num_documents, found.num_sharing) == (6, 4)
    assert found.copies == {"long": 2} and found.examples == ["a0", "a2", "b0", "b2"]


def test_texts_that_the_index_lacks_are_named():
    assert missing_texts([LONG, "..."], INDEX, "long") == []
    assert missing_texts([LONG, SHORT, "new"], INDEX, "long") == [SHORT, "new"]


def test_the_filters_own_notes_are_read():
    hits = ["icl lambada_openai: 3, mmlu: 1", None, "mmlu: 12"]
    assert documents_sharing(hits) == Counter({"mmlu": 2, "icl lambada_openai": 1})
