"""What the grid's rows say: laws, the surrogate, a prediction, the runs that check it, and the report of all."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from cs336.files import UserError, read_json, write_json
from cs336.presets import Preset
from cs336.scaling import report_plots
from cs336.scaling.cell import Cell
from cs336.scaling.fits import PARABOLA, PARAMETRIC, TEXT_LIMIT, fit_all
from cs336.scaling.grid import PredictionConfig, find_grid, only_budget, shapes_at
from cs336.scaling.loss_model import configuration_of
from cs336.scaling.predict import REASON, began, measured_prediction, predict
from cs336.scaling.predict import check as check_prediction
from cs336.scaling.profiles import points
from cs336.scaling.report import write_report
from cs336.scaling.report_page import pictures, without_pictures
from cs336.scaling.runner import train_shape
from cs336.scaling.runs import Run, append_run, finished_runs, read_runs
from cs336.scaling.summary import FITS_FILE, page, write_fits
from cs336.scaling.surrogate import BUDGETS, LIMITED_FROM, HeldOut, errors_of, fit_surrogate
from cs336_assets.asset import Metadata, Step, asset, check
from cs336_assets.crawl import table
from cs336_assets.scaling import ROWS_FILE, train_cell
from cs336_assets.scaling_exercise import worst_of_costs

SURROGATE_FILE, PREDICTION_FILE, CHECK_FILE = "surrogate.json", "prediction.json", "checked.json"
MAX_LOSS_ERROR = 0.05  # nats: what the specification asks of a predicted loss
MAX_HELD_OUT_ERROR = 0.03  # nats: what the specification asks of the surrogate
_MIN_SEEDS = 3  # of the shape that a prediction names


@asset(group="scaling", kinds={"numpy"}, owner="team:models")
def scaling_fits(step: Step, isoflop_profiles: Path, prediction: PredictionConfig, seed: int) -> Metadata:
    """Power laws of the grid's best sizes, by every approach beside each other, with intervals.

    Fitted is at each budget the best recipe of five sizes or more, between the budgets that the preset predicts from,
    and once more without the largest: the error there is reported. An approach that the rows do not allow says why.
    """
    rows = read_runs(isoflop_profiles / ROWS_FILE)
    runs = points(rows, min_budget=prediction.min_budget, max_budget=prediction.max_budget)
    grid = find_grid(prediction.check)
    target, max_tokens = only_budget(grid), grid.max_epochs * grid.unique_tokens
    summary = write_fits(fit_all(runs, seed=seed, max_tokens=max_tokens), step.folder, [target], until=2 * target)
    held_out = {
        f"held_out_error_of_{name.replace(' ', '_')}_nats": each["held_out"]["loss_error"]
        for name, each in summary["approaches"].items()
        if each.get("held_out") and each["held_out"]["loss_error"] is not None
    }
    return held_out | {
        "num_points": len(runs.losses),
        "fits": {"markdown": page(summary)},
        "best_size": {"image": "parameters.png"},
        "best_tokens": {"image": "tokens.png"},
        "best_loss": {"image": "loss.png"},
        "profiles": {"image": "profiles.png"},
    }


@check(asset="scaling_fits")
def sizes_and_tokens_cost_what_they_may(scaling_fits: Path) -> tuple[bool, Metadata]:
    """6 N D is the budget in every prediction, and the exponents of N and D sum to 1."""
    worst = worst_of_costs(read_json(scaling_fits / FITS_FILE)["approaches"])
    return worst < 1e-6, {"largest_relative_difference": worst}


@check(asset="scaling_fits")
def the_largest_budget_is_foreseen(scaling_fits: Path) -> tuple[bool, Metadata]:
    """Parabolas, else the parametric law, else the text's limit, foresee the largest budget's loss to 0.05 nats."""
    approaches = read_json(scaling_fits / FITS_FILE)["approaches"]
    for name in (PARABOLA, PARAMETRIC, TEXT_LIMIT):
        held_out = approaches.get(name, {}).get("held_out")
        if held_out and held_out["loss_error"] is not None:
            error = held_out["loss_error"]
            return abs(error) <= MAX_LOSS_ERROR, {"approach": name, "loss_error_nats": error}
    return False, {"state": "no approach can be fitted without the largest budget; train more budgets"}


@asset(group="scaling", kinds={"numpy"}, owner="team:models")
def scaling_surrogate(step: Step, isoflop_profiles: Path) -> Metadata:
    """What `cs336 serve scaling --runs FOLDER` answers from: the rows, and what a surrogate fitted to them is worth.

    The server fits it again from the rows when it starts; the same rows give the same losses. Rows of another
    vocabulary or context are none of the service's, and without enough of its own the published law answers.
    """
    runs = read_runs(isoflop_profiles / ROWS_FILE)
    for run in runs:
        append_run(step.folder / ROWS_FILE, run)
    surrogate = fit_surrogate(runs)
    known, pairs = surrogate.summary(), surrogate.held_out_pairs()
    write_json(step.folder / SURROGATE_FILE, known | {"held_out_pairs": pairs})
    shown = {name: value for name, value in known.items() if isinstance(value, int | float | str)}
    if not pairs:
        return shown
    report_plots.parity(pairs, step.folder / "parity.png")
    columns = ["budgets from", "held-out error, rms, nats", "runs", "of what the API accepts", "runs"]
    decades = [
        [name, *("none" if value is None else round(value, 4) for value in each.values())]
        for name, each in surrogate.held_out_rmse().items()
    ]
    return shown | {"held_out": table(columns, decades), "parity": {"image": "parity.png"}}


@check(asset="scaling_surrogate")
def measured_runs_are_answered_by_their_own_loss(scaling_surrogate: Path) -> tuple[bool, Metadata]:
    """Every configuration of the service's model that was measured gets a loss that was measured for it."""
    runs = finished_runs(read_runs(scaling_surrogate / ROWS_FILE))
    surrogate = fit_surrogate(runs)
    losses: dict[Any, set[float]] = {}
    for run in runs:
        losses.setdefault(configuration_of(run), set()).add(run.final_loss)
    measured = {asked: surrogate.predict(asked) for asked in losses}
    own = {asked: found for asked, found in measured.items() if found.provenance == "measured"}
    wrong = sum(found.loss not in losses[asked] for asked, found in own.items())
    complete = len(own) == surrogate.summary()["measured_configurations"]
    return complete and not wrong, {"num_measured": len(own), "num_wrong": wrong}


@check(asset="scaling_surrogate")
def more_compute_never_costs_loss(scaling_surrogate: Path) -> tuple[bool, Metadata]:
    """Of every measured shape and recipe, what is answered does not rise from one budget to the next."""
    runs = finished_runs(read_runs(scaling_surrogate / ROWS_FILE))
    surrogate = fit_surrogate(runs)
    recipes = {replace(configuration_of(run), train_flops=BUDGETS[0]) for run in runs}
    worst = 0.0
    for recipe in recipes:
        # Measured losses stand as measured, so that noise may lift them: fitted ones alone must fall.
        found = [surrogate.predict(replace(recipe, train_flops=budget)) for budget in BUDGETS]
        fitted = [each.loss for each in found if each.provenance != "measured"]
        worst = max([worst, *(after - before for before, after in itertools.pairwise(fitted))])
    return worst <= 1e-9, {"num_recipes": len(recipes), "largest_rise_nats": worst}


@check(asset="scaling_surrogate")
def the_surrogate_is_near_runs_held_out(scaling_surrogate: Path) -> tuple[bool, Metadata]:
    """From 1e15 FLOPs up the error of runs held out is 0.03 nats at most, root mean squared over what the API accepts.

    The API is asked for nothing else. The grid has learning rates far above its range, too, where training is about to
    diverge and losses are harder to foretell: the error over all rows from 1e15 FLOPs up is shown, and not limited.
    """
    pairs = [HeldOut(*pair) for pair in read_json(scaling_surrogate / SURROGATE_FILE)["held_out_pairs"]]
    large = errors_of([pair for pair in pairs if pair.budget >= LIMITED_FROM])
    error = large["api_rmse"]
    if error is None:
        return False, {"state": "no runs that the API accepts from 1e15 FLOPs up"}
    facts = {"rms_nats": error, "num_runs": large["api_runs"]}
    facts |= {"rms_nats_of_all": large["rmse"], "num_of_all": large["runs"]}
    return error <= MAX_HELD_OUT_ERROR, facts


@asset(group="scaling", kinds={"numpy"}, owner="team:models")
def scaling_prediction(step: Step, isoflop_profiles: Path, prediction: PredictionConfig) -> Metadata:
    """Best size and loss at a larger budget, written down before anything is trained there.

    By parabolas, else by the lowest runs, else by the best sizes that the text's length allows; with intervals, and
    the others beside it. Rows that allow none are a result, too: what is missing is written down. One that was
    committed with the library's own rows, from the same rows, stays as it was made.
    """
    runs = read_runs(isoflop_profiles / ROWS_FILE)
    grid = find_grid(prediction.check)
    target = only_budget(grid)
    asked = {name: getattr(prediction, name) for name in ("min_budget", "max_budget", "rate_per_width")}
    asked["target"] = target
    try:
        made = measured_prediction(runs, **asked) or predict(
            runs,
            **asked,
            shapes=shapes_at(grid, target),
            unique_tokens=grid.unique_tokens,
            max_epochs=grid.max_epochs,
        )
    except UserError as reason:
        made = {REASON: str(reason), "target_budget": target}
    write_json(step.folder / PREDICTION_FILE, made)
    if REASON in made:
        return {REASON: made[REASON]}
    rows = [[name, *_range(each["parameters"]), *_range(each["loss"])] for name, each in made["predictions"].items()]
    columns = ["approach", "parameters", "from", "to", "loss", "from", "to"]
    return {"target_budget": target, "shape_to_check": made["check"]["shape"], "predictions": table(columns, rows)}


@check(asset="scaling_prediction")
def a_prediction_was_made(scaling_prediction: Path) -> tuple[bool, Metadata]:
    """The rows allow a prediction."""
    made = read_json(scaling_prediction / PREDICTION_FILE)
    return REASON not in made, {REASON: made[REASON]} if REASON in made else {"made": made["made"]}


def _check_cells(preset: Preset) -> Mapping[str, Cell]:
    return find_grid(preset.prediction.check).cells()


@asset(
    group="scaling",
    kinds={"pytorch"},
    owner="team:models",
    cells=_check_cells,
    resumable=True,
    pool="gpu",
    runs=(train_shape,),
)
def check_runs(
    step: Step,
    scaling_prediction: Path,
    token_shards: list[Path],
    tokenizer: Path,
    cell: Cell,
    prediction: PredictionConfig,
) -> Metadata:
    """One run at the predicted budget, trained once the prediction is there, on the grid's text.

    A prediction that is made again is checked again: what was trained before it checks nothing.
    """
    assert (scaling_prediction / PREDICTION_FILE).exists()
    return train_cell(step, token_shards, tokenizer, cell, max_epochs=find_grid(prediction.check).max_epochs)


@asset(group="scaling", kinds={"python"}, owner="team:models")
def scaling_check(step: Step, scaling_prediction: Path, check_runs: list[Path]) -> Metadata:
    """What was predicted beside what was measured after it: the best of the sizes trained, and its loss over seeds."""
    made, runs = read_json(scaling_prediction / PREDICTION_FILE), _rows_of(check_runs)
    try:
        checked = {REASON: made[REASON]} if REASON in made else check_prediction(made, runs)
    except UserError as reason:
        checked = {REASON: str(reason)}
    write_json(step.folder / CHECK_FILE, checked)
    if REASON in checked:
        return {REASON: checked[REASON]}
    report_plots.check(checked, step.folder / "check.png")
    names = ("best_parameters", "best_loss", "loss_error", "parameters_error", "loss_within", "parameters_within")
    losses = [[int(size), loss, checked["num_seeds"][size]] for size, loss in checked["losses"].items()]
    shown = {name: checked[name] for name in names}
    return shown | {"losses": table(["parameters", "loss", "seeds"], losses), "check": {"image": "check.png"}}


@check(asset="scaling_check")
def the_prediction_came_first(
    scaling_check: Path, scaling_prediction: Path, check_runs: list[Path]
) -> tuple[bool, Metadata]:
    """Every run of the check began after the prediction was made."""
    made = read_json(scaling_prediction / PREDICTION_FILE)
    if REASON in made:
        return False, {"state": made[REASON]}
    starts = [began(run) for run in _rows_of(check_runs)]
    early = sum(start < datetime.fromisoformat(made["made"]) for start in starts)
    return bool(starts) and not early, {"made": made["made"], "num_runs": len(starts), "num_older": early}


@check(asset="scaling_check")
def the_predicted_loss_was_measured(scaling_check: Path) -> tuple[bool, Metadata]:
    """The measured loss is within the prediction's interval, and within 0.05 nats of it."""
    checked = read_json(scaling_check / CHECK_FILE)
    if REASON in checked:
        return False, {"state": checked[REASON]}
    error = checked["loss_error"]
    return checked["loss_within"] and abs(error) <= MAX_LOSS_ERROR, {"loss_error_nats": error}


@check(asset="scaling_check")
def the_named_shape_has_three_seeds(scaling_check: Path, scaling_prediction: Path) -> tuple[bool, Metadata]:
    """The shape that the prediction named was trained with three seeds: put it into the check's grid if it was not."""
    checked, made = read_json(scaling_check / CHECK_FILE), read_json(scaling_prediction / PREDICTION_FILE)
    if REASON in checked:
        return False, {"state": checked[REASON]}
    named = made["check"]
    seeds = checked["num_seeds"].get(str(named["parameters"]), 0)
    return seeds >= _MIN_SEEDS, {"shape": named["shape"], "num_seeds": seeds}


@asset(group="scaling", kinds={"markdown", "html"}, owner="team:models")
def scaling_report(
    step: Step, isoflop_profiles: Path, scaling_prediction: Path, check_runs: list[Path], seed: int
) -> Metadata:
    """The whole study on one page: which runs and why, their cost, sweeps, profiles, laws, prediction and check.

    Made from rows and prediction alone; `report.html` in the artifact loads nothing and can be sent to anyone. The
    same page is `cs336 scaling report ROWS --prediction FILE`.
    """
    rows = [*read_runs(isoflop_profiles / ROWS_FILE), *_rows_of(check_runs)]
    made = read_json(scaling_prediction / PREDICTION_FILE)
    text = write_report(step.folder, rows, prediction=made, seed=seed)
    shown = {name.removesuffix(".png").replace("/", "_"): {"image": name} for name in pictures(text)}
    return {"num_rows": len(rows), "report": {"markdown": without_pictures(text)}, **shown}


@check(asset="scaling_report")
def every_row_is_in_the_report(
    scaling_report: Path, isoflop_profiles: Path, check_runs: list[Path]
) -> tuple[bool, Metadata]:
    """The report's ledger counts every configuration of the grid and of the check once."""
    rows = [*read_runs(isoflop_profiles / ROWS_FILE), *_rows_of(check_runs)]
    expected = len({run.config_hash for run in rows})
    ledger = (scaling_report / "report.md").read_text(encoding="utf-8").partition("| all ")[2].splitlines()[0]
    found = int(ledger.split("|")[2].strip().replace(",", ""))
    return found == expected, {"num_runs": expected, "in_the_ledger": found}


def _rows_of(folders: list[Path]) -> list[Run]:
    return [run for folder in folders for run in read_runs(folder / ROWS_FILE)]


def _range(value: Mapping[str, float]) -> list[float]:
    return [float(f"{value[name]:.5g}") for name in ("estimate", "low", "high")]
