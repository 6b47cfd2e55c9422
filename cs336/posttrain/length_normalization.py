"""What a response's loss is divided by, its own length or a constant: the argument, and the handout's example."""

from __future__ import annotations

from typing import NamedTuple

import torch

from cs336.posttrain.grpo import grpo_microbatch_train_step

ARGUMENT = """\
**The question.** A response's loss is the sum over its tokens, divided either by its own length (`masked_mean`) or by
a constant (`masked_normalize`). The policy gradient theorem asks for neither: the gradient of the expected reward is
the mean over responses of A times the *sum* of the tokens' gradients. A constant only scales that, so its direction is
the right one. The own length weighs each response by 1 / length, which is another objective.

**For the own length.** Every response counts alike, however long: a few long ones do not fill the gradient, its norm
varies less from batch to batch, and the learning rate means the same when lengths change in training. The loss is a
mean per token, on the scale of SFT's.

**Against it.** A token of a long response weighs less than one of a short response. Of right responses the short ones
are pushed up more per token; of wrong responses the long ones are pushed down less. A policy that cannot answer is
drawn to answer wrongly *at length* (Dr. GRPO, arXiv:2503.20783, section 3): to be looked for as wrong responses that
become longer while right ones do not.

**For a constant.** Every token weighs the same, the estimate has no bias of length. **Against it**: long responses
dominate the sum, so that its variance is larger; the constant is one more number to choose, and it scales the
gradient: at the longest response allowed, a batch of short ones has a small gradient (length / constant of the
other's). Adam's steps do not see a constant scale, but clipping of the gradient's norm does. Where lengths are alike,
both are the same but for this scale.
"""
LENGTHS = (4, 7)  # the handout's example: two responses, advantage 2, ratio 1, constant 7
_ADVANTAGE = 2.0


class Normalized(NamedTuple):
    """One way to normalize, on the example.

    Attributes:
        losses: of each response, without the sign.
        token_gradients: size of the gradient of each response's tokens, of the batch's mean loss.
    """

    losses: tuple[float, ...]
    token_gradients: tuple[float, ...]


def example(normalize_constant: float | None) -> Normalized:
    """The handout's example by the step that trains: lengths 4 and 7, advantage 2, ratio 1.

    Args:
        normalize_constant: None for each response's own length.
    """
    mask = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    log_probs = torch.zeros(mask.shape, requires_grad=True)
    advantages = torch.full((len(LENGTHS), 1), _ADVANTAGE)
    old = torch.zeros(mask.shape)

    def step(rows: slice) -> float:
        log_probs.grad = None
        loss, _ = grpo_microbatch_train_step(
            log_probs[rows],
            mask[rows],
            1,
            "grpo_clip",
            advantages=advantages[rows],
            old_log_probs=old[rows],
            cliprange=0.2,
            normalize_constant=normalize_constant,
        )
        return loss.item()

    losses = tuple(-step(slice(row, row + 1)) for row in range(len(LENGTHS)))
    step(slice(None))
    assert log_probs.grad is not None
    return Normalized(losses, tuple(log_probs.grad[:, 0].abs().tolist()))
