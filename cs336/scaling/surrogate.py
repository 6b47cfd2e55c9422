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
from typing import Any, NamedTuple

import numpy as np

from cs336.scaling.accounting import CONTEXT_LENGTH, VOCAB_SIZE
from cs336.scaling.gaussian_process import Array
from cs336.scaling.loss_model import (
    FEATURES,
    Configuration,
    LossModel,
    configuration_of,
    decade,
    fit_loss_model,
    held_out,
)
from cs336.scaling.runs import Run, finished_runs

# What the handout's API accepts.
BUDGETS = tuple(sorted([digit * 10**power for power in range(13, 18) for digit in (1, 3, 6)] + [10**18]))
RANGES: dict[str, tuple[float, float]] = {  # both ends are allowed
    "d_model": (64, 1024),
    "num_layers": (2, 24),
    "num_heads": (2, 16),
    "learning_rate": (1e-4, 1e-3),
}
CHOICES: dict[str, tuple[int, ...]] = {"batch_size": (128, 256), "train_flops": BUDGETS}
LOSS_AT_INITIALISATION = 10.5  # nats: about what it is, where no run below one step was measured; ln 32,000 = 10.37
MIN_CONFIGURATIONS = 24  # for a fit of our own
LIMITED_FROM = 1e15  # nominal FLOPs: from here up the specification limits the error of runs held out
# The only published answer of the course's own API.
SAMPLE_LOSS = 9.071
SAMPLE_QUERY = Configuration(
    d_model=1024, num_layers=24, num_heads=16, batch_size=128, learning_rate=1e-3, train_flops=10**16
)

MEASURED, INTERPOLATED, EXTRAPOLATED = "measured", "interpolated", "extrapolated"
PUBLISHED, FITTED = "the published law of Hoffmann et al. 2022", "a Gaussian process"

_ROUNDING = 1e-9  # of shares


class HeldOut(NamedTuple):
    """A run that was held out.

    Attributes:
        budget: nominal FLOPs.
        measured, predicted: losses, nats per token.
        of_api: whether the API accepts its configuration; the grid has higher learning rates, and smaller models, too.
    """

    budget: float
    measured: float
    predicted: float
    of_api: bool


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """A loss and what stands behind it.

    Attributes:
        loss: final training loss, nats per token.
        provenance: "measured", "interpolated" (in the range of the measured runs in every respect) or "extrapolated".
        uncertainty: standard error, nats. Of a measured loss: the noise of its seed. Else the process's, times how far
            runs held out were off in its measure; of an extrapolated loss, never less than at a smaller budget.
        source: a sentence for people.
    """

    loss: float
    provenance: str
    uncertainty: float
    source: str


@dataclass(frozen=True, kw_only=True)
class Errors:
    """What is known of the losses' errors.

    Attributes:
        seed_noise: standard deviation over seeds, nats; None where no configuration has two.
        pairs: of each run that was fitted, in five folds; none without a fit.
        calibration: standard errors of runs held out over those that the process gives, root mean squared.
    """

    seed_noise: float | None
    pairs: tuple[HeldOut, ...] = ()
    calibration: float = 1.0

    @property
    def of_a_measured_loss(self) -> float | None:
        """The noise of its seed; where nobody measured that, the error of runs held out, which is above it."""
        return rmse(self.pairs) if self.seed_noise is None else self.seed_noise


class Surrogate:
    """Losses of all configurations; made by `fit_surrogate`. Threads may share it."""

    def __init__(self, runs: Sequence[Run], model: LossModel, errors: Errors) -> None:
        self._measured: dict[Configuration, Run] = {}
        for run in runs:
            self._measured.setdefault(configuration_of(run), run)  # the lowest seed's
        self._num_runs = len(runs)
        self._model = model
        self._errors = errors
        places = [_places(configuration) for configuration in self._measured if configuration.steps > 0]
        self._box = {name: _ends([place[name] for place in places]) for name in places[0]} if places else {}

    def loss(self, asked: Configuration) -> float:
        """What `predict` has as its loss, without what stands behind it."""
        run = self._measured.get(asked)
        return run.final_loss if run is not None else self._monotone(asked)

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
        loss = self.loss(asked)
        if asked.steps == 0:
            return Prediction(
                loss=loss,
                provenance=INTERPOLATED,
                uncertainty=abs(self._model.initial_loss - math.log(VOCAB_SIZE)),
                source="the loss at initialisation: the budget is below one step",
            )
        if self._model.process is None:
            return Prediction(
                loss=loss,
                provenance=EXTRAPOLATED,
                uncertainty=self._error_at_sample(),
                source=f"{PUBLISHED}, for want of measured runs; the uncertainty is its error at the one published"
                " answer of the course's API",
            )
        outside = self._outside(asked)
        beyond = f", beyond their {' and '.join(outside)}" if outside else ""
        return Prediction(
            loss=loss,
            provenance=EXTRAPOLATED if outside else INTERPOLATED,
            uncertainty=self._error(asked),
            source=f"{FITTED} fitted to {self._num_runs} measured runs{beyond}",
        )

    def held_out_rmse(self) -> dict[str, dict[str, float | None]]:
        """By decade of the budget, such as "1e15": `rmse` in nats of `runs` held out, five-fold, and `api_rmse` of the
        `api_runs` of them that the API accepts, None of none. Empty without a fit.
        """
        decades: dict[str, list[HeldOut]] = {}
        for pair in self._errors.pairs:
            decades.setdefault(decade(pair.budget), []).append(pair)
        return {name: errors_of(decades[name]) for name in sorted(decades, key=float)}

    def held_out_pairs(self) -> tuple[HeldOut, ...]:
        """Each run, predicted without it, five-fold; empty without a fit."""
        return self._errors.pairs

    def summary(self) -> dict[str, Any]:
        """What the losses are made from and how far off they are; for people and for JSON."""
        process = self._model.process
        known = {
            "measured_runs": self._num_runs,
            "measured_configurations": len(self._measured),
            "model": PUBLISHED if process is None else FITTED,
            "loss_at_initialisation": self._model.initial_loss,
            "seed_noise_nats": self._errors.seed_noise,
        }
        if process is None:
            return known
        return known | {
            "lengths_e_folds": dict(zip(FEATURES, process.lengths.tolist(), strict=True)),
            "amplitude_logits": process.amplitude,
            "noise_nats": process.noise,
            "calibration": self._errors.calibration,
            "held_out_rmse_nats": rmse(self._errors.pairs),
            "held_out_rmse_nats_of_the_api": rmse(pair for pair in self._errors.pairs if pair.of_api),
            "held_out_rmse_nats_by_decade": self.held_out_rmse(),
        }

    def _monotone(self, asked: Configuration) -> float:
        """The prediction, once this configuration's losses at all budgets were made non-increasing."""
        budgets = sorted({*BUDGETS, asked.train_flops})
        same = [Configuration(**(vars(asked) | {"train_flops": budget})) for budget in budgets]
        place = budgets.index(asked.train_flops)
        lowest_so_far = self._model(same)[: place + 1].min()  # of all: how many there are changes the last bits
        measured = [(at, self._measured[each].final_loss) for at, each in enumerate(same) if each in self._measured]
        above = min((loss for at, loss in measured if at < place), default=math.inf)
        below = max((loss for at, loss in measured if at > place), default=-math.inf)
        return float(min(max(lowest_so_far, below), above))

    def _outside(self, asked: Configuration) -> list[str]:
        """In which respects no measured run is as low, or as high."""
        inside = 1 + _ROUNDING
        return [
            name
            for name, value in _places(asked).items()
            if not self._box[name][0] <= value * inside or not value <= self._box[name][1] * inside
        ]

    def _error(self, asked: Configuration) -> float:
        """Near the floor the process's errors vanish with the distance to it, which nothing measured vouches for: out
        there an error is the largest on the way.
        """
        smaller = (dataclasses.replace(asked, train_flops=each) for each in BUDGETS if each < asked.train_flops)
        way = [each for each in smaller if each.steps > 0 and self._outside(each)] if self._outside(asked) else []
        return self._errors.calibration * float(self._model.errors([*way, asked]).max())

    def _error_at_sample(self) -> float:
        return abs(float(self._model([SAMPLE_QUERY])[0]) - SAMPLE_LOSS)


def fit_surrogate(runs: Iterable[Run]) -> Surrogate:
    """Fit to the finished runs, in whatever order they come: the same runs give the same losses.

    A run that diverged leaves its configuration to the fit of the others. Runs of another vocabulary or context, or
    of other steps than their budget pays for, are none of what the API is asked for, and are left out.
    """
    rows = sorted(
        (run for run in finished_runs(runs) if _is_of_the_grid(run)),
        key=lambda run: (astuple(configuration_of(run)), run.seed, run.date),
    )
    started = [run for run in rows if configuration_of(run).steps > 0]
    initial = [run.final_loss for run in rows if configuration_of(run).steps == 0]
    initial_loss = float(np.mean(initial)) if initial else LOSS_AT_INITIALISATION
    seed_noise = _seed_noise(rows)
    if len({configuration_of(run) for run in started}) < MIN_CONFIGURATIONS:
        return Surrogate(rows, LossModel(initial_loss=initial_loss), Errors(seed_noise=seed_noise))
    losses, deviations = held_out(started, initial_loss)
    pairs = [
        HeldOut(run.train_flops, run.final_loss, loss, api_accepts(configuration_of(run)))
        for run, loss in zip(started, losses.tolist(), strict=True)
    ]
    errors = Errors(seed_noise=seed_noise, pairs=tuple(pairs), calibration=_rms(deviations))
    return Surrogate(rows, fit_loss_model(started, initial_loss), errors)


def api_accepts(asked: Configuration) -> bool:
    """Whether every value is in `RANGES` and `CHOICES`."""
    values = vars(asked)
    in_ranges = all(low <= values[name] <= high for name, (low, high) in RANGES.items())
    return in_ranges and all(values[name] in choices for name, choices in CHOICES.items())


def rmse(pairs: Iterable[HeldOut]) -> float | None:
    """Root mean squared error, nats; None of none."""
    errors = np.array([pair.predicted - pair.measured for pair in pairs])
    return _rms(errors) if len(errors) else None


def errors_of(pairs: Sequence[HeldOut]) -> dict[str, float | None]:
    """Error and number of them all, and of those that the API accepts; see `Surrogate.held_out_rmse`."""
    accepted = [pair for pair in pairs if pair.of_api]
    return {"rmse": rmse(pairs), "runs": len(pairs), "api_rmse": rmse(accepted), "api_runs": len(accepted)}


def _is_of_the_grid(run: Run) -> bool:
    same_text = (run.vocab_size, run.context_length) == (VOCAB_SIZE, CONTEXT_LENGTH)
    return same_text and run.steps == configuration_of(run).steps


def _places(asked: Configuration) -> dict[str, float]:
    """What the measured runs' ranges are of."""
    return {
        "width": asked.d_model,
        "depth": asked.num_layers,
        "head size": asked.d_model / asked.num_heads,
        "batch size": asked.batch_size,
        "learning rate": asked.learning_rate,
        "steps": asked.steps,
        "budget": asked.train_flops,
    }


def _ends(values: Sequence[float]) -> tuple[float, float]:
    return min(values), max(values)


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
