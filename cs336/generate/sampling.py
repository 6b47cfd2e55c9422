"""From logits to the next token: temperature, top-k, top-p, argmax."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from cs336.model.layers import softmax

if TYPE_CHECKING:
    from jaxtyping import Float, Int

# Sorting a vocabulary of 50,000 takes longer than a small model's step; the nucleus is mostly among
# so few tokens that finding them alone is enough.
_FIRST_CANDIDATES = 256


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is drawn.

    Attributes:
        temperature: divides the logits; 0 takes the most probable token.
        top_k: only this many most probable tokens may be drawn; 0 allows all.
        top_p: the smallest set of most probable tokens whose mass reaches this may be drawn, the
            token that crosses the line included; 1 allows all. Mass counts after `top_k`.

    Raises:
        ValueError: a setting outside its range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature is 0 (greedy) or a positive number, got {self.temperature}")
        if self.top_k < 0:
            raise ValueError(f"top_k is 0 (all tokens) or more, got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p lies in (0, 1], got {self.top_p}")

    @property
    def needs_no_order(self) -> bool:
        """Whether every token may be drawn, or the most probable one is: neither sorts them."""
        return self.temperature == 0 or (self.top_k == 0 and self.top_p == 1)


def next_token_probabilities(
    logits: Float[Tensor, "... vocab"], *, temperature: float, top_k: int = 0, top_p: float = 1.0
) -> Float[Tensor, "... vocab"]:
    """Softmax of the logits over the temperature, cut to `top_k` tokens and the nucleus of mass `top_p`.

    Of equally probable tokens at the edge, those of lower id stay. What is kept is renormalised.

    Args:
        temperature: above 0; towards 0 the most probable token takes all.

    Raises:
        ValueError: a setting outside its range (`Sampling` has them).

    Source: top-k, Fan et al. 2018, arXiv:1805.04833; top-p, Holtzman et al. 2020, arXiv:1904.09751.
    """
    if temperature == 0:
        raise ValueError("temperature must be above 0 to sample (0 is greedy), got 0")
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
    probabilities = _softmax_at(logits, temperature)
    if top_k == 0 and top_p == 1:
        return probabilities
    ordered, order = _in_order(probabilities)
    kept = torch.zeros_like(probabilities).scatter(-1, order, _kept(ordered, sampling))
    return kept / kept.sum(dim=-1, keepdim=True)


def sample(
    logits: Float[Tensor, "batch vocab"], uniforms: Float[Tensor, " batch"], sampling: Sampling
) -> Int[Tensor, " batch"]:
    """One token id for each row, all rows at once.

    A row's token depends on its logits and its uniform number alone, not on its neighbours: the
    tokens are laid side by side on a line, each as long as it is probable, and the number is a place
    on that line.

    Args:
        uniforms: in [0, 1), one a row, in fp64; unused at temperature 0.
    """
    if sampling.temperature == 0:
        return logits.argmax(dim=-1)
    probabilities = _softmax_at(logits, sampling.temperature)
    if sampling.top_k == 0 and sampling.top_p == 1:
        return _place_on_line(probabilities, uniforms)
    vocab = logits.shape[-1]
    # On a GPU the sort is cheap, and asking whether the first candidates suffice would wait for it.
    if logits.is_cuda or vocab <= 2 * _FIRST_CANDIDATES or sampling.top_k >= _FIRST_CANDIDATES:
        return _sample_in_order(*_in_order(probabilities), uniforms, sampling)[0]
    first = probabilities.topk(_FIRST_CANDIDATES, dim=-1).indices.sort(dim=-1).values
    ordered, order = _in_order(probabilities.gather(1, first))
    chosen, smallest_kept = _sample_in_order(ordered, first.gather(1, order), uniforms, sampling)
    # Tokens as probable as the last candidate may have been left out; if those matter, so does the rest.
    rest = (smallest_kept <= ordered[:, -1]).nonzero()[:, 0]
    if len(rest):
        chosen[rest] = _sample_in_order(*_in_order(probabilities[rest]), uniforms[rest], sampling)[0]
    return chosen


def uniforms_of(seed: int, prompt_number: int, count: int, *, sample_number: int = 0) -> np.ndarray:
    """The random numbers of one sample of a prompt, one a token; those of a longer run begin with a shorter one's.

    Raises:
        ValueError: a negative seed.
    """
    if seed < 0:
        raise ValueError(f"a seed is 0 or more, got {seed}")
    return np.random.default_rng([seed, prompt_number, sample_number]).random(count)


def _softmax_at(logits: Tensor, temperature: float) -> Tensor:
    # The maximum goes first, so that the smallest temperature divides no number beyond fp32's range.
    wide = logits.float()
    return softmax((wide - wide.amax(dim=-1, keepdim=True)) / temperature, dim=-1)


def _in_order(probabilities: Tensor) -> tuple[Tensor, Tensor]:
    """Falling probabilities and where they came from; among equals the first stays first."""
    ordered, order = probabilities.sort(dim=-1, descending=True, stable=True)
    return ordered, order


def _kept(ordered: Tensor, sampling: Sampling) -> Tensor:
    """Falling probabilities, zero where top-k or top-p drop them; not renormalised."""
    total: Tensor | float = 1.0
    if sampling.top_k:
        ordered = ordered.masked_fill(torch.arange(ordered.shape[-1], device=ordered.device) >= sampling.top_k, 0.0)
        total = ordered.sum(dim=-1, keepdim=True)
    if sampling.top_p < 1:
        mass_before = _running_sums(ordered) - ordered
        ordered = ordered.masked_fill(mass_before >= sampling.top_p * total, 0.0)
    return ordered


def _sample_in_order(ordered: Tensor, ids: Tensor, uniforms: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """The chosen id of each row, and the probability of the least probable token that it might have drawn."""
    kept = _kept(ordered, sampling)
    chosen = ids.gather(1, _place_on_line(kept, uniforms)[:, None])[:, 0]
    return chosen, kept.masked_fill(kept == 0, float("inf")).amin(dim=-1)


def _place_on_line(weights: Tensor, uniforms: Tensor) -> Tensor:
    # fp64 (which MPS lacks): in fp32 the ends of 50,000 tokens are off by more than rare tokens are long.
    ends = _running_sums(weights, uniforms.dtype)
    places = torch.searchsorted(ends, uniforms[:, None] * ends[:, -1:], right=True)[:, 0]
    return places.clamp(max=weights.shape[-1] - 1)


def _running_sums(values: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Sums along each row up to each place.

    The deterministic form of this sum on a GPU takes memory by the square of the vocabulary; the usual one adds up a
    row in one order anyway, as rows are many.
    """
    with in_usual_forms():
        return values.cumsum(dim=-1, dtype=dtype)


@contextlib.contextmanager
def in_usual_forms() -> Iterator[None]:
    """PyTorch's usual kernels, where a run that is to be the same to the last bit asks for deterministic ones.

    Around what writes to each place once, in any order: the deterministic form of such a write sorts the places, and
    copies all that it writes into. Generation on a GPU took six times as long by it.
    """
    if not torch.are_deterministic_algorithms_enabled():
        yield
        return
    only_warns = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(True, warn_only=only_warns)
