"""Log-probabilities of given tokens, and the entropy of the distributions they were drawn from."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from cs336.model.transformer import TransformerLM

if TYPE_CHECKING:
    from jaxtyping import Float, Int

# The fp32 copy of logits that is held at once: beside those of a large vocabulary little memory is free.
_MAX_CHUNK_BYTES = 256 << 20
# exp of this is 0 in fp32 and fp64, and 0 times this is 0: logits of -inf then add nothing to an entropy.
_NEVER = -1e4


def token_logprobs(logits: Float[Tensor, "... vocab"], targets: Int[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Log-probability of each target under the softmax of its logits, in nats.

    Finite for very large logits: the maximum is subtracted before exponentiation.
    """
    shifted = logits - logits.amax(dim=-1, keepdim=True).detach()
    chosen = shifted.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    return chosen - shifted.exp().sum(dim=-1).log()


def compute_entropy(logits: Float[Tensor, "... vocab"]) -> Float[Tensor, "..."]:
    """Entropy of the next token's distribution at each place, in nats: logsumexp(z) - sum softmax(z) z.

    In fp32 at least, and finite for very large logits and for those of -inf.
    """
    wide = logits if logits.dtype == torch.float64 else logits.float()
    shifted = (wide - wide.amax(dim=-1, keepdim=True).detach()).clamp(min=_NEVER)
    log_normalizer = torch.logsumexp(shifted, dim=-1)
    return log_normalizer - ((shifted - log_normalizer.unsqueeze(-1)).exp() * shifted).sum(dim=-1)


def logits_of(model: Callable[[Tensor], Any], input_ids: Int[Tensor, "batch seq"]) -> Float[Tensor, "batch seq vocab"]:
    """Logits of a model that returns them, as ours does, or an object that has them, as those of transformers do."""
    output = model(input_ids)
    return output if isinstance(output, Tensor) else output.logits


def get_response_log_probs(
    model: Callable[[Tensor], Any],
    input_ids: Int[Tensor, "batch seq"],
    labels: Int[Tensor, "batch seq"],
    return_token_entropy: bool = False,
    *,
    start: int = 0,
) -> dict[str, Float[Tensor, "batch seq"]]:
    """What a model gives each label, prompt and padding included: nothing is masked.

    Args:
        start: the first column that is wanted. Our model's head does not run on those before, whose values then are
            0: beside a short response a prompt's logits are most of the work.

    Returns:
        `log_probs`: fp32, in nats, with a gradient; `token_entropy`, only on request: fp32, in nats, without
        a gradient, since it is for looking at (`compute_entropy` has one).
    """
    if isinstance(model, TransformerLM):
        logits = model.lm_head(model.hidden_states(input_ids)[:, start:])
    else:
        logits, start = logits_of(model, input_ids), 0
    log_probs, entropy = _LogProbs.apply(logits, labels[:, start:], return_token_entropy)
    found = {"log_probs": log_probs, "token_entropy": entropy} if return_token_entropy else {"log_probs": log_probs}
    return {name: pad(values, (start, 0)) for name, values in found.items()} if start else found


class _LogProbs(torch.autograd.Function):
    """`token_logprobs` in fp32 that keeps the logits alone, in their own dtype, and no softmax beside them."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, with_entropy: bool) -> tuple[Tensor, Tensor]:
        rows, targets = logits.reshape(-1, logits.shape[-1]), labels.reshape(-1, 1)
        log_probs, normalizers, entropies = [], [], []
        size = _chunk_rows(rows)
        for some_rows, some_targets in zip(rows.split(size), targets.split(size), strict=True):
            wide = some_rows.float()
            normalizer = torch.logsumexp(wide, dim=-1, keepdim=True)
            log_probs.append((wide.gather(-1, some_targets) - normalizer).squeeze(-1))
            normalizers.append(normalizer)
            if with_entropy:
                log_p = (wide - normalizer).clamp_(min=_NEVER)  # `compute_entropy` would find the normalizer again
                entropies.append(-log_p.exp().mul_(log_p).sum(dim=-1))
        ctx.save_for_backward(rows, targets, torch.cat(normalizers))
        ctx.shape = logits.shape
        entropy = torch.cat(entropies).view(labels.shape) if with_entropy else logits.new_empty(0)
        ctx.mark_non_differentiable(entropy)
        return torch.cat(log_probs).view(labels.shape), entropy

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None]:
        rows, targets, normalizers = ctx.saved_tensors
        upstream_rows = upstream[0].reshape(-1, 1)
        gradient = torch.empty_like(rows)
        size = _chunk_rows(rows)
        for start in range(0, len(rows), size):
            part = slice(start, start + size)
            wide = (rows[part].float() - normalizers[part]).exp_().mul_(-upstream_rows[part])
            places = torch.arange(len(wide), device=wide.device), targets[part, 0]
            wide[places] = wide[places] + upstream_rows[part, 0]
            gradient[part] = wide
        return gradient.view(ctx.shape), None, None


def _chunk_rows(rows: Tensor) -> int:
    return max(1, _MAX_CHUNK_BYTES // (4 * rows.shape[-1]))
