"""Why responses to reasoning prompts earned nothing: by rules, so that all can be counted and not only those read."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from cs336.evals.failures import NOTHING
from cs336.evals.graders import last_number, normalize_number, numbers_equal

LOST = "its grading was ended"
# The format is wrong.
STILL_THINKING = "cut off while it thinks"
NO_THINK_END = "ends without `</think>`"
NO_ANSWER_TAG = "`</think>`, and no `<answer>`"
NOT_ONE_BLANK = "not one blank between `</think>` and `<answer>`"
ANSWER_OPEN = "`<answer>` is not closed"
NO_BOX = "no `\\boxed{}`"
CUT_BEFORE_BOX = "cut off before a `\\boxed{}`"
BROKEN_BOX = "a `\\boxed{}` that cannot be read"
# The format is right, the answer is not.
EMPTY = "an empty answer"
AMONG_WORDS = "the right answer among other words"
NO_NUMBER = "no number where one is right"
MISCALCULATED = "a calculation is wrong"
NOT_THE_RESULT = "another answer than its calculations end in"
MISUNDERSTOOD = "right calculations for another question"
UNWORKED = "a wrong answer without a calculation"
WRONG = "a wrong answer"
REASONS = (
    *(LOST, NOTHING, STILL_THINKING, NO_THINK_END, NO_ANSWER_TAG, NOT_ONE_BLANK, ANSWER_OPEN),
    *(CUT_BEFORE_BOX, NO_BOX, BROKEN_BOX),
    *(EMPTY, AMONG_WORDS, NO_NUMBER, MISCALCULATED, NOT_THE_RESULT, MISUNDERSTOOD, UNWORKED, WRONG),
)

# Whole numbers alone, as in 34+58=92, 3+5+1=9 or 73/2=36 r 1: what is quoted of fractions or algebra is not judged.
_CALCULATION = re.compile(r"(?<![\w.)/*+-])(\d+(?:[-+*/]\d+)+) ?= ?(\d+)(?: r (\d+))?(?!\d|\.\d|[-+*/]\d)")
_ANSWER_BEGINS = re.compile(r"</think>|\\boxed")
_END_CHARACTERS = 200  # of an output, in which an answer that is no number is looked for


def why_unrewarded(row: Mapping[str, Any]) -> str:
    """Why the answer of a row was not right; the first of `REASONS` that holds.

    Args:
        row: of `evaluate_reasoning`, with `answer_reward` 0. A prompt that ends in `<think>` asks for tags, any other
            for a box.
    """
    if row.get("lost"):
        return LOST
    if not row["format_reward"]:
        return _unformatted(row["output"], thinks=row["prompt"].rstrip().endswith("<think>"), finish=row["finish"])
    answer, truths = (row["prediction"] or "").strip(), _truths(row)
    if not answer:
        return EMPTY
    if normalize_number(truths[0]) is None:
        return AMONG_WORDS if any(truth in answer for truth in truths) else WRONG
    number = last_number(answer)
    if number is None:
        return NO_NUMBER
    if normalize_number(answer) is None and any(numbers_equal(number, truth) for truth in truths):
        return AMONG_WORDS
    calculations = calculations_of(row["output"])
    if not calculations:
        return UNWORKED
    if not all(right for _, right in calculations):
        return MISCALCULATED
    result = last_number(_ANSWER_BEGINS.split(row["output"])[0])
    return MISUNDERSTOOD if result is not None and numbers_equal(result, number) else NOT_THE_RESULT


def _unformatted(output: str, *, thinks: bool, finish: str) -> str:
    cut_off = finish == "length"
    if not output.strip():
        return NOTHING
    if not thinks:
        return BROKEN_BOX if "\\boxed" in output else CUT_BEFORE_BOX if cut_off else NO_BOX
    if "</think>" not in output:
        return STILL_THINKING if cut_off else NO_THINK_END
    if "<answer>" not in output.partition("</think>")[2]:
        return NO_ANSWER_TAG
    return NOT_ONE_BLANK if "</think> <answer>" not in output else ANSWER_OPEN


def count_reasons(rows: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """How many of the rows without reward are so for which reason; reasons that do not occur are left out."""
    counts = Counter(why_unrewarded(row) for row in rows if not row["answer_reward"])
    return {reason: counts[reason] for reason in REASONS if counts[reason]}


def ends_in_the_right_answer(row: Mapping[str, Any]) -> bool:
    """Whether an output states the right answer at its end, whatever its form: what a milder parser could reward.

    Of a number it is the last one written; of anything else, whether it stands in the last 200 characters.
    """
    truths = _truths(row)
    if normalize_number(truths[0]) is None:
        return any(truth in row["output"][-_END_CHARACTERS:] for truth in truths)
    number = last_number(row["output"])
    return number is not None and any(numbers_equal(number, truth) for truth in truths)


def calculations_of(text: str) -> list[tuple[str, bool]]:
    """The calculations with whole numbers that a text writes out, and whether each is right."""
    return [
        (found[0], _is_right(found[1], int(found[2]), None if found[3] is None else int(found[3])))
        for found in _CALCULATION.finditer(text)
    ]


def _is_right(left: str, result: int, rest: int | None) -> bool:
    """Products before sums, each from the left; a division that leaves a rest has to say so."""
    terms = re.findall(r"([-+]?)(\d+(?:[*/]\d+)*)", left)
    total, left_over = 0, 0
    for sign, term in terms:
        first, *factors = re.findall(r"([*/]?)(\d+)", term)
        value = int(first[1])
        for operator, number in factors:
            if operator == "/" and not int(number):
                return False
            value, left_over = (value * int(number), left_over) if operator == "*" else divmod(value, int(number))
        total += -value if sign == "-" else value
    return (total, left_over) == (result, rest or 0)


def _truths(row: Mapping[str, Any]) -> list[str]:
    answer = row["example"]["answer"]
    return [str(each) for each in (answer if isinstance(answer, list | tuple) else [answer])]
