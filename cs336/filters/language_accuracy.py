"""How often a detector names the right language, by language and by length of the text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from cs336.filters.language import LanguageModel
from cs336.progress import Progress, silent

RUN_LENGTHS = (1, 5, 20)  # sentences: one alone, a paragraph, a short page
# Written Norwegian has two norms, which some detectors tell apart and others call by one name.
_SAME = {"nb": ("nb", "no"), "nn": ("nn", "no")}


class LanguageScore(NamedTuple):
    """How a detector did on the texts of one language and length.

    Attributes:
        language: ISO 639-1 code.
        num_sentences: in each text.
        num_texts: how many texts.
        num_right: how many were given their own language, at any confidence.
        num_english: how many passed for English at the threshold: of English texts the share kept,
            of others the share let through.
    """

    language: str
    num_sentences: int
    num_texts: int
    num_right: int
    num_english: int


def language_scores(
    sentences: Mapping[str, Sequence[str]],
    model: LanguageModel,
    *,
    min_confidence: float,
    lengths: Sequence[int] = RUN_LENGTHS,
    progress: Progress = silent,
) -> Iterator[LanguageScore]:
    """Score a detector on labelled sentences, alone and joined in runs, language by language.

    A run's sentences are neighbours in the list, joined by line feeds; those left over are dropped.
    """
    for language, texts in progress(sentences.items(), unit="languages", label=model.name):
        right = _SAME.get(language, (language,))
        for length in lengths:
            runs = ["\n".join(texts[i : i + length]) for i in range(0, len(texts) - length + 1, length)]
            found = [model.identify(run) for run in runs]
            yield LanguageScore(
                language,
                length,
                len(runs),
                sum(code in right for code, _ in found),
                sum(code == "en" and confidence >= min_confidence for code, confidence in found),
            )


def known_languages(model: LanguageModel) -> frozenset[str]:
    """Codes that a detector can answer with."""
    if model.labels is not None:
        return frozenset(model.labels)
    from resiliparse.parse.lang import supported_langs

    return frozenset(supported_langs())


def sum_scores(scores: Sequence[LanguageScore], name: str = "all") -> LanguageScore:
    """Several languages' scores of one length as one.

    Raises:
        ValueError: no scores, or of several lengths.
    """
    lengths = {score.num_sentences for score in scores}
    if len(lengths) != 1:
        raise ValueError(f"scores of {sorted(lengths)} sentences; sum those of one length")
    columns = list(zip(*(score[2:] for score in scores), strict=True))
    return LanguageScore(name, lengths.pop(), *map(sum, columns))
