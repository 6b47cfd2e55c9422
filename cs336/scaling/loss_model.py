"""A model of the final loss: a parametric law, bounded by the loss at initialisation, times a boosted correction.

The law L = E + A/N^alpha + B/D^beta knows nothing of where training starts, and goes to infinity where tokens go to
none. Measured losses bend away from it towards the loss at initialisation I, which

    bounded(L) = (L^-s + I^-s)^(-1/s)

follows; the sharpness s of the bend is chosen among a few. The law is fitted to
measured losses freed of the bend by its inverse. The correction multiplies what comes out: it is fitted to logarithms,
and knows learning rate, batch size, aspect ratio and head size.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace

import numpy as np
from numpy.typing import NDArray

from cs336.scaling.accounting import CONTEXT_LENGTH, num_parameters, num_steps, num_tokens
from cs336.scaling.boosting import MAX_TREES, RIDGES, Array, Correction, fit_correction, staged_errors
from cs336.scaling.measurements import best_of_equals, measurements
from cs336.scaling.parametric import CHINCHILLA, STARTS, ParametricLaw, fit_parametric
from cs336.scaling.runs import Run

SHARPNESSES = (3.0, 4.0, 6.0, 8.0, 12.0)  # tried
NUM_FOLDS = 5
_DESCENDED = 0.9  # of the loss at initialisation: runs above it say more of the bend than of N and D
_START_STRIDE = 31  # of the law's 4,500 starts; prime to their grid, so that all values of each number occur
_ORIGIN = np.log([1e7, 1e8, 5e-4, 181.0, 64.0, 64.0, 1_000.0])  # about the middle, for squares to mean something


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """What a loss is asked for, and what a measured run is found by; `train_flops` are nominal."""

    d_model: int
    num_layers: int
    num_heads: int
    batch_size: int
    learning_rate: float
    train_flops: float

    @property
    def steps(self) -> int:
        """Whole optimizer steps that the budget pays for."""
        return num_steps(self.train_flops, num_parameters(self.num_layers, self.d_model), self.batch_size)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is chosen on runs held out; see `fit_correction` for the first two."""

    ridge: float
    num_trees: int
    sharpness: float


@dataclass(frozen=True, kw_only=True)
class LossModel:
    """Losses in nats per token; call it.

    Attributes:
        law: of size and tokens.
        sharpness: of the bend between law and start.
        initial_loss: at initialisation: of budgets below one step, and no other loss is above it.
        correction: factor's logarithm; None for none.
    """

    law: ParametricLaw
    sharpness: float
    initial_loss: float
    correction: Correction | None = None

    def __call__(self, asked: Sequence[Configuration]) -> Array:
        """(configurations,)"""
        parameters = np.array([float(num_parameters(each.num_layers, each.d_model)) for each in asked])
        compute = np.array([float(each.train_flops) for each in asked])
        tokens = num_tokens(compute, parameters)
        losses = (self.law(parameters, tokens) ** -self.sharpness + self.initial_loss**-self.sharpness) ** (
            -1 / self.sharpness
        )
        if self.correction is not None:
            losses = np.minimum(losses * np.exp(self.correction(features(asked))), self.initial_loss)
        started = np.array([each.steps > 0 for each in asked])
        return np.where(started, losses, self.initial_loss)


def configuration_of(run: Run) -> Configuration:
    """What a run was trained with."""
    return Configuration(
        d_model=run.d_model,
        num_layers=run.num_layers,
        num_heads=run.num_heads,
        batch_size=run.batch_size,
        learning_rate=run.learning_rate,
        train_flops=run.train_flops,
    )


def losses_of(runs: Sequence[Run]) -> Array:
    """(runs,) final training losses."""
    return np.array([run.final_loss for run in runs])


def features(asked: Sequence[Configuration]) -> Array:
    """(configurations, 7): logs of size, tokens, learning rate, batch size, aspect ratio, head size and steps.

    The head size is d_model / num_heads, whole or not.
    """
    rows = []
    for each in asked:
        parameters = num_parameters(each.num_layers, each.d_model)
        tokens = float(num_tokens(each.train_flops, parameters))
        shape = (each.d_model / each.num_layers, each.d_model / each.num_heads)
        steps = tokens / (each.batch_size * CONTEXT_LENGTH)
        rows.append((parameters, tokens, each.learning_rate, each.batch_size, *shape, steps))
    return np.log(np.array(rows, dtype=np.float64)) - _ORIGIN


def fit_loss_model(
    runs: Sequence[Run], settings: Settings, initial_loss: float, *, like: ParametricLaw | None = None
) -> LossModel:
    """Fit law and correction.

    Args:
        runs: finished, of one step at least each.
        settings: of `choose_settings`.
        initial_loss: at initialisation, nats.
        like: a law where the law's fit may begin; without one it begins at many places.
    """
    law = _fit_law(runs, settings.sharpness, initial_loss, like)
    bare = LossModel(law=law, sharpness=settings.sharpness, initial_loss=initial_loss)
    correction = fit_correction(*_targets(runs, bare), ridge=settings.ridge, num_trees=settings.num_trees)
    return replace(bare, correction=correction)


def choose_settings(runs: Sequence[Run], initial_loss: float) -> tuple[Settings, Array]:
    """Settings, and how far off each run (runs,) was with them, in nats, when its fold of five was held out.

    The sharpness is that of the bare law nearest to all runs; ridge and trees have the least squared error on runs
    held out. So these errors are slightly too good: two numbers were chosen by them.
    """
    bare = _nearest_law(runs, initial_loss)
    losses, folds = losses_of(runs), _folds(runs)
    errors = {ridge: np.zeros((MAX_TREES + 1, len(runs))) for ridge in RIDGES}
    for fold in range(NUM_FOLDS):
        out = folds == fold
        rest, others = (list(itertools.compress(runs, chosen)) for chosen in (~out, out))
        of_rest = replace(bare, law=_fit_law(rest, bare.sharpness, initial_loss, bare.law))
        fitted_to, tried_on = _targets(rest, of_rest), _targets(others, of_rest)
        for ridge, found in errors.items():
            left = staged_errors(fit_correction(*fitted_to, ridge=ridge, num_trees=MAX_TREES), *tried_on)
            found[: len(left), out] = np.minimum(losses[out] * np.exp(-left), initial_loss) - losses[out]
            found[len(left) :, out] = found[len(left) - 1, out]  # no further tree could be grown
    squares = {ridge: (found**2).mean(axis=1) for ridge, found in errors.items()}
    ridge = min(squares, key=lambda choice: squares[choice].min())
    num_trees = int(squares[ridge].argmin())
    return Settings(ridge=ridge, num_trees=num_trees, sharpness=bare.sharpness), errors[ridge][num_trees]


def _nearest_law(runs: Sequence[Run], initial_loss: float) -> LossModel:
    """Law and sharpness of least squared residuals, without a correction."""
    found: list[LossModel] = []
    for sharpness in SHARPNESSES:
        law = _fit_law(runs, sharpness, initial_loss, found[-1].law if found else None)
        found.append(LossModel(law=law, sharpness=sharpness, initial_loss=initial_loss))
    return min(found, key=lambda bare: float(np.mean(_targets(runs, bare)[1] ** 2)))


def _fit_law(
    runs: Sequence[Run], sharpness: float, initial_loss: float, like: ParametricLaw | None = None
) -> ParametricLaw:
    """Through the best run of each size and budget that has left the start behind; the published law if that fails."""
    descended = [run for run in runs if run.final_loss < _DESCENDED * initial_loss]
    freed = (losses_of(descended) ** -sharpness - initial_loss**-sharpness) ** (-1 / sharpness)
    starts = STARTS[::_START_STRIDE]
    if like is not None:
        starts = np.array([[*np.log([like.A, like.B, like.E]), like.alpha, like.beta]])
    try:
        of_runs = measurements([run.parameters for run in descended], [run.train_flops for run in descended], freed)
        law = fit_parametric(best_of_equals(of_runs), starts)
    except ValueError:  # too few of them
        return CHINCHILLA
    return law if law.alpha > 0 and law.beta > 0 else CHINCHILLA


def _targets(runs: Sequence[Run], bare: LossModel) -> tuple[Array, Array]:
    """Features, and what the correction is to be: log measured loss over the law's."""
    asked = [configuration_of(run) for run in runs]
    return features(asked), np.log(losses_of(runs)) - np.log(bare(asked))


def _folds(runs: Sequence[Run]) -> NDArray[np.intp]:
    """The fold of each run; all seeds of a configuration are in one."""
    distinct = sorted({astuple(configuration_of(run)) for run in runs})
    order = np.random.default_rng(0).permutation(len(distinct)) % NUM_FOLDS
    fold_of = dict(zip(distinct, order, strict=True))
    return np.array([fold_of[astuple(configuration_of(run))] for run in runs])


def decade(budget: float) -> str:
    """ "1e15" for all budgets from 1e15 on and below 1e16."""
    return f"1e{math.floor(math.log10(budget) + 1e-12)}"
