"""Locality-sensitive hashing: bands of signatures to candidate pairs, to clusters, to one survivor each.

A signature's rows are cut into bands; two documents that agree in all rows of a band are candidates.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from cs336.filters.ngrams import mix64

EMPTY = np.uint32(0xFFFFFFFF)  # every entry of the signature of a text without words

# Buckets up to this size are compared pair by pair, larger ones with one representative.
MAX_ALL_PAIRS = 8


def candidate_pairs(signatures: NDArray[np.uint32], num_bands: int) -> NDArray[np.int64]:
    """Pairs (i, j), i < j, of documents that share a bucket; sorted, each once: (pairs, 2).

    Work is capped: in a bucket of more than MAX_ALL_PAIRS documents, each is paired with the first
    document of the bucket and with its neighbour in it, not with all. A large bucket holds mostly copies of one
    text, where either link is enough; a pair missed in one band mostly meets again in another.

    Raises:
        ValueError: num_bands does not divide the signature's length.
    """
    num_hashes = signatures.shape[1]
    if num_bands < 1 or num_hashes % num_bands:
        raise ValueError(f"{num_hashes} hashes do not split into {num_bands} equal bands")
    documents = np.flatnonzero((signatures != EMPTY).any(axis=1))
    bands = signatures[documents].reshape(len(documents), num_bands, num_hashes // num_bands)
    found = [np.zeros((0, 2), dtype=np.int64)]
    for band in range(num_bands):
        for bucket in _buckets(bands[:, band]):
            found.append(_pairs_of(documents[bucket]))
    return np.unique(np.concatenate(found), axis=0)


def clusters(pairs: NDArray[np.int64], num_documents: int) -> NDArray[np.int64]:
    """For each document the smallest index among all it is linked with, over any number of links.

    Union-find: linking always hangs the larger root under the smaller.
    """
    parents = list(range(num_documents))

    def root(index: int) -> int:
        while parents[index] != index:
            parents[index] = parents[parents[index]]
            index = parents[index]
        return index

    for left, right in pairs.tolist():
        a, b = root(left), root(right)
        parents[max(a, b)] = min(a, b)
    return np.array([root(index) for index in range(num_documents)], dtype=np.int64)


def survivors(clusters: NDArray[np.int64], seed: int, keys: Sequence[str]) -> NDArray[np.bool_]:
    """True for one random document of each cluster, and for every document alone.

    The draw is the smallest hash of seed and key, so it depends neither on the documents' order nor on
    how the work was divided. Of equal keys the first document is taken.

    Raises:
        ValueError: not one key a document.
    """
    if len(clusters) != len(keys):
        raise ValueError(f"{len(clusters)} documents and {len(keys)} keys; need one key each")
    salt = str(seed).encode()
    draws = [blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8, key=salt).digest() for key in keys]
    best: dict[int, int] = {}
    for index, cluster in enumerate(clusters.tolist()):
        if cluster not in best or draws[index] < draws[best[cluster]]:
            best[cluster] = index
    kept = np.zeros(len(keys), dtype=bool)
    kept[list(best.values())] = True
    return kept


def _buckets(rows: NDArray[np.uint32]) -> Iterator[NDArray[np.int64]]:
    """Indices, ascending, of each group of two or more equal rows."""
    # One 64-bit key a row; should two rows ever collide, the pair only becomes a candidate.
    keys = np.zeros(len(rows), dtype=np.uint64)
    for column in rows.T:
        keys = mix64(keys + column)
    order = np.argsort(keys, kind="stable")  # stable, so indices ascend inside a group
    ordered = keys[order]
    edges = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1], [True])))
    for start, end in itertools.pairwise(edges.tolist()):
        if end - start > 1:
            yield order[start:end]


def _pairs_of(bucket: NDArray[np.int64]) -> NDArray[np.int64]:
    if len(bucket) <= MAX_ALL_PAIRS:
        return np.array(list(itertools.combinations(bucket.tolist(), 2)), dtype=np.int64)
    to_first = np.stack([np.full(len(bucket) - 1, bucket[0]), bucket[1:]], axis=1)
    to_neighbour = np.stack([bucket[:-1], bucket[1:]], axis=1)
    return np.concatenate([to_first, to_neighbour])
