"""A prediction from small budgets for a larger one, written down before the larger one is trained; then the check.

The laws are fitted elsewhere: a `Fitter` takes arrays and gives the frontier of the runs and of bootstrap draws.
"""

from __future__ import annotations

import hashlib
import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cs336.files import UserError, read_json, write_json
from cs336.scaling.grid import ASPECT_RATIOS, HEAD_SIZES
from cs336.scaling.runs import Run, finished_runs

LEVEL = 0.95  # share of the draws in an interval
_DECIMALS = 5


class Points(NamedTuple):
    """What is fitted: one entry a size and budget."""

    parameters: NDArray[np.float64]
    compute: NDArray[np.float64]
    losses: NDArray[np.float64]


class FittedFrontier(Protocol):
    """Best size and its loss for any budget; of bootstrap draws, arrays of one number a draw."""

    @property
    def parameters(self) -> Callable[[float], Any]: ...

    @property
    def loss(self) -> Callable[[float], Any]: ...


class Fitter(Protocol):
    """Fits a frontier, and the same to bootstrap draws."""

    def __call__(
        self, parameters: ArrayLike, compute: ArrayLike, losses: ArrayLike
    ) -> tuple[FittedFrontier, FittedFrontier]: ...


def points(runs: Iterable[Run], *, max_budget: float) -> Points:
    """The runs that a law is fitted to: of each size and budget the best recipe.

    Of a recipe (shape, batch size, learning rate) the mean over its seeds counts, so that a lucky seed wins nothing.
    Runs without a step, and shapes off the ladder, are left out.

    Raises:
        UserError: no run is left.
    """
    recipes: dict[tuple[float, ...], list[float]] = defaultdict(list)
    for run in finished_runs(runs):
        if run.compute_budget <= max_budget and run.steps and _on_ladder(run):
            shape = run.d_model, run.num_layers, run.num_heads
            recipe = run.parameters, run.compute_budget, *shape, run.batch_size, run.learning_rate
            recipes[recipe].append(run.final_loss)
    best: dict[tuple[float, float], float] = {}
    for (parameters, compute, *_), losses in recipes.items():
        key = parameters, compute
        best[key] = min(best.get(key, math.inf), statistics.fmean(losses))
    if not best:
        raise UserError(f"no finished run has a budget up to {max_budget:.0e}; train some of the grid first")
    ordered = sorted(best, key=lambda key: (key[1], key[0]))
    columns = [[key[0] for key in ordered], [key[1] for key in ordered], [best[key] for key in ordered]]
    return Points(*(np.asarray(column, dtype=np.float64) for column in columns))


def predict(
    runs: Sequence[Run],
    fitters: Mapping[str, Fitter],
    *,
    target: float,
    max_budget: float,
    shapes: Iterable[tuple[int, int, int]],
    unique_tokens: int,
) -> dict[str, Any]:
    """Best size and loss at a larger budget, with intervals, and the run that will check them.

    Args:
        fitters: by the name of the approach; the first one is the prediction, the others stand beside it.
        target: nominal FLOPs, above `max_budget`.
        shapes: (d_model, layers, heads) that can be trained; the one nearest to the predicted size is named.
        unique_tokens: of the text, for how often the check reads it.

    Returns:
        JSON-like: what is predicted, from which rows, when.

    Raises:
        UserError: there are no runs to fit, or a fitter has no answer at the target.
    """
    if target <= max_budget:
        raise UserError(
            f"a prediction for {target:.0e} from budgets up to {max_budget:.0e} predicts nothing; aim higher"
        )
    fitted = points(runs, max_budget=max_budget)
    predictions = {}
    for name, fitter in fitters.items():
        frontier, draws = fitter(*fitted)
        predictions[name] = {
            "parameters": _estimate(name, frontier.parameters(target), draws.parameters(target)),
            "loss": _estimate(name, frontier.loss(target), draws.loss(target)),
        }
    first, size = next(iter(predictions)), next(iter(predictions.values()))["parameters"]["estimate"]
    shape = min(shapes, key=lambda each: abs(math.log(12 * each[1] * each[0] ** 2 / size)))
    used = [run for run in finished_runs(runs) if run.compute_budget <= max_budget]
    best = min((run for run in used if run.compute_budget == fitted.compute.max()), key=lambda run: run.final_loss)
    parameters = 12 * shape[1] * shape[0] ** 2
    return {
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "target_budget": target,
        "max_budget": max_budget,
        "level": LEVEL,
        "approach": first,
        "predictions": predictions,
        "check": {
            "shape": "x".join(map(str, shape)),
            "parameters": parameters,
            "batch_size": best.batch_size,  # of the best run at the largest budget
            "learning_rate": best.learning_rate,
            "epochs": round(target / (6 * parameters) / unique_tokens, 3),
        },
        "num_points": len(fitted.losses),
        "num_rows": len(used),
        "rows": rows_mark(used),
        "data": sorted({run.data for run in used}),
    }


def check(prediction: Mapping[str, Any], runs: Iterable[Run]) -> dict[str, Any]:
    """Predicted beside measured: the best size among those trained at the target, and its loss over the seeds.

    Raises:
        UserError: nothing was trained at the target; or a run there is older than the prediction, or on other text.
    """
    target = prediction["target_budget"]
    measured = [run for run in finished_runs(runs) if run.compute_budget == target and run.steps]
    if not measured:
        raise UserError(f"no finished run at {target:.0e}; train the grid `check` first")
    made = datetime.fromisoformat(prediction["made"])
    early = [run for run in measured if datetime.fromisoformat(run.date.replace("Z", "+00:00")) < made]
    if early:
        raise UserError(
            f"a run of {early[0].date} is older than the prediction of {prediction['made']}; it checks nothing"
        )
    if {run.data for run in measured} - set(prediction["data"]):
        raise UserError("the check's text is not the prediction's; train both on the same tokens")
    sizes: dict[int, list[float]] = defaultdict(list)
    for run in measured:
        sizes[run.parameters].append(run.final_loss)
    means = {size: statistics.fmean(losses) for size, losses in sorted(sizes.items())}
    best = min(means, key=lambda size: means[size])
    named = sizes.get(prediction["check"]["parameters"], [])
    predicted = prediction["predictions"][prediction["approach"]]
    return {
        "target_budget": target,
        "losses": {str(size): round(mean, _DECIMALS) for size, mean in means.items()},
        "num_seeds": {str(size): len(losses) for size, losses in sorted(sizes.items())},
        "best_parameters": best,
        "best_at_edge": best in (min(means), max(means)),
        "best_loss": round(means[best], _DECIMALS),
        "seed_spread": round(statistics.stdev(named), _DECIMALS) if len(named) > 1 else None,
        "loss_at_predicted_shape": round(statistics.fmean(named), _DECIMALS) if named else None,
        "predicted": predicted,
        "loss_error": round(predicted["loss"]["estimate"] - means[best], _DECIMALS),
        "parameters_error": round(predicted["parameters"]["estimate"] / best - 1, _DECIMALS),
        "loss_within": _within(means[best], predicted["loss"]),
        "parameters_within": _within(best, predicted["parameters"]),
    }


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


def _on_ladder(run: Run) -> bool:
    ratios = (run.d_model / run.num_layers, ASPECT_RATIOS), (run.d_model / run.num_heads, HEAD_SIZES)
    return all(low <= value <= high for value, (low, high) in ratios)


def _estimate(name: str, value: Any, draws: Any) -> dict[str, float]:
    finite = np.asarray(draws, dtype=float)
    finite = finite[np.isfinite(finite)]
    if not math.isfinite(float(value)) or not len(finite):
        raise UserError(f"{name}: no answer at the target from these runs; train more sizes or budgets")
    low, high = np.quantile(finite, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return {"estimate": float(value), "low": float(low), "high": float(high), "num_draws": len(finite)}


def _within(value: float, predicted: Mapping[str, float]) -> bool:
    return predicted["low"] <= value <= predicted["high"]
