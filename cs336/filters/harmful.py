"""Not-safe-for-work and toxic text, by Dolma's two fastText models or, for toxic text, one trained here."""

from __future__ import annotations

import filecmp
from pathlib import Path

from cs336.files import UserError
from cs336.filters.classifier import Classifier
from cs336.filters.toxicity import ToxicityModel


class HarmfulModels:
    """The two Dolma classifiers; where one is absent, its filter is off, never a silent pass.

    Args:
        nsfw: Dolma's `jigsaw_fasttext_bigrams_nsfw_final.bin`, with the labels nsfw and non-nsfw.
        toxic: Dolma's `jigsaw_fasttext_bigrams_hatespeech_final.bin`, with toxic and non-toxic.
        own_toxic: a model that `cs336.filters.toxicity` trained; taken where `toxic` is None.

    Raises:
        UserError: a file is missing, is no fastText model, lacks its label, or both are one file
            (two repositories that publish them once served the same one).
    """

    def __init__(self, nsfw: Path | None = None, toxic: Path | None = None, own_toxic: Path | None = None) -> None:
        present = [path for path in (nsfw, toxic) if path is not None and path.is_file()]
        if len(present) == 2 and filecmp.cmp(present[0], present[1], shallow=False):
            raise UserError(f"{nsfw} and {toxic} are the same file; fetch both from the dolma-artifacts host")
        self._nsfw = None if nsfw is None else _open(nsfw, "nsfw")
        self._toxic = None if toxic is None else _open(toxic, "toxic")
        self._own_toxic = None if own_toxic is None or toxic is not None else ToxicityModel(own_toxic)

    def nsfw(self, text: str) -> tuple[str, float] | None:
        """("nsfw" or "non-nsfw", confidence in (0, 1]); None without a model."""
        return None if self._nsfw is None else _classify(self._nsfw, text, "nsfw")

    def toxic(self, text: str) -> tuple[str, float] | None:
        """("toxic" or "non-toxic", confidence in (0, 1]); None without a model."""
        if self._own_toxic is not None:
            return self._own_toxic.classify(text)
        return None if self._toxic is None else _classify(self._toxic, text, "toxic")


def harm_score(verdict: tuple[str, float] | None) -> float | None:
    """Confidence of the harmful label itself, whichever label won: 0.02 for ("non-toxic", 0.98)."""
    if verdict is None:
        return None
    label, confidence = verdict
    return 1.0 - confidence if label.startswith("non-") else confidence


def _open(path: Path, label: str) -> Classifier:
    classifier = Classifier(path)
    if label not in classifier.labels:
        raise UserError(f"{path}: its labels are {', '.join(classifier.labels)}, not {label}; it is another model")
    return classifier


def _classify(classifier: Classifier, text: str, label: str) -> tuple[str, float]:
    found, confidence = classifier.predict(text)
    # Whatever the other label is called, and when the model knows no word of the text.
    return (label, confidence) if found == label else (f"non-{label}", confidence)
