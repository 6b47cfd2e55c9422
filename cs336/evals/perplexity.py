"""How well a model predicts held-out text: nats per token, perplexity, bits per byte."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import nn

from cs336.model.logprobs import token_logprobs
from cs336.progress import Progress, silent
from cs336.tokens.batches import Batches

if TYPE_CHECKING:
    from cs336.tokens.shards import TokenArray


class Window(NamedTuple):
    """A stretch of the token stream that the model sees at once.

    Attributes:
        start: place of its first input token; its targets are the tokens from `start + 1` on.
        num_scored_before: how many of its first targets an earlier window has scored already.
    """

    start: int
    num_scored_before: int


def evaluate_perplexity(
    model: nn.Module,
    tokens: np.ndarray,
    *,
    context_length: int,
    num_bytes: int,
    batch_size: int = 16,
    stride: int | None = None,
    end_of_text: int | None = None,
    device: torch.device | str = "cpu",
    progress: Progress = silent,
) -> dict[str, Any]:
    """One full, deterministic pass over held-out documents, each token predicted exactly once.

    Windows of `context_length` tokens move on by `stride` and score only what no earlier window
    scored, so every token but those of the first window is predicted from at least
    `context_length - stride` tokens before it. The context may reach into the document before, as
    in training.

    The end-of-text tokens' nats are part of the sum although they stand for no byte: bits per
    byte comes out slightly too high, never too low, and counts knowing where a text ends.

    Args:
        model: token ids (batch, seq) -> logits (batch, seq, vocab); put into eval mode meanwhile.
        tokens: ids, one-dimensional: whole documents, each ended by the end-of-text token.
        context_length: longest input.
        num_bytes: UTF-8 bytes of the documents in `tokens`.
        batch_size: windows at once; it changes results only by rounding.
        stride: default half of `context_length`: twice the work of disjoint windows, and no token
            is predicted from less than half the context.
        end_of_text: its id. When given, the very first token is predicted too, after an
            end-of-text token as in the middle of the stream; else it only serves as context.
        device: where the model is.

    Returns:
        `nats_per_token`, `perplexity`, `bits_per_byte`, `total_nats`, `num_predicted`,
        `num_tokens`, `num_bytes`, `context_length`, `stride`, and the timings `eval_seconds`,
        `tokens_per_second`.

    Raises:
        ValueError: no token to predict, a stride outside 1 to `context_length`, no bytes, or a
            loss that is not finite.
    """
    stride = max(1, context_length // 2) if stride is None else stride
    if not 1 <= stride <= context_length:
        raise ValueError(f"stride is {stride}; give 1 to the context length of {context_length}")
    if num_bytes < 1:
        raise ValueError(f"num_bytes is {num_bytes}; give the UTF-8 bytes of the held-out documents")
    stream = np.asarray(tokens) if end_of_text is None else np.concatenate(([end_of_text], tokens))
    if stream.ndim != 1 or len(stream) < 2:
        raise ValueError(f"nothing to predict in an array of shape {np.shape(tokens)}; give held-out tokens in a row")

    length = min(context_length, len(stream) - 1)
    windows = list(sliding_windows(len(stream) - 1, length=length, stride=stride))
    batches = [windows[first : first + batch_size] for first in range(0, len(windows), batch_size)]
    was_training = model.training
    model.eval()
    start = time.perf_counter()
    total_nats = 0.0
    try:
        for batch in progress(batches, total=len(batches), unit="batches", label="perplexity"):
            total_nats += _nats_of_batch(model, stream, batch, length=length, device=device)
            if not math.isfinite(total_nats):
                raise ValueError(f"the loss is {total_nats} at token {batch[0].start} or soon after; check the model")
    finally:
        model.train(was_training)
    seconds = time.perf_counter() - start

    num_predicted = len(stream) - 1
    nats_per_token = total_nats / num_predicted
    return {
        "nats_per_token": nats_per_token,
        "perplexity": math.exp(nats_per_token),
        "bits_per_byte": total_nats / math.log(2) / num_bytes,
        "total_nats": total_nats,
        "num_predicted": num_predicted,
        "num_tokens": len(tokens),
        "num_bytes": num_bytes,
        "context_length": context_length,
        "stride": stride,
        "eval_seconds": seconds,
        "tokens_per_second": num_predicted / seconds,
    }


def sampled_loss(
    model: nn.Module,
    tokens: np.ndarray | TokenArray,
    *,
    context_length: int,
    num_batches: int,
    batch_size: int,
    seed: int,
    device: torch.device | str = "cpu",
    progress: Progress = silent,
) -> dict[str, float]:
    """Mean loss of random windows, drawn with replacement: the course's estimate of the validation loss.

    Returns:
        `nats_per_token`, and its `standard_error` over the windows.

    Raises:
        ValueError: the tokens fill no window.
    """
    batches = Batches(tokens, batch_size=batch_size, context_length=context_length, seed=seed, device=device)
    was_training = model.training
    model.eval()
    means = []
    try:
        with torch.inference_mode():
            for number in progress(range(num_batches), total=num_batches, unit="batches", label="sampled loss"):
                inputs, targets = batches.at(number)
                means.append(-token_logprobs(model(inputs).float(), targets).double().mean(dim=-1))
    finally:
        model.train(was_training)
    windows = torch.cat(means)
    error = windows.std().item() / math.sqrt(len(windows)) if len(windows) > 1 else math.inf
    return {"nats_per_token": windows.mean().item(), "standard_error": error}


def sliding_windows(num_targets: int, *, length: int, stride: int) -> Iterator[Window]:
    """Windows of one length that score every target once.

    The last one is pulled back to end with the stream instead of being shorter, which gives its
    tokens more context and keeps all batches rectangular.

    Args:
        num_targets: tokens to predict, at least `length`.
        length: targets of a window.
        stride: targets that a window adds, from 1 to `length`.
    """
    yield Window(0, 0)
    start, num_scored = 0, length
    while num_scored < num_targets:
        start = min(start + stride, num_targets - length)
        yield Window(start, num_scored - start)
        num_scored = start + length


@torch.inference_mode()
def _nats_of_batch(
    model: nn.Module, stream: np.ndarray, windows: Sequence[Window], *, length: int, device: torch.device | str
) -> float:
    """Sum of the negative log-probabilities of the targets that these windows are the first to score."""
    rows = np.stack([stream[window.start : window.start + length + 1] for window in windows]).astype(np.int64)
    ids = torch.from_numpy(rows).to(device)
    logits = model(ids[:, :-1])
    # fp32 for the softmax whatever the model computes in; fp64 for the sum over many tokens.
    nats = -token_logprobs(logits.float(), ids[:, 1:])
    places = torch.arange(length, device=device)
    first_scored = torch.tensor([window.num_scored_before for window in windows], device=device)
    fresh = places[None, :] >= first_scored[:, None]
    return nats[fresh].double().sum().item()
