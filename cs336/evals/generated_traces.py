"""What a solver writes while it works a generated problem out, in three styles.

direct  nothing: the answer comes at once
steps   one line a step, each calculation done in the head: `Mia: 34+58=92.`
digits  each calculation done digit by digit, from the ones, carries in sight:
        `Mia: 34+58: 4+8=12, 3+5+1=9, so 92.`

The longer a style, the easier is each token: sums, differences and products of two digits are a table of
a few hundred entries, while 734+589 in the head is not.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from cs336.evals.generated_stories import Step, Unsuitable, calculate

STYLES = ("direct", "steps", "digits")


def worked(steps: Sequence[Step], style: str) -> str:
    """The steps as a solver writes them, on one line; empty in the style "direct".

    Raises:
        ValueError: no such style.
    """
    if style not in STYLES:
        raise ValueError(f"no style {style!r}; there are {', '.join(STYLES)}")
    if style == "direct":
        return ""
    return " ".join(_line(step, by_digits=style == "digits") for step in steps)


def calculation(left: int, operator: str, right: int, *, result: int, by_digits: bool) -> str:
    """One calculation written out: `34+58=92`, or by digits `34+58: 4+8=12, 3+5+1=9, so 92`.

    Calculations of one-digit numbers are the same in both; division goes by digits from 10 up.

    Args:
        result: what is written down as the result, right or not.
    """
    if not by_digits or max(left, right) < 10:
        return f"{left}{operator}{right}={result}"
    columns = {"+": _add, "-": _subtract, "*": _multiply, "/": _divide}[operator](left, right)
    return f"{left}{operator}{right}: {', '.join(columns)}, so {result}"


def with_slip(steps: Sequence[Step], rng: random.Random) -> tuple[Step, ...]:
    """The same steps with one result written down wrongly and used from there on, so that the answer is wrong.

    Raises:
        ValueError: a hundred slips led to numbers that are negative or not whole, or to the right answer.
    """
    for _ in range(100):
        place = rng.randrange(len(steps))
        wrong = steps[place].result + rng.choice((-10, -1, 1, 10))
        try:
            slipped = _recalculated(steps, place, wrong)
        except Unsuitable:
            continue
        if wrong >= 0 and slipped[-1].result != steps[-1].result:
            return slipped
    raise ValueError(f"no slip in {len(steps)} steps leads to another answer")


def _recalculated(steps: Sequence[Step], place: int, wrong: int) -> tuple[Step, ...]:
    done: list[Step] = []
    for number, step in enumerate(steps):
        left = step.left if step.left_step is None else done[step.left_step].result
        right = step.right if step.right_step is None else done[step.right_step].result
        result = wrong if number == place else calculate(left, step.operator, right)
        done.append(replace(step, left=left, right=right, result=result))
    return tuple(done)


def _line(step: Step, *, by_digits: bool) -> str:
    text = calculation(step.left, step.operator, step.right, result=step.result, by_digits=by_digits)
    return f"{step.label}: {text}." if step.label else f"{text}."


def _digits(number: int, count: int) -> list[int]:
    """Digits from the ones up, filled with zeros."""
    return [int(digit) for digit in reversed(str(number).zfill(count))]


def _add(left: int, right: int) -> list[str]:
    columns, carry = [], 0
    count = len(str(max(left, right)))
    for top, bottom in zip(_digits(left, count), _digits(right, count), strict=True):
        total = top + bottom + carry
        columns.append(f"{top}+{bottom}{'+1' * carry}={total}")
        carry = total // 10
    return columns


def _subtract(left: int, right: int) -> list[str]:
    columns, borrow = [], 0
    count = len(str(left))
    for top, bottom in zip(_digits(left, count), _digits(right, count), strict=True):
        top -= borrow
        borrow = int(top < bottom)
        top += 10 * borrow
        columns.append(f"{top}-{bottom}={top - bottom}")
    return columns


def _multiply(left: int, right: int) -> list[str]:
    many, factor = max(left, right), min(left, right)
    columns, carry = [], 0
    for digit in _digits(many, 1):
        total = digit * factor + carry
        columns.append(f"{digit}*{factor}{f'+{carry}' if carry else ''}={total}")
        carry = total // 10
    return columns


def _divide(left: int, right: int) -> list[str]:
    columns, rest = [], 0
    for digit in str(left):
        part = 10 * rest + int(digit)
        quotient, rest = divmod(part, right)
        columns.append(f"{part}/{right}={quotient} r {rest}")
    return columns
