"""A loss for any configuration and budget, from the runs that were measured.

A configuration that was measured gets its run's loss; any other gets that of the loss model fitted to all runs.
Everything in it lives in logarithms, so nothing breaks where heads do not divide the width.

More compute never gives a higher loss: a configuration's predictions at all budgets of the API are made monotone
together, and kept between its measured ones. Without measured runs, or with too few for a fit, a published law stands
alone, and says so.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np

from cs336.scaling.accounting import CONTEXT_LENGTH, VOCAB_SIZE
from cs336.scaling.boosting import Array
from cs336.scaling.loss_model import (
    SHARPNESSES,
    Configuration,
    LossModel,
    Settings,
    choose_settings,
    configuration_of,
    decade,
    features,
    fit_loss_model,
    losses_of,
)
from cs336.scaling.parametric import CHINCHILLA
from cs336.scaling.runs import Run, finished_runs

BUDGETS = tuple(sorted([digit * 10**power for power in range(13, 18) for digit in (1, 3, 6)] + [10**18]))  # handout's
LOSS_AT_INITIALISATION = 10.5  # nats: about what it is, where no run below one step was measured; ln 32,000 = 10.37
MIN_RUNS = 24  # for a fit of our own
# The only published answer of the course's own API.
SAMPLE_LOSS = 9.071
SAMPLE_QUERY = Configuration(
    d_model=1024, num_layers=24, num_heads=16, batch_size=128, learning_rate=1e-3, train_flops=10**16
)

MEASURED, INTERPOLATED, EXTRAPOLATED = "measured", "interpolated", "extrapolated"

_MIN_RUNS_OF_A_DECADE = 5  # else the error of all decades together stands for its own
_ROUNDING = 1e-9  # of logarithms that are compared


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """A loss and what stands behind it.

    Attributes:
        loss: final training loss, nats per token.
        provenance: "measured", "interpolated" (within the measured runs' box) or "extrapolated".
        uncertainty: standard error, nats. Of a measured loss: the noise of its seed. Else the error of runs held out,
            and outside the box, with the distance, that at the largest measured budget when it was held out.
        source: a sentence for people.
    """

    loss: float
    provenance: str
    uncertainty: float
    source: str


@dataclass(frozen=True, kw_only=True)
class Errors:
    """What is known of the losses' errors, in nats.

    Attributes:
        seed_noise: standard deviation over seeds; None where no configuration has two.
        held_out: (runs, ) of the five-fold errors, root mean squared; None without a fit.
        by_decade: of the budget, such as "1e15": `rmse` of the runs held out, and how many `runs`.
        growth: per e-fold of distance from the measured runs.
        pairs: budget, measured loss, and loss predicted without the run's fold, of each run that was fitted.
    """

    seed_noise: float | None
    held_out: float | None
    by_decade: dict[str, dict[str, float]]
    growth: float
    pairs: tuple[tuple[float, float, float], ...] = ()

    @property
    def of_a_measured_loss(self) -> float | None:
        """The noise of its seed; where nobody measured that, the error of runs held out, which is above it."""
        return self.held_out if self.seed_noise is None else self.seed_noise

    def at(self, budget: float, distance: float) -> float:
        """Of a prediction, `distance` e-folds outside the measured runs."""
        found = self.by_decade.get(decade(budget))
        near = found["rmse"] if found and found["runs"] >= _MIN_RUNS_OF_A_DECADE else self.held_out
        assert near is not None
        return math.hypot(near, self.growth * distance)


class Surrogate:
    """Losses of all configurations; made by `fit_surrogate`. Threads may share it."""

    def __init__(self, runs: Sequence[Run], model: LossModel, settings: Settings, errors: Errors) -> None:
        self._measured: dict[Configuration, Run] = {}
        for run in runs:
            self._measured.setdefault(configuration_of(run), run)  # the lowest seed's
        self._num_runs = len(runs)
        self._model = model
        self._settings = settings
        self._errors = errors
        fitted = [configuration for configuration in self._measured if configuration.steps > 0]
        self._box = (_places(fitted).min(axis=0), _places(fitted).max(axis=0)) if fitted else None

    def predict(self, asked: Configuration) -> Prediction:
        """The loss of one configuration; the same for ever from the same runs."""
        run = self._measured.get(asked)
        if run is not None:
            error = self._errors.of_a_measured_loss
            repeated = f", {run.epochs:.1f} epochs of its text" if run.epochs > 1 else ""
            return Prediction(
                loss=run.final_loss,
                provenance=MEASURED,
                uncertainty=self._error_at_sample() if error is None else error,
                source=f"measured: {run.steps:,} steps, seed {run.seed}, {run.date[:10]}{repeated}",
            )
        loss = self._monotone(asked)
        if asked.steps == 0:
            return Prediction(
                loss=loss,
                provenance=INTERPOLATED,
                uncertainty=abs(self._model.initial_loss - math.log(VOCAB_SIZE)),
                source="the loss at initialisation: the budget is below one step",
            )
        if self._model.correction is None:
            return Prediction(
                loss=loss,
                provenance=EXTRAPOLATED,
                uncertainty=self._error_at_sample(),
                source="the published law of Hoffmann et al. 2022, for want of measured runs; the uncertainty is its"
                " error at the one published answer of the course's API",
            )
        distance = self._distance(asked)
        outside = distance > _ROUNDING
        return Prediction(
            loss=loss,
            provenance=EXTRAPOLATED if outside else INTERPOLATED,
            uncertainty=self._errors.at(asked.train_flops, distance if outside else 0.0),
            source=f"fitted to {self._num_runs} measured runs" + (f", {distance:.1f} e-folds outside" * outside),
        )

    def held_out_rmse(self) -> dict[str, dict[str, float]]:
        """By decade of the budget, such as "1e15": `rmse` in nats of `runs` held out, five-fold.

        The fit's settings were chosen by the same folds, so the numbers are slightly too good. Empty without a fit.
        """
        return self._errors.by_decade

    def held_out_pairs(self) -> tuple[tuple[float, float, float], ...]:
        """(budget, measured, predicted without it) of each run, five-fold; empty without a fit."""
        return self._errors.pairs

    def summary(self) -> dict[str, Any]:
        """What the losses are made from and how far off they are; for people and for JSON."""
        law, fitted = self._model.law, self._model.correction is not None
        ridge = self._settings.ridge if math.isfinite(self._settings.ridge) else "none"
        return {
            "measured_runs": self._num_runs,
            "measured_configurations": len(self._measured),
            "law": {name: float(getattr(law, name)) for name in ("E", "A", "B", "alpha", "beta")},
            "law_source": "Hoffmann et al. 2022, published" if law == CHINCHILLA else "fitted to the measured runs",
            "correction": f"ridge {ridge}, {self._settings.num_trees} trees" if fitted else "none",
            "bend_sharpness": self._model.sharpness,
            "loss_at_initialisation": self._model.initial_loss,
            "seed_noise_nats": self._errors.seed_noise,
            "held_out_rmse_nats": self._errors.held_out,
            "held_out_rmse_nats_by_decade": self._errors.by_decade,
            "error_growth_nats_per_e_fold": self._errors.growth,
        }

    def _monotone(self, asked: Configuration) -> float:
        """The prediction, once this configuration's losses at all budgets were made non-increasing."""
        budgets = sorted({*BUDGETS, asked.train_flops})
        same = [dataclasses.replace(asked, train_flops=budget) for budget in budgets]
        lowest_so_far = np.minimum.accumulate(self._model(same))
        place = budgets.index(asked.train_flops)
        measured = [(at, self._measured[each].final_loss) for at, each in enumerate(same) if each in self._measured]
        above = min((loss for at, loss in measured if at < place), default=math.inf)
        below = max((loss for at, loss in measured if at > place), default=-math.inf)
        return float(min(max(lowest_so_far[place], below), above))

    def _distance(self, asked: Configuration) -> float:
        """How far outside the measured runs' box, in e-folds."""
        if self._box is None:
            return math.inf
        (place,), (low, high) = _places([asked]), self._box
        *outside, compute_outside = np.maximum(0, np.maximum(low - place, place - high))
        return max(float(np.linalg.norm(outside)), float(compute_outside))

    def _error_at_sample(self) -> float:
        return abs(float(self._model([SAMPLE_QUERY])[0]) - SAMPLE_LOSS)


def fit_surrogate(runs: Iterable[Run]) -> Surrogate:
    """Fit to the finished runs, in whatever order they come: the same runs give the same losses.

    A run that diverged leaves its configuration to the fit of the others. Runs of another vocabulary or context, or
    of other steps than their budget pays for, are none of what the API is asked for, and are left out.
    """
    rows = sorted(
        (run for run in finished_runs(runs) if _is_of_the_api(run)),
        key=lambda run: (astuple(configuration_of(run)), run.seed, run.date),
    )
    started = [run for run in rows if configuration_of(run).steps > 0]
    initial = [run.final_loss for run in rows if configuration_of(run).steps == 0]
    initial_loss = float(np.mean(initial)) if initial else LOSS_AT_INITIALISATION
    seed_noise = _seed_noise(rows)
    if len(started) < MIN_RUNS:
        published = LossModel(law=CHINCHILLA, sharpness=SHARPNESSES[-1], initial_loss=initial_loss)
        none = Settings(ridge=math.inf, num_trees=0, sharpness=SHARPNESSES[-1])
        return Surrogate(rows, published, none, Errors(seed_noise=seed_noise, held_out=None, by_decade={}, growth=0.0))
    settings, errors = choose_settings(started, initial_loss)
    model = fit_loss_model(started, settings, initial_loss)
    held_out, measured = _rms(errors), losses_of(started)
    known = Errors(
        seed_noise=seed_noise,
        held_out=held_out,
        by_decade=_by_decade(started, errors),
        growth=_growth(started, model, settings, otherwise=held_out),
        pairs=tuple(
            zip([r.train_flops for r in started], measured.tolist(), (measured + errors).tolist(), strict=True)
        ),
    )
    return Surrogate(rows, model, settings, known)


def _is_of_the_api(run: Run) -> bool:
    same_text = (run.vocab_size, run.context_length) == (VOCAB_SIZE, CONTEXT_LENGTH)
    return same_text and run.steps == configuration_of(run).steps


def _places(asked: Sequence[Configuration]) -> Array:
    """(configurations, 7): what the box is made of: the features without the steps, and compute."""
    values = features(asked)
    return np.column_stack([values[:, :6], values[:, 0] + values[:, 1]])


def _by_decade(runs: Sequence[Run], errors: Array) -> dict[str, dict[str, float]]:
    decades = np.array([decade(run.train_flops) for run in runs])
    return {
        name: {"rmse": _rms(errors[decades == name]), "runs": int((decades == name).sum())}
        for name in sorted(set(decades.tolist()), key=float)
    }


def _growth(runs: Sequence[Run], model: LossModel, settings: Settings, *, otherwise: float) -> float:
    """Nats of error per e-fold of compute: of the largest budget's runs, predicted from the others."""
    budgets = sorted({run.train_flops for run in runs})
    rest = [run for run in runs if run.train_flops < budgets[-1]]
    if len(rest) < MIN_RUNS:
        return otherwise
    largest = [run for run in runs if run.train_flops == budgets[-1]]
    without = fit_loss_model(rest, settings, model.initial_loss, like=model.law)
    errors = without([configuration_of(run) for run in largest]) - losses_of(largest)
    return _rms(errors) / math.log(budgets[-1] / budgets[-2])


def _seed_noise(runs: Sequence[Run]) -> float | None:
    """Standard deviation over seeds, pooled over the configurations that have several."""
    by_configuration: dict[Configuration, list[float]] = {}
    for run in runs:
        by_configuration.setdefault(configuration_of(run), []).append(run.final_loss)
    repeated = [losses for losses in by_configuration.values() if len(losses) > 1]
    if not repeated:
        return None
    freedom = sum(len(losses) - 1 for losses in repeated)
    return math.sqrt(sum((len(losses) - 1) * float(np.var(losses, ddof=1)) for losses in repeated) / freedom)


def _rms(errors: Array) -> float:
    return float(np.sqrt(np.mean(errors**2)))
