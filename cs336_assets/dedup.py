"""Repeated lines and near-identical documents, over the whole crawl."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from cs336.dedup.exact_lines import LineConfig, deduplicate_lines, line_hashes, repeated_hashes
from cs336.dedup.minhash import Duplicates, MinHashConfig, find_duplicates, signatures
from cs336.documents import read_documents, read_table, write_documents, write_table
from cs336.files import read_json, replacing, write_json
from cs336.filters.decontaminate import EvalIndex
from cs336.filters.pipeline import FilterConfig
from cs336_assets.asset import Metadata, Step, asset, check
from cs336_assets.crawl import table
from cs336_assets.filters import DECISIONS_FILE, INDEX_FILE

HASHES_FILE = "repeated.npy"
SIGNATURES_FILE = "signatures.npy"
REMOVED_FILE = "removed.json"
CLUSTERS_FILE = "clusters.parquet"
OFF = "off, by the preset"


@asset(group="dedup", kinds={"numpy"}, owner="team:data")
def repeated_lines(step: Step, filtered_text: list[Path], lines: LineConfig) -> Metadata:
    """Hashes of all lines that occur more than once in the whole crawl."""
    if not lines.enabled:
        _save(step.folder / HASHES_FILE, repeated_hashes([]))
        return {"state": OFF, "num_repeated": 0}
    hashes = [
        line_hashes(document.text)
        for folder in step.progress(filtered_text, unit="shards", label="count lines")
        for document in read_documents(folder)
    ]
    repeated = repeated_hashes(hashes)
    _save(step.folder / HASHES_FILE, repeated)
    return {"state": "on", "num_lines": sum(map(len, hashes)), "num_repeated": len(repeated)}


@asset(group="dedup", kinds={"polars"}, owner="team:data", per_shard=True)
def unique_lines(step: Step, filtered_text: Path, repeated_lines: Path, lines: LineConfig) -> Metadata:
    """The documents without repeated lines, all copies gone, the first included.

    Menus, footers and boilerplate go; a document left with too few words goes as a whole.
    """
    repeated = np.load(repeated_lines / HASHES_FILE)
    seen = characters = 0
    kept = []
    for document in read_documents(filtered_text):
        seen += 1
        characters += len(document.text)
        text = deduplicate_lines(document.text, repeated, lines)
        if text is not None:
            kept.append(document._replace(text=text))
    write_documents(step.folder, kept)
    left = sum(len(document.text) for document in kept)
    return {
        "num_seen": seen,
        "num_documents": len(kept),
        "num_characters": left,
        "share_of_characters_kept": round(left / max(1, characters), 4),
    }


@asset(group="dedup", kinds={"numpy"}, owner="team:data", per_shard=True)
def minhash_signatures(step: Step, unique_lines: Path, minhash: MinHashConfig) -> Metadata:
    """MinHash signature of every document's word n-grams."""
    if not minhash.enabled:
        _save(step.folder / SIGNATURES_FILE, signatures([], minhash))
        return {"state": OFF, "num_signatures": 0}
    texts = [document.text for document in read_documents(unique_lines)]
    rows = signatures(texts, minhash, num_workers=step.num_workers, progress=step.progress)
    _save(step.folder / SIGNATURES_FILE, rows)
    return {"state": "on", "num_signatures": len(rows), "num_hashes": minhash.num_hashes}


@asset(group="dedup", kinds={"numpy"}, owner="team:data")
def near_duplicates(
    step: Step, unique_lines: list[Path], minhash_signatures: list[Path], minhash: MinHashConfig
) -> Metadata:
    """Clusters of near-identical documents, and which member of each survives.

    Candidates share a band of their signatures; the exact Jaccard similarity of their n-grams
    confirms them; clusters are transitive; one random member stays.
    """
    if not minhash.enabled:
        write_json(step.folder / REMOVED_FILE, {folder.name: [] for folder in unique_lines})
        return {"state": OFF, "num_removed": 0}
    documents = [(folder.name, document) for folder in unique_lines for document in read_documents(folder)]
    found = find_duplicates(
        [document.text for _, document in documents],
        [f"{document.warc} {document.offset} {document.id}" for _, document in documents],
        minhash,
        document_signatures=np.concatenate([np.load(folder / SIGNATURES_FILE) for folder in minhash_signatures]),
        progress=step.progress,
    )
    removed: dict[str, list[str]] = {folder.name: [] for folder in unique_lines}
    for (shard, document), kept in zip(documents, found.kept, strict=True):
        if not kept:
            removed[shard].append(document.id)
    write_json(step.folder / REMOVED_FILE, removed)
    origins = pl.DataFrame(
        [(shard, each.id, each.url) for shard, each in documents], schema=["shard", "id", "url"], orient="row"
    )
    write_table(step.folder / CLUSTERS_FILE, cluster_table(origins, found))
    largest = np.bincount(found.clusters) if len(found.clusters) else np.zeros(1, dtype=int)
    return {
        "state": "on",
        "num_documents": len(documents),
        "num_candidates": found.num_candidates,
        "num_confirmed": found.num_confirmed,
        "num_removed": sum(map(len, removed.values())),
        "largest_clusters": table(
            ["documents", "one of them"],
            [[int(largest[i]), documents[i][1].url] for i in np.argsort(-largest)[:10] if largest[i] > 1],
        ),
    }


@asset(group="dedup", kinds={"polars"}, owner="team:data", per_shard=True)
def deduplicated_text(step: Step, unique_lines: Path, near_duplicates: Path) -> Metadata:
    """The corpus: what is trained on, one document a row."""
    removed = set(read_json(near_duplicates / REMOVED_FILE)[unique_lines.name])
    kept = [document for document in read_documents(unique_lines) if document.id not in removed]
    write_documents(step.folder, kept)
    return {
        "num_documents": len(kept),
        "num_removed": len(removed),
        "num_bytes": sum(len(document.text.encode()) for document in kept),
    }


@check(asset="deduplicated_text", blocking=True)
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


@check(asset="deduplicated_text", blocking=True)
def corpus_has_text(deduplicated_text: list[Path]) -> tuple[bool, Metadata]:
    """Something is left to train on."""
    num_bytes = sum(len(document.text) for folder in deduplicated_text for document in read_documents(folder))
    return num_bytes > 0, {"num_characters": num_bytes}


def cluster_table(origins: pl.DataFrame, found: Duplicates) -> pl.DataFrame:
    """The members of every cluster of two or more: which each is, in which cluster, and whether it stays."""
    members = origins.select("shard", "id", "url").with_columns(
        cluster=pl.Series(found.clusters, dtype=pl.Int64), kept=pl.Series(found.kept, dtype=pl.Boolean)
    )
    return members.filter(pl.len().over("cluster") > 1)


def _save(path: Path, array: np.ndarray) -> None:
    with replacing(path) as file:
        np.save(file, array)
