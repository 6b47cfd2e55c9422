"""Bootstrap draws of the parametric scaling law: all at once by our L-BFGS, and one by one by SciPy's.

Case `draws`: 72 runs of the exercise with 1 % of noise; each draw begins at the fit to all runs. Same objective,
gradient and start for both; the draws' objectives must agree to 1e-6 before anything is timed. The figure is draws a
second. With --draws 1000, ours must not take 20 seconds.

Example:
  python -m benchmarks scaling_fit --draws 1000
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from benchmarks.measure import OURS, Case, Contender, Unavailable
from cs336.scaling.exercise import exercise_runs
from cs336.scaling.measurements import Measurements
from cs336.scaling.parametric import HuberObjective, ParametricLaw, fit_parametric, fit_parametric_draws
from cs336.scaling.uncertainty import bootstrap_weights

NOISE = 0.01  # of the losses
LIMIT_SECONDS, LIMIT_DRAWS = 20.0, 1_000  # the project's bound, on two cores

Values = NDArray[np.float64]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --draws."""
    parser.add_argument("--draws", type=int, default=LIMIT_DRAWS, metavar="N", help="(default %(default)s)")


def cases(options: argparse.Namespace) -> Iterator[Case]:
    """The one case."""
    exact = exercise_runs()
    runs = exact._replace(losses=exact.losses * np.exp(np.random.default_rng(0).normal(0, NOISE, len(exact.losses))))
    law = fit_parametric(runs)
    weights = bootstrap_weights(runs, options.draws, seed=0)
    losses = runs.losses.tobytes()
    yield Case(
        name="draws",
        amount=options.draws,
        unit="draws/s",
        contenders=[
            Contender(name=OURS, prepare=lambda: lambda: fit_parametric_draws(runs, weights, law).huber),
            Contender(name="scipy", prepare=lambda: _scipy(runs, weights, law), packages=("scipy",)),
        ],
        difference=_difference,
        input={"runs": len(runs.losses), "bytes": len(losses), "sha256": hashlib.sha256(losses).hexdigest()},
        limits={"seconds": LIMIT_SECONDS} if options.draws <= LIMIT_DRAWS else {},
    )


def _scipy(runs: Measurements, weights: Values, law: ParametricLaw) -> Callable[[], Values]:
    try:
        from scipy.optimize import minimize
    except ImportError:
        raise Unavailable("pip install scipy") from None

    problem = HuberObjective(runs, weights)
    numbers = np.array([[np.log(law.A), np.log(law.B), np.log(law.E), law.alpha, law.beta]])
    start = problem.centred(numbers)[0]

    def fit(draw: int) -> float:
        def objective(point: Values) -> tuple[float, Values]:
            values, gradients = problem(point[None], np.array([draw]))
            return values[0], gradients[0]

        options = {"ftol": 1e-12, "gtol": 1e-6, "maxcor": 10, "maxiter": 500}
        return float(minimize(objective, start, jac=True, method="L-BFGS-B", options=options).fun)

    return lambda: np.array([fit(draw) for draw in range(len(weights))])


def _difference(ours: Values, theirs: Values) -> str | None:
    worst = float(np.max((ours - theirs) / theirs))  # lower is no fault
    return f"our objective is higher by a share of {worst:.1e}" if worst > 1e-6 else None
