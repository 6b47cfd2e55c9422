"""Advantages of groups: by hand, for all or none solved, and against NumPy's unbiased deviation."""

import numpy as np
import pytest
import torch

from cs336.posttrain.advantages import compute_group_normalized_rewards, group_advantages, reward_statistics


def _reward(response, ground_truth):
    """The response's length counts where it is the truth; half of it where only the first letter is."""
    right = float(response == ground_truth)
    return {"reward": right, "format_reward": float(response[:1] == ground_truth[:1]), "answer_reward": right}


def _graded(value, _):
    return {"reward": float(value)}


def test_one_success_in_four_by_hand():
    rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0]])  # mean 1/4, sample std 1/2
    actual = group_advantages(rewards, normalize_by_std=True, eps=0.0)
    torch.testing.assert_close(actual, torch.tensor([[1.5, -0.5, -0.5, -0.5]]))


@pytest.mark.parametrize("normalize_by_std", [True, False])
def test_a_prompt_solved_by_all_or_none_gives_no_gradient(normalize_by_std):
    rewards = torch.tensor([[1.0] * 7, [0.0] * 7, [0.7] * 7])  # the mean of seven times 0.7 is rounded
    actual = group_advantages(rewards, normalize_by_std=normalize_by_std)
    assert torch.equal(actual, torch.zeros_like(rewards))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_failed_grader_is_an_error_not_a_zero(value):
    with pytest.raises(ValueError, match="NaN"):
        group_advantages(torch.tensor([[1.0, value]]), normalize_by_std=False)


@pytest.mark.parametrize("normalize_by_std", [True, False])
@pytest.mark.parametrize("eps", [1e-6, 0.5])
def test_consecutive_responses_are_groups_and_the_deviation_is_unbiased(normalize_by_std, eps):
    values = np.random.default_rng(0).normal(size=(5, 3))
    advantages, rewards, metadata = compute_group_normalized_rewards(
        reward_fn=_graded,
        rollout_responses=[str(value) for value in values.flatten()],
        repeated_ground_truths=[""] * 15,
        group_size=3,
        advantage_eps=eps,
        normalize_by_std=normalize_by_std,
    )
    expected = values - values.mean(1, keepdims=True)
    if normalize_by_std:
        expected = expected / (values.std(1, ddof=1, keepdims=True) + eps)
    assert advantages.shape == rewards.shape == (15,) and advantages.dtype == rewards.dtype == torch.float32
    np.testing.assert_allclose(advantages.numpy(), expected.flatten(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(rewards.numpy(), values.flatten(), rtol=1e-6)
    assert all(type(value) is float for value in metadata.values())


def test_each_response_is_graded_against_its_own_ground_truth_and_the_statistics_are_by_hand():
    advantages, rewards, metadata = compute_group_normalized_rewards(
        _reward, ["ab", "ax", "c", "c", "de", "x"], ["ab", "ab", "c", "c", "d", "d"], 2, 0.0, False
    )
    assert rewards.tolist() == [1, 0, 1, 1, 0, 0]
    assert advantages.tolist() == [0.5, -0.5, 0, 0, 0, 0]
    expected = {
        "reward": 1 / 2,
        "format_reward": 5 / 6,
        "answer_reward": 1 / 2,
        "reward_std": 0.3**0.5,
        "reward_min": 0.0,
        "reward_max": 1.0,
        "group_std": 0.5**0.5 / 3,
        "share_of_groups_alike": 2 / 3,
        "share_of_groups_solved": 2 / 3,
    }
    assert metadata == pytest.approx(expected)


def test_groups_that_are_not_whole_are_refused():
    with pytest.raises(ValueError, match="5 responses do not make groups of 2"):
        compute_group_normalized_rewards(_reward, ["a"] * 5, ["a"] * 5, 2, 1e-6, True)
    with pytest.raises(ValueError, match="at least 2 samples"):
        compute_group_normalized_rewards(_reward, ["a"] * 2, ["a"] * 2, 1, 1e-6, True)
    with pytest.raises(ValueError, match="4 responses and 2 ground truths"):
        compute_group_normalized_rewards(_reward, ["a"] * 4, ["a"] * 2, 2, 1e-6, True)
    with pytest.raises(ValueError, match="0 responses"):
        reward_statistics([], 2)
