"""Activation checkpointing changes what is kept, not what is computed."""

import pytest
import torch

from cs336.model.recompute import run_in_segments
from cs336.model.transformer import ModelConfig, TransformerLM

CONFIG = ModelConfig(context_length=16, d_model=32, num_layers=3, num_heads=4, vocab_size=50, dropout=0.1)


def _loss_and_gradients(layers_per_segment: int):
    torch.manual_seed(0)
    model = TransformerLM(CONFIG).recompute_in_segments(layers_per_segment)
    kept = []
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t)
    with hooks:
        loss = model(torch.arange(32).view(2, 16)).square().mean()
    loss.backward()
    return loss.detach(), [parameter.grad for parameter in model.parameters()], sum(kept)


@pytest.mark.parametrize("layers_per_segment", [1, 2, 3, 5])
def test_loss_and_gradients_are_those_of_a_model_that_keeps_all_also_with_dropout(layers_per_segment):
    loss, gradients, kept = _loss_and_gradients(0)
    same_loss, same_gradients, fewer = _loss_and_gradients(layers_per_segment)
    assert torch.equal(loss, same_loss)
    assert all(torch.equal(one, other) for one, other in zip(gradients, same_gradients, strict=True))
    assert fewer < kept / 2


@pytest.mark.parametrize("kernel", ["fused", "flash"])
def test_attention_that_is_kept_is_not_run_again(kernel, monkeypatch):
    config = ModelConfig(context_length=16, d_model=32, num_layers=3, num_heads=2, vocab_size=50)
    calls = []

    class Counted(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            calls.append(function.name())
            return function(*args, **(kwargs or {}))

    results = []
    for keep_attention in (False, True):
        torch.manual_seed(0)
        model = TransformerLM(config).use_attention_kernel(kernel)
        model.recompute_in_segments(1, keep_attention=keep_attention)
        calls.clear()
        with Counted():
            loss = model(torch.arange(32).view(2, 16)).square().mean()
            gradients = torch.autograd.grad(loss, list(model.parameters()))
        names = ("cs336::flash_forward", "aten::_scaled_dot_product_flash_attention_for_cpu")
        results.append((loss, gradients, sum(name.partition(".")[0] in names for name in calls)))
    (loss, gradients, twice), (same_loss, same_gradients, once) = results
    assert torch.equal(loss, same_loss)
    assert all(torch.equal(one, other) for one, other in zip(gradients, same_gradients, strict=True))
    assert (twice, once) == (6, 3)


def test_nothing_is_run_twice_outside_training():
    calls = []
    model = TransformerLM(CONFIG).recompute_in_segments(1).eval()
    model.layers[0].register_forward_hook(lambda *_: calls.append(1))
    model(torch.arange(16)).sum().backward()
    assert calls == [1]


def test_a_segment_of_no_layers_is_an_error():
    with pytest.raises(ValueError, match="at least one layer, got 0"):
        run_in_segments([], torch.ones(1), 0)
    with pytest.raises(ValueError, match="negative, got -1"):
        TransformerLM(CONFIG).recompute_in_segments(-1)
