"""Do Gopher's rules say the same with our words as with NLTK's?

NLTK's `word_tokenize(text, preserve_line=True)` needs no downloaded model. Its rules part the last
full stop of a text from its word, and no other.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from cs336.files import UserError
from cs336.filters.heuristics import GopherConfig, GopherMeasures, failing_rule, measure_gopher, measure_words


class Agreement(NamedTuple):
    """Verdicts on the same documents by two readings.

    Attributes:
        num_documents: how many.
        num_differing: how many are kept by one reading and dropped by the other.
        rules: how often each pair of verdicts was given, (with our words, with NLTK's); None is kept.
        relative_gaps: mean relative difference of the number of words, and of the mean word length.
    """

    num_documents: int
    num_differing: int
    rules: Counter[tuple[str | None, str | None]]
    relative_gaps: tuple[float, float]


# Instead of NLTK's sentence model, which would have to be downloaded.
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


def nltk_words(*, by_sentence: bool = False) -> Callable[[str], list[str]]:
    """NLTK's tokenizer, on a text as a whole or on one sentence after another.

    Raises:
        UserError: NLTK is not installed.
    """
    try:
        from nltk.tokenize import word_tokenize
    except ImportError:
        raise UserError("NLTK is not installed: pip install nltk") from None
    if by_sentence:
        return lambda text: [
            word for sentence in _SENTENCE_END.split(text) for word in word_tokenize(sentence, preserve_line=True)
        ]
    return lambda text: word_tokenize(text, preserve_line=True)


def compare_readings(texts: Iterable[str], words_of: Callable[[str], Sequence[str]], config: GopherConfig) -> Agreement:
    """Gopher's verdict on each text with our words and with others.

    Args:
        words_of: the other reading, such as `nltk_words()`.
        config: bounds, and which of our readings: see `GopherConfig.marks_are_words`.
    """
    rules: Counter[tuple[str | None, str | None]] = Counter()
    word_gap = length_gap = 0.0
    for text in texts:
        ours = measure_gopher(text, marks_are_words=config.marks_are_words)
        theirs = measure_words(text, words_of(text))
        rules[failing_rule(ours, config), failing_rule(theirs, config)] += 1
        word_gap += _gap(ours, theirs, "num_words")
        length_gap += _gap(ours, theirs, "mean_word_length")
    total = rules.total()
    differing = sum(count for (a, b), count in rules.items() if (a is None) != (b is None))
    return Agreement(total, differing, rules, (word_gap / max(1, total), length_gap / max(1, total)))


def _gap(ours: GopherMeasures, theirs: GopherMeasures, name: str) -> float:
    a, b = getattr(ours, name), getattr(theirs, name)
    return abs(a - b) / max(a, b, 1e-9)
