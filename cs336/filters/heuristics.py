"""Gopher's rules: does a text look like prose at all?

Source: Rae et al. 2021, arXiv:2112.11446, appendix A.1.1; the subset of the CS336 data handout.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True, kw_only=True)
class GopherConfig:
    """Bounds of Gopher's rules; a text on a bound passes. All numbers: Gopher, appendix A.1.1.

    Attributes:
        marks_are_words: whether a punctuation mark is a word of its own, as under NLTK, or belongs to
            the word that it touches, as when words are what stands between spaces. NLTK's way is
            hard on prose with many marks: of 300 cleaned pages of C4, 10 % have too few alphabetic
            words its way and 0.3 % the other.
    """

    min_words: int = 50
    max_words: int = 100_000
    min_mean_word_length: float = 3.0  # characters
    max_mean_word_length: float = 10.0
    max_ellipsis_line_fraction: float = 0.3
    min_alphabetic_word_fraction: float = 0.8
    marks_are_words: bool = True


class GopherMeasures(NamedTuple):
    """What the rules look at.

    Attributes:
        num_words: with or without punctuation marks, as `measure_gopher` was asked.
        mean_word_length: characters; 0 for a text without words.
        ellipsis_line_fraction: of the lines that are not blank, how many end in "..." or "…".
        alphabetic_word_fraction: of the words, how many hold a letter.
    """

    num_words: int
    mean_word_length: float
    ellipsis_line_fraction: float
    alphabetic_word_fraction: float


def passes_gopher(text: str) -> bool:
    """True for a text to keep, by Gopher's own bounds."""
    config = GopherConfig()
    return failing_rule(measure_gopher(text, marks_are_words=config.marks_are_words), config) is None


def failing_rule(measures: GopherMeasures, config: GopherConfig) -> str | None:
    """Name of the first rule that rejects the text, None when it passes.

    In order: too_few_words, too_many_words, short_words, long_words, ellipsis_lines,
    few_alphabetic_words. A text without words fails the first.
    """
    words, length, ellipsis_lines, alphabetic = measures
    if words < max(1, config.min_words):
        return "too_few_words"
    if words > config.max_words:
        return "too_many_words"
    if length < config.min_mean_word_length:
        return "short_words"
    if length > config.max_mean_word_length:
        return "long_words"
    if ellipsis_lines > config.max_ellipsis_line_fraction:
        return "ellipsis_lines"
    if alphabetic < config.min_alphabetic_word_fraction:
        return "few_alphabetic_words"
    return None


def measure_gopher(text: str, *, marks_are_words: bool = True) -> GopherMeasures:
    """The four figures behind the rules; see `GopherConfig.marks_are_words`."""
    return measure_words(text, split_words(text) if marks_are_words else text.split())


def measure_words(text: str, words: Sequence[str]) -> GopherMeasures:
    """The figures for a text that somebody else has split into words."""
    lines = [line for line in map(str.rstrip, text.splitlines()) if line]
    if not words:
        return GopherMeasures(0, 0.0, 0.0, 0.0)
    mixed = [word for word in words if not word.isalpha()]
    num_alphabetic = len(words) - len(mixed) + sum(any(map(str.isalpha, word)) for word in mixed)
    return GopherMeasures(
        num_words=len(words),
        mean_word_length=sum(map(len, words)) / len(words),
        ellipsis_line_fraction=sum(line.endswith(("...", "…")) for line in lines) / len(lines),
        alphabetic_word_fraction=num_alphabetic / len(words),
    )


# Stands alone in NLTK's Treebank rules: brackets, quotes, ;@#$%&?!* and, outside numbers, , and :
_ALONE = r";@#$%&?!*\[\](){}<>\"“”„«»‘’`,:"
WORD_PART = rf"[^\s{_ALONE}.…'-]+"
_CONTRACTION = r"'(?:s|m|d|t|ll|re|ve)\b"
_WORDS = re.compile(
    rf"{WORD_PART}(?:(?:[.-]|[,:](?=[0-9])|'(?!(?:s|m|d|t|ll|re|ve)\b)){WORD_PART})*"
    rf"|{_CONTRACTION}|\.\.+|--|\S",
    re.IGNORECASE,
)


def split_words(text: str) -> list[str]:
    """Words and punctuation marks, close to NLTK's `word_tokenize` and much faster.

    Contractions come apart ("it", "'s"); hyphens, and dots inside a word, hold it together
    ("well-known", "e.g", "3.14", also "end.Next" where a space is missing). Differs from NLTK after
    abbreviations, whose final dot stands alone here.
    """
    return _WORDS.findall(text)
