"""fastText classifiers: open a model file once, then label single texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cs336.files import UserError

PREFIX = "__label__"


class Classifier:
    """A supervised fastText model, read from its file.

    fastText models cannot be pickled: each process opens its own.

    Raises:
        UserError: the file is missing, or is not a fastText model.
    """

    def __init__(self, path: Path) -> None:
        import fasttext

        if not path.is_file():
            raise UserError(f"{path}: no such model file; fetch it, or leave the model out")
        try:
            self._model: Any = fasttext.load_model(str(path))
        except Exception as error:  # the C++ side raises ValueError, RuntimeError or MemoryError
            raise UserError(f"{path}: not a fastText model ({error}); delete it and fetch it again") from error
        self.labels = tuple(sorted(label.removeprefix(PREFIX) for label in self._model.get_labels()))

    def predict(self, text: str) -> tuple[str, float]:
        """The most probable label and its probability in (0, 1]; ("unknown", 1e-6) where fastText has no opinion."""
        labels, probabilities = self._model.predict(one_line(text))
        if not labels:
            return "unknown", 1e-6
        return labels[0].removeprefix(PREFIX), clamp(probabilities[0])

    def probability(self, text: str, label: str) -> float:
        """Probability of one label, in (0, 1]; 1e-6 where fastText has no opinion."""
        labels, probabilities = self._model.predict(one_line(text), k=len(self.labels))
        found = dict(zip(labels, probabilities, strict=True))
        return clamp(found.get(PREFIX + label, 0.0))


def clamp(probability: float) -> float:
    """A built-in float in (0, 1]: fastText rounds a sure label up to 1.00001 and an excluded one down to 0."""
    return min(1.0, max(1e-6, float(probability)))


def one_line(text: str) -> str:
    """The text with every line break turned into a space: fastText rejects them.

    Lone surrogates, which have no UTF-8 form, become question marks.
    """
    line = " ".join(text.splitlines())
    try:
        line.encode()
    except UnicodeEncodeError:
        return line.encode(errors="replace").decode()
    return line
