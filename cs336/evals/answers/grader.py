"""Is an answer the right one? Three stages, from equal text to equal mathematics."""

from __future__ import annotations

from collections.abc import Callable

from cs336.evals.answers.boxed import last_boxed
from cs336.evals.answers.mathd import mathd_equal
from cs336.evals.answers.sympy_stage import sympy_equal


def grade(answer: str, gold: str, fast: bool = True) -> bool:
    """Whether the answer is right.

    Args:
        answer: the model's final answer, out of its box.
        gold: the right answer; if it is boxed, its last box counts.
        fast: True asks whether the texts are equal but for their writing, or SymPy finds their difference zero.
            False asks math-verify, too, which accepts more and takes milliseconds.

    A stage that fails on a text has not found it equal: a failure is a "no" here, and the next stage is asked. The fast
    stages have no limit of time or memory of their own; grade what a model wrote through `cs336.evals.watchdog`.

    Source: the alignment handout's `grade`, whose observed decisions this one makes.
    """
    if "\\boxed" in gold:
        content = last_boxed(gold)
        if content is None:
            return False
        gold = content
    if _accepts(mathd_equal, answer, gold) or _accepts(sympy_equal, answer, gold):
        return True
    if fast:
        return False
    # Imported here alone: it takes a second, and the fast path can do without.
    from cs336.evals.answers.math_verify_stage import math_verify_equal

    return _accepts(math_verify_equal, answer, gold)


def _accepts(stage: Callable[[str, str], bool], answer: str, gold: str) -> bool:
    try:
        return stage(answer, gold)
    except Exception:  # MemoryError, too: it is what Python says of a text nested too deeply
        return False
