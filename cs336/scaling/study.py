"""Rows of a grid, fitted and checked: what the report is written from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cs336.files import UserError
from cs336.scaling.accounting import CONTEXT_LENGTH, VOCAB_SIZE
from cs336.scaling.fits import Fits, fit_all
from cs336.scaling.isoflops import parabola_minima
from cs336.scaling.ledger import Main, main_recipe
from cs336.scaling.measurements import Measurements
from cs336.scaling.predict import REASON, check
from cs336.scaling.profiles import points
from cs336.scaling.runs import Run
from cs336.scaling.text_limit import TEXT_LIMIT

API_TARGET = 1e19  # that the course's exercise asks for
_FURTHER = 10.0  # times the largest budget: where laws are read without a prediction


@dataclass(frozen=True, kw_only=True)
class Study:
    """What there is to say of a grid.

    Attributes:
        rows: as they were read.
        runs: the first row of each configuration and seed.
        fitted: sizes and budgets that the laws go through; None where there are none, and `why_not` says why.
        fits: see `fitted`.
        fits_up_to: largest budget that laws are fitted to.
        targets: budgets that the laws are read at.
        prediction: as `predict` made it, or None.
        checked: as `check` found it; None where `check` refuses or has no prediction, and `unchecked` says why.
        of_api: runs are of the model that the course's service serves.
        text_limited: the prediction is that of the best sizes that the text's length allows; no other law holds.
    """

    rows: Sequence[Run]
    runs: Sequence[Run]
    main: Main
    everything: Measurements | None
    fitted: Measurements | None
    fits: Fits | None
    why_not: str
    fits_up_to: float
    targets: tuple[float, ...]
    prediction: Mapping[str, Any] | None
    checked: Mapping[str, Any] | None
    unchecked: str
    of_api: bool
    text_limited: bool


def make_study(rows: Sequence[Run], prediction: Mapping[str, Any] | None, *, num_draws: int, seed: int) -> Study:
    """Fit and check what can be."""
    runs = list({run.config_hash: run for run in reversed(rows)}.values())[::-1]
    made = prediction if prediction and "predictions" in prediction else None
    everything, fitted, fits, why_not = None, None, None, ""
    limited = made is not None and made["approach"] == TEXT_LIMIT
    largest = max(run.compute_budget for run in runs)
    try:
        everything = points(runs, max_budget=math.inf)
        largest = made["max_budget"] if made else _largest_bracketed(everything)
        fitted = points(runs, min_budget=made["min_budget"] if made else 0.0, max_budget=largest)
        fits = fit_all(
            fitted, num_draws=num_draws, seed=seed, max_tokens=float(fitted.tokens.max()) if limited else None
        )
    except UserError as reason:
        why_not = str(reason)
    of_api = any((run.vocab_size, run.context_length) == (VOCAB_SIZE, CONTEXT_LENGTH) for run in runs)
    targets = {made["target_budget"] if made else _FURTHER * largest} | (
        {API_TARGET} if of_api and not limited else set()
    )
    checked, unchecked = None, (prediction or {}).get(REASON, "no prediction was made before")
    if made:
        try:
            checked = check(made, runs)
        except UserError as reason:
            unchecked = str(reason)
    return Study(
        rows=rows,
        runs=runs,
        main=main_recipe(runs),
        everything=everything,
        fitted=fitted,
        fits=fits,
        why_not=why_not,
        fits_up_to=largest,
        targets=tuple(sorted(targets)),
        prediction=made,
        checked=checked,
        unchecked=unchecked,
        of_api=of_api,
        text_limited=limited,
    )


def _largest_bracketed(everything: Measurements) -> float:
    """The largest budget whose parabola has its minimum between two sizes; of none, the largest of all."""
    minima = parabola_minima(everything)
    return float(max(minima.compute[minima.bracketed], default=everything.compute.max()))
