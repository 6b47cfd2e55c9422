"""Near-duplicates by MinHash: signatures, candidates, exact confirmation, clusters, one survivor each.

Source: Broder 1997, "On the resemblance and containment of documents". A shingle is a word n-gram of
the normalized text. Its one base hash goes through num_hashes functions (a x h + b modulo 2^64, of
which the upper 32 bits: multiply-add-shift, Dietzfelbinger 1996); a signature holds the minimum of each.
What is computed stands plainly in `reference`; `shingles` and `compiled` do it fast.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from cs336.dedup import compiled
from cs336.dedup.exact_lines import output_targets
from cs336.dedup.lsh import band_keys, candidate_pairs, clusters, survivors
from cs336.dedup.shingles import shingle_sets, signatures_of
from cs336.progress import Progress, silent

_BLOCK_BYTES = 200_000_000  # of sets whose pairs are confirmed together: those of 128 MB of text


@dataclass(frozen=True, kw_only=True)
class MinHashConfig:
    """How near-duplicates are found.

    Attributes:
        enabled: without it every document stays.
        num_hashes, num_bands: a pair of Jaccard similarity s becomes a candidate with probability
            1 - (1 - s^r)^b, r = num_hashes / num_bands; 100 and 20 find 97.5 % at 0.7 and all at 0.8.
        ngrams: words in a shingle; 5 is FineWeb's choice (arXiv:2406.17557).
        jaccard_threshold: candidates at or above are duplicates; 0.8 is the handout's.
        seed: of the hash functions and of who survives.
    """

    enabled: bool = True
    num_hashes: int = 100
    num_bands: int = 20
    ngrams: int = 5
    jaccard_threshold: float = 0.8
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_hashes < 1 or self.num_bands < 1 or self.num_hashes % self.num_bands:
            raise ValueError(f"{self.num_hashes} hashes do not split into {self.num_bands} equal bands")
        if self.ngrams < 1:
            raise ValueError(f"n-grams need at least 1 word, got {self.ngrams}")
        if not 0 < self.jaccard_threshold <= 1:
            raise ValueError(f"the Jaccard threshold must be in (0, 1], got {self.jaccard_threshold}")


def minhash_deduplication(
    paths: Sequence[Path | str],
    num_hashes: int,
    num_bands: int,
    ngrams: int,
    jaccard_threshold: float,
    output_dir: Path | str,
    *,
    seed: int = 0,
) -> None:
    """Copy one file of each cluster of near-duplicates, and every other file, to `output_dir`.

    A file is a document. Kept files are byte-identical copies under their own names.

    Raises:
        ValueError: num_bands does not divide num_hashes, two inputs have one base name, or an output
            would overwrite its input.
    """
    config = MinHashConfig(
        num_hashes=num_hashes, num_bands=num_bands, ngrams=ngrams, jaccard_threshold=jaccard_threshold, seed=seed
    )
    sources = [Path(path) for path in paths]
    targets = output_targets(sources, Path(output_dir))
    texts = [path.read_text(encoding="utf-8", errors="replace") for path in sources]
    found = find_duplicates(texts, [path.name for path in sources], config)
    for source, target, kept in zip(sources, targets, found.kept.tolist(), strict=True):
        if kept:
            shutil.copyfile(source, target)


class Duplicates(NamedTuple):
    """What deduplication found.

    Attributes:
        kept: for each document, whether it survives.
        clusters: for each document, the smallest index of its cluster (its own when alone).
        num_candidates: pairs that agree in a band.
        num_confirmed: of those, at or above the Jaccard threshold.
    """

    kept: NDArray[np.bool_]
    clusters: NDArray[np.int64]
    num_candidates: int
    num_confirmed: int


def find_duplicates(
    texts: Sequence[str],
    keys: Sequence[str],
    config: MinHashConfig,
    *,
    bands: Iterable[NDArray[np.uint64]] | None = None,
    num_chars: NDArray[np.int64] | None = None,
    num_workers: int = 1,
    progress: Progress = silent,
) -> Duplicates:
    """Signatures, candidates, exact confirmation, clusters, and one survivor of each.

    Args:
        texts: the documents. Where `bands` and `num_chars` are given, only candidates are read, those of a
            block of pairs in ascending order.
        keys: a name for each, such as its id; decides, with the seed, who survives.
        bands: the band keys, as `signature_bands` gives them, when they were made before, shard by shard; they
            are used one band after the other, so they may come from disk. Else they are made here.
        num_chars: length of each text; else they are asked for theirs.
        num_workers: threads.

    Raises:
        ValueError: texts, keys and bands differ in number.
    """
    if bands is None:
        bands = signature_bands(texts, config, num_workers=num_workers, progress=progress)
    if len(texts) != len(keys):
        raise ValueError(f"{len(texts)} texts and {len(keys)} keys; need one each")
    candidates = candidate_pairs(_checked(bands, len(texts)))
    sets = TextSets(texts, config.ngrams, num_chars, num_workers)
    confirmed = confirm(candidates, sets, config.jaccard_threshold, progress=progress)
    labels = clusters(confirmed, len(texts))
    return Duplicates(survivors(labels, config.seed, keys), labels, len(candidates), len(confirmed))


def _checked(bands: Iterable[NDArray[np.uint64]], num_documents: int) -> Iterator[NDArray[np.uint64]]:
    for band in bands:
        if len(band) != num_documents:
            raise ValueError(f"{num_documents} texts, and a band with the keys of {len(band)}; need one each")
        yield band


def signature_bands(
    texts: Iterable[str], config: MinHashConfig, *, num_workers: int = 1, progress: Progress = silent
) -> NDArray[np.uint64]:
    """Band keys of the texts' signatures, all that finding candidates needs: (num_bands, documents).

    Signatures are not kept, so a document takes 8 bytes a band.
    """
    batches = _signature_batches(texts, config, num_workers=num_workers, progress=progress)
    found = [band_keys(rows, config.num_bands) for rows in batches]
    return np.concatenate([np.empty((config.num_bands, 0), np.uint64), *found], axis=1)


def signatures(
    texts: Iterable[str], config: MinHashConfig, *, num_workers: int = 1, progress: Progress = silent
) -> NDArray[np.uint32]:
    """One signature a text, in order: (documents, num_hashes).

    A text without words has EMPTY everywhere, and no candidates.

    Args:
        num_workers: threads; the signatures do not depend on it.
    """
    batches = _signature_batches(texts, config, num_workers=num_workers, progress=progress)
    return np.concatenate([np.empty((0, config.num_hashes), np.uint32), *batches])


def _signature_batches(
    texts: Iterable[str], config: MinHashConfig, *, num_workers: int, progress: Progress
) -> Iterator[NDArray[np.uint32]]:
    watched = progress(texts, unit="documents", label="minhash")
    return signatures_of(
        watched, n=config.ngrams, num_hashes=config.num_hashes, seed=config.seed, num_threads=num_workers
    )


class ShingleSets(Protocol):
    """The sets of shingles of numbered documents, which are asked for in ascending order."""

    def num_bytes(self, documents: NDArray[np.int64]) -> NDArray[np.int64]:
        """Memory that each document's set takes to read, about."""
        ...

    def read(self, documents: NDArray[np.int64]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        """Their sets, sorted, one after the other, and where each ends."""
        ...


@dataclass(frozen=True)
class TextSets:
    """Sets of shingles made of texts when they are asked for.

    Attributes:
        n: words in a shingle.
        num_chars: length of each text; else they are asked for theirs.
    """

    texts: Sequence[str]
    n: int
    num_chars: NDArray[np.int64] | None = None
    num_workers: int = 1

    def num_bytes(self, documents: NDArray[np.int64]) -> NDArray[np.int64]:
        if self.num_chars is not None:
            lengths = self.num_chars[documents]
        else:
            lengths = np.array([len(self.texts[index]) for index in documents.tolist()], np.int64)
        return lengths * 3 // 2

    def read(self, documents: NDArray[np.int64]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        return shingle_sets((self.texts[index] for index in documents.tolist()), self.n, num_threads=self.num_workers)


def confirm(
    pairs: NDArray[np.int64], sets: ShingleSets, jaccard_threshold: float, *, progress: Progress = silent
) -> NDArray[np.int64]:
    """Those pairs whose exact Jaccard similarity reaches the threshold.

    Exact up to shingles that collide in 64 bits. Sets are read block by block, so memory is bounded.
    """
    similarity = np.empty(len(pairs))
    for block in progress(_blocks(pairs, sets), unit="blocks", label="confirm"):
        similarity[block] = similarities(pairs[block], sets)
    return pairs[similarity >= jaccard_threshold]


def similarities(pairs: NDArray[np.int64], sets: ShingleSets) -> NDArray[np.float64]:
    """Jaccard similarity of the documents' sets, for each pair: shared over all; 0 where one is empty."""
    compiled.warm_up()
    documents, places = np.unique(pairs, return_inverse=True)
    lefts, rights = np.ascontiguousarray(places.reshape(-1, 2).T)
    similarity = np.empty(len(pairs))
    compiled.similarities(*sets.read(documents), lefts, rights, similarity)
    return similarity


def _blocks(pairs: NDArray[np.int64], sets: ShingleSets) -> list[NDArray[np.int64]]:
    """Numbers of pairs whose sets fit in memory together; pairs that hang together are in one block, so that hardly
    a set is read twice."""
    if not len(pairs):
        return []
    documents, places = np.unique(pairs, return_inverse=True)
    places = places.reshape(-1, 2)
    sizes = sets.num_bytes(documents)
    order = np.argsort(clusters(places, len(documents))[places[:, 0]], kind="stable")
    _, first = np.unique(places[order], return_index=True)  # where each document is read first
    bytes_read = np.zeros(places.size, np.int64)
    bytes_read[first] = sizes
    block = np.cumsum(bytes_read)[1::2] // _BLOCK_BYTES
    return np.split(order, np.flatnonzero(np.diff(block)) + 1)
