"""Log-probabilities and entropies: by hand, against PyTorch in fp64, for both kinds of models."""

import math
from types import SimpleNamespace

import pytest
import torch

from cs336.model import logprobs
from cs336.model.logprobs import compute_entropy, get_response_log_probs
from cs336.model.transformer import ModelConfig, TransformerLM

CONFIG = ModelConfig(context_length=16, d_model=32, num_layers=1, num_heads=2, vocab_size=23)


def _ids(batch=3, seq=9):
    ids = torch.randint(0, 23, (batch, seq + 1), generator=torch.Generator().manual_seed(0))
    return ids[:, :-1], ids[:, 1:]


def _entropy64(logits):
    log_p = torch.log_softmax(logits.double(), dim=-1)
    return -(log_p.exp() * log_p).sum(-1)


def test_entropy_by_hand():
    logits = torch.tensor([[[0.0, 0.0, 0.0, 0.0], [math.log(3.0), 0.0, -math.inf, -math.inf]]])
    expected = [[math.log(4), 0.75 * math.log(4 / 3) + 0.25 * math.log(4)]]
    torch.testing.assert_close(compute_entropy(logits), torch.tensor(expected))


def test_entropy_is_that_of_fp64_and_shaped_batch_by_seq():
    logits = 5 * torch.randn(2, 3, 50, generator=torch.Generator().manual_seed(0))
    actual = compute_entropy(logits)
    assert actual.shape == (2, 3) and actual.dtype == torch.float32
    torch.testing.assert_close(actual, _entropy64(logits).float(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shift", [0.0, 1e4, -1e4, 3e38])
def test_entropy_does_not_overflow(shift):
    logits = torch.tensor([[[2.0, 1.0, 0.0]]]) + shift if abs(shift) < 1e6 else torch.tensor([[[shift, shift, shift]]])
    expected = _entropy64(torch.tensor([[[2.0, 1.0, 0.0]]])) if abs(shift) < 1e6 else torch.tensor([[math.log(3)]])
    torch.testing.assert_close(compute_entropy(logits).double(), expected.double(), rtol=1e-3, atol=1e-5)


def test_entropy_of_bf16_logits_is_fp32_and_has_a_gradient():
    logits = torch.randn(2, 3, 50, generator=torch.Generator().manual_seed(0)).bfloat16().requires_grad_()
    entropy = compute_entropy(logits)
    torch.testing.assert_close(entropy, _entropy64(logits).float(), rtol=1e-5, atol=1e-6)
    wanted = logits.detach().double().requires_grad_()
    entropy.sum().backward()
    _entropy64(wanted).sum().backward()
    torch.testing.assert_close(logits.grad.double(), wanted.grad, rtol=1e-2, atol=1e-3)
    with_impossible = torch.tensor([[1.0, 0.5, -math.inf]], requires_grad=True)
    compute_entropy(with_impossible).sum().backward()
    assert torch.isfinite(with_impossible.grad).all()


@pytest.mark.parametrize("kind", ["ours", "transformers"])
@pytest.mark.parametrize("chunk_bytes", [1, 4 * 23 * 5, 1 << 30])
def test_response_log_probs_and_their_gradient_are_pytorchs(kind, chunk_bytes, monkeypatch):
    monkeypatch.setattr(logprobs, "_MAX_CHUNK_BYTES", chunk_bytes)
    torch.manual_seed(0)
    model = TransformerLM(CONFIG)
    called = model if kind == "ours" else lambda ids: SimpleNamespace(logits=model(ids))
    input_ids, labels = _ids()
    weights = torch.randn(labels.shape, generator=torch.Generator().manual_seed(1))

    found = get_response_log_probs(called, input_ids, labels, return_token_entropy=True)
    assert set(found) == {"log_probs", "token_entropy"}
    (found["log_probs"] * weights).sum().backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]

    model.zero_grad()
    logits = model(input_ids)
    expected = torch.log_softmax(logits, dim=-1).gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    (expected * weights).sum().backward()
    assert found["log_probs"].shape == labels.shape and found["log_probs"].dtype == torch.float32
    torch.testing.assert_close(found["log_probs"], expected)
    torch.testing.assert_close(found["token_entropy"], _entropy64(logits).float(), rtol=1e-5, atol=1e-5)
    assert not found["token_entropy"].requires_grad
    for gradient, parameter in zip(gradients, model.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("start", [0, 1, 8])
def test_from_a_column_on_all_is_as_without_it_and_the_head_runs_on_no_more(start):
    model = TransformerLM(CONFIG)
    input_ids, labels = _ids()
    weights = torch.randn(labels.shape, generator=torch.Generator().manual_seed(1))
    weights[:, :start] = 0  # as the mask of responses does
    whole = get_response_log_probs(model, input_ids, labels, return_token_entropy=True)
    (whole["log_probs"] * weights).sum().backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]

    model.zero_grad()
    widths = []
    model.lm_head.register_forward_hook(lambda head, inputs, logits: widths.append(logits.shape[1]))
    found = get_response_log_probs(model, input_ids, labels, return_token_entropy=True, start=start)
    (found["log_probs"] * weights).sum().backward()
    assert widths == [9 - start]
    for name, values in found.items():
        assert values.shape == labels.shape and not values[:, :start].any()
        torch.testing.assert_close(values[:, start:], whole[name][:, start:])
    for gradient, parameter in zip(gradients, model.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-6)


def test_models_of_transformers_give_every_column():
    model = TransformerLM(CONFIG)
    input_ids, labels = _ids()
    theirs = get_response_log_probs(lambda ids: SimpleNamespace(logits=model(ids)), input_ids, labels, start=4)
    torch.testing.assert_close(theirs["log_probs"], get_response_log_probs(model, input_ids, labels)["log_probs"])


def test_entropy_of_impossible_tokens_is_finite():
    logits = torch.tensor([[[math.log(3.0), 0.0, -math.inf]]])
    found = get_response_log_probs(lambda _: logits, torch.zeros(1, 1), torch.zeros(1, 1, dtype=torch.int64), True)
    expected = 0.75 * math.log(4 / 3) + 0.25 * math.log(4)
    torch.testing.assert_close(found["token_entropy"], torch.tensor([[expected]]))


def test_entropy_comes_only_on_request():
    model = TransformerLM(CONFIG)
    input_ids, labels = _ids()
    assert set(get_response_log_probs(model, input_ids, labels)) == {"log_probs"}
    assert set(get_response_log_probs(model, input_ids, labels, return_token_entropy=False)) == {"log_probs"}


def test_log_probs_of_bf16_logits_are_computed_in_fp32():
    logits = (8 * torch.randn(2, 5, 300, generator=torch.Generator().manual_seed(0))).bfloat16().requires_grad_()
    labels = torch.randint(0, 300, (2, 5), generator=torch.Generator().manual_seed(1))
    found = get_response_log_probs(lambda _: logits, labels, labels)["log_probs"]
    wanted = logits.detach().double().requires_grad_()
    expected = torch.log_softmax(wanted, dim=-1).gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-5)
    found.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(logits.grad.double(), wanted.grad, rtol=1e-2, atol=1e-6)
