"""The handout's exercise: 72 runs, 8 sizes at each of 9 budgets, from which to predict the best model at 1e23 and 1e24.

The handout's file is not part of this project. Its losses are noise-free values of one law, to within 3e-8, and its
nine lowest runs are known; `exercise_runs` draws a set with that law and those nine.

Source: CS336 2025, assignment 3, `chinchilla_isoflops`.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from cs336.scaling.accounting import num_tokens
from cs336.scaling.measurements import KEYS, Measurements, measurements
from cs336.scaling.parametric import ParametricLaw

LAW = ParametricLaw(E=2.69, A=1606.4, B=3210.7, alpha=0.34, beta=0.36)
# Budget -> size of its lowest run. Size and tokens are known to four digits each; these sizes agree with both.
LOWEST_SIZES = {
    6e18: 762_100_000,
    1e19: 806_600_000,
    3e19: 1_537_050_000,
    6e19: 1_951_980_000,
    1e20: 3_253_240_000,
    3e20: 5_903_890_000,
    6e20: 6_970_790_000,
    1e21: 6_859_000_000,
    3e21: 12_147_700_000,
}
NUM_SIZES = 8
_WIDEST = 8.0  # sizes lie within this factor of the best one


def exercise_runs(seed: int = 0) -> Measurements:
    """72 runs of `LAW` whose lowest at each budget are `LOWEST_SIZES`.

    The sizes around the best one, from an eighth of it to eight times it, are cut evenly, in log N, into eight ranges.
    One holds the lowest run; in each other one a size is drawn, again if its loss is no higher than the lowest.
    """
    generator = np.random.default_rng(seed)
    edges = np.geomspace(1 / _WIDEST, _WIDEST, NUM_SIZES + 1)
    rows = []
    for budget, lowest in LOWEST_SIZES.items():
        best = LAW.frontier().parameters(budget)
        floor = _loss(budget, lowest)
        for low, high in itertools.pairwise(edges * best):
            size = lowest if low <= lowest < high else _size_above(floor, generator, budget, low, high)
            rows.append((size, budget, _loss(budget, size)))
    return measurements(*zip(*rows, strict=True))


def as_records(runs: Measurements) -> list[dict[str, Any]]:
    """Runs in the handout's format, for JSON."""
    return [
        dict(zip(KEYS, (round(parameters), float(compute), float(loss)), strict=True))
        for parameters, compute, loss in zip(*runs, strict=True)
    ]


def _size_above(floor: float, generator: np.random.Generator, budget: float, low: float, high: float) -> int:
    while True:
        size = round(np.exp(generator.uniform(np.log(low), np.log(high))))
        if _loss(budget, size) > floor:
            return size


def _loss(budget: float, size: float) -> float:
    return float(LAW(size, num_tokens(budget, size)))
