"""The derivation of DPO holds in numbers, and its page is the one that the numbers are about."""

import torch

from cs336.posttrain import dpo_derivation
from cs336.posttrain.dpo_derivation import PAGE, check_derivation


def test_every_step_holds_in_numbers():
    for seed in range(3):
        found = check_derivation(seed=seed, beta=0.1 * (seed + 1))
        assert found.beaten_by <= 0
        assert max(found.value, found.rewards, found.loss) < 1e-9


def test_another_loss_is_told_from_the_reward_models(monkeypatch):
    right = dpo_derivation.dpo_loss
    monkeypatch.setattr(dpo_derivation, "dpo_loss", lambda policy, reference, beta: right(policy, reference, 2 * beta))
    assert check_derivation().loss > 1e-3


def test_the_gradient_of_the_page_is_the_losses():
    log_probs = torch.tensor([[-3.0, -2.0]], requires_grad=True)
    losses, rewards = dpo_derivation.dpo_loss(log_probs, torch.tensor([[-2.5, -2.5]]), 0.1)
    losses.sum().backward()
    margin = (rewards[0, 0] - rewards[0, 1]).detach()
    weight = 0.1 * torch.sigmoid(-margin)
    torch.testing.assert_close(log_probs.grad, torch.stack([-weight, weight])[None])
    assert "`-beta sigma(-m) [grad log pi(y_w|x) - grad log pi(y_l|x)]`" in PAGE
