"""Multiple choice by log-likelihood: the option that the model finds likeliest is its answer.

Small models seldom write an answer in the form asked for, but their probabilities already tell right
from wrong. Every option is a continuation of a prompt; where the options stand in the middle of a
sentence, the prompts differ and the continuation is the same (as in Winograd schemas).
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cs336.evals.task import ContinuationLogprobs, EvalResult, accuracy_metrics, subsample
from cs336.files import UserError, read_jsonl


@dataclass(frozen=True)
class ChoiceItem:
    """A question with options.

    Attributes:
        options: (prompt, continuation) of each.
        gold: number of the right one.
    """

    options: tuple[tuple[str, str], ...]
    gold: int


def evaluate_choices(
    items: Sequence[ChoiceItem],
    *,
    choose: ContinuationLogprobs,
    name: str,
    num_shots: int = 0,
    max_examples: int = 0,
    seed: int = 0,
) -> EvalResult:
    """Share of the questions whose right option is the likeliest.

    Args:
        choose: log-probabilities of continuations.
        name: the set's name beside the score.
        num_shots: worked questions before each, drawn from the others with `seed`.
        max_examples: draw this many of the questions with `seed`; 0 takes all.

    Returns:
        Rows: `index`, `gold`, `options`, `choice_logprobs` (nats), `choice`, `choice_correct`,
        `choice_per_byte`, `choice_per_byte_correct`. Metrics: `num_examples`, `chance` (share that guessing
        gets), `choice_seconds`; `choice_accuracy` by the sum of log-probabilities and
        `choice_per_byte_accuracy` by their mean over UTF-8 bytes, which is fair to options of different
        lengths; both with number correct and 95 % interval.

    Raises:
        ValueError: no items, too few for the shots, or a log-probability that is NaN.
    """
    if not items:
        raise ValueError(f"{name}: no questions")
    chosen = subsample(range(len(items)), max_examples, seed=seed)
    asked = [_with_shots(items, index, num_shots, seed) for index in chosen]
    start = time.perf_counter()
    logprobs = option_logprobs([item.options for item in asked], choose=choose, name=name)
    seconds = time.perf_counter() - start
    rows: list[dict[str, Any]] = []
    for index, item, of_options in zip(chosen, asked, logprobs, strict=True):
        lengths = [len(continuation.encode()) for _, continuation in item.options]
        choice = likeliest(of_options)
        per_byte = likeliest([logprob / length for logprob, length in zip(of_options, lengths, strict=True)])
        rows.append(
            {
                "index": index,
                "options": [list(option) for option in item.options],
                "gold": item.gold,
                "choice_logprobs": of_options,
                "choice": choice,
                "choice_correct": choice == item.gold,
                "choice_per_byte": per_byte,
                "choice_per_byte_correct": per_byte == item.gold,
            }
        )
    metrics = {
        "num_examples": len(rows),
        "chance": sum(1 / len(row["options"]) for row in rows) / len(rows),
        **accuracy_metrics([row["choice_correct"] for row in rows], prefix="choice_"),
        **accuracy_metrics([row["choice_per_byte_correct"] for row in rows], prefix="choice_per_byte_"),
        "choice_seconds": seconds,
    }
    return EvalResult(name, rows, metrics)


def option_logprobs(
    options: Sequence[Sequence[tuple[str, str]]], *, choose: ContinuationLogprobs, name: str
) -> list[list[float]]:
    """Log-probability of every option of every question, in nats.

    Raises:
        ValueError: one is NaN, or there are more or fewer than options; names the task.
    """
    pairs = [option for of_question in options for option in of_question]
    scores = choose(pairs)
    if len(scores) != len(pairs):
        raise ValueError(f"{name}: {len(scores)} log-probabilities for {len(pairs)} options")
    flat = iter(scores)
    logprobs = [[next(flat) for _ in of_question] for of_question in options]
    if any(math.isnan(logprob) for of_question in logprobs for logprob in of_question):
        raise ValueError(f"{name}: the model gives log-probabilities that are NaN; check its weights")
    return logprobs


def likeliest(scores: Sequence[float]) -> int:
    """Number of the highest score; on a tie, the first."""
    return max(range(len(scores)), key=lambda place: (scores[place], -place))


def read_choice_items(path: Path) -> list[ChoiceItem]:
    """Questions of an in-context-learning task file of LLM Foundry.

    Args:
        path: JSON Lines, gzipped or not, of records with `query`, `choices` and `gold`, or with
            `context_options`, `continuation` and `gold`.

    Raises:
        UserError: file missing, or a record of another form.
    """
    items = []
    for number, row in enumerate(read_jsonl(path), 1):
        try:
            if "context_options" in row:
                options = tuple((context, f" {row['continuation']}") for context in row["context_options"])
            else:
                # Without a place for the answer, the options would read as the question going on.
                query = row["query"] + "\nAnswer:" * _asks(row["query"])
                options = tuple((query, f" {choice}") for choice in row["choices"])
            if row["gold"] not in range(len(options)):
                raise KeyError("gold")
        except (KeyError, TypeError, AttributeError):
            raise UserError(
                f"{path}: record {number} is no multiple-choice question; needs query, choices, gold"
            ) from None
        items.append(ChoiceItem(options, row["gold"]))
    return items


def _asks(query: str) -> bool:
    return query.startswith("Question:") and not query.rstrip().endswith("Answer:")


def _with_shots(items: Sequence[ChoiceItem], index: int, count: int, seed: int) -> ChoiceItem:
    """A question after `count` worked ones."""
    if not count:
        return items[index]
    if count >= len(items):
        raise ValueError(f"{count} worked questions of {len(items)}; each needs that many others")
    drawn = random.Random(f"{seed} {index}").sample(range(len(items) - 1), count)
    shots = [items[place + (place >= index)] for place in drawn]
    worked = "".join("".join(shot.options[shot.gold]) + "\n\n" for shot in shots)
    item = items[index]
    return replace(item, options=tuple((worked + prompt, continuation) for prompt, continuation in item.options))
