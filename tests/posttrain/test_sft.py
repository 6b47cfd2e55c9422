"""Supervised fine-tuning: the micro-batch's step by hand."""

import torch

from cs336.posttrain.sft import sft_microbatch_train_step


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
