"""Counting right answers by language and length."""

import pytest

from cs336.filters.language import LanguageModel
from cs336.filters.language_accuracy import LanguageScore, known_languages, language_scores, sum_scores


class Echo(LanguageModel):
    """Answers with the first word of a text, and is as sure as the text is long."""

    def identify(self, text: str) -> tuple[str, float]:
        return text.split()[0], min(1.0, len(text) / 10)


def test_runs_are_joined_and_counted_by_hand():
    sentences = {"en": ["en a", "de b", "en ccccccc"], "nb": ["no x", "nn y"]}
    scores = list(language_scores(sentences, Echo(), min_confidence=0.65, lengths=(1, 2)))
    assert scores == [
        LanguageScore("en", 1, 3, 2, 1),  # two named English, one of them surely
        LanguageScore("en", 2, 1, 1, 1),  # "en a\nde b" is sure; the third sentence is left over
        LanguageScore("nb", 1, 2, 1, 0),  # "no" is Norwegian as well, "nn" the other norm
        LanguageScore("nb", 2, 1, 1, 0),
    ]
    assert sum_scores([scores[0], scores[2]]) == LanguageScore("all", 1, 5, 3, 1)
    with pytest.raises(ValueError, match="one length"):
        sum_scores(scores)


def test_the_built_in_detector_knows_its_languages():
    known = known_languages(LanguageModel())
    assert {"en", "de", "zh"} <= known
    assert "am" not in known
