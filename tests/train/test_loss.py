"""The cross-entropy that never holds all logits: the plain one's value and gradients."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from cs336.train import loss as loss_module
from cs336.train.loss import cross_entropy, linear_cross_entropy, linear_token_losses

VOCAB = 37
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def _example(scale=1.0, dtype=torch.float32):
    torch.manual_seed(0)
    hidden = (scale * torch.randn(3, 5, 8, dtype=dtype, device=DEVICE)).requires_grad_()
    weight = torch.randn(VOCAB, 8, dtype=dtype, device=DEVICE, requires_grad=True)
    return hidden, weight, torch.randint(0, VOCAB, (3, 5), device=DEVICE)


def _gradients(loss, *parameters):
    return torch.autograd.grad(loss, parameters)


@pytest.mark.parametrize("chunk_tokens", [1, 4, 15, 100])  # one token, a remainder, exactly all, more than there are
@pytest.mark.parametrize("scale", [1.0, 1000.0])
@pytest.mark.parametrize("in_place", [False, True])
def test_value_and_gradients_are_pytorchs(chunk_tokens, scale, in_place):
    hidden, weight, targets = _example(scale)
    plain = nn.functional.cross_entropy((hidden @ weight.T).flatten(0, 1), targets.flatten())
    loss = linear_cross_entropy(hidden, weight, targets, chunk_tokens=chunk_tokens, in_place=in_place)
    assert torch.equal(loss.total, loss.cross_entropy) and not loss.cross_entropy.requires_grad
    torch.testing.assert_close(loss.total, plain, atol=1e-4, rtol=1e-5)
    # Three times the loss has three times the gradient: what comes from above is not forgotten.
    for ours, theirs in zip(
        _gradients(3 * loss.total, hidden, weight), _gradients(3 * plain, hidden, weight), strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-6 * scale, rtol=1e-4)


@pytest.mark.parametrize("in_place", [False, True])
def test_the_z_loss_is_the_mean_squared_log_of_the_denominator(in_place):
    hidden, weight, targets = _example()
    logits = hidden @ weight.T
    plain = cross_entropy(logits, targets) + 0.1 * logits.logsumexp(-1).square().mean()
    loss = linear_cross_entropy(hidden, weight, targets, z_loss=0.1, chunk_tokens=4, in_place=in_place)
    torch.testing.assert_close(loss.total, plain)
    torch.testing.assert_close(loss.cross_entropy, cross_entropy(logits, targets))
    for ours, theirs in zip(_gradients(loss.total, hidden, weight), _gradients(plain, hidden, weight), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)


def test_under_autocast_products_are_bf16_and_gradients_keep_their_dtype():
    hidden, weight, targets = _example()
    with torch.autocast(DEVICE, torch.bfloat16):
        loss = linear_cross_entropy(hidden, weight, targets, chunk_tokens=4).total
        plain = cross_entropy((hidden @ weight.T).float(), targets)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, plain, atol=1e-5, rtol=1e-5)
    assert not torch.equal(loss, linear_cross_entropy(hidden, weight, targets, chunk_tokens=4).total)
    for ours, theirs in zip(_gradients(loss, hidden, weight), _gradients(plain, hidden, weight), strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=2e-2)  # bf16 has 8 bits


@pytest.mark.parametrize("in_place", [False, True])
def test_a_padded_head_changes_nothing(monkeypatch, in_place):
    hidden, weight, targets = _example()

    def found():
        loss = linear_cross_entropy(hidden, weight, targets, z_loss=1e-3, chunk_tokens=4, in_place=in_place)
        losses = linear_token_losses(hidden, weight, targets, chunk_tokens=4)
        return [loss.total, loss.cross_entropy, losses, *_gradients(loss.total, hidden, weight)]

    plain = found()
    monkeypatch.setattr(
        loss_module, "_padded", lambda head: nn.functional.pad(head, (0, 0, 0, loss_module.PADDED_TO - VOCAB))
    )
    for padded, expected in zip(found(), plain, strict=True):
        torch.testing.assert_close(padded, expected)


@pytest.mark.parametrize("chunk_tokens", [15, 4, 1])  # one product; few chunks, summed in bf16; many, in fp32
def test_in_place_gradients_of_a_16_bit_head_are_those_in_fp32(chunk_tokens):
    hidden, weight, targets = _example(dtype=torch.bfloat16)
    loss = linear_cross_entropy(hidden, weight, targets, chunk_tokens=chunk_tokens, in_place=True).total
    plain = cross_entropy(hidden.float() @ weight.float().T, targets)
    torch.testing.assert_close(loss, plain, atol=2e-2, rtol=1e-2)
    for ours, theirs in zip(_gradients(loss, hidden, weight), _gradients(plain, hidden, weight), strict=True):
        assert ours.dtype == torch.bfloat16
        torch.testing.assert_close(ours, theirs, atol=4e-3, rtol=3e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("factor", [1.0, 1 / 3, -700.0, 0.0])
def test_the_gradient_from_above_scales_in_fp32_and_is_rounded_once(dtype, factor):
    hidden, weight, targets = _example(dtype=dtype)
    once = _gradients(linear_cross_entropy(hidden, weight, targets, chunk_tokens=4).total, hidden, weight)
    scaled = _gradients(factor * linear_cross_entropy(hidden, weight, targets, chunk_tokens=4).total, hidden, weight)
    for ours, theirs in zip(scaled, once, strict=True):
        assert ours.dtype == dtype and torch.equal(ours, (factor * theirs.float()).to(dtype))


def test_the_backward_pass_works_in_place_and_so_only_once():
    class Products(TorchDispatchMode):
        found = ()

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.shape == (VOCAB, 8):
                self.found += (str(function),)
            return out

    hidden, weight, targets = _example()
    loss = linear_cross_entropy(hidden, weight, targets).total
    with Products() as products:
        gradients = torch.autograd.grad(loss, (hidden, weight), retain_graph=True)
    assert gradients[1].abs().sum() > 0 and not any("mul" in name for name in products.found)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(loss, (hidden, weight))


class _Largest(TorchDispatchMode):
    numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
        return out


def test_no_tensor_is_as_large_as_all_logits():
    hidden = torch.randn(512, 8, requires_grad=True)
    weight, targets = torch.randn(VOCAB, 8, requires_grad=True), torch.randint(0, VOCAB, (512,))
    with _Largest() as largest:
        linear_cross_entropy(hidden, weight, targets, chunk_tokens=64).total.backward()
        linear_token_losses(hidden, weight, targets, chunk_tokens=64)
    assert largest.numel == max(512 * 8, 64 * VOCAB) < 512 * VOCAB


def test_single_losses_are_those_whose_mean_is_the_loss():
    hidden, weight, targets = _example()
    losses = linear_token_losses(hidden, weight, targets, chunk_tokens=4)
    expected = nn.functional.cross_entropy((hidden @ weight.T).flatten(0, 1), targets.flatten(), reduction="none")
    torch.testing.assert_close(losses, expected.view(3, 5))
    assert losses.shape == targets.shape and not losses.requires_grad


def test_it_compiles_with_what_stands_before_it_to_the_same_numbers():
    hidden, weight, targets = _example()

    def loss_of(x):
        return linear_cross_entropy(torch.tanh(x), weight, targets, z_loss=1e-3, chunk_tokens=4).total

    compiled = torch.compile(loss_of, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(hidden), loss_of(hidden))
    for ours, theirs in zip(
        _gradients(compiled(hidden), hidden, weight), _gradients(loss_of(hidden), hidden, weight), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_mistakes_are_named():
    hidden, weight, targets = _example()
    with pytest.raises(ValueError, match="do not belong together"):
        linear_cross_entropy(hidden, weight, targets[:, :-1])
    with pytest.raises(ValueError, match="chunk_tokens must be at least 1, got 0"):
        linear_cross_entropy(hidden, weight, targets, chunk_tokens=0)
    with pytest.raises(ValueError, match="z_loss"):
        linear_cross_entropy(hidden, weight, targets, z_loss=-1.0)
