"""Supervised fine-tuning: the micro-batch's step by hand, and what a run logs of its examples."""

from dataclasses import replace

import pytest
import torch

from cs336.posttrain.sft import SftConfig, encode_examples, sft_microbatch_train_step, train_sft
from cs336.posttrain.tokenize import tokenize_prompt_and_output
from tests.posttrain.models import CONTEXT, EXAMPLES, MODELS, Saved, curve, our_model
from tests.posttrain.tokenizers import END, Letters

CONFIG = SftConfig(batch_size=6, learning_rate=1e-3, valid_interval=2, num_epochs=2, normalize_constant=3.0)


def _run(folder, model=None, config=CONFIG, train=EXAMPLES[:9], valid=EXAMPLES[9:], **options):
    return train_sft(model or our_model(), Saved(), train, valid, config, seed=0, folder=folder, **options)


def test_a_micro_batch_by_hand():
    log_probs = torch.tensor([[-1.0, -2.0, -3.0], [-4.0, -5.0, -6.0]], requires_grad=True)
    mask = torch.tensor([[False, True, True], [True, False, False]])
    loss, metadata = sft_microbatch_train_step(
        policy_log_probs=log_probs, response_mask=mask, gradient_accumulation_steps=2, normalize_constant=5.0
    )
    torch.testing.assert_close(loss, torch.tensor((5 + 4) / 5 / 2 / 2))
    assert loss.shape == () and not loss.requires_grad
    torch.testing.assert_close(log_probs.grad, -mask.float() / (2 * 2 * 5.0))
    assert metadata["num_response_tokens"] == 3 and metadata["nats_per_token"] == 3.0
    sft_microbatch_train_step(log_probs, mask, 2, 5.0)
    torch.testing.assert_close(log_probs.grad, -mask.float() / (2 * 5.0))  # added to what was there


def test_the_constant_is_1_by_default():
    log_probs = torch.tensor([[-1.0, -2.0]], requires_grad=True)
    loss, _ = sft_microbatch_train_step(log_probs, torch.tensor([[True, True]]), 1)
    assert loss == 3.0 and log_probs.grad.tolist() == [[-1.0, -1.0]]


@pytest.mark.parametrize("kind", MODELS)
def test_a_run_logs_loss_entropy_and_tokens_of_the_responses_alone(kind, tmp_path):
    """The first step's row and the validation before it, computed anew from the logits."""
    train = [(f"next {'a' * n} ", "b" * (1 + n % 3)) for n in range(6)]
    config = replace(CONFIG, micro_batch_size=4, num_epochs=1)
    _run(tmp_path, MODELS[kind](), config, train=train)
    before, first = curve(tmp_path)[:2]

    def by_token(examples):
        batch = tokenize_prompt_and_output(*zip(*examples, strict=True), Letters())
        output = MODELS[kind]().eval()(batch["input_ids"])
        log_p = torch.log_softmax(getattr(output, "logits", output).double(), dim=-1)
        log_probs = log_p.gather(-1, batch["labels"].unsqueeze(-1)).squeeze(-1)
        return -log_probs, -(log_p.exp() * log_p).sum(-1), batch["response_mask"]

    nats, entropy, mask = by_token(train)
    assert first["train_loss"] == pytest.approx(((nats * mask).sum(1) / 3).mean().item(), rel=1e-5)
    assert first["nats_per_token"] == pytest.approx(nats[mask].mean().item(), rel=1e-5)
    assert first["token_entropy"] == pytest.approx(entropy[mask].mean().item(), rel=1e-5)
    assert first["num_response_tokens"] == mask.sum() == 12
    assert first["num_tokens"] == sum(len(prompt) + len(response) for prompt, response in train)
    nats, entropy, mask = by_token(EXAMPLES[9:])
    assert before["valid_loss"] == pytest.approx(nats[mask].mean().item(), rel=1e-5)
    assert before["valid_entropy"] == pytest.approx(entropy[mask].mean().item(), rel=1e-5)


@pytest.mark.parametrize("micro_batch_size", [1, 4, 5])
def test_micro_batches_change_nothing_but_rounding(micro_batch_size, tmp_path):
    """Also where they are of unlike size: an epoch is a batch of 6 and one of 3."""
    whole, parts = our_model(), our_model()
    _run(tmp_path / "whole", whole)
    _run(tmp_path / "parts", parts, replace(CONFIG, micro_batch_size=micro_batch_size))
    for ours, theirs in zip(curve(tmp_path / "whole"), curve(tmp_path / "parts"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
    for ours, theirs in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_responses_end_with_the_end_of_text_where_asked_for_and_long_examples_are_left_out():
    examples = [("ab", "c"), ("abc", "defg")]
    a, b, c = Letters().encode("abc")
    assert encode_examples(Letters(), examples[:1], end_of_text=True, max_tokens=None) == [([a, b], [c, END])]
    assert encode_examples(Letters(), examples, end_of_text=False, max_tokens=3) == [([a, b], [c])]
    assert len(encode_examples(Letters(), examples, end_of_text=False, max_tokens=7)) == 2
    assert len(encode_examples(Letters(), examples, end_of_text=True, max_tokens=7)) == 1
    with pytest.raises(ValueError, match="example 1 has an empty response"):
        encode_examples(Letters(), [("a", "b"), ("a", "")], end_of_text=False, max_tokens=None)


def test_examples_longer_than_the_context_are_left_out_and_counted(tmp_path):
    """The last token is a label alone, so one more than the context fits."""
    fits, too_long = ("a" * CONTEXT, "b"), ("a" * CONTEXT, "bb")
    outcome = _run(tmp_path / "a", train=[fits, too_long, too_long])
    assert outcome.num_left_out == 2 and curve(tmp_path / "a")[1]["num_examples"] == 1
    short = {"train": [("a", "bbb"), ("a", "bbbb")], "valid": [("a", "b")]}
    for max_tokens, num_left_out in ((5, 0), (4, 1)):
        config = replace(CONFIG, max_tokens=max_tokens)
        assert _run(tmp_path / str(max_tokens), config=config, **short).num_left_out == num_left_out
    with pytest.raises(ValueError, match="none of 1 training examples has at most 41 tokens"):
        _run(tmp_path / "c", train=[too_long])
    with pytest.raises(ValueError, match="none of 1 valid examples"):
        _run(tmp_path / "d", valid=[too_long])


def test_without_valid_examples_a_validation_is_the_callers(tmp_path):
    config = replace(CONFIG, best_by="valid_accuracy", best_is="highest")
    outcome = _run(
        tmp_path / "a", config=config, valid=[], evaluate=lambda model, step: {"valid_accuracy": 1 / (1 + step)}
    )
    assert outcome.best_step == 0 and "valid_loss" not in outcome.best
    with pytest.raises(ValueError, match="best_by is 'valid_loss', but"):
        _run(tmp_path / "b", valid=[])
