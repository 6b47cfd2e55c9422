"""Precision and recall of the PII patterns on labelled sentences."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from cs336.filters.labelled import PiiSentence
from cs336.filters.pii import EMAIL, IP, PHONE, find_pii

KINDS = {EMAIL: "EMAIL_ADDRESS", IP: "IP_ADDRESS", PHONE: "PHONE_NUMBER"}
# What the handout asks for, told from the digits alone: ten of a US number, or eleven with its 1 (001
# from abroad), in brackets or 3-3-4; extensions apart. IPv6 is not asked for.
_IN_SCOPE = {
    "EMAIL_ADDRESS": re.compile(r".+@.+", re.DOTALL),
    "IP_ADDRESS": re.compile(r"\d+(\.\d+){3}"),
    "PHONE_NUMBER": re.compile(r"(\+?1[-. ]?|001-)?(\(\d{3}\)|\d{3})[-. ]?\d{3}[-. ]?\d{4}(x\d+)?"),
}


class PiiScore(NamedTuple):
    """What the patterns found of one kind.

    Attributes:
        kind: as labelled, such as "PHONE_NUMBER".
        num_labelled: labelled spans, in any format, and `num_in_scope` those in a format that the
            handout asks for.
        num_masked, num_masked_in_scope: of those, how many are masked to their last character.
        num_found: spans that the patterns find, and `num_right` those that touch a labelled span of
            this kind.
        missed: labelled texts in scope that are not masked whole.
        false: found texts that nobody labelled.
        left_out: labelled texts out of scope, a few.
    """

    kind: str
    num_labelled: int
    num_in_scope: int
    num_masked: int
    num_masked_in_scope: int
    num_found: int
    num_right: int
    missed: tuple[str, ...]
    false: tuple[str, ...]
    left_out: tuple[str, ...]


def pii_scores(sentences: Iterable[PiiSentence]) -> list[PiiScore]:
    """Score the patterns by kind, over all sentences."""
    sentences = list(sentences)
    found = [[(KINDS[span.placeholder], span.start, span.end) for span in find_pii(text)] for text, _ in sentences]
    return [_score(kind, sentences, found) for kind in KINDS.values()]


def _score(kind: str, sentences: list[PiiSentence], found: list[list[tuple[str, int, int]]]) -> PiiScore:
    labelled: list[tuple[str, bool]] = []  # text, and whether all of it is masked
    taken: list[tuple[str, bool]] = []  # text, and whether any of it is labelled
    for (text, gold), spans in zip(sentences, found, strict=True):
        ours = [(start, end) for of, start, end in spans if of == kind]
        theirs = [(start, end) for of, start, end in gold if of == kind]
        labelled += [(text[a:b], any(s <= a and b <= e for s, e in ours)) for a, b in theirs]
        taken += [(text[s:e], any(s < b and a < e for a, b in theirs)) for s, e in ours]
    in_scope = [pair for pair in labelled if _IN_SCOPE[kind].fullmatch(pair[0])]
    return PiiScore(
        kind=kind,
        num_labelled=len(labelled),
        num_in_scope=len(in_scope),
        num_masked=sum(masked for _, masked in labelled),
        num_masked_in_scope=sum(masked for _, masked in in_scope),
        num_found=len(taken),
        num_right=sum(right for _, right in taken),
        missed=tuple(text for text, masked in in_scope if not masked),
        false=tuple(text for text, right in taken if not right),
        left_out=tuple(text for text, masked in labelled if not masked and not _IN_SCOPE[kind].fullmatch(text))[:12],
    )
