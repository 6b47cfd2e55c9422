"""Loss, AdamW, clipping and schedule against PyTorch's, and by hand."""

import math

import pytest
import torch
from torch import nn

from cs336.train.loss import cross_entropy
from cs336.train.optimizer import AdamW, clip_gradients
from cs336.train.schedule import lr_cosine


@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_cross_entropy_equals_pytorchs_also_for_large_logits(scale):
    logits, targets = scale * torch.randn(3, 4, 11), torch.randint(0, 11, (3, 4))
    expected = nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    torch.testing.assert_close(cross_entropy(logits, targets), expected, atol=1e-4, rtol=1e-5)
    assert torch.isfinite(cross_entropy(1e30 * torch.ones(1, 3), torch.tensor([1])))


def _train(make_optimizer):
    torch.manual_seed(0)
    model = nn.Linear(3, 2, bias=False)
    optimizer = make_optimizer(model.parameters())
    for _ in range(1_000):
        optimizer.zero_grad()
        x = torch.rand(3)
        ((model(x) - torch.tensor([x[0] + x[1], -x[2]])) ** 2).sum().backward()
        optimizer.step()
    return model.weight.detach()


def test_adamw_agrees_with_pytorchs_after_a_thousand_steps():
    settings = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01}
    ours, theirs = _train(lambda p: AdamW(p, **settings)), _train(lambda p: torch.optim.AdamW(p, **settings))
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_the_first_adamw_step_by_hand():
    parameter = nn.Parameter(torch.tensor([2.0]))
    parameter.grad = torch.tensor([0.5])
    AdamW([parameter], lr=0.1, betas=(0.9, 0.999), eps=0.0, weight_decay=0.1).step()
    # The first step moves by lr whatever the gradient's size, then decays: (2 - 0.1) * (1 - 0.01).
    torch.testing.assert_close(parameter.detach(), torch.tensor([1.9 * 0.99]))


def test_adamw_state_survives_saving_and_skips_missing_gradients():
    used, unused = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    used.grad = torch.ones(2)
    optimizer = AdamW([used, unused])
    optimizer.step()
    assert torch.equal(unused, torch.ones(2)) and unused not in optimizer.state
    other = AdamW([used, unused])
    other.load_state_dict(optimizer.state_dict())
    assert other.state[used]["t"] == 1 and torch.equal(other.state[used]["m"], optimizer.state[used]["m"])


@pytest.mark.parametrize("bad", [{"lr": -1.0}, {"betas": (1.0, 0.9)}, {"eps": -1.0}, {"weight_decay": -0.1}])
def test_adamw_refuses_settings_out_of_range(bad):
    with pytest.raises(ValueError):
        AdamW([nn.Parameter(torch.ones(1))], **bad)


@pytest.mark.parametrize("max_norm", [0.01, 1e6])
def test_clipping_equals_pytorchs_with_a_frozen_parameter_present(max_norm):
    tensors = [torch.randn(5, 5) for _ in range(4)]
    ours, theirs = ([nn.Parameter(t.clone()) for t in tensors] for _ in range(2))
    for parameters in (ours, theirs):
        parameters[-1].requires_grad_(False)
        sum((p**2).sum() for p in parameters[:-1]).backward()
    clip_gradients(iter(ours), max_norm)
    nn.utils.clip_grad_norm_(theirs[:-1], max_norm)
    for a, b in zip(ours[:-1], theirs[:-1], strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-6, rtol=1e-5)
    assert ours[-1].grad is None


def test_cosine_schedule_by_hand():
    rates = [lr_cosine(t, 1.0, 0.1, 4, 12) for t in range(15)]
    assert rates[:5] == pytest.approx([0.0, 0.25, 0.5, 0.75, 1.0])
    assert rates[8] == pytest.approx(0.1 + 0.5 * 0.9)  # half way down
    assert rates[6] == pytest.approx(0.1 + 0.5 * 0.9 * (1 + math.cos(math.pi / 4)))
    assert rates[12:] == pytest.approx([0.1, 0.1, 0.1])
