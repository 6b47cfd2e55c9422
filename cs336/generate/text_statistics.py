"""How repetitive and how varied generated texts are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class TextStatistics(NamedTuple):
    """Means over some texts.

    Attributes:
        new_bigrams: distinct word pairs over all word pairs of a text (distinct-2, Li et al. 2016,
            arXiv:1510.03055); 1 for texts of fewer than two words.
        repeated_4grams: share of a text's four-word sequences that stood in it before.
        words: words of a text.
    """

    new_bigrams: float
    repeated_4grams: float
    words: float


def text_statistics(texts: Sequence[str]) -> TextStatistics:
    """Statistics of texts, words being what white space separates.

    Raises:
        ValueError: no texts.
    """
    if not texts:
        raise ValueError("no texts to describe")
    split = [text.split() for text in texts]
    return TextStatistics(
        new_bigrams=_mean([_distinct(words, 2) for words in split]),
        repeated_4grams=_mean([1 - _distinct(words, 4) for words in split]),
        words=_mean([float(len(words)) for words in split]),
    )


def _distinct(words: list[str], n: int) -> float:
    sequences = list(zip(*(words[start:] for start in range(n)), strict=False))
    return len(set(sequences)) / len(sequences) if sequences else 1.0


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
