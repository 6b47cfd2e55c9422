"""Cross-entropy of a block of logits and its gradient, written over the logits, in Triton.

Source    Hsu et al. 2024 (Liger kernels), arXiv:2410.10989, section 3.2; z-loss: PaLM, arXiv:2204.02311, section 5.
Layout    (rows, vocab), rows contiguous.
Numerics  logits in bf16, fp16 or fp32; maximum, sum and losses in fp32.
Memory    none beside the logits: two walks over a row, the second of which mostly finds it in the cache.
Twin      train/loss.py, which calls this for each chunk of tokens on a GPU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float, Int

_MAX_BLOCK = 16_384


def cross_entropy_in_place(
    logits: Float[Tensor, "rows vocab"], targets: Int[Tensor, " rows"], *, scale: float, z_loss: float = 0.0
) -> tuple[Float[Tensor, " rows"], Float[Tensor, " rows"]]:
    """Losses, and the logits' gradient in the place of the logits.

    Args:
        scale: what the gradient is multiplied by, such as 1 / number of tokens for a mean.
        z_loss: weight of the squared log of the softmax's denominator, in the gradient alone.

    Returns:
        Nats of each target, and the log of each row's denominator; fp32.

    Raises:
        ValueError: logits whose rows are not contiguous, or targets that do not fit.
    """
    if logits.ndim != 2 or not logits.is_contiguous() or targets.shape != logits.shape[:1]:
        raise ValueError(
            f"need contiguous logits (rows, vocab) and a target a row, got {tuple(logits.shape)} and"
            f" {tuple(targets.shape)}"
        )
    rows, vocab = logits.shape
    nats = torch.empty(rows, dtype=torch.float32, device=logits.device)
    log_normalizers = torch.empty_like(nats)
    block = min(_MAX_BLOCK, triton.next_power_of_2(vocab))
    _cross_entropy_kernel[(rows,)](
        logits,
        targets,
        nats,
        log_normalizers,
        vocab,
        scale,
        z_loss,
        BLOCK=block,
        num_warps=min(16, max(1, block // 512)),
    )
    return nats, log_normalizers


@triton.jit
def _cross_entropy_kernel(
    logits_base, targets_base, nats_base, log_normalizers_base, vocab, scale, z_loss, BLOCK: tl.constexpr
):
    """One row: its maximum and sum in one walk, its gradient in a second."""
    row = tl.program_id(0).to(tl.int64)
    logits_base += row * vocab
    target = tl.load(targets_base + row)
    chosen = tl.load(logits_base + target).to(tl.float32)
    columns = tl.arange(0, BLOCK)
    running_max = float("-inf")
    running_sum = 0.0
    for start in range(0, vocab, BLOCK):
        inside = start + columns < vocab
        logits = tl.load(logits_base + start + columns, mask=inside, other=float("-inf")).to(tl.float32)
        new_max = tl.maximum(running_max, tl.max(logits, 0))
        running_sum = running_sum * tl.exp(running_max - new_max) + tl.sum(tl.exp(logits - new_max), 0)
        running_max = new_max
    log_normalizer = running_max + tl.log(running_sum)
    tl.store(nats_base + row, log_normalizer - chosen)
    tl.store(log_normalizers_base + row, log_normalizer)
    weight = 1 + 2 * z_loss * log_normalizer
    for start in range(0, vocab, BLOCK):
        places = start + columns
        inside = places < vocab
        logits = tl.load(logits_base + places, mask=inside, other=float("-inf")).to(tl.float32)
        gradient = tl.exp(logits - log_normalizer) * weight - (places == target).to(tl.float32)
        tl.store(logits_base + places, (gradient * scale).to(logits_base.dtype.element_ty), mask=inside)
