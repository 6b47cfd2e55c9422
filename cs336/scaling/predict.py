"""A prediction from small budgets for a larger one, written down before the larger one is trained; then the check."""

from __future__ import annotations

import hashlib
import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cs336.files import UserError, read_json, write_json
from cs336.revision import describe_commit
from cs336.scaling.accounting import num_parameters, num_tokens
from cs336.scaling.fits import LOWEST, PARABOLA
from cs336.scaling.isoflops import Minima, fit_frontier, lowest_runs, parabola_minima
from cs336.scaling.measurements import CannotFit, Measurements, measurements
from cs336.scaling.power_law import Frontier
from cs336.scaling.profiles import fitted_profiles, points
from cs336.scaling.rates import Rates
from cs336.scaling.runs import MEASURED_PREDICTION, Run, finished_runs
from cs336.scaling.text_limit import NUM_DRAWS, SEED, TEXT_LIMIT, TextLimit
from cs336.scaling.uncertainty import below_held_out, bootstrap_weights, held_out, interval

LEVEL = 0.95  # share of the draws in an interval
METHOD = (
    "at each budget the best recipe of five sizes or more; its best size is {}; power laws of size and tokens by"
    " least squares in log-log space, a power law with a floor of the loss; intervals hold"
    f" {LEVEL:.0%} of {NUM_DRAWS:,} bootstrap draws {{}}, seed {SEED}"
)
REASON = "reason"  # in the place of a prediction: why there is none
_DECIMALS = 5

Fitter = Callable[
    [Measurements], tuple[Frontier, Frontier]
]  # of the runs, and of bootstrap draws: arrays of one a draw


def _fit(find: Callable[..., Minima], runs: Measurements) -> tuple[Frontier, Frontier]:
    draws = bootstrap_weights(runs, NUM_DRAWS, SEED)
    return fit_frontier(find(runs)), fit_frontier(find(runs, draws))


FITTERS: dict[str, Fitter] = {
    PARABOLA: partial(_fit, parabola_minima),
    LOWEST: partial(_fit, lowest_runs),
}
_WITHIN = "within each budget"
METHODS = {
    PARABOLA: METHOD.format("the vertex of a parabola in log N", _WITHIN),
    LOWEST: METHOD.format("its lowest run", _WITHIN),
    TEXT_LIMIT: METHOD.format(
        "its lowest run, between two sizes or the smallest that does not read the text too often",
        "of the laws' residuals",
    ),
}


def predict(
    runs: Sequence[Run],
    *,
    target: float,
    max_budget: float,
    min_budget: float = 0.0,
    shapes: Iterable[tuple[int, int, int]],
    unique_tokens: int,
    max_epochs: float = math.inf,
    rate_per_width: float = 0.0,
    fitters: Mapping[str, Fitter] = FITTERS,
) -> dict[str, Any]:
    """Best size and loss at a larger budget, with intervals, and the run that will check them.

    Args:
        target: nominal FLOPs, above `max_budget`.
        min_budget: smallest budget that is fitted. A law with a floor does not know that losses bend towards that of
            an untrained model; runs of few steps, which are near it, lift what is predicted.
        shapes: (d_model, layers, heads) that can be trained; the one nearest to the predicted size is named.
        unique_tokens: of the text, for how often the check reads it.
        max_epochs: how often a run may read the text. If this is finite, the best size under that limit is the last
            approach: the only one where the lowest losses are those of the smallest sizes that it allows.
        rate_per_width: learning rate of the check, times its width, where other runs than the fitted ones say so; 0
            takes that of the largest budget's profile.
        fitters: by the name of the approach; the first one with an answer is the prediction, the others stand beside.

    Returns:
        JSON-like: what is predicted, how, from which rows, by which commit, when; and how far off each approach was at
        the largest of the budgets when fitted without it.

    Raises:
        UserError: there are no runs to fit, or no fitter has an answer at the target.
    """
    if target <= max_budget:
        raise UserError(
            f"a prediction for {target:.0e} from budgets up to {max_budget:.0e} predicts nothing; aim higher"
        )
    fitted = points(runs, min_budget=min_budget, max_budget=max_budget)
    if math.isfinite(max_epochs):
        fitters = {**fitters, TEXT_LIMIT: TextLimit(max_epochs * unique_tokens)}
    predictions, errors, left_out = {}, {}, {}
    for name, fitter in fitters.items():
        try:
            predictions[name] = _prediction(*fitter(fitted), target)
            errors[name] = _held_out_error(fitter, fitted)
        except CannotFit as reason:
            left_out[name] = str(reason)
    if not predictions:
        raise UserError("no prediction " + "; ".join(f"by the {name}: {reason}" for name, reason in left_out.items()))
    first = next(iter(predictions))
    size = predictions[first]["parameters"]["estimate"]
    shape = min(shapes, key=lambda each: abs(math.log(num_parameters(each[1], each[0]) / size)))
    used = _between(runs, min_budget, max_budget)
    recipe = fitted_profiles(runs, min_budget=min_budget, max_budget=max_budget)[-1]
    rates = Rates(per_width=rate_per_width) if rate_per_width else recipe.rates
    parameters = num_parameters(shape[1], shape[0])
    return {
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": describe_commit(),
        "target_budget": target,
        "min_budget": min_budget,
        "max_budget": max_budget,
        "level": LEVEL,
        "approach": first,
        "method": METHODS.get(first, first),
        "predictions": predictions,
        "held_out_loss_errors": errors,
        "left_out": left_out,
        "check": {
            "shape": "x".join(map(str, shape)),
            "parameters": parameters,
            "batch_size": recipe.batch_size,  # what was fitted at the largest budget
            "learning_rate": rates.at(shape[0]),
            "rate_per_width": rates.per_width,  # 0 where all sizes had the same
            "epochs": round(num_tokens(target, parameters) / unique_tokens, 3),
        },
        "num_points": len(fitted.losses),
        "num_rows": len(used),
        "rows": rows_mark(used),
        "data": sorted({run.data for run in used}),
    }


def measured_prediction(
    runs: Iterable[Run],
    *,
    target: float,
    max_budget: float,
    min_budget: float = 0.0,
    rate_per_width: float = 0.0,
) -> dict[str, Any] | None:
    """The prediction that comes with this package, where it was made for this budget from these very rows; or None.

    It was committed before its check was trained, so it stays as it is.
    """
    if not MEASURED_PREDICTION.exists():
        return None
    made = read_json(MEASURED_PREDICTION)
    asked = made["target_budget"], made["min_budget"], made["max_budget"], made["rows"]
    own = target, min_budget, max_budget, rows_mark(_between(runs, min_budget, max_budget))
    if rate_per_width and rate_per_width != made["check"]["rate_per_width"]:
        return None
    return made if asked == own else None


def check(prediction: Mapping[str, Any], runs: Iterable[Run]) -> dict[str, Any]:
    """Predicted beside measured: the best size among those trained at the target, and its loss over the seeds.

    Compared are runs of the batch size and learning rate that the prediction names.

    Raises:
        UserError: nothing was trained so at the target; or a run there began before the prediction was made, or is on
            other text.
    """
    target = prediction["target_budget"]
    measured = [run for run in finished_runs(runs) if run.compute_budget == target and run.steps]
    if not measured:
        raise UserError(f"no finished run at {target:.0e}; train the grid `check` first")
    made = datetime.fromisoformat(prediction["made"])
    if early := [run for run in measured if began(run) < made]:
        raise UserError(
            f"a run of {early[0].date} is older than the prediction of {prediction['made']}; it checks nothing"
        )
    if {run.data for run in measured} - set(prediction["data"]):
        raise UserError("the check's text is not the prediction's; train both on the same tokens")
    named = prediction["check"]
    per_width = named.get("rate_per_width", 0.0)
    rates = Rates(per_width=per_width) if per_width else Rates(constant=named["learning_rate"])
    batch_size = named["batch_size"]
    alike = [run for run in measured if (run.batch_size, run.learning_rate) == (batch_size, rates.at(run.d_model))]
    if not alike:
        raise UserError(
            f"no finished run at {target:.0e} has batch {batch_size} and learning rate {rates}, which"
            " the prediction is for; train it so"
        )
    sizes: dict[int, list[float]] = defaultdict(list)
    for run in alike:
        sizes[run.parameters].append(run.final_loss)
    means = {size: statistics.fmean(losses) for size, losses in sorted(sizes.items())}
    best = min(means, key=lambda size: means[size])
    at_named = sizes.get(named["parameters"], [])
    predicted = prediction["predictions"][prediction["approach"]]
    return {
        "prediction_made": prediction["made"],
        "prediction_commit": prediction["commit"],
        "target_budget": target,
        "losses": {str(size): round(mean, _DECIMALS) for size, mean in means.items()},
        "num_seeds": {str(size): len(losses) for size, losses in sorted(sizes.items())},
        "best_parameters": best,
        "best_at_edge": best in (min(means), max(means)),
        "best_loss": round(means[best], _DECIMALS),
        "vertex": _vertex(target, means),
        "seed_spread": round(statistics.stdev(at_named), _DECIMALS) if len(at_named) > 1 else None,
        "loss_at_predicted_shape": round(statistics.fmean(at_named), _DECIMALS) if at_named else None,
        "predicted": predicted,
        "loss_error": round(predicted["loss"]["estimate"] - means[best], _DECIMALS),
        "parameters_error": round(predicted["parameters"]["estimate"] / best - 1, _DECIMALS),
        "loss_within": _within(means[best], predicted["loss"]),
        "parameters_within": _within(best, predicted["parameters"]),
    }


def edge_of(checked: Mapping[str, Any]) -> str:
    """Which end of the check's sizes the best one is, "smallest" or "largest": a better one may lie beyond; else ""."""
    if not checked["best_at_edge"]:
        return ""
    return "smallest" if checked["best_parameters"] == min(map(int, checked["losses"])) else "largest"


def write_prediction(path: Path, prediction: Mapping[str, Any]) -> None:
    """Write a prediction once: one that is there stays as it was made.

    Raises:
        UserError: the file is there.
    """
    if path.exists():
        raise UserError(f"{path}: holds a prediction of {read_json(path).get('made')}; it stays, write another file")
    write_json(path, prediction)


def rows_mark(runs: Iterable[Run]) -> str:
    """Hash of the runs' configurations and losses, whatever their order."""
    lines = sorted(f"{run.config_hash} {run.final_loss!r}" for run in runs)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def _between(runs: Iterable[Run], min_budget: float, max_budget: float) -> list[Run]:
    return [run for run in finished_runs(runs) if min_budget <= run.compute_budget <= max_budget]


def began(run: Run) -> datetime:
    """When a run began, at the latest: its date is that of its end, cut to whole seconds, as a prediction's is."""
    return datetime.fromisoformat(run.date.replace("Z", "+00:00")) + timedelta(seconds=1 - run.wall_seconds)


def _held_out_error(fitter: Fitter, fitted: Measurements) -> float | None:
    """Predicted less found, nats, at the largest budget, by a fit to the others; None where they allow none."""
    try:
        if isinstance(fitter, TextLimit):
            found = fitter.held_out(fitted)
        else:
            found = held_out(fitted, fitter(below_held_out(fitted))[0])
    except CannotFit:
        return None
    return round(found.loss_error, _DECIMALS) if math.isfinite(found.loss_error) else None


def _prediction(frontier: Frontier, draws: Frontier, target: float) -> dict[str, dict[str, float]]:
    return {
        name: _estimate(float(getattr(frontier, name)(target)), getattr(draws, name)(target))
        for name in ("parameters", "loss")
    }


def _estimate(value: float, draws: Any) -> dict[str, float]:
    found = interval(draws, LEVEL)
    if not math.isfinite(value) or found is None:
        raise CannotFit("it has no answer at the target; train more sizes or budgets")
    return {"estimate": value, "low": found.low, "high": found.high, "num_draws": int(np.isfinite(draws).sum())}


def _vertex(target: float, means: Mapping[int, float]) -> dict[str, float] | None:
    """Of a parabola through the check's losses, which are few sizes; None where they do not bracket it."""
    minima = parabola_minima(measurements(means, [target] * len(means), means.values()))
    if not minima.bracketed[0]:
        return None
    return {"parameters": float(minima.parameters[0]), "loss": round(float(minima.losses[0]), _DECIMALS)}


def _within(value: float, predicted: Mapping[str, float]) -> bool:
    return predicted["low"] <= value <= predicted["high"]
