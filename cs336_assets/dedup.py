"""Repeated lines and near-identical documents, over the whole crawl."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from cs336.dedup.exact_lines import LineConfig, deduplicate_lines, line_hashes, repeated_hashes
from cs336.dedup.minhash import MinHashConfig, find_duplicates, signature_bands
from cs336.documents import DOCUMENTS_FILE, read_documents, read_table, write_documents
from cs336.files import read_json, replacing, write_json
from cs336.filters.decontaminate import EvalIndex
from cs336.filters.pipeline import FilterConfig
from cs336_assets.asset import Metadata, Step, asset, check
from cs336_assets.crawl import table
from cs336_assets.filters import DECISIONS_FILE, INDEX_FILE

HASHES_FILE = "repeated.npy"
BANDS_FILE = "bands.npy"
REMOVED_FILE = "removed.json"
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
        return {"state": OFF, "num_removed": 0}
    origins = pl.concat([_origins(folder) for folder in unique_lines])
    of_shard = [np.load(folder / BANDS_FILE, mmap_mode="r") for folder in minhash_signatures]
    found = find_duplicates(
        _Texts(unique_lines),
        origins["key"],
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


class _Texts(Sequence[str]):
    """The texts of all shards, one shard's in memory at a time: to be read in ascending order."""

    def __init__(self, folders: list[Path]) -> None:
        self._folders = folders
        counts = [pl.scan_parquet(folder / DOCUMENTS_FILE).select(pl.len()).collect().item() for folder in folders]
        self._ends = np.cumsum(counts)
        self._shard, self._texts = -1, pl.Series([""])

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, index: Any) -> Any:
        shard = int(np.searchsorted(self._ends, index, side="right"))
        if shard != self._shard:
            column = pl.scan_parquet(self._folders[shard] / DOCUMENTS_FILE).select("text").collect()["text"]
            self._shard, self._texts = shard, column
        return self._texts[int(index) - int(self._ends[shard]) + len(self._texts)]


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


def _save(path: Path, array: np.ndarray) -> None:
    with replacing(path) as file:
        np.save(file, array)
