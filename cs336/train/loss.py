"""Cross-entropy that stays finite, and one that never holds all logits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version

from cs336.model.logprobs import token_logprobs

if TYPE_CHECKING:
    from jaxtyping import Float, Int

# Tokens whose logits are held at once: enough for full-speed matrix products; with 10,000 entries in
# fp32 they are 20 MB on a CPU, 330 MB on a GPU. Fewer where a large vocabulary makes them too many: 4,096
# with 150,000 entries in bf16.
CPU_CHUNK_TOKENS = 512
GPU_CHUNK_TOKENS = 8_192
MAX_CHUNK_BYTES = 1_250_000_000
PADDED_TO = 64  # entries, of a head on a GPU that has no multiple of 8: else its products are several times slower
MAX_LOW_SUMS = 4  # chunks whose gradients of the head may be summed in the head's own 16 bits


def cross_entropy(logits: Float[Tensor, "... vocab"], targets: Int[Tensor, "..."]) -> Float[Tensor, ""]:
    """Mean negative log-likelihood of the targets, in nats; finite for very large logits."""
    return -token_logprobs(logits, targets).mean()


class Loss(NamedTuple):
    """What a batch cost.

    Attributes:
        total: to be minimized: the cross-entropy plus the z-loss.
        cross_entropy: nats per token; carries no gradient.
    """

    total: Float[Tensor, ""]
    cross_entropy: Float[Tensor, ""]


def linear_cross_entropy(
    hidden: Float[Tensor, "... d_model"],
    weight: Float[Tensor, "vocab d_model"],
    targets: Int[Tensor, "..."],
    *,
    z_loss: float = 0.0,
    chunk_tokens: int | None = None,
    in_place: bool = False,
) -> Loss:
    """`cross_entropy(hidden @ weight.T, targets)` without ever holding the logits of all tokens.

    Logits are made for a chunk of tokens at a time and are gone before the next. The gradients with
    respect to `hidden` and `weight` are made from them in the same walk, so that the backward pass
    only scales what is there, in its place, and runs once: a backward pass that made the logits again
    would cost a third more matrix products, and what is kept (one vector a token, one matrix) it would
    return anyway.

    Under autocast the products run in its dtype; softmax and sums are fp32 always.

    Args:
        hidden: output of the final norm.
        weight: of the output head.
        z_loss: weight of the mean squared log of the softmax's denominator, which keeps logits from
            drifting; 1e-4 in PaLM, 0 for none.
        chunk_tokens: tokens at once; by default what suits the device.
        in_place: make the gradient in the place of the logits by a Triton kernel, so that no fp32 copy of them
            exists; for runs without `torch.compile`, which fuses the plain passes.

    Raises:
        ValueError: `chunk_tokens` below 1, a negative `z_loss`, or shapes that do not agree.

    Source: z-loss: PaLM, arXiv:2204.02311, section 5. Gradients in the forward walk: Hsu et al. 2024
        (Liger kernels), arXiv:2410.10989, section 3.2.
    """
    if z_loss < 0:
        raise ValueError(f"z_loss must not be negative, got {z_loss}")
    rows, flat_targets, chunk, dtype = _arguments(hidden, weight, targets, chunk_tokens)
    wants_gradient = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    return Loss(*_LinearCrossEntropy.apply(rows, weight, flat_targets, z_loss, chunk, dtype, wants_gradient, in_place))


@torch.no_grad()
def linear_token_losses(
    hidden: Float[Tensor, "... d_model"],
    weight: Float[Tensor, "vocab d_model"],
    targets: Int[Tensor, "..."],
    *,
    chunk_tokens: int | None = None,
) -> Float[Tensor, "..."]:
    """Nats of each single target, fp32, for evaluation; otherwise as `linear_cross_entropy`."""
    rows, flat_targets, chunk, dtype = _arguments(hidden, weight, targets, chunk_tokens)
    head = _padded(weight.to(dtype)).T
    losses = []
    for some_rows, some_targets in _chunks(rows, flat_targets, chunk):
        logits = _product(some_rows.to(dtype), head)[:, : weight.shape[0]].float()
        losses.append(torch.logsumexp(logits, dim=-1) - logits.gather(-1, some_targets.unsqueeze(-1)).squeeze(-1))
    return torch.cat(losses).view(targets.shape)


def _arguments(
    hidden: Tensor, weight: Tensor, targets: Tensor, chunk_tokens: int | None
) -> tuple[Tensor, Tensor, int, torch.dtype]:
    if hidden.shape[:-1] != targets.shape or hidden.shape[-1] != weight.shape[-1]:
        raise ValueError(
            f"hidden states {tuple(hidden.shape)}, head {tuple(weight.shape)} and targets {tuple(targets.shape)} do not"
            " belong together; they are (..., d_model), (vocab, d_model) and (...)"
        )
    kind = hidden.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
    if chunk_tokens is None:
        chunk_tokens = GPU_CHUNK_TOKENS if hidden.is_cuda else CPU_CHUNK_TOKENS
        while chunk_tokens > CPU_CHUNK_TOKENS and chunk_tokens * weight.shape[0] * dtype.itemsize > MAX_CHUNK_BYTES:
            chunk_tokens //= 2
    if chunk_tokens < 1:
        raise ValueError(f"chunk_tokens must be at least 1, got {chunk_tokens}")
    return hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1), chunk_tokens, dtype


def _chunks(rows: Tensor, targets: Tensor, chunk_tokens: int) -> Iterator[tuple[Tensor, Tensor]]:
    for start in range(0, rows.shape[0], chunk_tokens):
        yield rows[start : start + chunk_tokens], targets[start : start + chunk_tokens]


def _padded(head: Tensor) -> Tensor:
    """The head with rows of zeros, up to a number of entries whose products are fast; the same head where it is."""
    vocab = head.shape[0]
    extra = -vocab % PADDED_TO if head.is_cuda and vocab % 8 else 0
    return nn.functional.pad(head, (0, 0, 0, extra)) if extra else head


def _product(left: Tensor, right: Tensor) -> Tensor:
    """A matrix product in the dtype of its arguments, whatever autocast says."""
    with torch.autocast(left.device.type, enabled=False):
        return left @ right


def _plus_product(total: Tensor | None, left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    """`total`, which may be overwritten, plus a product that is summed and left in `dtype`."""
    if left.is_cuda and not torch.compiler.is_compiling():  # in one pass, and no product in a tensor of its own
        with torch.autocast(left.device.type, enabled=False):
            if total is None:
                return torch.mm(left, right, out_dtype=dtype)
            return torch.addmm(total, left, right, out_dtype=dtype, out=total)
    product = _product(left, right)
    return product.to(dtype) if total is None else total.add_(product)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        weight: Tensor,
        targets: Tensor,
        z_loss: float,
        chunk_tokens: int,
        dtype: torch.dtype,
        wants_gradient: bool,
        in_place: bool,
    ) -> tuple[Tensor, Tensor]:
        vocab = weight.shape[0]
        head = _padded(weight.to(dtype))
        num_tokens = rows.shape[0]
        nats = torch.zeros((), dtype=torch.float32, device=rows.device)
        squares = torch.zeros((), dtype=torch.float32, device=rows.device)
        row_gradients = []
        # fp32 whatever the products are made in: bf16 would lose what the last of many chunks add.
        few = num_tokens <= MAX_LOW_SUMS * chunk_tokens
        sum_dtype = dtype if in_place and few and weight.dtype == dtype else torch.float32
        weight_gradient: Tensor | None = None
        for some_rows, some_targets in _chunks(rows, targets, chunk_tokens):
            low = some_rows.to(dtype)
            logits = _product(low, head.T)
            if len(head) > vocab:
                logits[:, vocab:] = float("-inf")
            losses_of = _in_place if in_place else _by_passes
            losses, log_normalizers, gradient = losses_of(logits, some_targets, num_tokens, z_loss, wants_gradient)
            nats = nats + losses.sum()
            squares = squares + log_normalizers.square().sum()
            if wants_gradient:
                gradient = gradient.to(dtype)
                row_gradients.append(_product(gradient, head))
                weight_gradient = _plus_product(weight_gradient, gradient.T, low, sum_dtype)
            del logits, gradient  # else they would stand beside those of the next chunk
        mean = nats / num_tokens
        total = mean + z_loss * (squares / num_tokens)
        ctx.mark_non_differentiable(mean)
        if weight_gradient is not None:
            ctx.save_for_backward(torch.cat(row_gradients), weight_gradient[:vocab].to(weight.dtype))
            ctx.rows_dtype = rows.dtype
        return total, mean

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        row_gradient, weight_gradient = (_scaled(gradient, upstream[0]) for gradient in ctx.saved_tensors)
        return row_gradient.to(ctx.rows_dtype), weight_gradient, None, None, None, None, None, None


def _scaled(values: Tensor, factor: Tensor) -> Tensor:
    """`values`, which may be overwritten, times an fp32 scalar on their device; rounded once."""
    known = values.device.type == "cpu" or (values.device.type == "cuda" and values.dtype != torch.bfloat16)
    if torch.compiler.is_compiling() or not known:
        return factor * values
    # A plain product with a scalar in a GPU's memory runs at a fifth of that memory's speed: operands of two shapes
    # are not read in vectors. The gradient scaler's operator does, and knows no more of its scalar on the CPU.
    found = torch.zeros(1, dtype=torch.float32, device=values.device)  # infinity or NaN; nobody asks
    torch._amp_foreach_non_finite_check_and_unscale_([values], found, factor)
    increment_version(values)  # the operator does not: a second backward pass would scale again, and must fail
    return values


def _by_passes(
    logits: Tensor, targets: Tensor, num_tokens: int, z_loss: float, wants_gradient: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses, log denominators, and the logits' gradient of the mean, in fp32."""
    logits = logits.float()
    log_normalizers = torch.logsumexp(logits, dim=-1)
    losses = log_normalizers - logits.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    if not wants_gradient:
        return losses, log_normalizers, logits
    # In place: on a CPU these passes over the logits cost as much as a product.
    gradient = logits.sub_(log_normalizers.unsqueeze(-1)).exp_()
    if z_loss:
        gradient.mul_((1 + 2 * z_loss * log_normalizers).unsqueeze(-1))
    return losses, log_normalizers, _minus_one_at(gradient, targets).mul_(1 / num_tokens)


def _in_place(
    logits: Tensor, targets: Tensor, num_tokens: int, z_loss: float, wants_gradient: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The same by the kernel, in the logits' dtype."""
    from cs336.kernels.cross_entropy import cross_entropy_in_place  # only here: all else runs without Triton

    losses, log_normalizers = cross_entropy_in_place(logits, targets, scale=1 / num_tokens, z_loss=z_loss)
    return losses, log_normalizers, logits


def _minus_one_at(values: Tensor, columns: Tensor) -> Tensor:
    """`values`, which may be overwritten, less one at each row's column."""
    if values.is_cuda:  # a comparison fuses with its neighbours; a scatter would be a pass of its own, or a slow sort
        places = torch.arange(values.shape[-1], device=values.device)
        return values - (places == columns.unsqueeze(-1)).to(values.dtype)
    places = columns.unsqueeze(-1)
    return values.scatter_(-1, places, values.gather(-1, places) - 1)
