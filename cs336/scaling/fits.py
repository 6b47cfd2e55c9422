"""Every approach on the same runs, with intervals, the error at the largest budget, and what could not be fitted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from cs336.scaling import isoflops
from cs336.scaling.isoflops import Minima
from cs336.scaling.measurements import CannotFit, Measurements
from cs336.scaling.parametric import ParametricLaw, fit_parametric, fit_parametric_draws
from cs336.scaling.power_law import Array, Frontier, PowerLaw, fit_raw
from cs336.scaling.text_limit import TEXT_LIMIT, TextLimit
from cs336.scaling.uncertainty import HeldOut, below_held_out, bootstrap_weights, held_out

ENVELOPE, LOWEST, PARABOLA, PARAMETRIC = "envelope", "lowest run", "parabola", "parametric"
APPROACHES = (ENVELOPE, LOWEST, PARABOLA, PARAMETRIC)  # and TEXT_LIMIT, where there is one
_MINIMA: dict[str, Callable[..., Minima]] = {
    ENVELOPE: isoflops.envelope,
    LOWEST: isoflops.lowest_runs,
    PARABOLA: isoflops.parabola_minima,
}


@dataclass(frozen=True, kw_only=True)
class Fit:
    """One approach's answer.

    Attributes:
        frontier: best size, tokens and loss for every budget.
        draws: the same of each bootstrap draw: arrays in place of numbers; None if none were asked for.
        held_out: the error at the largest budget with a minimum, unseen; None where the rest did not allow a fit.
        minima: approaches 1 and 2: what the power laws went through.
        law: approach 3: the law itself, and of each draw.
        law_draws: see `law`.
    """

    frontier: Frontier
    draws: Frontier | None
    held_out: HeldOut | None
    minima: Minima | None = None
    law: ParametricLaw | None = None
    law_draws: ParametricLaw | None = None


@dataclass(frozen=True, kw_only=True)
class Fits:
    """All that can be said of one set of runs.

    Attributes:
        runs: what was fitted.
        fits: by approach, in the order of `APPROACHES`; the text's limit last.
        left_out: approaches that these runs do not allow, and why.
        raw: power laws of N and of D through the lowest runs in raw space, for the comparison; None where log-log
            space has no fit either. Their exponents do not sum to 1.
    """

    runs: Measurements
    fits: dict[str, Fit]
    left_out: dict[str, str]
    raw: tuple[PowerLaw, PowerLaw] | None


def fit_all(runs: Measurements, *, num_draws: int = 1_000, seed: int = 0, max_tokens: float | None = None) -> Fits:
    """Fit all approaches to the same runs and the same bootstrap draws.

    Args:
        runs: one a size and budget; see `measurements.best_of_equals`.
        num_draws: bootstrap draws; 0 for none.
        seed: of the draws.
        max_tokens: that a run may read: then the best sizes under this limit are one more approach, the last one. Its
            draws are of its residuals.
    """
    weights = bootstrap_weights(runs, num_draws, seed) if num_draws else None
    approaches = {
        name: _fit_parametric if name == PARAMETRIC else partial(_fit_minima, _MINIMA[name]) for name in APPROACHES
    }
    if max_tokens is not None:
        approaches[TEXT_LIMIT] = partial(_fit_limited, TextLimit(max_tokens, num_draws, seed))
    fits, left_out = {}, {}
    for name, fit in approaches.items():
        try:
            fits[name] = fit(runs, weights)
        except CannotFit as reason:
            left_out[name] = str(reason)
    return Fits(runs=runs, fits=fits, left_out=left_out, raw=_fit_raw(fits[LOWEST].minima) if LOWEST in fits else None)


def _fit_minima(find: Callable[..., Minima], runs: Measurements, weights: Array | None) -> Fit:
    minima = find(runs)
    return Fit(
        frontier=isoflops.fit_frontier(minima),
        draws=None if weights is None else isoflops.fit_frontier(find(runs, weights)),
        held_out=_held_out(runs, lambda rest: isoflops.fit_frontier(find(rest))),
        minima=minima,
    )


def _fit_limited(limit: TextLimit, runs: Measurements, weights: Array | None) -> Fit:
    frontier, draws = limit(runs)  # its draws are not of runs, so they have no weights
    try:
        found = limit.held_out(runs)
    except CannotFit:
        found = None
    return Fit(
        frontier=frontier,
        draws=None if weights is None else draws,
        held_out=found,
        minima=limit.minima(runs),
    )


def _fit_parametric(runs: Measurements, weights: Array | None) -> Fit:
    law = fit_parametric(runs)
    if not (law.alpha > 0 and law.beta > 0):
        raise CannotFit(f"it ends at alpha {law.alpha:.2f} and beta {law.beta:.2f}; with one below 0 no size is best")
    draws = None if weights is None else fit_parametric_draws(runs, weights, law)
    return Fit(
        frontier=law.frontier(),
        draws=None if draws is None else draws.frontier(),
        held_out=_held_out(runs, lambda rest: fit_parametric(rest).frontier()),
        law=law,
        law_draws=draws,
    )


def _held_out(runs: Measurements, fit: Callable[[Measurements], Frontier]) -> HeldOut | None:
    try:
        return held_out(runs, fit(below_held_out(runs)))
    except CannotFit:
        return None


def _fit_raw(minima: Minima | None) -> tuple[PowerLaw, PowerLaw] | None:
    if minima is None:
        return None
    use = minima.bracketed & np.isfinite(minima.parameters)
    compute = minima.compute[use]
    return fit_raw(compute, minima.parameters[use]), fit_raw(compute, minima.tokens[use])
