"""Repeated lines and near-identical documents, over the whole crawl."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import cast

import numpy as np
import polars as pl

from cs336.dedup.exact_lines import LineConfig, deduplicate_lines, line_hashes
from cs336.dedup.minhash import Duplicates, MinHashConfig, find_duplicates, signature_bands
from cs336.dedup.reference import jaccard
from cs336.dedup.repeated import RepeatedHashes, SortedHashes, write_sorted
from cs336.documents import DOCUMENTS_FILE, Texts, read_documents, read_table, write_documents, write_table
from cs336.files import read_json, replacing, write_json
from cs336.filters.decontaminate import EvalIndex
from cs336.filters.pipeline import FilterConfig
from cs336_assets.asset import Metadata, Step, asset, check
from cs336_assets.crawl import table
from cs336_assets.filters import DECISIONS_FILE, INDEX_FILE

HASHES_FILE = "repeated.u64"
BANDS_FILE = "bands.npy"
REMOVED_FILE = "removed.json"
CLUSTERS_FILE = "clusters.parquet"
CLUSTERS = {
    "cluster": pl.Int64,
    "shard": pl.String,
    "id": pl.String,
    "url": pl.String,
    "kept": pl.Boolean,
    "similarity": pl.Float64,  # Jaccard, with the one that stays; below the threshold where others link the two
}
MEASURED_MEMBERS = 20_000  # of clusters, whose similarity is measured for whoever asks
OFF = "off, by the preset"


@asset(group="dedup", kinds={"numpy"}, owner="team:data")
def repeated_lines(step: Step, filtered_text: list[Path], lines: LineConfig) -> Metadata:
    """Hashes of all lines that occur more than once in the whole crawl.

    What outgrows the memory that the preset gives it goes to disk, and is counted one range of hashes at a time.
    """
    if not lines.enabled:
        write_sorted(step.folder / HASHES_FILE, iter([]))
        return {"state": OFF, "num_repeated": 0}
    num_lines = 0
    with tempfile.TemporaryDirectory(prefix=".ranges-", dir=step.folder) as ranges:
        counts = RepeatedHashes(Path(ranges), lines.memory_bytes)
        for folder in step.progress(filtered_text, unit="shards", label="count lines"):
            of_shard = [line_hashes(document.text) for document in read_documents(folder)]
            num_lines += sum(map(len, of_shard))
            counts.add(np.concatenate([np.zeros(0, np.uint64), *of_shard]))
        num_repeated = write_sorted(step.folder / HASHES_FILE, counts.repeated())
    return {"state": "on", "num_lines": num_lines, "num_repeated": num_repeated}


@asset(group="dedup", kinds={"polars"}, owner="team:data", per_shard=True)
def unique_lines(step: Step, filtered_text: Path, repeated_lines: Path, lines: LineConfig) -> Metadata:
    """The documents without repeated lines, all copies gone, the first included.

    Menus, footers and boilerplate go; a document left with too few words goes as a whole.
    """
    documents = list(read_documents(filtered_text))
    characters = sum(len(document.text) for document in documents)
    repeated = SortedHashes(repeated_lines / HASHES_FILE, lines.memory_bytes)
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
    """MinHash signature of every document's word n-grams, as one key for each of its bands."""
    if not minhash.enabled:
        _save(step.folder / BANDS_FILE, signature_bands([], minhash))
        return {"state": OFF, "num_signatures": 0}
    texts = (document.text for document in read_documents(unique_lines))
    bands = signature_bands(texts, minhash, num_workers=step.num_workers, progress=step.progress)
    _save(step.folder / BANDS_FILE, bands)
    return {"state": "on", "num_signatures": bands.shape[1], "num_hashes": minhash.num_hashes}


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
        write_table(step.folder / CLUSTERS_FILE, pl.DataFrame(schema=CLUSTERS))
        return {"state": OFF, "num_removed": 0}
    origins = pl.concat([_origins(folder) for folder in unique_lines])
    of_shard = [np.load(folder / BANDS_FILE, mmap_mode="r") for folder in minhash_signatures]
    found = find_duplicates(
        Texts(unique_lines),
        cast("list[str]", origins["key"]),  # read one by one, those of clusters only
        minhash,
        # One band is in memory at a time, and texts are read only of candidates.
        bands=(np.concatenate([keys[band] for keys in of_shard]) for band in range(minhash.num_bands)),
        num_chars=origins["num_chars"].to_numpy(),
        num_workers=step.num_workers,
        progress=step.progress,
    )
    gone = origins.filter(pl.Series(~found.kept))
    removed: dict[str, list[str]] = {folder.name: [] for folder in unique_lines}
    for shard, document in gone.select("shard", "id").iter_rows():
        removed[shard].append(document)
    write_json(step.folder / REMOVED_FILE, removed)
    write_table(step.folder / CLUSTERS_FILE, _clusters(origins, Texts(unique_lines), found, minhash.ngrams))
    largest = np.bincount(found.clusters) if len(found.clusters) else np.zeros(1, dtype=int)
    return {
        "state": "on",
        "num_documents": len(origins),
        "num_candidates": found.num_candidates,
        "num_confirmed": found.num_confirmed,
        "num_removed": len(gone),
        "largest_clusters": table(
            ["documents", "one of them"],
            [[int(largest[i]), origins["url"][int(i)]] for i in np.argsort(-largest)[:10] if largest[i] > 1],
        ),
    }


def _origins(folder: Path) -> pl.DataFrame:
    """Of each document of a shard: where it is from, the key that draws the survivor, the length of its text."""
    key = pl.format("{} {} {}", "warc", "offset", "id").alias("key")
    num_chars = pl.col("text").str.len_chars().cast(pl.Int64).alias("num_chars")
    documents = pl.scan_parquet(folder / DOCUMENTS_FILE)
    return documents.select(pl.lit(folder.name).alias("shard"), "id", "url", key, num_chars).collect()


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


@check(asset="deduplicated_text", blocking=True)
def corpus_has_text(deduplicated_text: list[Path]) -> tuple[bool, Metadata]:
    """Something is left to train on."""
    num_bytes = sum(len(document.text) for folder in deduplicated_text for document in read_documents(folder))
    return num_bytes > 0, {"num_characters": num_bytes}


def _clusters(origins: pl.DataFrame, texts: Texts, found: Duplicates, ngrams: int) -> pl.DataFrame:
    """The members of every cluster of two or more, and how near each is to the one that stays, if there are not
    too many to measure."""
    sizes = np.bincount(found.clusters, minlength=len(origins))
    members = np.flatnonzero(sizes[found.clusters] > 1) if len(origins) else np.zeros(0, dtype=int)
    similarity: list[float | None] = [None] * len(members)
    if len(members) <= MEASURED_MEMBERS:
        text_of = {i: texts[i] for i in members.tolist()}  # in ascending order: each shard is read once
        survivor = {int(found.clusters[i]): i for i in text_of if found.kept[i]}
        similarity = [jaccard(text, text_of[survivor[int(found.clusters[i])]], ngrams) for i, text in text_of.items()]
    return origins[members].select(
        pl.Series("cluster", found.clusters[members], pl.Int64),
        "shard",
        "id",
        "url",
        pl.Series("kept", found.kept[members], pl.Boolean),
        pl.Series("similarity", similarity, pl.Float64),
    )


def _save(path: Path, array: np.ndarray) -> None:
    with replacing(path) as file:
        np.save(file, array)
