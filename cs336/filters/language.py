"""Which language a text is in, and how sure that is."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from cs336.filters.classifier import Classifier

# Maximum-likelihood fit of 1 - exp(-SHARPNESS x margin) to "the best language is the right one", over
# single sentences and joined runs of 5 and 20 in 63 languages of Lingua's test set (it gave 52).
# At 0.65 a run of 5 English sentences always passes, a single one in 82 % of cases, and 1.1 % of
# single sentences in other languages pass for English (none of the runs).
SHARPNESS = 50.0


class LanguageModel:
    """Language identification with fastText's lid.176, or with resiliparse's built-in detector.

    Attributes:
        name: "lid.176" or "resiliparse".
        labels: codes of the fastText model; None for resiliparse's detector.

    Args:
        path: `lid.176.bin` or the compressed `lid.176.ftz`; None takes resiliparse's detector,
            which needs no file.

    Raises:
        UserError: the file is missing or not a fastText model.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._classifier = None if path is None else Classifier(path)
        self.labels = None if self._classifier is None else self._classifier.labels
        self.name = "resiliparse" if path is None else "lid.176"

    def identify(self, text: str) -> tuple[str, float]:
        """Language code ("en"; "zh" for Chinese in either script) and confidence in (0, 1].

        A text in which neither detector finds a word gives ("unknown", a confidence near 0).
        """
        if self._classifier is not None:
            return self._classifier.predict(text)
        return identify_by_rank(text)


def identify_by_rank(text: str) -> tuple[str, float]:
    """resiliparse's detector with a confidence made of its ranks.

    The detector gives each language an out-of-place rank, a distance that shrinks as texts grow, so
    a rank says little alone. The confidence is `1 - exp(-SHARPNESS x margin)`, where the margin is
    the second language's rank over the first one's, minus one: near 0 for a tie, near 1 for a clear
    lead. It estimates the chance that the first language is right.
    """
    from resiliparse.parse.lang import detect_fast

    if not any(map(str.isalpha, text)):
        return "unknown", 1e-6  # the detector would still name the closest language
    # The cutoff only hides languages; without it a short sentence would have no second language.
    ranks: Any = detect_fast(text, n_results=2, cutoff=1_000_000)
    (language, best), (_, second) = ranks
    margin = second / max(1, best) - 1
    return language, max(1e-6, 1 - math.exp(-SHARPNESS * margin))
