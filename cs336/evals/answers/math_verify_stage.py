"""The third stage: math-verify reads both answers and compares what they mean.

Source    what the course's reward does where it is not to be fast (alignment handout, `r1_zero_reward_fn`), written
          from a description of its behaviour. math-verify: github.com/huggingface/Math-Verify.
"""

from __future__ import annotations

import logging
import signal
import threading
from typing import Any

from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

from cs336.evals.answers.sympy_stage import normal_form

_LIMIT_SECONDS = 1  # for reading one answer, and for comparing them
_LONG, _REPETITIVE = 128, 0.2  # characters; share of repeated substrings
_EXTRACTION = (LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig())

# It warns of every answer that it cannot read in time, and of having no limit.
logging.getLogger("math_verify").setLevel(logging.ERROR)


def math_verify_equal(answer: str, gold: str) -> bool:
    """Whether math-verify accepts the answer. Neither is boxed.

    Long and repetitive texts are turned away. Reading and comparing have a second each, where signals can interrupt
    them: on a main thread of a system that has SIGALRM. Elsewhere there is no limit.
    """
    if any(len(text) > _LONG and repetition(text) > _REPETITIVE for text in (answer, gold)):
        return False
    if normal_form(answer) == normal_form(gold):
        return True
    limit = _LIMIT_SECONDS if _signals_interrupt() else 0  # 0: none
    return bool(verify(_read(gold, limit), _read(answer, limit), timeout_seconds=limit))


def repetition(text: str) -> float:
    """Share of a text's substrings that are repeats: 0 if none is, towards 1 for one letter again and again.

    The distinct substrings are counted by a suffix automaton, in linear time; all are n (n + 1) / 2.
    """
    if len(text) < 2:
        return 0.0
    steps: list[dict[str, int]] = [{}]
    suffix, length = [-1], [0]
    last = 0
    for letter in text:
        new = len(steps)
        steps.append({})
        length.append(length[last] + 1)
        suffix.append(0)
        state = last
        while state >= 0 and letter not in steps[state]:
            steps[state][letter] = new
            state = suffix[state]
        if state >= 0:
            target = steps[state][letter]
            if length[target] != length[state] + 1:
                clone = len(steps)
                steps.append(dict(steps[target]))
                length.append(length[state] + 1)
                suffix.append(suffix[target])
                while state >= 0 and steps[state].get(letter) == target:
                    steps[state][letter] = clone
                    state = suffix[state]
                suffix[target] = clone
                target = clone
            suffix[new] = target
        last = new
    num_distinct = sum(length[state] - length[suffix[state]] for state in range(1, len(steps)))
    return 1 - num_distinct / (len(text) * (len(text) + 1) / 2)


def _read(text: str, limit: int) -> list[Any]:
    return parse(
        text if "$" in text else f"${text}$",
        extraction_config=_EXTRACTION,
        fallback_mode="no_fallback",
        extraction_mode="first_match",
        parsing_timeout=limit,
    )


def _signals_interrupt() -> bool:
    return hasattr(signal, "SIGALRM") and threading.current_thread() is threading.main_thread()
