"""A model of the final loss: a Gaussian process, between the loss at initialisation and a floor for the size.

No loss is above the one at initialisation I, and none below the floor F that the published law gives a model of that
size however long it trains. What is fitted is the logit between them, log((I - L) / (L - F)). Far from the start and
from the floor it is about a plane in logarithms, which is a power law of the loss; the process adds what bends it. So
beyond the runs that were measured the plane and the two bounds rule.

One of the features is made: learning rate times width times steps. A step of Adam moves each weight by about the
learning rate, and what a layer puts out by as much times its width (Yang et al. 2022, arXiv:2203.03466), so this is how
far a run can go at all. Runs that are too short for their rate are alike in it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass

import numpy as np
from numpy.typing import NDArray

from cs336.scaling.accounting import VOCAB_SIZE, num_parameters, num_steps, num_tokens
from cs336.scaling.gaussian_process import Array, GaussianProcess, fit_process
from cs336.scaling.parametric import CHINCHILLA
from cs336.scaling.runs import Run

FEATURES = ("steps", "d_model", "parameters", "learning_rate x d_model x steps", "batch_size", "head_size")
NUM_FOLDS = 5
_MARGIN = 0.05  # nats: a loss nearer to a bound than this counts as so near, for the logit has no end there


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
    def parameters(self) -> int:
        """Without embeddings and head, as budgets count them."""
        return num_parameters(self.num_layers, self.d_model)

    @property
    def steps(self) -> int:
        """Whole optimizer steps that the budget pays for."""
        return num_steps(self.train_flops, self.parameters, self.batch_size)


@dataclass(frozen=True, kw_only=True)
class LossModel:
    """Losses in nats per token; call it.

    Attributes:
        initial_loss: at initialisation: of budgets below one step, and no other loss is above it.
        process: of logits; None leaves the published law, cut off at `initial_loss`.
    """

    initial_loss: float
    process: GaussianProcess | None = None

    def __call__(self, asked: Sequence[Configuration]) -> Array:
        """(configurations,)"""
        if self.process is None:
            tokens = np.array([float(num_tokens(each.train_flops, each.parameters)) for each in asked])
            losses = np.minimum(CHINCHILLA([each.parameters for each in asked], tokens), self.initial_loss)
        else:
            floors = _floors(asked)
            losses = floors + (self.initial_loss - floors) / (1 + np.exp(self.process.means(features(asked))))
        return np.where([each.steps > 0 for each in asked], losses, self.initial_loss)

    def errors(self, asked: Sequence[Configuration]) -> Array:
        """(configurations,) standard deviations that the process gives the losses."""
        assert self.process is not None
        of_logits = self.process(features(asked))[1]
        return np.hypot(of_logits / _steepness(self(asked), asked, self.initial_loss), self.process.noise)


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
    """(configurations, 6): logarithms of `FEATURES`. The head size is d_model / num_heads, whole or not."""
    rows = []
    for each in asked:
        steps = max(each.steps, 1)
        far = each.learning_rate * each.d_model * steps
        rows.append((steps, each.d_model, each.parameters, far, each.batch_size, each.d_model / each.num_heads))
    return np.log(np.array(rows, dtype=np.float64))


def fit_loss_model(runs: Sequence[Run], initial_loss: float) -> LossModel:
    """Fit to finished runs, of one step at least each; the loss at initialisation is in nats."""
    asked = [configuration_of(run) for run in runs]
    losses = _bounded(losses_of(runs), asked, initial_loss)
    logits = np.log((initial_loss - losses) / (losses - _floors(asked)))
    process = fit_process(features(asked), logits, _steepness(losses, asked, initial_loss))
    return LossModel(initial_loss=initial_loss, process=process)


def held_out(runs: Sequence[Run], initial_loss: float) -> tuple[Array, Array]:
    """Losses (runs,), each predicted by a model fitted to the four fifths of the runs without it, and calibration.

    The second (runs,) is how far off it was, in standard deviations that the model gave it. All that is fitted is
    fitted anew for each fold; but the features and the lengths' prior were chosen with our own grid's rows in sight, so
    that for these the errors may be slightly too good.
    """
    folds, losses, deviations = _folds(runs), np.zeros(len(runs)), np.zeros(len(runs))
    for fold in range(NUM_FOLDS):
        out = folds == fold
        rest, others = (list(itertools.compress(runs, chosen)) for chosen in (~out, out))
        model, asked = fit_loss_model(rest, initial_loss), [configuration_of(run) for run in others]
        losses[out] = model(asked)
        deviations[out] = (losses[out] - losses_of(others)) / model.errors(asked)
    return losses, deviations


def decade(budget: float) -> str:
    """ "1e15" for all budgets from 1e15 on and below 1e16."""
    return f"1e{math.floor(math.log10(budget) + 1e-12)}"


def _bounded(losses: Array, asked: Sequence[Configuration], initial_loss: float) -> Array:
    return np.clip(losses, _floors(asked) + _MARGIN, initial_loss - _MARGIN)


def _steepness(losses: Array, asked: Sequence[Configuration], initial_loss: float) -> Array:
    """(configurations,) logits a nat."""
    losses, floors = _bounded(losses, asked, initial_loss), _floors(asked)
    return (initial_loss - floors) / ((initial_loss - losses) * (losses - floors))


def _floors(asked: Sequence[Configuration]) -> Array:
    """(configurations,) of the published law, were there tokens without end."""
    return CHINCHILLA.E + CHINCHILLA.A * _all_parameters(asked) ** -CHINCHILLA.alpha


def _all_parameters(asked: Sequence[Configuration]) -> Array:
    """(configurations,) with embeddings and head, which that law counts."""
    return np.array([float(each.parameters + 2 * VOCAB_SIZE * each.d_model) for each in asked])


def _folds(runs: Sequence[Run]) -> NDArray[np.intp]:
    """The fold of each run; all seeds of a configuration are in one."""
    distinct = sorted({astuple(configuration_of(run)) for run in runs})
    order = np.random.default_rng(0).permutation(len(distinct)) % NUM_FOLDS
    fold_of = dict(zip(distinct, order, strict=True))
    return np.array([fold_of[astuple(configuration_of(run))] for run in runs])
