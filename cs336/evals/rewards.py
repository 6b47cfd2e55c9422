"""Verified rewards: a model's response and the right answer -> format, answer and total reward."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cs336.evals.answers.boxed import last_boxed
from cs336.evals.answers.grader import grade
from cs336.evals.watchdog import Watchdog

GroundTruth = str | int | float | Sequence[str | int | float]
# (response, ground truth) -> 0.0 or 1.0 as "format_reward", "answer_reward" and "reward"
RewardFn = Callable[[str, Any], Mapping[str, float]]
# Rewards of all responses, in order: where grading needs worker processes and a time limit. Beside the three rewards
# there may be "lost": why a response could not be graded and got zeros.
RewardAll = Callable[[Sequence[str], Sequence[Any]], Sequence[Mapping[str, Any]]]

# Both formats, and answers that every stage of the grader has to look at: a first grading, to import what it needs.
_WARM_UP = ("</think> <answer> \\boxed{\\frac{x}{2}} </answer>", "\\frac{x}{3}")


def r1_zero_reward_fn(response: str, ground_truth: GroundTruth, fast: bool = True) -> dict[str, float]:
    """Rewards of a response to the r1_zero prompt, which has opened the `<think>` span.

    The format is right if the response holds `</think> <answer>`, with one blank, and `</answer>`. The answer is what
    follows the last `<answer>`, out of its box if it has one; a box that cannot be read is a wrong answer.

    Args:
        ground_truth: the right answer, or several, each of which is right.
        fast: see `cs336.evals.answers.grader.grade`.

    Returns:
        `format_reward`, `answer_reward` and `reward`, each 0.0 or 1.0. `reward` is `answer_reward`: format alone earns
        nothing.

    Source: the alignment handout.
    """
    if "</think> <answer>" not in response or "</answer>" not in response:
        return _rewards(formatted=False)
    answer: str | None = response.rpartition("<answer>")[2].replace("</answer>", "")
    if answer is not None and "\\boxed" in answer:
        answer = last_boxed(answer)
    return _rewards(formatted=True, correct=answer is not None and _any_right(answer, ground_truth, fast))


def question_only_reward_fn(response: str, ground_truth: GroundTruth, fast: bool = True) -> dict[str, float]:
    """Rewards of a response to the bare question: its answer is the content of the last `\\boxed{...}`.

    Without one that can be read, the format is wrong. Arguments and result: see `r1_zero_reward_fn`.

    Source: the alignment handout.
    """
    answer = last_boxed(response)
    if answer is None:
        return _rewards(formatted=False)
    return _rewards(formatted=True, correct=_any_right(answer, ground_truth, fast))


# What presets call them. A reward of yours is a line more; it is a function of response and ground truth that can be
# imported by its name, or a `functools.partial` of one.
REWARDS: dict[str, RewardFn] = {
    "r1_zero": r1_zero_reward_fn,
    "r1_zero_slow": functools.partial(r1_zero_reward_fn, fast=False),
    "question_only": question_only_reward_fn,
}


def reward_named(name: str) -> RewardFn:
    """A reward function by the name that presets use.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in REWARDS:
        raise ValueError(f"no reward named {name!r}; there are {', '.join(REWARDS)}: add yours to REWARDS")
    return REWARDS[name]


def _any_right(answer: str, ground_truth: GroundTruth, fast: bool) -> bool:
    golds = [ground_truth] if isinstance(ground_truth, (str, int, float)) else ground_truth
    return any(grade(answer, str(gold), fast) for gold in golds)


def _rewards(*, formatted: bool, correct: bool = False) -> dict[str, float]:
    return {"format_reward": float(formatted), "answer_reward": float(correct), "reward": float(correct)}


def reward_each(reward_fn: RewardFn) -> RewardAll:
    """Score the responses one by one, in this process: for rewards that cannot hang."""
    return lambda responses, truths: [reward_fn(*pair) for pair in zip(responses, truths, strict=True)]


class WatchedReward:
    """A reward function whose gradings are ended when they take too long or too much memory, and score 0 then.

    Stands wherever a reward function does: `WatchedReward(r1_zero_reward_fn)(response, ground_truth)`. Many responses
    are scored faster together: `score`, which is a `RewardAll`.

    Args:
        reward_fn: called with a response and a ground truth; importable from its module, or a `functools.partial` of
            such a function, as in `partial(r1_zero_reward_fn, fast=False)`.
        seconds: for one grading. The slow stage of the grader takes up to 3 s by itself.
        num_workers: processes that grade at the same time.

    Raises:
        ValueError: see `Watchdog`.
    """

    def __init__(self, reward_fn: RewardFn, *, seconds: float = 5.0, num_workers: int = 1) -> None:
        self._watchdog: Watchdog[tuple[str, Any], Mapping[str, float]] = Watchdog(
            functools.partial(_reward, reward_fn), seconds=seconds, num_workers=num_workers, warm_up=_WARM_UP
        )

    def __call__(self, response: str, ground_truth: GroundTruth) -> dict[str, float]:
        """Rewards of one response."""
        rewards = self.score([response], [ground_truth])[0]
        return {name: value for name, value in rewards.items() if name != "lost"}

    def score(self, responses: Sequence[str], ground_truths: Sequence[GroundTruth]) -> list[dict[str, Any]]:
        """Rewards of many responses, each with its own ground truth.

        Returns:
            What the reward function returned; zeros for a grading that was ended, and why as `lost`, such as
            "over 5 s".

        Raises:
            ValueError: there are more of one than of the other.
            RuntimeError: the reward function raised.
        """
        outcomes = self._watchdog.map(list(zip(responses, ground_truths, strict=True)))
        return [
            dict(outcome.value or _rewards(formatted=False)) | ({"lost": outcome.reason} if outcome.reason else {})
            for outcome in outcomes
        ]

    def close(self) -> None:
        """End the processes."""
        self._watchdog.close()

    def __enter__(self) -> WatchedReward:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _reward(reward_fn: RewardFn, item: tuple[str, Any]) -> Mapping[str, float]:
    """One grading; an error names the function, as the traceback's last line is what a user sees first."""
    name = getattr(reward_fn, "__name__", reward_fn)
    try:
        rewards = reward_fn(*item)
    except Exception as error:
        raise RuntimeError(f"reward function {name}: {type(error).__name__}: {error}") from error
    if not isinstance(rewards, Mapping) or not rewards.keys() >= _rewards(formatted=False).keys():
        raise TypeError(f"reward function {name} returned {rewards!r}; give format_reward, answer_reward and reward")
    return rewards
