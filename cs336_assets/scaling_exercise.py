"""The scaling handout's exercise on its published profiles: fits, plots and predictions, beside the exact answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from cs336.files import read_json
from cs336.scaling import published
from cs336.scaling.exercise import LAW, LOWEST_SIZES, exercise_runs
from cs336.scaling.fits import LOWEST, PARAMETRIC, fit_all
from cs336.scaling.measurements import read_measurements
from cs336.scaling.summary import EXACT, FITS_FILE, RUNS_FILE, page, write_fits
from cs336_assets.asset import Metadata, Step, asset, check


@asset(group="scaling", kinds={"numpy"}, owner="team:models")
def scaling_exercise(step: Step, seed: int) -> Metadata:
    """72 runs at nine budgets, fitted by every approach, and what each says of the best model at 1e23 and 1e24 FLOPs.

    The runs are drawn from the law of the handout's profiles, with its nine lowest runs, so that the exact answer is
    known: the gap between it and the handout's rule, the lowest run, is reported. Published laws are computed again
    from published figures. Answers the problem chinchilla_isoflops of CS336's assignment 3 (2025).
    """
    summary = write_fits(fit_all(exercise_runs(seed), seed=seed), step.folder, truth=LAW)
    literature = published.page()
    (step.folder / "published.md").write_text(literature, encoding="utf-8")
    rule, exact = (
        [each["parameters"]["value"] for each in fitted["predictions"]]
        for fitted in (summary["approaches"][LOWEST], summary["exact"])
    )
    return {
        "gap_at_1e23": rule[0] / exact[0] - 1,
        "gap_at_1e24": rule[1] / exact[1] - 1,
        "fits": {"markdown": page(summary)},
        "published": {"markdown": literature},
        "best_size": {"image": "parameters.png"},
        "best_tokens": {"image": "tokens.png"},
        "best_loss": {"image": "loss.png"},
        "profiles": {"image": "profiles.png"},
    }


@check(asset="scaling_exercise")
def the_parametric_fit_finds_the_law(scaling_exercise: Path) -> tuple[bool, Metadata]:
    """E, alpha and beta of approach 3 are those of the law that the runs were drawn from, to three decimals."""
    found = read_json(scaling_exercise / FITS_FILE)["approaches"][PARAMETRIC]["law"]
    wrong = {name: abs(found[name]["value"] - getattr(LAW, name)) for name in ("E", "alpha", "beta")}
    return max(wrong.values()) < 5e-4, {f"difference_of_{name}": value for name, value in wrong.items()}


@check(asset="scaling_exercise")
def sizes_and_tokens_cost_the_budget(scaling_exercise: Path) -> tuple[bool, Metadata]:
    """6 N D is the budget in every prediction, and the exponents of N and D sum to 1."""
    said = read_json(scaling_exercise / FITS_FILE)
    fitted = said["approaches"] | {EXACT: said["exact"]}
    worst = worst_of_costs(fitted)
    return worst < 1e-6, {"largest_relative_difference": worst}


def worst_of_costs(fitted: dict[str, Any]) -> float:
    """How far a + b is from 1, or 6 N D from the budget, at most; of approaches that have no answer, nothing."""
    sums = [each["a"]["value"] + each["b"]["value"] - 1 for each in fitted.values() if each["a"]["value"] is not None]
    costs = [
        6 * row["parameters"]["value"] * row["tokens"]["value"] / row["compute"] - 1
        for each in fitted.values()
        for row in each["predictions"]
        if row["parameters"]["value"] is not None
    ]
    return float(np.abs([0.0, *sums, *costs]).max())


@check(asset="scaling_exercise")
def the_lowest_runs_are_the_handouts(scaling_exercise: Path) -> tuple[bool, Metadata]:
    """Of the stored runs, the lowest at each of the nine budgets has the size of the handout's table."""
    runs = read_measurements(scaling_exercise / RUNS_FILE)
    lowest = {float(each): runs.where(runs.compute == each) for each in runs.budgets}
    found = {each: int(profile.parameters[profile.losses.argmin()]) for each, profile in lowest.items()}
    return found == LOWEST_SIZES, {f"{budget:.0e}": size for budget, size in found.items()}
