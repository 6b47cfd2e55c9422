"""Policy-gradient losses and a micro-batch's step: the handout's numbers, by hand, and by gradient."""

import math
from dataclasses import replace

import pytest
import torch

from cs336.posttrain.grpo import (
    LOSS_TYPES,
    GrpoConfig,
    compute_grpo_clip_loss,
    compute_grpo_no_clip_loss,
    compute_naive_policy_gradient_loss,
    compute_policy_gradient_loss,
    grpo_microbatch_train_step,
)


def _case(batch=4, seq=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    old = -torch.rand(batch, seq, generator=generator)
    new = (old + 0.4 * torch.randn(batch, seq, generator=generator)).requires_grad_()
    values = torch.randn(batch, 1, generator=generator)
    mask = torch.rand(batch, seq, generator=generator) < 0.7
    mask[:, 0] = True
    return new, old, values, mask


def test_the_naive_loss_by_hand():
    loss = compute_naive_policy_gradient_loss(torch.tensor([[2.0], [-1.0]]), torch.tensor([[-0.5, -1.0], [-3.0, 0.0]]))
    assert loss.tolist() == [[1.0, 2.0], [-3.0, 0.0]]


def test_the_clipped_loss_by_hand():
    """Ratios of 2, 1/2 and 1 against advantages of both signs, clipped to 0.8 ... 1.2."""
    ratios = torch.tensor([[2.0, 0.5, 1.0], [2.0, 0.5, 1.0]])
    old = torch.full((2, 3), -1.0)
    advantages = torch.tensor([[3.0], [-3.0]])
    loss, metadata = compute_grpo_clip_loss(advantages, old + ratios.log(), old, 0.2)
    torch.testing.assert_close(loss, torch.tensor([[-3.6, -1.5, -3.0], [6.0, 2.4, 3.0]]))
    assert metadata["clipped"].tolist() == [[True, False, False], [False, True, False]]
    assert metadata["clipped"].dtype == torch.bool
    torch.testing.assert_close(metadata["ratio"], ratios)
    loss, metadata = compute_grpo_no_clip_loss(advantages, old + ratios.log(), old)
    torch.testing.assert_close(loss, torch.tensor([[-6.0, -1.5, -3.0], [6.0, 1.5, 3.0]]))
    assert metadata.keys() == {"ratio"}
    alike, metadata = compute_grpo_no_clip_loss(advantages, old + ratios.log(), old, 0.2)
    assert torch.equal(alike, loss) and "clipped" not in metadata
    assert metadata["would_clip"].tolist() == [[True, False, False], [False, True, False]]


def test_clipped_tokens_get_no_gradient_and_the_old_policy_never_does():
    new, old, values, _ = _case()
    old.requires_grad_()
    loss, metadata = compute_grpo_clip_loss(values, new, old, 0.2)
    loss.sum().backward()
    assert metadata["clipped"].any() and not metadata["clipped"].all()
    assert torch.equal(new.grad == 0, metadata["clipped"]) and old.grad is None


def test_with_the_sampling_policy_itself_the_ratio_losses_have_the_gradient_of_reinforce():
    new, _, values, _ = _case()
    gradients = []
    for loss_type in ("reinforce_with_baseline", "grpo_clip", "grpo_no_clip"):
        new.grad = None
        loss, _ = compute_policy_gradient_loss(
            new, loss_type, advantages=values, old_log_probs=new.detach(), cliprange=0.2
        )
        loss.sum().backward()
        gradients.append(new.grad)
    torch.testing.assert_close(gradients[0], gradients[1])
    torch.testing.assert_close(gradients[0], gradients[2])


def test_each_loss_type_uses_its_own_arguments_and_tolerates_the_rest():
    new, old, values, _ = _case()
    everything = {"raw_rewards": values + 5, "advantages": values, "old_log_probs": old, "cliprange": 0.2}
    expected = {
        "no_baseline": -(values + 5) * new,
        "reinforce_with_baseline": -values * new,
        "grpo_clip": compute_grpo_clip_loss(values, new, old, 0.2)[0],
        "grpo_no_clip": -(new - old).exp() * values,
    }
    assert set(expected) == set(LOSS_TYPES)
    for loss_type, wanted in expected.items():
        loss, metadata = compute_policy_gradient_loss(policy_log_probs=new, loss_type=loss_type, **everything)
        assert loss.shape == new.shape and isinstance(metadata, dict)
        torch.testing.assert_close(loss, wanted)


@pytest.mark.parametrize(
    ("loss_type", "missing"),
    [
        ("no_baseline", "raw_rewards"),
        ("reinforce_with_baseline", "advantages"),
        ("grpo_clip", "advantages"),
        ("grpo_clip", "old_log_probs"),
        ("grpo_clip", "cliprange"),
        ("grpo_no_clip", "advantages"),
        ("grpo_no_clip", "old_log_probs"),
    ],
)
def test_what_a_loss_type_needs_must_be_there(loss_type, missing):
    new, old, values, _ = _case()
    given = {"raw_rewards": values, "advantages": values, "old_log_probs": old, "cliprange": 0.2}
    with pytest.raises(ValueError, match=f"{loss_type} needs {missing}"):
        compute_policy_gradient_loss(new, loss_type, **(given | {missing: None}))


def test_unknown_types_and_flat_advantages_are_refused():
    new, old, values, _ = _case(batch=6, seq=6)
    with pytest.raises(ValueError, match="loss_type is one of no_baseline"):
        compute_policy_gradient_loss(new, "ppo", advantages=values)
    with pytest.raises(ValueError, match=r"need one number a response, \(6, 1\); got \(6,\)"):
        compute_naive_policy_gradient_loss(values.flatten(), new)
    for loss in (compute_grpo_clip_loss, compute_grpo_no_clip_loss):
        with pytest.raises(ValueError, match="one number a response"):
            loss(values.flatten(), new, old, cliprange=0.2)
        with pytest.raises(ValueError, match=r"old_log_probs are \(6, 1\), the policy's \(6, 6\)"):
            loss(values, new, old[:, :1], cliprange=0.2)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("constant", [None, 5.0])
def test_a_step_is_the_mean_over_responses_and_returns_the_scaled_loss(loss_type, constant):
    new, old, values, mask = _case()
    given = {"raw_rewards": values, "advantages": values, "old_log_probs": old, "cliprange": 0.2}
    per_token, _ = compute_policy_gradient_loss(new.detach(), loss_type, **given)
    sums = [sum(x for x, chosen in zip(*rows, strict=True) if chosen) for rows in zip(per_token, mask, strict=True)]
    lengths = mask.sum(1).tolist()
    each = [total / (constant or length) for total, length in zip(sums, lengths, strict=True)]
    loss, metadata = grpo_microbatch_train_step(
        policy_log_probs=new,
        response_mask=mask,
        gradient_accumulation_steps=3,
        loss_type=loss_type,
        normalize_constant=constant,
        **given,
    )
    torch.testing.assert_close(loss, sum(each) / 4 / 3)
    assert loss.shape == () and not loss.requires_grad and new.grad is not None
    assert torch.equal(new.grad != 0, mask & ~metadata.get("clipped", torch.zeros_like(mask)))
    first = new.grad.clone()
    again = grpo_microbatch_train_step(new, mask, 3, loss_type, **given, normalize_constant=constant)
    assert torch.equal(again[0], loss)
    torch.testing.assert_close(new.grad, 2 * first)  # added to what was there


def test_the_handouts_lengths_4_and_7():
    """A = 2, r = 1: means give [2, 2] and token gradients of 1/4 and 1/7; a constant of 7 gives [8/7, 2] and 1/7."""
    mask = torch.tensor([[1, 1, 1, 1, 0, 0, 0], [1] * 7]).bool()
    old = torch.full((2, 7), -1.0)
    for constant, expected_loss, gradients in (
        (None, -2.0, (1 / 4, 1 / 7)),
        (7.0, -(8 / 7 + 2) / 2, (1 / 7, 1 / 7)),
    ):
        new = old.clone().requires_grad_()
        loss, _ = grpo_microbatch_train_step(
            new,
            mask,
            1,
            "grpo_clip",
            advantages=torch.full((2, 1), 2.0),
            old_log_probs=old,
            cliprange=0.2,
            normalize_constant=constant,
        )
        torch.testing.assert_close(loss, torch.tensor(expected_loss))
        torch.testing.assert_close(new.grad, -mask.float() * torch.tensor(gradients).unsqueeze(1))


def test_the_share_of_clipped_tokens_is_that_of_the_responses_alone():
    new, old, values, mask = _case()
    _, metadata = grpo_microbatch_train_step(
        new, mask, 1, "grpo_clip", advantages=values, old_log_probs=old, cliprange=0.2
    )
    assert metadata["clip_fraction"] == metadata["clipped"][mask].float().mean()
    assert metadata["clip_fraction"] != metadata["clipped"].float().mean()


def test_an_empty_response_makes_the_loss_nan():
    new, _, values, mask = _case()
    mask[1] = False
    loss, _ = grpo_microbatch_train_step(new, mask, 1, "reinforce_with_baseline", advantages=values)
    assert math.isnan(loss)


def test_the_defaults_are_the_handouts():
    config = GrpoConfig()
    assert (config.n_grpo_steps, config.learning_rate, config.advantage_eps) == (200, 1e-5, 1e-6)
    assert (config.rollout_batch_size, config.group_size, config.num_questions) == (256, 8, 32)
    assert (config.sampling_temperature, config.sampling_min_tokens, config.sampling_max_tokens) == (1.0, 4, 1024)
    assert (config.epochs_per_rollout_batch, config.train_batch_size, config.micro_batch_size) == (1, 256, 2)
    assert (config.loss_type, config.use_std_normalization) == ("reinforce_with_baseline", True)
    assert (config.weight_decay, config.betas, config.max_grad_norm) == (0.0, (0.9, 0.95), 1.0)
    assert config.num_updates == 1 and not config.off_policy
    varied = replace(config, epochs_per_rollout_batch=3, train_batch_size=128, loss_type="grpo_clip")
    assert varied.num_updates == 6 and varied.off_policy and varied.micro_batch_size == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_batch_size": 128, "gradient_accumulation_steps": 96}, "does not divide by gradient_accumulation"),
        ({"rollout_batch_size": 252}, "rollout_batch_size 252 does not divide by group_size 8"),
        ({"train_batch_size": 4, "gradient_accumulation_steps": 1}, "4 is below group_size 8"),
        ({"train_batch_size": 512}, "does not divide by train_batch_size"),
        ({"loss_type": "grpo_clip"}, "ratio of 1 everywhere"),
        ({"loss_type": "grpo_no_clip"}, "ratio of 1 everywhere"),
        ({"loss_type": "ppo"}, "loss_type is one of"),
        ({"loss_type": "grpo_clip", "epochs_per_rollout_batch": 2, "cliprange": 0.0}, "cliprange is above 0"),
        ({"group_size": 1}, "group_size must be at least 2"),
        ({"n_grpo_steps": 0}, "n_grpo_steps must be at least 1"),
        ({"sampling_min_tokens": 0}, "sampling_min_tokens must be at least 1"),
        ({"sampling_max_tokens": 2}, "below sampling_min_tokens"),
        ({"normalize_constant": 0.0}, "normalize_constant is above 0"),
    ],
)
def test_settings_that_do_not_go_together_are_refused_at_the_start(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(GrpoConfig(), **changes)
