"""Kinds of failure by rules, so that all outputs that went wrong can be counted and not only those that were read."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

NOTHING = "nothing written"
NO_WORDS = "signs alone, no words"
REPEATS = "repeats itself"
CUT_OFF = "cut off before an answer"
NO_ANSWER = "no answer in the form asked for"
WRONG = "wrong answer"
ECHO = "repeats what was asked"
SHORT = "fewer than ten words"
OTHER = "other text"
KINDS = (NOTHING, NO_WORDS, REPEATS, CUT_OFF, NO_ANSWER, WRONG, ECHO, SHORT, OTHER)

_WORD = re.compile(r"\w+")
_GRAM = 4  # words of which a run that comes again and again is made
_TIMES = 3
_SHORT_WORDS = 10
_ECHO_SHARE = 0.8


def failure_kind(row: Mapping[str, Any]) -> str:
    """What is wrong with the output of a row that failed; the first of `KINDS` that holds.

    Args:
        row: of a task that grades (`correct`, `prediction`, `finish`), of `judge_alpaca_eval`, or of `judge_safety`.
    """
    output, asked = output_of(row), asked_of(row)
    words = [word.lower() for word in _WORD.findall(output)]
    if not words:
        return NO_WORDS if output.strip() else NOTHING
    if repeats_itself(words):
        return REPEATS
    if "correct" in row:
        if row["prediction"] is not None:
            return WRONG
        return CUT_OFF if row["finish"] == "length" else NO_ANSWER
    known = {word.lower() for word in _WORD.findall(asked)}
    if sum(word in known for word in words) >= _ECHO_SHARE * len(words):
        return ECHO
    return SHORT if len(words) < _SHORT_WORDS else OTHER


def repeats_itself(words: Sequence[str]) -> bool:
    """Whether a run of four words stands there three times or more."""
    grams = Counter(tuple(words[start : start + _GRAM]) for start in range(len(words) - _GRAM + 1))
    return max(grams.values(), default=0) >= _TIMES


def count_kinds(rows: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """How many of the failed rows are of which kind; kinds that do not occur are left out."""
    counts = Counter(failure_kind(row) for row in rows)
    return {kind: counts[kind] for kind in KINDS if counts[kind]}


def output_of(row: Mapping[str, Any]) -> str:
    """What the model wrote, in a row of any task."""
    return row["output"] if "output" in row else row["output_2"]


def asked_of(row: Mapping[str, Any]) -> str:
    """What it was asked, without the frame."""
    example = row.get("example", row)
    return next(example[name] for name in ("question", "instruction", "prompts_final", "prompt") if name in example)
