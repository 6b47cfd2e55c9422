"""Published figures, fitted by the functions of this package: do they say of them what their authors say?

Source: Hoffmann et al. 2022, arXiv:2203.15556, tables 2, 3 and A3, equation 10.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from cs336.profiling.tables import markdown_table
from cs336.scaling.accounting import num_tokens
from cs336.scaling.fits import PARABOLA, PARAMETRIC, fit_all
from cs336.scaling.measurements import measurements
from cs336.scaling.parametric import CHINCHILLA, ParametricLaw
from cs336.scaling.power_law import FlooredLaw, PowerLaw, fit_log_log
from cs336.scaling.summary import count

CHINCHILLA_SIZES = np.array([0.4e9, 1e9, 10e9, 67e9, 175e9, 280e9, 520e9, 1e12, 10e12])
CHINCHILLA_COMPUTE = {  # approach -> budget for which each size is best, by their tables 3 and A3
    "approach 1": np.array([1.92e19, 1.21e20, 1.23e22, 5.76e23, 3.85e24, 9.90e24, 3.43e25, 1.27e26, 1.30e28]),
    "approach 2": np.array([1.84e19, 1.20e20, 1.32e22, 6.88e23, 4.54e24, 1.18e25, 4.19e25, 1.59e26, 1.75e28]),
    "approach 3": np.array([2.21e19, 1.62e20, 2.46e22, 1.71e24, 1.26e25, 3.52e25, 1.36e26, 5.65e26, 8.55e28]),
}
CHINCHILLA_EXPONENTS = {"approach 1": 0.50, "approach 2": 0.49, "approach 3": 0.46}  # their table 2: a
CHINCHILLA_BUDGETS = np.array([6e18, 1e19, 3e19, 6e19, 1e20, 3e20, 6e20, 1e21, 3e21])  # of their nine IsoFLOP curves
# A public fit of the course's API of 2025: its laws, and what it predicted from the unrounded ones for 1e19.
PUBLIC_SIZE, PUBLIC_LOSS = PowerLaw(float(np.log(2.77)), 0.42), FlooredLaw(1.69, 4_140, 0.19)
PUBLIC_TARGET = 1e19
_ROUNDED = 0.005  # how far a figure of two decimals may lie from the number
_SIZES_AROUND = np.geomspace(1 / 8, 8, 9)  # of the best size, where the law is sampled


class Comparison(NamedTuple):
    """One published number beside ours."""

    what: str
    published: float
    ours: float
    tolerance: float = _ROUNDED

    @property
    def agrees(self) -> bool:
        """Whether they differ by no more than rounding explains."""
        return abs(self.published - self.ours) <= self.tolerance + 1e-9


def compare() -> list[Comparison]:
    """Every published number that can be computed again from other published ones."""
    found = [
        Comparison(
            f"Chinchilla {name}: a, from the sizes and budgets of its table",
            CHINCHILLA_EXPONENTS[name],
            float(fit_log_log(compute, CHINCHILLA_SIZES).exponent),
        )
        for name, compute in CHINCHILLA_COMPUTE.items()
    ]
    budgets, factors = (grid.ravel() for grid in np.meshgrid(CHINCHILLA_BUDGETS, _SIZES_AROUND, indexing="ij"))
    sizes = factors * CHINCHILLA.frontier().parameters(budgets)
    runs = measurements(sizes, budgets, CHINCHILLA(sizes, num_tokens(budgets, sizes)))
    fits = fit_all(runs, num_draws=0).fits
    law = fits[PARAMETRIC].law
    assert law is not None
    found += [
        Comparison(f"Chinchilla law sampled at its nine budgets: {name}", getattr(CHINCHILLA, name), getattr(law, name))
        for name in ("E", "alpha", "beta")
    ]
    found += [
        Comparison(
            f"Chinchilla {theirs}: a, from its rounded law by our {ours} fit",
            CHINCHILLA_EXPONENTS[theirs],
            float(fits[ours].frontier.parameters.exponent),
            _ROUNDED + _spread([_exponent(each) for each in _within_rounding(CHINCHILLA)]),
        )
        for theirs, ours in (("approach 3", PARAMETRIC), ("approach 2", PARABOLA))
    ]
    sizes_at, losses_at = ([law(PUBLIC_TARGET) for law in _public(kind)] for kind in ("size", "loss"))
    found += [
        Comparison("Public 2025 fit: best size at 1e19, from its rounded law", 216e6, sizes_at[0], _spread(sizes_at)),
        Comparison("Public 2025 fit: loss at 1e19, from its rounded law", 2.72, losses_at[0], _spread(losses_at)),
    ]
    return found


def _exponent(law: ParametricLaw) -> float:
    return float(law.frontier().parameters.exponent)


def _within_rounding(law: ParametricLaw) -> list[ParametricLaw]:
    """The law, and those at the corners of what its exponents of two decimals may have been."""
    corners = itertools.product((-_ROUNDED, _ROUNDED), repeat=2)
    return [law, *(replace(law, alpha=law.alpha + one, beta=law.beta + other) for one, other in corners)]


def _public(kind: str) -> list[PowerLaw | FlooredLaw]:
    """The public fit of size or loss, and those at the ends of what its exponent may have been."""
    shifts = (0.0, -_ROUNDED, _ROUNDED)
    if kind == "size":
        return [PowerLaw(PUBLIC_SIZE.log_coefficient, PUBLIC_SIZE.exponent + shift) for shift in shifts]
    return [replace(PUBLIC_LOSS, exponent=PUBLIC_LOSS.exponent + shift) for shift in shifts]


def _spread(values: list[float]) -> float:
    """How far the others lie from the first, at most."""
    return max(abs(value - values[0]) for value in values)


def page() -> str:
    """What agrees with the literature and what does not, as a table."""
    rows = [
        {
            "what": each.what,
            "published": count(each.published) if each.published > 1_000 else f"{each.published:.2f}",
            "ours": count(each.ours) if each.ours > 1_000 else f"{each.ours:.4f}",
            "agrees": "within rounding" if each.agrees else "no",
        }
        for each in compare()
    ]
    return markdown_table(rows, {name: name for name in ("what", "published", "ours", "agrees")}) + "\n"
