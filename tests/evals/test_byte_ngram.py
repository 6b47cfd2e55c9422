"""The byte n-gram baseline: by hand, as a distribution, and against its definition read literally."""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict

import numpy as np
import pytest

from cs336.evals.byte_ngram import WittenBellByteModel

BOUNDARY = 256


def test_two_orders_by_hand():
    # Training "aab". Order 1: a twice, b once, two kinds: P1(a) = (2 + 2/256) / 5, P1(b) = (1 + 2/256) / 5,
    # others (2/256) / 5. After "a": a once, b once. After the boundary: a once. After "b": nothing seen.
    model = WittenBellByteModel(["aab"], max_order=2)
    p_a, p_b, p_other = (2 + 2 / 256) / 5, (1 + 2 / 256) / 5, (2 / 256) / 5
    expected = [
        (1 + p_a) / 2,  # a after the boundary
        (1 + 2 * p_b) / 4,  # b after a
        p_b,  # b after b: never seen after b, so order 1 answers
        p_other,  # c after b
    ]
    np.testing.assert_allclose(model.probabilities("abbc"), expected, rtol=1e-14)
    bits = -sum(map(math.log2, expected)) / 4
    assert model.bits_per_byte(["abbc"]) == pytest.approx(bits, rel=1e-14)
    assert model.bits_per_byte(["ab", "", "a"]) == pytest.approx(
        -math.log2(expected[0] * expected[1] * expected[0]) / 3, rel=1e-14
    )


def random_texts(num: int, *, seed: int) -> list[str]:
    generator = random.Random(seed)
    return ["".join(generator.choices("abcé \n", [5, 3, 2, 1, 3, 1], k=generator.randint(0, 60))) for _ in range(num)]


def test_probabilities_equal_the_definition_read_literally():
    training, held_out = random_texts(30, seed=1), [*random_texts(10, seed=2), "\x00ÿunseen"]
    counts: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
    for text in training:
        symbols = [BOUNDARY] * 4 + list(text.encode())
        for place in range(4, len(symbols)):
            for length in range(5):
                counts[tuple(symbols[place - length : place])][symbols[place]] += 1

    def probability(byte: int, history: tuple[int, ...]) -> float:
        shorter = probability(byte, history[1:]) if history else 1 / 256
        seen = counts.get(history, Counter())
        if not seen:
            return shorter
        return (seen[byte] + len(seen) * shorter) / (seen.total() + len(seen))

    model = WittenBellByteModel(training)
    for text in held_out:
        symbols = [BOUNDARY] * 4 + list(text.encode())
        expected = [probability(symbols[i], tuple(symbols[i - 4 : i])) for i in range(4, len(symbols))]
        np.testing.assert_allclose(model.probabilities(text), expected, rtol=1e-12)


@pytest.mark.parametrize("max_order", [1, 2, 5, 7])
@pytest.mark.parametrize("history", [b"", b"a", b"ab a", b"abcabc", b"\xff\x00\xff\x00\xff\x00\xff"])
def test_the_probabilities_of_all_256_bytes_sum_to_one(max_order: int, history: bytes):
    model = WittenBellByteModel(random_texts(20, seed=3), max_order=max_order)
    probabilities = model.next_byte_probabilities(history)
    assert probabilities.shape == (256,)
    assert (probabilities > 0).all()
    assert probabilities.sum() == pytest.approx(1, abs=1e-12)


def test_one_bytes_probability_is_that_of_the_distribution():
    model = WittenBellByteModel(random_texts(20, seed=4))
    text = "ab éc\n"
    encoded = text.encode()
    expected = [model.next_byte_probabilities(encoded[:i])[byte] for i, byte in enumerate(encoded)]
    np.testing.assert_allclose(model.probabilities(text), expected, rtol=1e-14)


def test_documents_stand_alone_and_their_order_does_not_count(monkeypatch: pytest.MonkeyPatch):
    texts = random_texts(40, seed=5)
    whole = WittenBellByteModel(texts).probabilities("abc a")
    monkeypatch.setattr("cs336.evals.byte_ngram._CHUNK_SYMBOLS", 100)  # many chunks, same counts
    assert np.array_equal(WittenBellByteModel(texts[::-1]).probabilities("abc a"), whole)
    joined = WittenBellByteModel(["".join(texts)]).probabilities("abc a")
    assert not np.array_equal(joined, whole)


def test_more_history_tells_more_about_repetitive_text():
    text = "the cat sat on the mat; " * 40
    bits = [WittenBellByteModel([text], max_order=order).bits_per_byte([text[:200]]) for order in (1, 2, 3, 5)]
    assert bits == sorted(bits, reverse=True) and bits[-1] < 0.5


def test_no_text_at_all_and_an_impossible_order_are_errors():
    with pytest.raises(ValueError, match="training texts hold no byte"):
        WittenBellByteModel(["", ""])
    with pytest.raises(ValueError, match="documents hold no byte"):
        WittenBellByteModel(["a"]).bits_per_byte([])
    with pytest.raises(ValueError, match="max_order 8"):
        WittenBellByteModel(["a"], max_order=8)
