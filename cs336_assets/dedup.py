"""Repeated lines and near-identical documents, over the whole crawl, but never all of it on one machine.

What must see every shard is made in as many parts as there are shards: part i has the i-th of equal ranges of hashes.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl

from cs336.dedup import exact_lines
from cs336.dedup.exact_lines import LineConfig, deduplicate_lines
from cs336.dedup.lsh import candidate_pairs as pairs_that_share_a_bucket
from cs336.dedup.lsh import clusters, survivors
from cs336.dedup.minhash import MinHashConfig, confirm, signature_bands
from cs336.dedup.ranges import (
    StoredSets,
    bands_of_range,
    candidates_of_shard,
    hashes_of_range,
    pairs_of_shard,
    read_duplicates,
    read_starts,
    write_bands,
    write_duplicates,
    write_hashes,
    write_pairs,
    write_sets,
)
from cs336.dedup.repeated import RepeatedHashes, SortedHashes, write_sorted
from cs336.dedup.shingles import shingle_sets
from cs336.documents import read_documents, read_table, write_documents, write_table
from cs336.filters.decontaminate import EvalIndex
from cs336.filters.pipeline import FilterConfig
from cs336_assets.asset import Metadata, Step, asset, check
from cs336_assets.crawl import table
from cs336_assets.filters import DECISIONS_FILE, INDEX_FILE

HASHES_FILE = "repeated.u64"
CLUSTERS_FILE = "clusters.parquet"
DROPPED_FILE = "dropped.parquet"
DROPPED = {"id": pl.String, "url": pl.String, "offset": pl.Int64, "reason": pl.String}
TOO_SHORT = "too few words without repeated lines"
NEAR_DUPLICATE = "near-duplicate"
CONTAMINATED = "contaminated without its repeated lines"
OFF = "off, by the preset"


@asset(group="dedup", kinds={"numpy"}, owner="team:data", per_shard=True)
def line_hashes(step: Step, filtered_text: Path, lines: LineConfig) -> Metadata:
    """Hashes of a shard's lines in ascending order, at most two of each."""
    of_documents = (exact_lines.line_hashes(document.text) for document in read_documents(filtered_text))
    hashes = np.concatenate([np.zeros(0, np.uint64), *(of_documents if lines.enabled else ())])
    num_lines = len(hashes)
    return {
        "state": "on" if lines.enabled else OFF,
        "num_lines": num_lines,
        "num_hashes": write_hashes(step.folder, hashes),
    }


@asset(group="dedup", kinds={"numpy"}, owner="team:data", per_shard=True)
def repeated_lines(step: Step, line_hashes: list[Path], lines: LineConfig) -> Metadata:
    """Hashes of all lines that occur more than once in the whole crawl: those of one range of hashes a part.

    A part reads its own range of every shard's hashes. What outgrows the memory that the preset gives it goes to disk.
    """
    part, num_parts = _part(step, line_hashes)
    with tempfile.TemporaryDirectory(prefix=".ranges-", dir=step.folder) as ranges:
        counts = RepeatedHashes(Path(ranges), lines.memory_bytes)
        for folder in step.progress(line_hashes, unit="shards", label="count lines"):
            counts.add(hashes_of_range(folder, part, num_parts))
        num_repeated = write_sorted(step.folder / HASHES_FILE, counts.repeated())
    return {"state": "on" if lines.enabled else OFF, "num_repeated": num_repeated}


@asset(group="dedup", kinds={"polars"}, owner="team:data", per_shard=True)
def unique_lines(step: Step, filtered_text: Path, repeated_lines: list[Path], lines: LineConfig) -> Metadata:
    """The documents without repeated lines, all copies gone, the first included.

    Menus, footers and boilerplate go; a document left with too few words goes as a whole.
    """
    documents = list(read_documents(filtered_text))
    characters = sum(len(document.text) for document in documents)
    repeated = SortedHashes([folder / HASHES_FILE for folder in repeated_lines], lines.memory_bytes)
    left_over = deduplicate_lines((document.text for document in documents), repeated, lines)
    kept = [
        document._replace(text=text) for document, text in zip(documents, left_over, strict=True) if text is not None
    ]
    write_documents(step.folder, kept)
    left = sum(len(document.text) for document in kept)
    return {
        "num_seen": len(documents),
        "num_documents": len(kept),
        "num_characters": left,
        "share_of_characters_kept": round(left / max(1, characters), 4),
    }


@asset(group="dedup", kinds={"numpy"}, owner="team:data", per_shard=True)
def minhash_signatures(step: Step, unique_lines: Path, minhash: MinHashConfig) -> Metadata:
    """MinHash signature of every document's word n-grams, as one key for each of its bands, in ascending order."""
    texts = (document.text for document in (read_documents(unique_lines) if minhash.enabled else ()))
    bands = signature_bands(texts, minhash, num_workers=step.num_workers, progress=step.progress)
    write_bands(step.folder, bands)
    state = "on" if minhash.enabled else OFF
    return {"state": state, "num_signatures": bands.shape[1], "num_hashes": minhash.num_hashes}


@asset(group="dedup", kinds={"numpy"}, owner="team:data", per_shard=True)
def candidate_pairs(step: Step, minhash_signatures: list[Path]) -> Metadata:
    """Pairs of documents that share a band of their signatures, for one range of keys a part.

    A part reads its own range of every shard's keys, so all documents of a bucket meet in one part.
    """
    keys, documents, starts = bands_of_range(minhash_signatures, *_part(step, minhash_signatures))
    pairs = pairs_that_share_a_bucket(keys, documents)
    write_pairs(step.folder, pairs, starts)
    return {"num_keys": sum(map(len, keys)), "num_candidates": len(pairs)}


@asset(group="dedup", kinds={"numpy"}, owner="team:data", per_shard=True)
def candidate_shingles(step: Step, unique_lines: Path, candidate_pairs: list[Path], minhash: MinHashConfig) -> Metadata:
    """Of a shard's documents that are in a candidate pair, the set of word n-grams, as hashes.

    Other shards compare with these, and so need none of this one's text.
    """
    shard, _ = _part(step, candidate_pairs)
    numbers = candidates_of_shard(candidate_pairs, shard)
    start = int(read_starts(candidate_pairs)[shard])
    documents = list(read_documents(unique_lines)) if len(numbers) else []
    documents = [documents[row] for row in (numbers - start).tolist()]
    texts = step.progress([document.text for document in documents], unit="documents", label="shingles")
    sets, ends = shingle_sets(texts, minhash.ngrams, num_threads=step.num_workers)
    write_sets(step.folder, numbers, documents, sets, ends, shard=unique_lines.name, start=start)
    return {"num_candidate_documents": len(numbers), "num_shingles": len(sets)}


@asset(group="dedup", kinds={"numpy"}, owner="team:data", per_shard=True)
def duplicate_pairs(
    step: Step, candidate_pairs: list[Path], candidate_shingles: list[Path], minhash: MinHashConfig
) -> Metadata:
    """Candidate pairs that the exact Jaccard similarity of their n-grams confirms; a part has those whose first
    document is of its shard."""
    shard, _ = _part(step, candidate_pairs)
    sets = StoredSets(candidate_shingles, read_starts(candidate_pairs))
    candidates = pairs_of_shard(candidate_pairs, shard)
    confirmed = confirm(candidates, sets, minhash.jaccard_threshold, progress=step.progress)
    write_duplicates(step.folder, confirmed, sets.origins(np.unique(confirmed)))
    return {"num_candidates": len(candidates), "num_confirmed": len(confirmed)}


@asset(group="dedup", kinds={"polars"}, owner="team:data")
def near_duplicates(step: Step, duplicate_pairs: list[Path], minhash: MinHashConfig) -> Metadata:
    """Clusters of near-identical documents, and which member of each survives.

    Confirmed pairs are united; clusters are transitive; one random member stays.
    """
    pairs, members = read_duplicates(duplicate_pairs)
    found = cluster_table(members, clusters(pairs, len(members)), minhash.seed)
    write_table(step.folder / CLUSTERS_FILE, found)
    largest = found.group_by("cluster").agg(pl.len(), pl.first("url")).sort("len", "cluster", descending=[True, False])
    return {
        "state": "on" if minhash.enabled else OFF,
        "num_confirmed": len(pairs),
        "num_clusters": len(largest),
        "num_removed": int((~found["kept"]).sum()),
        "largest_clusters": table(["documents", "one of them"], largest.select("len", "url").head(10).rows()),
    }


@asset(group="dedup", kinds={"polars"}, owner="team:data", per_shard=True)
def deduplicated_text(
    step: Step, unique_lines: Path, near_duplicates: Path, eval_index: Path, filters: FilterConfig
) -> Metadata:
    """The corpus: what is trained on, one document a row.

    Where lines went, what stood around them is joined, which can make words of an evaluation that no document had
    when the filters measured it: such a document goes, too. `dropped.parquet` has what went, and why.
    """
    removed = removed_documents(near_duplicates, unique_lines.name)
    index = None if filters.max_eval_hits is None else EvalIndex.load(eval_index / INDEX_FILE)
    kept, dropped = [], []
    for row, document in enumerate(read_documents(unique_lines)):
        if row in removed:
            reason = NEAR_DUPLICATE
        elif index is not None and index.is_contaminated(document.text, filters.max_eval_hits or 0):
            reason = CONTAMINATED
        else:
            kept.append(document)
            continue
        dropped.append((document.id, document.url, document.offset, reason))
    write_documents(step.folder, kept)
    write_table(step.folder / DROPPED_FILE, pl.DataFrame(dropped, schema=DROPPED, orient="row"))
    return {
        "num_documents": len(kept),
        "num_removed": len(removed),
        "dropped": table(["reason", "documents"], Counter(reason for *_, reason in dropped).most_common()),
        "num_bytes": sum(len(document.text.encode()) for document in kept),
    }


def removed_documents(near_duplicates: Path, shard: str) -> set[int]:
    """Rows of a shard's documents, as `unique_lines` has them, that do not survive."""
    gone = pl.scan_parquet(near_duplicates / CLUSTERS_FILE).filter((pl.col("shard") == shard) & ~pl.col("kept"))
    return set(gone.select("row").collect()["row"])


def cluster_table(members: pl.DataFrame, labels: np.ndarray, seed: int) -> pl.DataFrame:
    """The members of every cluster: which each is, in which cluster, and whether it stays.

    Args:
        members: as `StoredSets.origins` gives them, in the order of their numbers.
        labels: the row of each member's first companion, as `clusters` gives it.
    """
    kept = survivors(labels, seed, members["key"].to_list())
    numbers = members["document"].cast(pl.Int64)
    return members.select("shard", "row", "id", "url").with_columns(
        cluster=numbers.gather(labels), kept=pl.Series(kept)
    )


def _part(step: Step, folders: Sequence[Path]) -> tuple[int, int]:
    """Which of how many parts this is: its shard's place among all."""
    return [folder.name for folder in folders].index(step.part or ""), len(folders)


@check(asset="deduplicated_text", blocking=True, of_shards="each")
def no_evaluation_leaked(
    deduplicated_text: list[Path], filtered_text: list[Path], eval_index: Path, filters: FilterConfig
) -> tuple[bool, Metadata]:
    """No document shares more 13-word n-grams with an evaluation question than the filter allows.

    A preset that takes its text as it is allows any number; how many documents share some is told.
    """
    if filters.max_eval_hits is None:
        decisions = pl.concat([read_table(folder / DECISIONS_FILE) for folder in filtered_text])
        return True, {"state": "measured only", "num_contaminated": int((decisions["num_eval_hits"] > 0).sum())}
    index = EvalIndex.load(eval_index / INDEX_FILE)
    hits = {
        document.url: count
        for folder in deduplicated_text
        for document in read_documents(folder)
        if (count := index.num_hits(document.text)) > filters.max_eval_hits
    }
    return not hits, {"num_contaminated": len(hits), "contaminated": table(["url", "hits"], list(hits.items())[:20])}


@check(asset="deduplicated_text", blocking=True, of_shards="each")
def no_document_is_an_evaluation_text(
    deduplicated_text: list[Path], eval_index: Path, filters: FilterConfig
) -> tuple[bool, Metadata]:
    """No document is, word for word, a whole text of an evaluation, however many shared n-grams are allowed.

    A preset that takes its text as it is only tells how many there are.
    """
    index = EvalIndex.load(eval_index / INDEX_FILE)
    copies = [
        [document.url, ", ".join(names)]
        for folder in deduplicated_text
        for document in read_documents(folder)
        if (names := index.copies(document.text))
    ]
    passed = not copies or filters.max_eval_hits is None
    return passed, {"num_copies": len(copies), "copies": table(["url", "evaluations"], copies[:20])}


@check(asset="deduplicated_text", blocking=True, of_shards="some")
def corpus_has_text(deduplicated_text: list[Path]) -> tuple[bool, Metadata]:
    """Something is left to train on."""
    num_bytes = sum(len(document.text) for folder in deduplicated_text for document in read_documents(folder))
    return num_bytes > 0, {"num_characters": num_bytes}
