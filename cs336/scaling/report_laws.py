"""Sections of the report: profiles, laws, the parametric law, the surrogate, and the handout's exercise."""

from __future__ import annotations

import functools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cs336.profiling.tables import markdown_table
from cs336.scaling import plots, report_plots
from cs336.scaling.accounting import num_tokens
from cs336.scaling.exercise import LAW, exercise_runs
from cs336.scaling.fits import LOWEST, PARABOLA, PARAMETRIC, TEXT_LIMIT, Fits, fit_all
from cs336.scaling.isoflops import Minima, lowest_runs, parabola_minima
from cs336.scaling.measurements import Measurements
from cs336.scaling.parametric import ParametricLaw
from cs336.scaling.plots import short_budget
from cs336.scaling.study import Study
from cs336.scaling.summary import TARGETS, count, page, summarize
from cs336.scaling.surrogate import LIMITED_FROM, errors_of, fit_surrogate

_METHOD = (
    "Fitted is at each budget the best recipe that five sizes or more were trained with, of one learning rate or one"
    " over the width: with all recipes, the sizes at which more of them were tried would win. A shape counts by the"
    " mean of its seeds; none off the ladder does."
    " Each budget's best size is its lowest run, the vertex of a parabola in log N, or read from the envelope of all;"
    " power laws go through them by least squares in log-log space, the loss by a power law with a floor. The"
    " parametric law is fitted to all of these runs by Huber loss on log-losses. Ranges are of bootstrap draws within"
    " each budget, the same for all approaches."
)
_LIMITED = (
    " Where the text ends before the minimum, the approach text limit takes the best size of those that read it no more"
    " often than any run did; its ranges are of draws of its residuals, and it holds for this text alone: with more of"
    " it, smaller sizes may be better."
)


def law_sections(study: Study, folder: Path) -> list[str]:
    """Profiles with their minima; laws of size, tokens and loss; the parametric law and its residuals."""
    if study.everything is None:
        return [f"## Profiles\n\nThere are none: {study.why_not}."]
    lowest = _sound(measured := lowest_runs(study.everything), measured)
    vertices = _sound(parabola_minima(study.everything), measured)
    plots.draw_profiles(study.everything, {LOWEST: lowest, PARABOLA: vertices}, folder / "profiles.png")
    profiles = [
        "## Profiles",
        "At each budget the best recipe that five sizes or more were trained with. A minimum at the edge of its profile"
        f" may be no minimum: it is called one-sided, and no law{' but the text limit' * study.text_limited} goes"
        " through it. One whose loss is above a smaller budget's is none, whatever sizes lie around it: there the"
        " recipe is at fault, and no law should be fitted to that budget.",
        _minima_table(study.everything, lowest, vertices),
        "![IsoFLOP profiles; squares: lowest runs, circles: vertices of parabolas](profiles.png)",
    ]
    if study.fits is None or study.fitted is None:
        return ["\n\n".join(profiles)]
    if not study.fits.fits:
        reasons = "\n".join(f"- {name}: {reason}" for name, reason in study.fits.left_out.items())
        return ["\n\n".join(profiles), f"## Best size, tokens and loss\n\nNo approach can be fitted:\n\n{reasons}"]
    plots.draw_laws(study.fits, folder, until=2 * max(study.targets), later=_measured_later(study))
    laws = [
        "## Best size, tokens and loss",
        f"{_METHOD}{_LIMITED * (TEXT_LIMIT in study.fits.fits)}"
        f" Budgets from {short_budget(float(study.fitted.budgets[0]))} to"
        f" {short_budget(float(study.fitted.budgets[-1]))} FLOPs.",
        page(summarize(study.fits, study.targets)).strip(),
        "![Best size over compute, with the draws' ranges](parameters.png)",
        "![Best number of tokens](tokens.png)",
        "![Loss at the best size: the law with a floor](loss.png)",
    ]
    parametric = ["## The parametric law and its residuals"]
    fit = study.fits.fits.get(PARAMETRIC)
    if fit is None or fit.law is None:
        reason = study.fits.left_out.get(PARAMETRIC, "it was not asked for")
        parametric.append(
            f"It is not fitted to these runs: {reason}. What it looks like: the handout's exercise, below."
        )
    else:
        report_plots.contours(study.fitted, fit.law, folder / "contours.png")
        report_plots.residuals(study.fitted, fit.law, folder / "residuals.png")
        parametric += [
            _residuals_table(study.fitted, fit.law),
            "![Measured less the law, over size](residuals.png)",
            "![Lines of equal loss over compute and size](contours.png)",
        ]
    return ["\n\n".join(section) for section in (profiles, laws, parametric)]


def _sound(minima: Minima, lowest: Minima) -> Minima:
    """Without those of budgets that a smaller one beats."""
    return replace(minima, bracketed=minima.bracketed & ~_beaten(lowest))


def _beaten(lowest: Minima) -> NDArray[np.bool_]:
    """Whether a budget's lowest run has a loss above that of a smaller budget's."""
    return lowest.losses > np.minimum.accumulate(lowest.losses)


def _measured_later(study: Study) -> dict[str, float] | None:
    if study.checked is None:
        return None
    compute, size = study.checked["target_budget"], study.checked["best_parameters"]
    found = {"compute": compute, "parameters": size, "tokens": float(num_tokens(compute, size))}
    return found | {"loss": study.checked["best_loss"]}


def _minima_table(runs: Measurements, lowest: Minima, vertices: Minima) -> str:
    beaten = _beaten(lowest)
    rows = []
    for place, budget in enumerate(runs.budgets):
        profile = runs.where(runs.compute == budget)
        vertex = float(vertices.parameters[place])
        row: dict[str, Any] = {
            "budget": short_budget(float(budget)),
            "sizes": len(profile.parameters),
            "span": f"{count(profile.parameters.min())} to {count(profile.parameters.max())}",
            "lowest": count(float(lowest.parameters[place]))
            + (", a smaller budget has less" if beaten[place] else "" if lowest.bracketed[place] else ", one-sided"),
            "loss": f"{lowest.losses[place]:.4f}",
        }
        if vertices.bracketed[place]:
            row |= {"vertex": count(vertex), "low": f"{vertices.losses[place]:.4f}"}
        else:
            row |= {"vertex": "none between the sizes"}
        rows.append(row)
    names = {"budget": "budget", "sizes": "sizes", "span": "from, to", "lowest": "lowest run", "loss": "loss"}
    return markdown_table(rows, names | {"vertex": "parabola", "low": "its loss"})


def _residuals_table(runs: Measurements, law: ParametricLaw) -> str:
    gaps = runs.losses - law(runs.parameters, runs.tokens)
    rows = []
    for budget in [*runs.budgets.tolist(), None]:
        some = gaps if budget is None else gaps[runs.compute == budget]
        rows.append(
            {
                "budget": "all" if budget is None else short_budget(budget),
                "points": len(some),
                "rms": f"{math.sqrt(float(np.mean(some**2))):.4f}",
                "mean": f"{some.mean():+.4f}",
                "largest": f"{some[np.abs(some).argmax()]:+.4f}",
            }
        )
    names = {"budget": "budget", "points": "points", "rms": "residual, rms", "mean": "mean", "largest": "largest, nats"}
    return markdown_table(rows, names)


def surrogate_section(study: Study, folder: Path) -> str:
    """The service's surrogate, as fitted to these rows, and its error on runs held out."""
    surrogate = fit_surrogate(study.runs)
    known = surrogate.summary()
    noise = known["seed_noise_nats"]
    parts = [
        "## The surrogate",
        f"What `cs336 serve scaling` answers from, for what was not measured: {known['model']}, beside"
        f" {known['measured_runs']} of these runs."
        + ("" if noise is None else f" The noise of a seed is {noise:.4f} nats."),
    ]
    pairs = surrogate.held_out_pairs()
    if not pairs:
        parts.append("Too few of them are of the service's model for a fit of our own: the published law answers.")
        return "\n\n".join(parts)
    report_plots.parity(pairs, folder / "parity.png")
    parts.append(
        "Its features are logarithms of steps, width, size, batch, head size, and of learning rate times width times"
        " steps; its target is the logit of the loss between the one at initialisation and the published law's floor"
        " for the size; lengths, amplitude and noise are those of the largest marginal likelihood. Each run is"
        " predicted once without its fold of five, for which all of that is fitted anew; the features were chosen with"
        " all rows in sight, so that the errors may be slightly too good. The API accepts learning rates up to 1e-3"
        " only, and the grid goes far above them, to where training is about to diverge: errors of what it accepts"
        " stand apart."
    )
    groups = {f"decade of {name}": each for name, each in surrogate.held_out_rmse().items()}
    large = [pair for pair in pairs if pair.budget >= LIMITED_FROM]
    groups |= {f"from {short_budget(LIMITED_FROM)} up": errors_of(large)} if large else {}
    groups["all"] = errors_of(pairs)
    rows: list[dict[str, Any]] = [
        {"budgets": name}
        | {key: f"{value:.4f}" if "rmse" in key else value for key, value in each.items() if value is not None}
        for name, each in groups.items()
    ]
    names = {"budgets": "budgets", "runs": "runs", "rmse": "held-out error, rms, nats"}
    names |= {"api_runs": "runs that the API accepts", "api_rmse": "their error"}
    caption = "Each run, predicted from the other four fifths; filled: what the API accepts"
    parts += [markdown_table(rows, names), f"![{caption}](parity.png)"]
    return "\n\n".join(parts)


@functools.cache
def _exercise_fits(num_draws: int) -> Fits:
    return fit_all(exercise_runs(), num_draws=num_draws)


def exercise_section(folder: Path, *, num_draws: int) -> str:
    """The handout's own exercise, whose exact answer is known."""
    (folder / "exercise").mkdir(exist_ok=True)
    fits = _exercise_fits(num_draws)
    runs, law = exercise_runs(), fits.fits[PARAMETRIC].law
    assert law is not None
    largest = np.abs(runs.losses - law(runs.parameters, runs.tokens)).max()
    report_plots.contours(runs, law, folder / "exercise" / "contours.png")
    plots.draw_laws(fits, folder / "exercise", truth=LAW)
    return "\n\n".join(
        [
            "## The handout's exercise",
            "72 runs of a known law at nine budgets; the same fits, and how far the handout's rule, the lowest run, is"
            " off because sizes were sampled coarsely.",
            page(summarize(fits, TARGETS, truth=LAW)).strip(),
            "![The exercise: best size](exercise/parameters.png)",
            "![The exercise: best number of tokens](exercise/tokens.png)",
            f"The parametric law is {largest:.1g} nats off at most, as these runs have no noise:",
            "![The exercise: lines of equal loss over compute and size](exercise/contours.png)",
        ]
    )
