"""What the fits say, as numbers for a file and as a page to read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cs336.files import write_json
from cs336.profiling.tables import markdown_table
from cs336.scaling.exercise import as_records
from cs336.scaling.fits import PARAMETRIC, Fit, Fits
from cs336.scaling.parametric import ParametricLaw
from cs336.scaling.plots import LINE_END, draw_all
from cs336.scaling.power_law import Frontier, Number, PowerLaw
from cs336.scaling.uncertainty import interval

FITS_FILE, PAGE_FILE, RUNS_FILE = "fits.json", "fits.md", "isoflops.json"
TARGETS = (1e23, 1e24)  # budgets that the exercise asks for
RAW, EXACT = "lowest run, raw-space", "exact law"
_LAW_NUMBERS = ("E", "A", "B", "alpha", "beta")
_SCALES = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"), (1.0, ""))


def summarize(
    fits: Fits, targets: Sequence[float] = TARGETS, *, level: float = 0.95, truth: ParametricLaw | None = None
) -> dict[str, Any]:
    """Every number of the fits, with intervals, ready for JSON.

    Args:
        targets: budgets to predict for, in nominal FLOPs.
        level: share of the draws that an interval holds.
        truth: the law that the runs came from, where it is known.
    """
    summary: dict[str, Any] = {
        "num_runs": len(fits.runs.losses),
        "budgets": fits.runs.budgets.tolist(),
        "level": level,
        "approaches": {name: _approach(fit, targets, level) for name, fit in fits.fits.items()},
        "left_out": fits.left_out,
        "raw": fits.raw and _raw(fits.raw, targets),
    }
    if truth is not None:
        frontier = truth.frontier()
        exact = _frontier(frontier, None, targets, level)
        summary["exact"] = exact | {"law": {name: float(getattr(truth, name)) for name in _LAW_NUMBERS}}
    return summary


def write_fits(
    fits: Fits,
    folder: Path,
    targets: Sequence[float] = TARGETS,
    *,
    level: float = 0.95,
    truth: ParametricLaw | None = None,
    until: float = LINE_END,
) -> dict[str, Any]:
    """Write fits.json, fits.md and the plots; where the law is known, the runs, too, in the handout's format.

    Args:
        until: budget that lines are drawn to at least; else as `summarize` has it.

    Returns:
        The summary.
    """
    summary = summarize(fits, targets, level=level, truth=truth)
    write_json(folder / FITS_FILE, summary)
    (folder / PAGE_FILE).write_text(page(summary), encoding="utf-8")
    draw_all(fits, folder, until=max(until, *targets), truth=truth)
    if truth is not None:
        write_json(folder / RUNS_FILE, as_records(fits.runs))
    return summary


def _approach(fit: Fit, targets: Sequence[float], level: float) -> dict[str, Any]:
    found = _frontier(fit.frontier, fit.draws, targets, level)
    if fit.minima is not None:
        minima = fit.minima
        columns = (minima.compute, minima.parameters, minima.tokens, minima.losses, minima.bracketed)
        names = ("compute", "parameters", "tokens", "loss", "bracketed")
        found["minima"] = [
            dict(zip(names, row, strict=True)) for row in zip(*(c.tolist() for c in columns), strict=True)
        ]
    if fit.law is not None:
        found["law"] = {
            name: _ranged(getattr(fit.law, name), fit.law_draws and getattr(fit.law_draws, name), level)
            for name in _LAW_NUMBERS
        }
    if (left := fit.held_out) is not None:
        found["held_out"] = {
            "compute": left.compute,
            "parameters": dict(zip(("predicted", "found"), map(_number, left.parameters), strict=True)),
            "loss": dict(zip(("predicted", "found"), map(_number, left.loss), strict=True)),
            "parameters_error": _number(left.parameters_error),
            "loss_error": _number(left.loss_error),
        }
    if fit.draws is not None:
        found["num_draws"] = len(fit.draws.parameters.exponent)
        found["num_draws_without_fit"] = int(np.isnan(fit.draws.parameters.exponent).sum())
    return found


def _frontier(fit: Frontier, draws: Frontier | None, targets: Sequence[float], level: float) -> dict[str, Any]:
    return {
        "a": _ranged(fit.parameters.exponent, draws and draws.parameters.exponent, level),
        "b": _ranged(fit.tokens.exponent, draws and draws.tokens.exponent, level),
        "loss_law": {
            "floor": _ranged(fit.loss.floor, draws and draws.loss.floor, level),
            "coefficient": _ranged(fit.loss.coefficient, draws and draws.loss.coefficient, level),
            "exponent": _ranged(fit.loss.exponent, draws and draws.loss.exponent, level),
        },
        "predictions": [
            {"compute": compute}
            | {
                name: _ranged(getattr(fit, name)(compute), draws and getattr(draws, name)(compute), level)
                for name in ("parameters", "tokens", "loss")
            }
            for compute in targets
        ],
    }


def _ranged(value: Number, draws: Number | None, level: float) -> dict[str, float | None]:
    """A number with its interval; None, as JSON knows no NaN, where there is none."""
    found = interval(draws, level) if draws is not None else None
    low, high = found or (None, None)
    return {"value": _number(value), "low": low, "high": high}


def _number(value: Number) -> float | None:
    return float(value) if np.isfinite(value) else None


def _raw(laws: tuple[PowerLaw, PowerLaw], targets: Sequence[float]) -> dict[str, Any]:
    parameters, tokens = laws
    return {
        "a": float(parameters.exponent),
        "b": float(tokens.exponent),
        "predictions": [
            {"compute": compute, "parameters": float(parameters(compute)), "tokens": float(tokens(compute))}
            for compute in targets
        ],
    }


def page(summary: dict[str, Any]) -> str:
    """The summary as Markdown tables."""
    approaches, budgets = summary["approaches"], summary["budgets"]
    first: dict[str, Any] = next(iter(approaches.values()), {})
    intro = f"{summary['num_runs']} runs at {len(budgets)} budgets from {budgets[0]:.3g} to {budgets[-1]:.3g} FLOPs."
    if first.get("num_draws"):
        intro += f" Ranges hold {summary['level']:.0%} of {first['num_draws']:,} bootstrap draws."
    parts = [intro, _exponents(summary)]
    parts += [_predictions(summary, place) for place in range(len(first.get("predictions", [])))]
    parts += _held_out(summary) + _remarks(summary)
    return "\n\n".join(parts) + "\n"


def _held_out(summary: dict[str, Any]) -> list[str]:
    rows: list[dict[str, str]] = []
    budget = 0.0
    for name, each in summary["approaches"].items():
        if left := each.get("held_out"):
            loss = "" if left["loss_error"] is None else f"{left['loss_error']:+.4f}"
            size = "" if left["parameters_error"] is None else percent(left["parameters_error"])
            rows.append({"approach": name, "parameters": size, "loss": loss})
            budget = left["compute"]  # the runs decide it, so it is that of all approaches
    if not rows:
        return []
    columns = {"approach": "approach", "parameters": "N predicted / found", "loss": "L predicted - found, nats"}
    return [
        f"Fitted to smaller budgets alone, at {budget:.3g} FLOPs, the largest one with a minimum:\n\n"
        + markdown_table(rows, columns)
    ]


def _remarks(summary: dict[str, Any]) -> list[str]:
    remarks = [f"No {name} fit: {reason}." for name, reason in summary["left_out"].items()]
    for name, each in summary["approaches"].items():
        minima = each.get("minima", [])
        outside = [f"{row['compute']:.3g}" for row in minima if not row["bracketed"]]
        if outside and len(minima) == len(summary["budgets"]):  # of the envelope's 1,500 nobody reads a list
            remarks.append(f"No sizes bracket the {name}'s minimum at {', '.join(outside)} FLOPs: left out of its fit.")
        if without := each.get("num_draws_without_fit"):
            remarks.append(f"{without:,} of the draws gave no {name} fit; its ranges are of the others.")
    return remarks


def _exponents(summary: dict[str, Any]) -> str:
    rows = [
        {
            "approach": name,
            "a": _text(each["a"], "{:.4f}"),
            "b": _text({**each["b"], "low": None}, "{:.4f}"),  # its range is a's, mirrored
            "loss": _loss_law(each["loss_law"]),
        }
        for name, each in _with_exact(summary).items()
    ]
    if summary["raw"]:
        rows.append({"approach": RAW, "a": f"{summary['raw']['a']:.4f}", "b": f"{summary['raw']['b']:.4f}"})
    table = markdown_table(rows, {"approach": "approach", "a": "a of N = k C^a", "b": "b of D = k' C^b", "loss": "L"})
    law = summary["approaches"].get(PARAMETRIC, {}).get("law")
    if law is None:
        return table
    numbers = ", ".join(f"{name} {_text(law[name], _law_form(name, law[name]))}" for name in _LAW_NUMBERS)
    return f"{table}\n\nParametric law E + A / N^alpha + B / D^beta: {numbers}."


def _law_form(name: str, number: dict[str, float | None]) -> str:
    """Of A and B one digit after the point, unless a draw has made one of a hundred digits."""
    if name not in ("A", "B"):
        return "{:.4f}"
    return "{:.1f}" if max(value or 0.0 for value in number.values()) < 1e6 else "{:.3g}"


def _loss_law(law: dict[str, Any]) -> str:
    floor, coefficient, exponent = (law[name]["value"] for name in ("floor", "coefficient", "exponent"))
    if None in (floor, coefficient, exponent):
        return ""
    return f"{floor:.3f} + {coefficient:.4g} / C^{exponent:.4f}"


def _predictions(summary: dict[str, Any], place: int) -> str:
    approaches = _with_exact(summary)
    exact = approaches.get(EXACT)
    rows: list[dict[str, Any]] = []
    for name, each in approaches.items():
        predicted = each["predictions"][place]
        row = {"approach": name, "size": predicted["parameters"]["value"], "loss": _text(predicted["loss"], "{:.3f}")}
        rows.append(row | {key: _text(predicted[key]) for key in ("parameters", "tokens")})
    compute = next(iter(approaches.values()))["predictions"][place]["compute"]
    if summary["raw"]:
        raw = summary["raw"]["predictions"][place]
        row = {"approach": RAW, "size": raw["parameters"]}
        rows.append(row | {key: count(raw[key]) for key in ("parameters", "tokens")})
    columns = {"approach": f"at {compute:.3g} FLOPs", "parameters": "N", "tokens": "D", "loss": "L, nats"}
    if exact:
        truth = exact["predictions"][place]["parameters"]["value"]
        for row in rows:
            row["gap"] = percent(row["size"] / truth - 1) if row["size"] else ""
        columns["gap"] = "N beside the exact"
    return markdown_table(rows, columns)


def _with_exact(summary: dict[str, Any]) -> dict[str, Any]:
    return summary["approaches"] | ({EXACT: summary["exact"]} if "exact" in summary else {})


def _text(number: dict[str, float | None], form: str = "") -> str:
    """A number and its range; counts by default."""
    show = form.format if form else count
    if number["value"] is None:
        return ""
    if number["low"] is None or number["high"] is None:
        return show(number["value"])
    return f"{show(number['value'])} ({show(number['low'])} to {show(number['high'])})"


def count(number: float) -> str:
    """A large number with three digits: 70.1 B."""
    rounded = float(f"{number:.3g}")
    scale, name = next(((scale, name) for scale, name in _SCALES if abs(rounded) >= scale), (1.0, ""))
    digits = max(0, 2 - int(np.floor(np.log10(abs(rounded) / scale)))) if rounded else 0
    return f"{rounded / scale:.{digits}f} {name}".rstrip()


def percent(share: float) -> str:
    """A difference in percent with its sign, which one that is none at one decimal does not have: 0.0%."""
    text = f"{share:+.1%}"
    return text.lstrip("+-") if float(text.rstrip("%")) == 0 else text
