"""What each contender does in a process of its own: `python -m benchmarks.dedup_work` with a job on standard input.

A job is a JSON object: the work (a function below), the contender, paths. The answer, the last line of standard
output, has the seconds of each part, the peak memory of the process, and what is to be compared.

Not timed: Python's start, imports, and (in `signature`) reading the documents; and loading compiled code, which is
reported apart.
"""

from __future__ import annotations

import itertools
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from benchmarks.dedup_corpus import PLAN_FILE
from benchmarks.measure import OURS, resident_bytes, with_peak_memory
from cs336.dedup import compiled
from cs336.dedup.exact_lines import exact_line_deduplication
from cs336.dedup.minhash import MinHashConfig, find_duplicates, signature_bands, signatures
from cs336.dedup.reference import jaccard
from cs336.dedup.shingles import shingle_sets
from cs336.documents import DOCUMENTS_FILE, Texts

RENSA, DATASKETCH, DATATROVE = "rensa", "datasketch", "datatrove"
CONFIG = MinHashConfig(num_hashes=128, num_bands=16)  # of `signature`; `cluster` takes the project's own
NUM_PAIRS = 200  # on which estimates are compared with the truth
_SHINGLE_BATCH = 1_000  # documents whose shingles, as Python's strings, are in memory together


def main() -> None:
    """Do one job."""
    job = json.load(sys.stdin)
    works: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
        "signature": signature,
        "lines": lines,
        "cluster": cluster,
        "exact": exact,
    }
    try:
        answer = works[job["work"]](job)
    except ImportError as error:
        answer = {"unavailable": f"not installed: {error}"}
    print(json.dumps(answer | {"peak_bytes": answer.get("peak_bytes", resident_bytes())}))


def _folders(job: dict[str, Any]) -> list[Path]:
    return sorted(path for path in Path(job["folder"]).iterdir() if path.is_dir())


def _loading_seconds() -> float:
    start = time.perf_counter()
    compiled.warm_up()
    signatures(["a word and é"], CONFIG)  # makes the tables of characters
    return time.perf_counter() - start


# ---- texts to signatures, on one thread -------------------------------------------------------------


def signature(job: dict[str, Any]) -> dict[str, Any]:
    """128-hash signatures of word 5-grams of documents in memory; the result is the error of their estimates.

    That is the root of the mean squared difference from the exact Jaccard similarity, over planted pairs.
    """
    folders = _folders(job)
    texts = Texts(folders)
    documents = [texts[number] for number in range(len(texts))]
    details = {}
    if job["contender"] == OURS:
        details["loading_seconds"] = _loading_seconds()
    run = {OURS: _our_signatures, RENSA: _rensa_signatures, DATASKETCH: _datasketch, DATATROVE: _datatrove}
    make = run[job["contender"]]()
    start = time.perf_counter()
    rows = make(documents)
    seconds = time.perf_counter() - start
    plan = np.load(Path(job["folder"]) / PLAN_FILE)
    copies = np.flatnonzero(plan != np.arange(len(plan)))[:NUM_PAIRS].tolist()
    pairs = [(copy, int(plan[copy])) for copy in copies]
    pairs += [(copy, other) for copy, other in itertools.pairwise(copies)]  # mostly of different clusters
    errors = [
        np.mean(np.asarray(rows[left]) == np.asarray(rows[right]))
        - jaccard(documents[left], documents[right], CONFIG.ngrams)
        for left, right in pairs
    ]
    error = float(np.sqrt(np.mean(np.square(errors))))
    return {"seconds": {"": seconds}, "result": error, "details": details | {"estimate_rmse": error}}


def _our_signatures() -> Callable[[list[str]], Any]:
    return lambda documents: signatures(documents, CONFIG)


def _rensa_signatures() -> Callable[[list[str]], Any]:
    import rensa

    def run(documents: list[str]) -> Any:
        rows = []
        for batch in _batches(documents):
            shingles = [_shingles(document) for document in batch]
            rows += rensa.RMinHash.digest_matrix_from_token_sets(shingles, CONFIG.num_hashes, CONFIG.seed).to_rows()
        return rows

    return run


def _datasketch() -> Callable[[list[str]], Any]:
    from datasketch import MinHash

    def run(documents: list[str]) -> Any:
        rows = []
        for document in documents:
            sketch = MinHash(num_perm=CONFIG.num_hashes)
            sketch.update_batch([shingle.encode() for shingle in _shingles(document)])
            rows.append(sketch.hashvalues)
        return rows

    return run


def _datatrove() -> Callable[[list[str]], Any]:
    from datatrove.pipeline.dedup import MinhashDedupSignature
    from datatrove.pipeline.dedup.minhash import MinhashConfig

    config = MinhashConfig(n_grams=CONFIG.ngrams, num_buckets=CONFIG.num_bands, hashes_per_bucket=8)
    step = MinhashDedupSignature(output_folder=tempfile.mkdtemp(), config=config)
    step.get_signature(step.get_shingles("loads its models at the first text"))

    def run(documents: list[str]) -> Any:
        return [np.concatenate(step.get_signature(step.get_shingles(document))) for document in documents]

    return run


def _shingles(document: str) -> list[str]:
    """Word 5-grams as most scripts make them: lower case, split at spaces, joined again."""
    words = document.lower().split()
    return [" ".join(words[start : start + CONFIG.ngrams]) for start in range(max(1, len(words) - CONFIG.ngrams + 1))]


def _batches(documents: list[str]) -> list[list[str]]:
    return [documents[start : start + _SHINGLE_BATCH] for start in range(0, len(documents), _SHINGLE_BATCH)]


# ---- shards to clusters and survivors, on all cores -------------------------------------------------


def cluster(job: dict[str, Any]) -> dict[str, Any]:
    """Shards of documents to the documents that have near-copies; the result is recall and precision of these.

    Ours goes on to exact confirmation, clusters and survivors; rensa flags candidates, datasketch asks its index
    for candidates, and neither confirms them.
    """
    folders, plan = _folders(job), np.load(Path(job["folder"]) / PLAN_FILE)
    planned = np.bincount(plan, minlength=len(plan))[plan] > 1
    details: dict[str, Any] = {}
    if job["contender"] == OURS:
        details["loading_seconds"] = _loading_seconds()
        config = MinHashConfig()
        start = time.perf_counter()
        made = [signature_bands(_column(folder), config, num_workers=job["threads"]) for folder in folders]
        bands = np.concatenate(made, axis=1)
        details["signature_seconds"] = time.perf_counter() - start
        keys = [str(number) for number in range(len(plan))]
        num_chars = np.concatenate([_column(folder).str.len_chars().to_numpy() for folder in folders]).astype(np.int64)
        found = find_duplicates(
            Texts(folders), keys, config, bands=bands, num_chars=num_chars, num_workers=job["threads"]
        )
        seconds = time.perf_counter() - start
        flagged = np.bincount(found.clusters, minlength=len(plan))[found.clusters] > 1
        joined = np.flatnonzero(found.clusters != np.arange(len(plan)))
        details |= {
            "num_candidates": found.num_candidates,
            "num_confirmed": found.num_confirmed,
            "num_removed": int((~found.kept).sum()),
            "num_planned_copies": int((plan != np.arange(len(plan))).sum()),
            "share_joined_as_planned": float(np.mean(plan[joined] == plan[found.clusters[joined]])),
        }
    elif job["contender"] == RENSA:
        import rensa

        start = time.perf_counter()
        flags: list[bool] = []
        index = rensa.RMinHashLSH(0.8, CONFIG.num_hashes, CONFIG.num_bands)
        shingles = [_shingles(document) for folder in folders for document in _column(folder)]
        matrix = rensa.RMinHash.digest_matrix_from_token_sets(shingles, CONFIG.num_hashes, CONFIG.seed)
        flags += index.query_duplicate_flags_matrix_one_shot(matrix)
        seconds = time.perf_counter() - start
        flagged = np.array(flags)
    else:
        from datasketch import MinHash, MinHashLSH

        start = time.perf_counter()
        sketches = MinHashLSH(num_perm=CONFIG.num_hashes, params=(CONFIG.num_bands, 8))
        flagged = np.zeros(len(plan), bool)
        for number, document in enumerate(document for folder in folders for document in _column(folder)):
            sketch = MinHash(num_perm=CONFIG.num_hashes)
            sketch.update_batch([shingle.encode() for shingle in _shingles(document)])
            near = sketches.query(sketch)
            flagged[near] = True
            flagged[number] = bool(near)
            sketches.insert(number, sketch)
        seconds = time.perf_counter() - start
    recall = float(np.mean(flagged[planned]))
    precision = float(np.mean(planned[flagged])) if flagged.any() else 0.0
    details |= {"recall": recall, "precision": precision}
    return {"seconds": {"": seconds}, "result": [recall, precision], "details": details}


def _column(folder: Path) -> pl.Series:
    return pl.read_parquet(folder / DOCUMENTS_FILE, columns=["text"])["text"]


def exact(job: dict[str, Any]) -> dict[str, Any]:
    """Confirmed pairs against the exact similarity of all pairs; the result is recall and precision.

    The truth is by words, not by hashes, for every pair that the hashes' sets put above half of the threshold.
    """
    texts = Texts(_folders(job))
    documents = [texts[number] for number in range(len(texts))]
    config = MinHashConfig()
    compiled.warm_up()
    start = time.perf_counter()
    found = find_duplicates(documents, [str(number) for number in range(len(documents))], config)
    seconds = time.perf_counter() - start
    sets, ends = shingle_sets(documents, config.ngrams)
    similar: dict[tuple[int, int], float] = {}
    for left in range(len(documents) - 1):
        rights = np.arange(left + 1, len(documents))
        similarity = np.empty(len(rights))
        compiled.similarities(sets, ends, np.full(len(rights), left), rights, similarity)
        near = rights[similarity >= config.jaccard_threshold / 2]
        for right in near.tolist():
            similar[left, right] = jaccard(documents[left], documents[right], config.ngrams)
    duplicates = {pair for pair, value in similar.items() if value >= config.jaccard_threshold}
    together = {pair for pair in duplicates if found.clusters[pair[0]] == found.clusters[pair[1]]}
    r = config.num_hashes // config.num_bands
    expected = [1 - (1 - similar[pair] ** r) ** config.num_bands for pair in duplicates]
    expected_labels = _spread(duplicates, len(documents))
    wrong = int(np.sum(found.clusters != expected_labels))
    details = {
        "num_duplicate_pairs": len(duplicates),
        "recall": len(together) / max(1, len(duplicates)),
        "expected_recall_of_one_pair": float(np.mean(expected)),
        "num_documents_in_another_cluster_than_by_all_pairs": wrong,
    }
    return {"seconds": {"": seconds}, "result": [details["recall"], wrong], "details": details}


def _spread(pairs: set[tuple[int, int]], num_documents: int) -> np.ndarray:
    """Least number among all that hang together, by spreading labels until nothing changes."""
    labels = list(range(num_documents))
    changed = True
    while changed:
        changed = False
        for left, right in pairs:
            least = min(labels[left], labels[right])
            changed |= labels[left] != least or labels[right] != least
            labels[left] = labels[right] = least
    return np.array(labels)


# ---- exact lines -----------------------------------------------------------------------------------


def lines(job: dict[str, Any]) -> dict[str, Any]:
    """Files without the lines that occur twice, on one thread, within a budget; the result is how much is left."""
    compiled.warm_up()
    paths = sorted(Path(job["folder"]).glob("*.txt"))
    with tempfile.TemporaryDirectory(dir=job["scratch"]) as folder:
        start = time.perf_counter()
        _, peak = with_peak_memory(
            lambda: exact_line_deduplication(paths, Path(folder) / "out", memory_bytes=job["memory_bytes"])
        )
        seconds = time.perf_counter() - start
        left = sum(path.stat().st_size for path in (Path(folder) / "out").iterdir())
    share = left / sum(path.stat().st_size for path in paths)
    details = {"share_of_bytes_kept": share, "memory_bytes": job["memory_bytes"]}
    return {"seconds": {"": seconds}, "peak_bytes": peak, "result": left, "details": details}


if __name__ == "__main__":
    main()
