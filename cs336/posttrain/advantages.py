"""Rewards to advantages: how much better a response did than the others to the same prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cs336.evals.rewards import RewardFn

if TYPE_CHECKING:
    from jaxtyping import Float


def compute_group_normalized_rewards(
    reward_fn: RewardFn,
    rollout_responses: Sequence[str],
    repeated_ground_truths: Sequence[Any],
    group_size: int,
    advantage_eps: float,
    normalize_by_std: bool,
) -> tuple[Float[Tensor, " rollouts"], Float[Tensor, " rollouts"], dict[str, float]]:
    """Grade responses and compare each with its group.

    Args:
        repeated_ground_truths: one a response, so `group_size` times the same in a row.
        group_size: consecutive responses, all to one prompt.
        advantage_eps: added to each group's standard deviation, in reward units.
        normalize_by_std: see `group_advantages`.

    Returns:
        Advantages and raw rewards, both fp32, in the order of the responses; and the numbers of `reward_statistics`.

    Raises:
        ValueError: not as many ground truths as responses, or as of `group_advantages`.
    """
    if len(rollout_responses) != len(repeated_ground_truths):
        raise ValueError(
            f"{len(rollout_responses)} responses and {len(repeated_ground_truths)} ground truths;"
            " repeat a prompt's ground truth for each of its responses"
        )
    scores = [reward_fn(*pair) for pair in zip(rollout_responses, repeated_ground_truths, strict=True)]
    rewards = grouped_rewards(scores, group_size)
    advantages = group_advantages(rewards, normalize_by_std=normalize_by_std, eps=advantage_eps)
    return advantages.flatten(), rewards.flatten(), reward_statistics(scores, group_size)


def grouped_rewards(scores: Sequence[Mapping[str, float]], group_size: int) -> Float[Tensor, "prompts samples"]:
    """The rewards of graded responses, a row for each group.

    Raises:
        ValueError: no responses, or a number that groups of this size do not make.
    """
    if group_size < 1 or not scores or len(scores) % group_size:
        raise ValueError(f"{len(scores)} responses do not make groups of {group_size}; sample whole groups")
    return torch.tensor([score["reward"] for score in scores], dtype=torch.float32).view(-1, group_size)


def group_advantages(
    rewards: Float[Tensor, "prompts samples"], *, normalize_by_std: bool, eps: float = 1e-6
) -> Float[Tensor, "prompts samples"]:
    """How much better each response scored than its siblings from the same prompt.

    Args:
        rewards: row i holds all responses sampled for prompt i.
        normalize_by_std: True is GRPO; False is Dr. GRPO, which does not inflate prompts whose responses
            nearly all agree.
        eps: added to each row's standard deviation, in reward units.

    Returns:
        Row-centred rewards: dimensionless when normalized, else in reward units. A prompt whose responses all
        score alike gets zero: no gradient.

    Raises:
        ValueError: fewer than two samples per prompt, or a reward that is not finite (the grader failed; drop that
            prompt first).

    Source: GRPO, arXiv:2402.03300, section 4.1; Dr. GRPO, arXiv:2503.20783, section 3.
    """
    if rewards.shape[1] < 2:
        raise ValueError(f"need at least 2 samples per prompt, got {rewards.shape[1]}")
    if not torch.isfinite(rewards).all():
        raise ValueError("rewards contain NaN or infinity; drop the prompts whose grading failed")
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    # The mean of equal numbers is rounded: what is left of them would be divided by next to nothing.
    alike = rewards.amax(dim=1, keepdim=True) == rewards.amin(dim=1, keepdim=True)
    centred = centred.masked_fill(alike, 0.0)
    if not normalize_by_std:
        return centred
    # The handout's standard deviation divides by n - 1; the paper does not say which it uses.
    return centred / (rewards.std(dim=1, keepdim=True) + eps)


def reward_statistics(scores: Sequence[Mapping[str, float]], group_size: int) -> dict[str, float]:
    """What a step's rewards were like.

    Returns:
        Mean of every kind of reward (`reward`, `format_reward`, `answer_reward`), standard deviation, least and
        greatest of the rewards, the mean of the groups' standard deviations, and the shares of groups whose
        responses all score alike, which teach nothing, and of those with one response of positive reward at least.
    """
    rewards = grouped_rewards(scores, group_size)
    alike = rewards.amax(dim=1) == rewards.amin(dim=1)
    means = {name: sum(score[name] for score in scores) / len(scores) for name in scores[0]}
    return means | {
        "reward_std": rewards.std().item() if rewards.numel() > 1 else 0.0,
        "reward_min": rewards.min().item(),
        "reward_max": rewards.max().item(),
        "group_std": rewards.std(dim=1).mean().item() if group_size > 1 else 0.0,
        "share_of_groups_alike": alike.float().mean().item(),
        "share_of_groups_solved": (rewards.amax(dim=1) > 0).float().mean().item(),
    }
