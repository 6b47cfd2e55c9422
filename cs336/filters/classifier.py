"""fastText classifiers: open a model file once, then label single texts."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cs336.files import UserError
from cs336.filters.fasttext_model import FastTextModel

PREFIX = "__label__"


class Classifier:
    """A supervised fastText model, read from its file.

    Line breaks of a text are spaces to it, and lone surrogates question marks.

    Attributes:
        labels: sorted, without fastText's prefix.

    Raises:
        UserError: the file is missing, or is not a fastText model.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise UserError(f"{path}: no such model file; fetch it, or leave the model out")
        try:
            self._model = FastTextModel(path)
        except (ValueError, OSError, MemoryError) as error:
            raise UserError(f"{path}: not a fastText model ({error}); delete it and fetch it again") from error
        self._labels = [label.removeprefix(PREFIX) for label in self._model.labels]
        self.labels = tuple(sorted(self._labels))

    def predict(self, text: str) -> tuple[str, float]:
        """The most probable label and its probability in (0, 1]; ("unknown", 1e-6) where fastText has no opinion."""
        scores = self._model.log_probabilities(text)
        if scores is None:
            return "unknown", 1e-6
        best = int(scores.argmax())
        return self._labels[best], clamp(np.exp(scores[best]))

    def probability(self, text: str, label: str) -> float:
        """Probability of one label, in (0, 1]; 1e-6 where fastText has no opinion."""
        scores = self._model.log_probabilities(text)
        if scores is None or label not in self._labels:
            return clamp(0.0)
        return clamp(np.exp(scores[self._labels.index(label)]))


def clamp(probability: float) -> float:
    """A built-in float in (0, 1]: fastText rounds a sure label up to 1.00001 and an excluded one down to 0."""
    return min(1.0, max(1e-6, float(probability)))
