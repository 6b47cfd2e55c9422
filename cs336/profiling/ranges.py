"""Named ranges for profilers: NVTX for Nsight Systems, `record_function` for PyTorch's own.

Nothing here runs unless a profiler asks for it: the library's code holds no ranges. Those inside attention come from
a twin of the reference that stands in for it while `attention_ranges` lasts, as the handout does it.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cs336.model import attention
from cs336.model.layers import dropout, softmax

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

WARMUP, FORWARD, BACKWARD, OPTIMIZER = "warm-up", "forward", "backward", "optimizer"
SCORES, SOFTMAX, FINAL_MATMUL = "scores", "softmax", "final matmul"
RANGES = (WARMUP, FORWARD, BACKWARD, OPTIMIZER, SCORES, SOFTMAX, FINAL_MATMUL)

Mark = Callable[[str], contextlib.AbstractContextManager[None]]


@contextlib.contextmanager
def named_range(name: str) -> Iterator[None]:
    """A range that profilers show: PyTorch's always, Nsight Systems where there is a GPU."""
    with torch.profiler.record_function(name):
        if not torch.cuda.is_available():
            yield
            return
        with torch.cuda.nvtx.range(name):
            yield


def no_range(name: str) -> contextlib.AbstractContextManager[None]:
    """What stands for `named_range` where nobody looks."""
    return contextlib.nullcontext()


@contextlib.contextmanager
def attention_ranges() -> Iterator[None]:
    """While it lasts, the reference attention marks its scores, softmax and final product; other kernels do not.

    Not for compiled models: their kernels are not cut at these places, and they would be compiled again.
    """
    plain = attention.scaled_dot_product_attention
    attention.scaled_dot_product_attention = annotated_attention
    try:
        yield
    finally:
        attention.scaled_dot_product_attention = plain


def annotated_attention(
    Q: Float[Tensor, "... queries d_k"],
    K: Float[Tensor, "... keys d_k"],
    V: Float[Tensor, "... keys d_v"],
    mask: Bool[Tensor, "... queries keys"] | None = None,
    *,
    dropout_rate: float = 0.0,
) -> Float[Tensor, "... queries d_v"]:
    """`scaled_dot_product_attention`, step by step the same, with a range around each of its three parts."""
    with named_range(SCORES):
        scores = (Q / math.sqrt(Q.shape[-1])) @ K.transpose(-2, -1)
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
    with named_range(SOFTMAX):
        weights = dropout(softmax(scores.float(), dim=-1), dropout_rate)
    with named_range(FINAL_MATMUL):
        return weights.to(V.dtype) @ V
