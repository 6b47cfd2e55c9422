"""Responses of a policy to problems, with their rewards: what Expert Iteration and GRPO learn from."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from cs336.evals.rewards import RewardAll
from cs336.files import write_jsonl
from cs336.generate.backend import Backend, SamplingParams, seed_of
from cs336.generate.weight_sync import awake, sync_weights
from cs336.hardware import device_of, to_device
from cs336.model.logprobs import get_response_log_probs
from cs336.posttrain.epochs import micro_batches
from cs336.posttrain.masked import masked_mean
from cs336.posttrain.policy import autocast
from cs336.posttrain.tokenize import first_response_column, prompt_and_output_batch
from cs336.progress import Progress, silent
from cs336.tokens.codec import encode_prompts, pad_id
from cs336.tokens.packing import shuffled

ROLLOUTS_FOLDER = "rollouts"
_NUM_SHOWN = 16  # responses of a validation that are written to be read
_VALIDATION = 2**31 - 1  # the seed's second part, where training steps have their number


@dataclass(frozen=True)
class Problem:
    """A prompt as the policy sees it, and the right answer, or answers, as the reward function takes it."""

    prompt: str
    ground_truth: Any


@dataclass(frozen=True)
class Rollout:
    """One response and what it earned.

    Attributes:
        problem: what was asked.
        prompt_ids, token_ids: as the generator saw and made them, the stop string's tokens included.
        text: with the stop string that ended it.
        logprobs: of each token by the generator, in nats.
        finish: "stop", "end" or "length".
        rewards: `reward`, `format_reward`, `answer_reward`; `lost`, too, if its grading was ended.
    """

    problem: Problem
    prompt_ids: list[int]
    token_ids: list[int]
    text: str
    logprobs: list[float]
    finish: str
    rewards: Mapping[str, Any]

    @property
    def correct(self) -> bool:
        """Whether the answer is right."""
        return self.rewards["answer_reward"] == 1

    def row(self) -> dict[str, Any]:
        """What there is to read."""
        texts = {"prompt": self.problem.prompt, "response": self.text, "ground_truth": self.problem.ground_truth}
        return texts | dict(self.rewards) | {"num_tokens": len(self.token_ids), "finish": self.finish}


@dataclass(frozen=True)
class Sampled:
    """Rollouts of some problems, those of one problem one after the other, and what they took.

    Attributes:
        seconds: of the wall for each part: `sync`, `generate` and `grade`.
    """

    rollouts: list[Rollout]
    seconds: Mapping[str, float]

    def metrics(self) -> dict[str, float]:
        """Lengths in tokens (left out where there is no such response), shares and seconds, for the line of a step."""
        lengths = [len(each.token_ids) for each in self.rollouts]
        by_mark = {
            right: [length for each, length in zip(self.rollouts, lengths, strict=True) if each.correct == right]
            for right in (True, False)
        }
        return {
            "mean_length": fmean(lengths),
            **{
                f"mean_length_{name}": fmean(by_mark[right])
                for name, right in (("correct", True), ("incorrect", False))
                if by_mark[right]
            },
            "share_truncated": fmean(each.finish == "length" for each in self.rollouts),
            "num_lost": sum("lost" in each.rewards for each in self.rollouts),
            **{f"{part}_seconds": round(seconds, 4) for part, seconds in self.seconds.items()},
        }


class Sampler:
    """Draws responses from a policy through a generator, and grades them.

    Args:
        backend: the generator; gets the policy's weights before every call.
        tokenizer: the policy's.
        reward: of all responses; `cs336.evals.rewards` has some, and a process that ends hanging gradings.
        params: how responses are drawn; stop strings are kept in them, as rewards need those.
        seed: with the step and the problem's place it fixes the random numbers.
        hand_over: generator and trainer share a device that cannot hold both: the generator has its memory only while
            it generates.
    """

    def __init__(
        self,
        backend: Backend,
        tokenizer: Any,
        reward: RewardAll,
        params: SamplingParams,
        *,
        seed: int,
        hand_over: bool = False,
    ) -> None:
        self._backend, self.tokenizer, self._reward = backend, tokenizer, reward
        self._seed, self._hand_over = seed, hand_over
        self._params = replace(params, include_stop_str_in_output=True, logprobs=True)

    def sample(
        self,
        policy: nn.Module,
        problems: Sequence[Problem],
        *,
        n: int,
        step: int,
        min_tokens: int | None = None,
        progress: Progress = silent,
    ) -> Sampled:
        """`n` responses to each problem.

        Args:
            min_tokens: in place of the parameters' own.

        Raises:
            ValueError: no problems, or a prompt that leaves no room in the context.
        """
        if not problems:
            raise ValueError("there are no problems to respond to; give at least one")
        least = self._params.min_tokens if min_tokens is None else min_tokens
        params = replace(self._params, n=n, seed=seed_of(self._seed, step), min_tokens=least)
        prompts = list(encode_prompts(self.tokenizer, [each.prompt for each in problems]))
        times = [time.perf_counter()]
        handed_over = awake(self._backend, policy) if self._hand_over else contextlib.nullcontext()
        if not self._hand_over:
            sync_weights(policy, self._backend)
        with handed_over:
            times.append(time.perf_counter())
            generations = self._backend.generate(prompts, params, progress=progress)
        times.append(time.perf_counter())
        drawn = [
            (problem, generation.prompt_ids, sample)
            for problem, generation in zip(problems, generations, strict=True)
            for sample in generation.samples
        ]
        rewards = self._reward([sample.text for _, _, sample in drawn], [each.ground_truth for each, _, _ in drawn])
        times.append(time.perf_counter())
        rollouts = [
            Rollout(problem, ids, sample.token_ids, sample.text, sample.logprobs or [], sample.finish, scores)
            for (problem, ids, sample), scores in zip(drawn, rewards, strict=True)
        ]
        spans = [later - earlier for earlier, later in pairwise(times)]
        return Sampled(rollouts, dict(zip(("sync", "generate", "grade"), spans, strict=True)))


@torch.no_grad()
def log_generations(
    policy: nn.Module, tokenizer: Any, rollouts: Sequence[Rollout], *, batch_size: int = 1, precision: str = "float32"
) -> list[dict[str, Any]]:
    """Responses to be read, and how sure the policy was of each.

    Args:
        policy: whose entropies are wanted; its mode stays as it is.
        batch_size: responses in a forward pass.

    Returns:
        A row for each: `prompt`, `response`, `ground_truth`, `format_reward`, `answer_reward`, `reward`, `num_tokens`,
        `finish`, and `mean_token_entropy` in nats over the response; None if that is empty.
    """
    rows, logged = Rows(rollouts, tokenizer, device_of(policy), precision), [each.row() for each in rollouts]
    for some in micro_batches(range(len(rollouts)), rows.lengths, batch_size):
        scores = rows.scores(policy, some, entropy=True)
        means = masked_mean(scores["token_entropy"], scores["response_mask"], dim=-1).tolist()
        for place, mean in zip(some, means, strict=True):
            logged[place]["mean_token_entropy"] = mean if rollouts[place].token_ids else None
    return logged


class RolloutValidation:
    """How a policy does on held-out problems: one response to each, with the same random numbers every time.

    Stands as `evaluate` in every loop of post-training.

    Args:
        sampler: draws and grades.
        folder: gets `rollouts/step-....jsonl`, some responses of each validation to read, with how sure the policy was
            of them; None writes nothing.
        precision: of the forward pass that tells this.
    """

    def __init__(
        self, sampler: Sampler, problems: Sequence[Problem], folder: Path | None = None, *, precision: str = "float32"
    ) -> None:
        self._sampler, self._problems, self._folder, self._precision = sampler, problems, folder, precision

    def __call__(self, policy: nn.Module, step: int) -> dict[str, float]:
        """Columns `valid_accuracy`, `valid_format`, `valid_length` (tokens; `valid_length_correct` and
        `valid_length_incorrect` where there are such responses), `valid_truncated` (a share).
        """
        # As every evaluation, and unlike rollouts, it asks for no least length.
        sampled = self._sampler.sample(policy, self._problems, n=1, step=_VALIDATION, min_tokens=0)
        rollouts = sampled.rollouts
        if self._folder is not None:
            (self._folder / ROLLOUTS_FOLDER).mkdir(parents=True, exist_ok=True)
            shown = rollouts[:_NUM_SHOWN]
            logged = log_generations(policy, self._sampler.tokenizer, shown, precision=self._precision)
            write_jsonl(rollouts_path(self._folder, step), logged)
        metrics = sampled.metrics()
        return {
            "valid_accuracy": fmean(each.rewards["answer_reward"] for each in rollouts),
            "valid_format": fmean(each.rewards["format_reward"] for each in rollouts),
            **{f"valid_{name.removeprefix('mean_')}": metrics[name] for name in metrics if name.startswith("mean_")},
            "valid_truncated": metrics["share_truncated"],
            "valid_generate_seconds": metrics["generate_seconds"],
        }


def rollouts_path(folder: Path, step: int) -> Path:
    """The responses that a run wrote down at its validation after so many steps."""
    return folder / ROLLOUTS_FOLDER / f"step-{step:06d}.jsonl"


def problems_of_step(problems: Sequence[Problem], count: int, step: int, *, seed: int) -> list[Problem]:
    """The next `count` problems: consecutive ones of pass after pass, each in an order of its own.

    Args:
        step: counted from 0.
    """
    total = len(problems)
    places = range(step * count, (step + 1) * count)
    orders = {number: shuffled(total, seed=seed, epoch=number) for number in {place // total for place in places}}
    return [problems[orders[place // total][place % total]] for place in places]


def mark_of_problems(problems: Sequence[Problem]) -> str:
    """What tells one list of problems from another."""
    digest = hashlib.sha256()
    for each in problems:
        digest.update(repr((each.prompt, each.ground_truth)).encode())
    return f"{len(problems)} problems {digest.hexdigest()[:16]}"


class Rows:
    """Rollouts as batches for the policy's forward pass."""

    def __init__(self, rollouts: Sequence[Rollout], tokenizer: Any, device: torch.device, precision: str) -> None:
        self._rollouts, self._padding = rollouts, pad_id(tokenizer)
        self._device, self._precision = device, precision
        self.lengths = [len(each.prompt_ids) + len(each.token_ids) for each in rollouts]

    def scores(self, policy: nn.Module, places: Sequence[int], *, entropy: bool) -> dict[str, Tensor]:
        """Of some rollouts `response_mask` and, of its labels, `log_probs` and, if wanted, `token_entropy`.

        See `prompt_and_output_batch`, and `get_response_log_probs` for what stands before the first response.
        """
        some = [self._rollouts[place] for place in places]
        prompts = [each.prompt_ids for each in some]
        batch = prompt_and_output_batch(prompts, [each.token_ids for each in some], self._padding)
        ids, labels, mask = (to_device(batch[name], self._device) for name in ("input_ids", "labels", "response_mask"))
        start = first_response_column(prompts)
        with autocast(self._device, self._precision):
            scores = get_response_log_probs(policy, ids, labels, return_token_entropy=entropy, start=start)
        return scores | {"response_mask": mask}

    def spread(self, values: Sequence[Tensor], places: Sequence[int], like: Tensor) -> Tensor:
        """Numbers of response tokens, rollout by rollout, where a batch of them has those tokens; 0 elsewhere.

        Not by the batch's mask: the host would wait for the device to count it.
        """
        spread = torch.zeros(like.shape, dtype=like.dtype, device=values[0].device)
        for row, place, numbers in zip(spread, places, values, strict=True):
            row[self.columns(place)] = numbers
        return to_device(spread, self._device)

    def columns(self, place: int) -> slice:
        """Where a batch has a rollout's response tokens as labels."""
        start = max(0, len(self._rollouts[place].prompt_ids) - 1)
        return slice(start, max(start, self.lengths[place] - 1))


@torch.no_grad()
def response_log_probs(policy: nn.Module, rows: Rows, *, batch_size: int) -> list[Tensor]:
    """Log-probabilities of each rollout's tokens, in nats, under the policy as it is."""
    log_probs: list[Tensor] = [torch.empty(0)] * len(rows.lengths)
    for some in micro_batches(range(len(rows.lengths)), rows.lengths, batch_size):
        scores = rows.scores(policy, some, entropy=False)
        for place, values in zip(some, scores["log_probs"], strict=True):
            log_probs[place] = values[rows.columns(place)]
    return log_probs
