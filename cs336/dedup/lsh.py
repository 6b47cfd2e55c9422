"""Locality-sensitive hashing: bands of signatures to candidate pairs, to clusters, to one survivor each.

A signature's rows are cut into bands; two documents that agree in all rows of a band are candidates. Of each
band only a 64-bit key is kept: should two keys ever collide, the pair only becomes a candidate.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from cs336.dedup import compiled

NO_KEY = np.uint64(0xFFFFFFFFFFFFFFFF)  # of a text without words

# Buckets up to this size are compared pair by pair, larger ones with one representative.
MAX_ALL_PAIRS = 8


def band_keys(signatures: NDArray[np.uint32], num_bands: int) -> NDArray[np.uint64]:
    """One key for each band of each signature: (num_bands, documents); NO_KEY for texts without words.

    Raises:
        ValueError: num_bands does not divide the signature's length.
    """
    num_hashes = signatures.shape[1]
    if num_bands < 1 or num_hashes % num_bands:
        raise ValueError(f"{num_hashes} hashes do not split into {num_bands} equal bands")
    compiled.warm_up()
    keys = np.empty((num_bands, len(signatures)), np.uint64)
    compiled.band_keys(np.ascontiguousarray(signatures), keys)
    return keys


def candidate_pairs(
    bands: Iterable[NDArray[np.uint64]], documents: Iterable[NDArray[np.uint64]] | None = None
) -> NDArray[np.int64]:
    """Pairs (i, j), i < j, of documents that share a bucket; sorted, each once: (pairs, 2).

    Work is capped: in a bucket of more than MAX_ALL_PAIRS documents, each is paired with the first
    document of the bucket and with its neighbour in it, not with all. A large bucket holds mostly copies of one
    text, where either link is enough; a pair missed in one band mostly meets again in another.

    Args:
        bands: the keys of all documents (at most 2^32) in each band, as `band_keys` gives them; one band is
            looked at at a time, in 16 bytes a document.
        documents: whose each key is, ascending where keys are equal, where bands do not hold all keys in order.
    """
    found = np.zeros(0, np.uint64)
    owners: Iterable[NDArray[np.uint64] | None] = itertools.repeat(None) if documents is None else documents
    for keys, numbers in zip(bands, owners, strict=False):
        found = np.union1d(found, _pairs_of_band(keys, numbers))
    return np.stack([found >> np.uint64(32), found & np.uint64(0xFFFFFFFF)], axis=1).astype(np.int64)


def clusters(pairs: NDArray[np.int64], num_documents: int) -> NDArray[np.int64]:
    """For each document the smallest index among all it is linked with, over any number of links."""
    compiled.warm_up()
    parents = np.arange(num_documents)
    lefts, rights = np.ascontiguousarray(pairs.T)
    compiled.link(parents, lefts, rights)
    return parents


def survivors(clusters: NDArray[np.int64], seed: int, keys: Sequence[str]) -> NDArray[np.bool_]:
    """True for one random document of each cluster, and for every document alone.

    The draw is the smallest hash of seed and key, so it depends neither on the documents' order nor on
    how the work was divided. Of equal keys the first document is taken. Keys of documents alone are not read.

    Raises:
        ValueError: not one key a document.
    """
    if len(clusters) != len(keys):
        raise ValueError(f"{len(clusters)} documents and {len(keys)} keys; need one key each")
    kept = np.ones(len(clusters), dtype=bool)
    members = np.flatnonzero(np.bincount(clusters, minlength=len(clusters))[clusters] > 1)
    salt = str(seed).encode()
    best: dict[int, tuple[bytes, int]] = {}
    for index, cluster in zip(members.tolist(), clusters[members].tolist(), strict=True):
        key = keys[index].encode("utf-8", "surrogatepass")
        draw = blake2b(key, digest_size=8, key=salt).digest(), index
        if cluster not in best or draw < best[cluster]:
            best[cluster] = draw
    kept[members] = False
    kept[[index for _, index in best.values()]] = True
    return kept


def _pairs_of_band(keys: NDArray[np.uint64], documents: NDArray[np.uint64] | None) -> NDArray[np.uint64]:
    """Pairs of one band, i above 32 bits and j below, in no order, some of them more than once."""
    if not len(keys):
        return np.zeros(0, np.uint64)
    order = np.argsort(keys, kind="stable")  # stable, so indices ascend inside a bucket
    ordered = keys[order]
    members = order.astype(np.uint64) if documents is None else documents[order]
    edges = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1], [True])))
    starts, sizes = edges[:-1], np.diff(edges)
    is_bucket = (sizes > 1) & (ordered[starts] != NO_KEY)
    starts, sizes = starts[is_bucket], sizes[is_bucket]
    found = [np.zeros(0, np.uint64)]
    for size in range(2, MAX_ALL_PAIRS + 1):
        first = starts[sizes == size]
        for left in range(size - 1):
            for right in range(left + 1, size):
                found.append(_codes(members[first + left], members[first + right]))
    starts, sizes = starts[sizes > MAX_ALL_PAIRS], sizes[sizes > MAX_ALL_PAIRS]
    # Every place in a large bucket but its first.
    first = np.repeat(starts, sizes - 1)
    place = first + 1 + np.arange(len(first)) - np.repeat(np.cumsum(sizes - 1) - (sizes - 1), sizes - 1)
    found += [_codes(members[first], members[place]), _codes(members[place - 1], members[place])]
    return np.concatenate(found)


def _codes(lefts: NDArray[np.uint64], rights: NDArray[np.uint64]) -> NDArray[np.uint64]:
    return (lefts << np.uint64(32)) | rights
