"""Sections of the report: the prediction and its check, and the run that the course's exercise asks for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cs336.profiling.tables import markdown_table
from cs336.scaling import report_plots
from cs336.scaling.accounting import num_parameters
from cs336.scaling.cell import Cell
from cs336.scaling.fits import PARABOLA, PARAMETRIC
from cs336.scaling.plan import Rate
from cs336.scaling.plots import short_budget
from cs336.scaling.predict import LEVEL, edge_of
from cs336.scaling.profiles import fitted_profiles
from cs336.scaling.recipe import DROPOUT, FINAL_RATE, MAX_GRAD_NORM, WEIGHT_DECAY, real_flops
from cs336.scaling.runs import finished_runs
from cs336.scaling.study import API_TARGET, Study
from cs336.scaling.summary import count, percent
from cs336.scaling.uncertainty import interval

MIDDLE = 64  # of the ladder: aspect ratio and head size of the shape that is named for a size


def prediction_section(study: Study, folder: Path) -> str:
    """What was predicted, when and from what; and what was measured after it."""
    title = "## The prediction and its check"
    if study.prediction is None:
        return f"{title}\n\nThere is none: {study.unchecked}."
    made = study.prediction
    named = made["check"]
    parts = [
        title,
        f"Made {made['made']} by commit `{made['commit'][:12]}`, for {short_budget(made['target_budget'])} FLOPs from"
        f" {made['num_rows']} runs of {short_budget(made['min_budget'])} to {short_budget(made['max_budget'])} (rows"
        f" `{made['rows']}`). Method: {made['method']}.",
        _predictions_table(made),
        f"Named to check it: {named['shape']}, batch {named['batch_size']}, learning rate {named['learning_rate']:g},"
        f" the text read {named['epochs']:.2f} times.",
    ]
    if study.checked is None:
        return "\n\n".join([*parts, f"Not checked: {study.unchecked}."])
    checked = study.checked
    report_plots.check(checked, folder / "check.png")
    parts += [
        "No finished run of that budget is older. Trained since:",
        _check_table(checked),
        _verdict(checked),
        "![Predicted before, measured after](check.png)",
    ]
    return "\n\n".join(parts)


def _predictions_table(made: Mapping[str, Any]) -> str:
    rows = [
        {
            "approach": name + (", the prediction" if name == made["approach"] else ", beside it"),
            "size": _range(each["parameters"], count),
            "loss": _range(each["loss"], "{:.4f}".format),
            "held_out": "" if (error := made["held_out_loss_errors"][name]) is None else f"{error:+.4f}",
        }
        for name, each in sorted(made["predictions"].items(), key=lambda item: item[0] != made["approach"])
    ]
    names = {"approach": "approach", "size": f"N ({made['level']:.0%})", "loss": f"L, nats ({made['level']:.0%})"}
    return markdown_table(rows, names | {"held_out": "off at the largest budget when it was left out, nats"})


def _check_table(checked: Mapping[str, Any]) -> str:
    rows = [
        {"size": f"{int(size):,}", "loss": f"{loss:.4f}", "seeds": checked["num_seeds"][size]}
        for size, loss in checked["losses"].items()
    ]
    return markdown_table(rows, {"size": "trained N", "loss": "measured loss", "seeds": "seeds"})


def _verdict(checked: Mapping[str, Any]) -> str:
    lines = [
        f"Best of the sizes trained: {count(checked['best_parameters'])} with {checked['best_loss']:.4f} nats"
        + (f", the {edge} of them" if (edge := edge_of(checked)) else "")
        + ".",
        f"**Predicted less measured: loss {checked['loss_error']:+.4f} nats"
        f" ({_inside(checked['loss_within'])} the interval), size {percent(checked['parameters_error'])}"
        f" ({_inside(checked['parameters_within'])}).**",
    ]
    if checked["loss_at_predicted_shape"] is not None:
        spread = (
            "" if checked["seed_spread"] is None else f", standard deviation {checked['seed_spread']:.4f} over seeds"
        )
        lines.append(f"The shape that was named has {checked['loss_at_predicted_shape']:.4f}{spread}.")
    return " ".join(lines)


def target_section(study: Study) -> str:
    """What the fits would train with the budget of the course's exercise, all of it; and what that takes."""
    title = f"## What to train with {short_budget(API_TARGET)} FLOPs"
    if study.fits is None or not study.fits.fits:
        return f"{title}\n\nNo law is fitted, so there is no answer."
    fits = study.fits.fits
    if study.text_limited:
        return (
            f"{title}\n\nThese rows do not say: their lowest losses lie where the text ends, read"
            f" {max(run.epochs for run in study.runs):.1f} times, and the best sizes for more text are other ones."
        )
    name = next(each for each in (PARABOLA, PARAMETRIC, *fits) if each in fits)
    fit, further = fits[name], API_TARGET / study.fits.runs.budgets[-1]
    size = float(fit.frontier.parameters(API_TARGET))
    if not math.isfinite(size):
        return f"{title}\n\nThe {name} fit has no answer there."
    found = interval(fit.draws.loss(API_TARGET), LEVEL) if fit.draws is not None else None
    loss = float(fit.frontier.loss(API_TARGET))
    cell = cell_near(study, size)
    settings = {
        "size by the law": f"{count(size)}, without embeddings",
        "loss by the law": f"{loss:.3f} nats" + (f" ({found.low:.3f} to {found.high:.3f})" if found else ""),
        "shape": f"{cell.d_model} wide, {cell.num_layers} layers, {cell.num_heads} heads: {count(cell.parameters)}",
        "batch": f"{cell.batch_size} sequences of {cell.context_length} tokens",
        "steps": f"{cell.steps:,}: {count(cell.tokens)} tokens",
        "learning rate": f"{cell.learning_rate:g}, by a cosine to {FINAL_RATE:g} of it, no warm-up",
        "optimizer": f"AdamW, weight decay {WEIGHT_DECAY:g}, gradients clipped at {MAX_GRAD_NORM:g}",
        "dropout": f"{DROPOUT:g}",
        "real FLOPs": f"{real_flops(cell):.2e}",
        "time": f"{Rate().elapsed([cell], packed=1) / 3600:.1f} hours of one H100, as fast as the runs here",
    }
    rows = [{"what": what, "value": value} for what, value in settings.items()]
    trained = [run for run in finished_runs(study.runs) if run.compute_budget == API_TARGET]
    lowest = min((run.final_loss for run in trained), default=None)
    outcome = "it has not been trained here" if lowest is None else f"trained, it has a loss of {lowest:.4f} nats"
    return "\n\n".join(
        [
            title,
            f"By the {name} fit, {further:,.0f} times beyond the largest budget that it was fitted to; batch and"
            " learning rate are those of the best run at that budget. The grid `final` trains it, on text that is read"
            f" once; {outcome}.",
            markdown_table(rows, {"what": "setting", "value": "value"}),
        ]
    )


def cell_near(study: Study, size: float) -> Cell:
    """The run of the exercise's budget whose shape, of aspect ratio and head size 64, is nearest to a size."""
    heads = max(1, round((size / num_parameters(1, MIDDLE)) ** (1 / 3)))
    near = min(
        range(max(1, heads - 1), heads + 2),
        key=lambda each: abs(math.log(num_parameters(each, MIDDLE * each) / size)),
    )
    recipe = fitted_profiles(study.runs, max_budget=study.fits_up_to)[-1]
    return Cell(
        d_model=MIDDLE * near,
        num_layers=near,
        num_heads=near,
        batch_size=recipe.batch_size,
        learning_rate=recipe.rates.at(MIDDLE * near),
        compute_budget=API_TARGET,
    )


def _range(value: Mapping[str, float], show: Any) -> str:
    return f"{show(value['estimate'])} ({show(value['low'])} to {show(value['high'])})"


def _inside(within: bool) -> str:
    return "within" if within else "outside"
