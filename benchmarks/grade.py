"""Grading of mathematical answers, beside math-verify alone, and whether others had graded them so.

Sets of answers:
  gsm8k, tora        what models of OpenAI's and Microsoft's answered to GSM8K's test, graded by their owners
  math               what Qwen2.5-Math answered to a hundred problems of MATH, eight samples each, graded by Qwen
  another            each right answer of MATH beside that of another problem of its type; nearly all wrong
  math-verify-tests, mario-tests   regression tests of other graders

Cases, in gradings a second:
  SET-fast      the stages mathd and sympy, by processor time; the promise for gsm8k, tora and math is 2,000
  SET-slow      these and math-verify, by processor time
  SET-watched   fast, of whole responses, in one process of a watchdog; by the clock, so on an idle machine

Each row counts false accepts and rejects against the labels and lists them (answer, gold, times). What a grading
remembers, our normal forms and SymPy's cache, is forgotten before each run; in a run, equal golds meet again, as in the
groups of GRPO. math-verify gets each text between dollar signs, as it asks for, and its own settings otherwise.

Example: CS336_DATA=FOLDER python -m benchmarks grade --sets math another
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from sympy.core.cache import clear_cache

from benchmarks.extract import data_folder
from benchmarks.graded_answers import ORDINARY, SETS, LabelledAnswer, read_set
from benchmarks.measure import OURS, Case, Contender, Observation, Unavailable
from cs336.evals.answers.grader import grade
from cs336.evals.answers.mathd import mathd_form
from cs336.evals.answers.sympy_stage import normal_form
from cs336.evals.rewards import WatchedReward, r1_zero_reward_fn
from cs336.evals.task import subsample
from cs336.files import UserError

PEER = "math-verify"
PACKAGES = ("math-verify", "latex2sympy2_extended", "pylatexenc", "sympy")
KINDS = ("fast", "slow", "watched")
GRADINGS_PER_SECOND = 2_000.0  # what the project promises of one core, on ordinary answers and the fast path
LEAST_AGREEMENT = 0.9  # on answers of models; below it, the work is not the same
BUDGET_SECONDS = 60.0
LONGEST_LISTED = 100  # characters of a text in a row


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --sets, --kinds and --num."""
    parser.add_argument("--sets", nargs="+", choices=tuple(SETS), default=tuple(SETS), help="(default: all)")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="(default: all)")
    parser.add_argument(
        "--num", type=int, default=1_000, help="answers of each set, drawn at random; 0 for all (default %(default)s)"
    )


def cases(options: argparse.Namespace) -> Iterator[Case]:
    """The chosen kinds of each chosen set."""
    data = data_folder()
    if data is None:
        raise UserError("set CS336_DATA to the folder of the real data sets; the answers to grade are in it")
    for name in options.sets:
        answers = read_set(name, data)
        answers = [answers[place] for place in subsample(range(len(answers)), options.num, seed=0)]
        for kind in options.kinds:
            if kind == "watched" and name not in ORDINARY:
                continue
            yield _case(name, kind, answers)


def _case(name: str, kind: str, answers: list[LabelledAnswer]) -> Case:
    ours = Contender(name=OURS, prepare=functools.partial(_prepare_ours, kind, answers), packages=PACKAGES)
    peer = Contender(name=PEER, prepare=functools.partial(_prepare_peer, answers), packages=PACKAGES)
    content = json.dumps([vars(answer) for answer in answers]).encode()
    return Case(
        name=f"{name}-{kind}",
        amount=len(answers),
        unit="gradings/s",
        contenders=[ours] if kind == "watched" else [ours, peer],
        difference=_difference if name in ORDINARY else lambda ours, theirs: None,
        input={
            "name": (SETS[name].__doc__ or "").split("\n")[0],
            "answers": len(answers),
            "distinct": len(set(answers)),
            "bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
        },
        budget_seconds=BUDGET_SECONDS,
        limits={"seconds": len(answers) / GRADINGS_PER_SECOND} if kind != "slow" and name in ORDINARY else {},
    )


def _prepare_ours(kind: str, answers: list[LabelledAnswer]) -> Callable[[], Observation]:
    if kind == "watched":
        return functools.partial(_run_watched, answers)
    return functools.partial(_run, functools.partial(grade, fast=kind == "fast"), answers)


def _prepare_peer(answers: list[LabelledAnswer]) -> Callable[[], Observation]:
    try:
        from math_verify import parse, verify
    except ImportError as error:
        raise Unavailable(f"not installed: {error}") from None

    def accepts(answer: str, gold: str) -> bool:
        return bool(verify(*(parse(text if "$" in text else f"${text}$") for text in (gold, answer))))

    return functools.partial(_run, accepts, answers)


def _run(accepts: Callable[[str, str], bool], answers: list[LabelledAnswer]) -> Observation:
    accepts("x/2", "y/3")  # what the very first grading imports
    for forget in (mathd_form.cache_clear, normal_form.cache_clear, clear_cache):
        forget()
    decisions, seconds = [], []
    for each in answers:
        start = time.process_time()
        decisions.append(accepts(each.answer, each.gold))
        seconds.append(time.process_time() - start)
    details = {
        "median_milliseconds": statistics.median(seconds) * 1e3,
        "p99_milliseconds": sorted(seconds)[len(seconds) * 99 // 100] * 1e3,
        "max_milliseconds": max(seconds) * 1e3,
    }
    details |= mistakes(answers, decisions)
    return Observation(seconds={"": sum(seconds)}, peak_bytes=None, result=decisions, details=details)


def _run_watched(answers: list[LabelledAnswer]) -> Observation:
    responses = [f"</think> <answer> {each.answer} </answer>" for each in answers]
    golds = [each.gold for each in answers]
    with WatchedReward(r1_zero_reward_fn) as reward_fn:
        reward_fn("", "")  # the process starts
        start = time.perf_counter()
        scored = reward_fn.score(responses, golds)
        seconds = time.perf_counter() - start
    lost = Counter(each["lost"] for each in scored if "lost" in each)
    decisions = [each["reward"] == 1.0 for each in scored]
    details = {"lost": dict(lost)} | mistakes(answers, decisions)
    return Observation(seconds={"": seconds}, peak_bytes=None, result=decisions, details=details)


def mistakes(answers: list[LabelledAnswer], decisions: list[bool]) -> dict[str, Any]:
    """How often the decisions say other than the labels, and each such answer with its gold and how often it came."""
    graded = list(zip(answers, decisions, strict=True))
    accepted = Counter((each.answer, each.gold) for each, yes in graded if each.right is False and yes)
    rejected = Counter((each.answer, each.gold) for each, yes in graded if each.right is True and not yes)

    def listed(pairs: Counter[tuple[str, str]]) -> list[list[Any]]:
        return [[*(_beginning(text) for text in pair), times] for pair, times in pairs.most_common()]

    return {
        "num_accepted": sum(decisions),
        "num_labelled": sum(each.right is not None for each in answers),
        "num_false_accepts": sum(accepted.values()),
        "num_false_rejects": sum(rejected.values()),
        "false_accepts": listed(accepted),
        "false_rejects": listed(rejected),
    }


def _beginning(text: str) -> str:
    return text if len(text) <= LONGEST_LISTED else f"{text[:LONGEST_LISTED]}..."


def _difference(ours: Any, theirs: Any) -> str | None:
    # Of the check before the timed runs a whole observation, of those its result.
    mine, other = (each.result if isinstance(each, Observation) else each for each in (ours, theirs))
    agreement = sum(map(bool.__eq__, mine, other)) / len(mine)
    return None if agreement >= LEAST_AGREEMENT else f"the same decision on {agreement:.1%} of the answers only"
