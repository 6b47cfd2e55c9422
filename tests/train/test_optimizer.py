"""Loss, AdamW, clipping and schedule against PyTorch's, and by hand."""

import copy
import math

import pytest
import torch
from torch import nn

from cs336.train.loss import cross_entropy
from cs336.train.optimizer import SGD, AdamW, Muon, clip_gradients, orthogonalize, sgd_exercise
from cs336.train.schedule import lr_cosine, lr_wsd


@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_cross_entropy_equals_pytorchs_also_for_large_logits(scale):
    logits, targets = scale * torch.rand(3, 4, 11), torch.randint(0, 11, (3, 4))
    expected = nn.functional.cross_entropy(logits.double().flatten(0, 1), targets.flatten()).float()
    torch.testing.assert_close(cross_entropy(logits, targets), expected, atol=1e-4, rtol=0)
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
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


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


def test_parameters_that_miss_a_gradient_now_and_then_count_their_own_steps():
    torch.manual_seed(0)
    settings = {"lr": 0.01, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
    start = [torch.randn(3, 2), torch.randn(3, 2), torch.randn(4)]
    ours, theirs = ([nn.Parameter(t.clone()) for t in start] for _ in range(2))
    optimizers = AdamW(ours, **settings), torch.optim.AdamW(theirs, **settings)
    for step in range(6):
        for number, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            a.grad = b.grad = None if (step + number) % 3 == 0 else torch.randn(a.shape)
        for optimizer in optimizers:
            optimizer.step()
    assert [optimizers[0].state[p]["t"] for p in ours] == [4, 4, 4]
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_each_group_has_its_own_settings():
    a, b = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = AdamW([{"params": [a], "lr": 0.5}, {"params": [b], "weight_decay": 0.0}], lr=0.1, weight_decay=1.0)
    a.grad = b.grad = torch.zeros(2)
    optimizer.step()
    assert torch.equal(a, torch.full((2,), 0.5)) and torch.equal(b, torch.ones(2))


@pytest.mark.parametrize("kind", [AdamW, SGD])
def test_a_closure_is_called_with_gradients_on_and_its_loss_returned(kind):
    parameter = nn.Parameter(torch.tensor([3.0]))
    optimizer = kind([parameter], lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = parameter.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 9.0
    assert parameter.item() < 3.0


def _muon_by_hand(weight, gradients, *, lr, momentum, weight_decay):
    """One matrix, the article's formulas, and the exact orthogonal factor in place of the iteration."""
    average = torch.zeros_like(weight)
    for gradient in gradients:
        average = momentum * average + (1 - momentum) * gradient
        u, _, vh = torch.linalg.svd(momentum * average + (1 - momentum) * gradient, full_matrices=False)
        weight = weight * (1 - lr * weight_decay) - lr * 0.2 * max(weight.shape) ** 0.5 * u @ vh
    return weight


@pytest.mark.parametrize("shape", [(6, 6), (4, 9), (9, 4)])
def test_muon_moves_along_the_orthogonal_factor(shape):
    torch.manual_seed(0)
    start, gradients = torch.randn(2, *shape), torch.randn(3, 2, *shape)
    parameters = [nn.Parameter(weight.clone()) for weight in start]  # two of a shape: they go as one batch
    optimizer = Muon(parameters, lr=0.02, momentum=0.9, weight_decay=0.1, orthogonalize=True)
    for both in gradients:
        for parameter, gradient in zip(parameters, both, strict=True):
            parameter.grad = gradient
        optimizer.step()
    for number, parameter in enumerate(parameters):
        expected = _muon_by_hand(start[number], gradients[:, number], lr=0.02, momentum=0.9, weight_decay=0.1)
        moved, should = parameter.detach() - start[number], expected - start[number]
        # The iteration ends with singular values around 1, not at 1: direction and size are near, not equal.
        assert nn.functional.cosine_similarity(moved.flatten(), should.flatten(), dim=0) > 0.97
        assert 0.7 < moved.norm() / should.norm() < 1.2


def test_orthogonalized_matrices_have_singular_values_near_one():
    torch.manual_seed(0)
    matrices = torch.randn(5, 16, 48) * torch.logspace(-3, 3, 5)[:, None, None]  # the size must not matter
    values = torch.linalg.svdvals(orthogonalize(matrices))
    assert values.min() > 0.6 and values.max() < 1.25
    torch.testing.assert_close(orthogonalize(matrices.mT), orthogonalize(matrices).mT)


def test_muon_treats_other_groups_as_adamw_does():
    torch.manual_seed(0)
    start, gradient = torch.randn(3, 4), torch.randn(3, 4)
    matrix, ours, theirs = (nn.Parameter(start.clone()) for _ in range(3))
    muon = Muon([{"params": [matrix], "orthogonalize": True}, {"params": [ours]}], lr=0.1, weight_decay=0.1)
    adamw = AdamW([theirs], lr=0.1, betas=(0.9, 0.95), weight_decay=0.1)
    matrix.grad = ours.grad = theirs.grad = gradient
    muon.step()
    adamw.step()
    assert torch.equal(ours, theirs) and not torch.equal(matrix, ours)
    with pytest.raises(ValueError, match=r"Muon orthogonalizes matrices, got a parameter of shape \(3,\)"):
        Muon([nn.Parameter(torch.ones(3))], orthogonalize=True)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_saved_optimizer_goes_on_bit_by_bit(kind):
    def make(parameters):
        return Muon(parameters, lr=0.1, orthogonalize=kind == "muon")

    torch.manual_seed(0)
    gradients = torch.randn(6, 4, 4)
    whole = nn.Parameter(torch.eye(4))
    first = make([whole])
    for gradient in gradients[:3]:
        whole.grad = gradient
        first.step()
    resumed = nn.Parameter(whole.detach().clone())
    second = make([resumed])
    second.load_state_dict(copy.deepcopy(first.state_dict()))  # as from a file: without sharing memory
    for gradient in gradients[3:]:
        whole.grad = resumed.grad = gradient
        first.step()
        second.step()
    assert torch.equal(whole, resumed)


def test_sgd_exercise_decays_or_diverges_as_the_factor_says():
    def factors(lr):  # w <- w - lr / sqrt(t + 1) * 2 w / 100, so the loss takes the square of this
        return [(1 - lr / math.sqrt(t + 1) * 2 / 100) ** 2 for t in range(9)]

    for lr in (1.0, 10.0, 100.0, 1000.0):
        losses = sgd_exercise(lr)
        assert len(losses) == 10
        # fp32 loses all digits of a weight that one step takes to almost nothing.
        pairs = zip(losses[1:], losses, factors(lr), strict=False)
        assert all(after == pytest.approx(before * factor, rel=1e-4, abs=1e-9) for after, before, factor in pairs)
    assert 20 < sgd_exercise(1.0)[0] < 30  # the mean of 100 squares of 5 randn
    assert sgd_exercise(1.0)[-1] < sgd_exercise(1.0)[0] < sgd_exercise(1000.0)[-1]


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
        torch.testing.assert_close(a.grad, b.grad, atol=1e-6, rtol=0)
    assert ours[-1].grad is None


def test_cosine_schedule_by_hand():
    rates = [lr_cosine(t, 1.0, 0.1, 4, 12) for t in range(15)]
    assert rates[:5] == pytest.approx([0.0, 0.25, 0.5, 0.75, 1.0], rel=1e-7)
    assert rates[8] == pytest.approx(0.1 + 0.5 * 0.9, rel=1e-7)  # half way down
    falling = [0.1 + 0.45 * (1 + math.cos(math.pi * (t - 4) / 8)) for t in range(4, 13)]
    assert rates[4:13] == pytest.approx(falling, rel=1e-7)
    assert rates[12:] == pytest.approx([0.1, 0.1, 0.1], rel=1e-7)


def test_warmup_stable_decay_by_hand():
    rates = [lr_wsd(t, 1.0, 0.2, 4, 8, 12) for t in range(15)]
    assert rates[:5] == pytest.approx([0.0, 0.25, 0.5, 0.75, 1.0])
    assert rates[5:9] == [1.0] * 4
    assert rates[9:] == pytest.approx([0.8, 0.6, 0.4, 0.2, 0.2, 0.2])
    assert lr_wsd(12, 1.0, 0.0, 4, 12, 12) == 1.0 and lr_wsd(12, 1.0, 0.0, 4, 4, 12) == 0.0
