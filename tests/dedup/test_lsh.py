"""Bands, clusters, survivors."""

import itertools
import random
from collections import Counter

import numpy as np
import pytest

from cs336.dedup.lsh import MAX_ALL_PAIRS, NO_KEY, band_keys, candidate_pairs, clusters, survivors
from cs336.dedup.reference import EMPTY, band_key


def pairs_of(signatures: np.ndarray, num_bands: int) -> np.ndarray:
    return candidate_pairs(band_keys(signatures, num_bands))


def test_documents_that_agree_in_one_whole_band_are_candidates():
    signatures = np.array(
        [
            [1, 2, 3, 4],
            [1, 2, 9, 9],  # band 0 of document 0
            [1, 8, 3, 4],  # band 1 of document 0; half of band 0 is not enough
            [3, 4, 1, 2],  # the bands of document 0, but in other places
            [7, 7, 9, 9],  # band 1 of document 1
        ],
        dtype=np.uint32,
    )
    assert pairs_of(signatures, 2).tolist() == [[0, 1], [0, 2], [1, 4]]


def test_keys_are_those_of_the_plain_version():
    signatures = np.random.default_rng(3).integers(0, 2**32 - 1, size=(5, 12), dtype=np.uint32)
    signatures[2] = EMPTY
    expected = [[band_key(row[band : band + 4]) for row in signatures] for band in (0, 4, 8)]
    assert band_keys(signatures, 3).tolist() == expected
    assert expected[0][2] == NO_KEY


def test_empty_documents_never_match():
    signatures = np.full((3, 4), EMPTY, dtype=np.uint32)
    assert pairs_of(signatures, 2).shape == (0, 2)
    assert pairs_of(signatures[:0], 2).shape == (0, 2)


def test_small_buckets_are_compared_pair_by_pair_as_all_pairs_would():
    generator = np.random.default_rng(0)
    signatures = generator.integers(0, 12, size=(60, 6), dtype=np.uint32)
    expected = [
        [i, j]
        for i, j in itertools.combinations(range(60), 2)
        if any((signatures[i, band : band + 2] == signatures[j, band : band + 2]).all() for band in (0, 2, 4))
    ]
    assert max(Counter(map(tuple, signatures[:, :2].tolist())).values()) <= MAX_ALL_PAIRS
    assert pairs_of(signatures, 3).tolist() == expected


def test_the_work_in_a_large_bucket_is_capped_and_still_links_all_of_it():
    pairs = pairs_of(np.zeros((1000, 4), dtype=np.uint32), 2)
    assert len(pairs) < 2 * 1000
    assert (clusters(pairs, 1000) == 0).all()


def test_large_buckets_are_linked_by_a_star_and_a_chain():
    keys = np.array([7] + [5] * 9 + [7] + [1] * 10, np.uint64)
    expected = {(0, 10)}
    for members in (range(1, 10), range(11, 21)):
        expected |= {(members[0], member) for member in members[1:]} | set(itertools.pairwise(members))
    assert set(map(tuple, candidate_pairs([keys]).tolist())) == expected


def test_bands_must_divide_the_signature():
    with pytest.raises(ValueError, match="10 hashes"):
        band_keys(np.zeros((2, 10), dtype=np.uint32), 3)


def test_clusters_are_transitive_and_named_by_their_first_member():
    pairs = np.array([[1, 4], [4, 5], [2, 3], [0, 5]])
    assert clusters(pairs, 7).tolist() == [0, 0, 2, 2, 0, 0, 6]
    assert clusters(np.zeros((0, 2), dtype=np.int64), 2).tolist() == [0, 1]


def test_clusters_agree_with_spreading_labels_until_nothing_changes():
    generator = random.Random(1)
    pairs = np.array([sorted(generator.sample(range(80), 2)) for _ in range(60)])
    labels, before = list(range(80)), [-1]
    while labels != before:
        before = list(labels)
        for i, j in pairs.tolist():
            labels[i] = labels[j] = min(labels[i], labels[j])
    assert clusters(pairs, 80).tolist() == labels


def test_one_member_of_each_cluster_survives_whatever_the_order():
    labels = np.array([0, 0, 0, 3, 4, 4])
    keys = list("abcdef")
    kept = survivors(labels, 0, keys)
    assert Counter(labels[kept].tolist()) == {0: 1, 3: 1, 4: 1}
    order = [5, 2, 0, 3, 1, 4]
    shuffled = survivors(np.array([0, 1, 1, 3, 1, 0]), 0, [keys[index] for index in order])
    assert {keys[order[index]] for index in np.flatnonzero(shuffled)} == {keys[index] for index in np.flatnonzero(kept)}


def test_the_survivor_is_drawn_evenly_and_by_the_seed():
    draws = Counter(int(np.flatnonzero(survivors(np.zeros(4, int), seed, list("abcd")))[0]) for seed in range(400))
    assert set(draws) == {0, 1, 2, 3}
    assert min(draws.values()) > 65  # 100 expected, standard deviation 8.7


def test_every_document_needs_a_key():
    with pytest.raises(ValueError, match="2 documents and 1 keys"):
        survivors(np.zeros(2, dtype=np.int64), 0, ["a"])
