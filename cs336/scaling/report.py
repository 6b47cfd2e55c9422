"""The report of a scaling study, from the rows of its runs alone: one Markdown page, its pictures, one HTML file.

What was trained and why, what it cost, what the sweeps say, profiles and laws with intervals, the surrogate, the
prediction and its check. The same rows and prediction give the same page.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cs336.files import UserError, replacing
from cs336.profiling.tables import markdown_table
from cs336.scaling import ledger, report_plots, sweeps
from cs336.scaling.plots import short_budget
from cs336.scaling.report_laws import exercise_section, law_sections, surrogate_section
from cs336.scaling.report_page import as_html
from cs336.scaling.report_prediction import prediction_section, target_section
from cs336.scaling.runs import Run
from cs336.scaling.study import Study, make_study
from cs336.scaling.summary import count
from cs336.scaling.tables import at_once

PAGE_FILE, HTML_FILE = "report.md", "report.html"
TITLE = "Scaling laws of our own grid"


def write_report(
    folder: Path,
    rows: Sequence[Run],
    *,
    prediction: Mapping[str, Any] | None = None,
    sessions: Sequence[Mapping[str, Any]] = (),
    num_draws: int = 1_000,
    seed: int = 0,
) -> str:
    """Write report.md, report.html and the pictures.

    Args:
        rows: of all files; of a configuration that was trained twice, such as to compare packing, the first one counts.
        prediction: as `cs336 scaling predict` wrote it; laws are then fitted to the budgets that it was made from.
        sessions: what each call of the runner came to: its `.sessions.jsonl`.
        num_draws: of the bootstrap.
        seed: of the draws.

    Returns:
        The page, as Markdown.

    Raises:
        UserError: there are no rows.
    """
    if not rows:
        raise UserError("no rows, so no report; `python -m cs336.scaling.runner` trains a grid and writes them")
    study = make_study(rows, prediction, num_draws=num_draws, seed=seed)
    sections = [
        f"# {TITLE}",
        _summary(study),
        _runs_section(study, folder),
        _sweeps_section(study, folder),
        *law_sections(study, folder),
        surrogate_section(study, folder),
        _utilisation_section(study, sessions, folder),
        prediction_section(study, folder),
        target_section(study) if study.of_api else "",
        exercise_section(folder, num_draws=num_draws),
    ]
    page = "\n\n".join(section.strip() for section in sections if section) + "\n"
    for name, text in ((PAGE_FILE, page), (HTML_FILE, as_html(TITLE, page, folder))):
        with replacing(folder / name, "w") as file:
            file.write(text)
    return page


def _summary(study: Study) -> str:
    runs = study.runs
    budgets = sorted({run.compute_budget for run in runs})
    hardware = "; ".join(sorted({run.hardware for run in runs}))
    lost = sum(not run.finished for run in runs)
    lines = [
        f"{len(runs)} runs at {len(budgets)} budgets from {short_budget(budgets[0])} to {short_budget(budgets[-1])}"
        f" nominal FLOPs (6 N D, N = 12 L d² without embeddings), {lost} of them without a loss; trained on {hardware}."
        f" Text {', '.join(sorted({run.data[:12] for run in runs}))}, read {max(run.epochs for run in runs):.2f} times"
        f" at most; code {', '.join(sorted({run.code for run in runs}))}.",
        "A loss is the mean training loss, dropout on, of the last 5 % of a run's steps, in nats per token. Everything"
        " here is made from the runs' rows: `cs336 scaling report ROWS`.",
    ]
    if study.fits is None:
        lines.append(f"No law is fitted: {study.why_not}.")
    if study.checked:
        error, within = study.checked["loss_error"], study.checked["loss_within"]
        lines.append(
            f"**The prediction for {short_budget(study.checked['target_budget'])} FLOPs** missed the loss that was"
            f" measured after it by {error:+.4f} nats, {'within' if within else 'outside'} its interval."
        )
    return "\n\n".join(lines)


def _runs_section(study: Study, folder: Path) -> str:
    costs = ledger.ledger(study.runs, study.prediction)
    report_plots.costs(costs[:-1], folder / "costs.png")
    main = study.main
    phases = "\n".join(f"- **{row['phase']}**: {ledger.REASONS[row['phase']]}" for row in costs[:-1])
    by_width = f" or {main.rate_per_width:g} over the width" if main.rate_per_width else ""
    recipe = f"batch {main.batch_size}, learning rate {main.learning_rate:g}{by_width}, seed {main.seed}"
    parts = [
        "## Which runs, and what they cost",
        f"Most runs have {recipe}; the others vary that.\n\n{phases}",
        _cost_table(costs, "for"),
        "![FLOPs of each phase: nominal, which the budget counts, and real, with head and attention](costs.png)",
        "By budget:",
        _cost_table(ledger.budget_ledger(study.runs), "budget"),
    ]
    if failed := [run for run in study.runs if not run.finished]:
        lines = [
            f"- {sweeps.shape_of(run)} at {short_budget(run.compute_budget)}, batch {run.batch_size}, learning rate"
            f" {run.learning_rate:g}: {run.outcome}"
            for run in failed
        ]
        parts += ["Without a loss:", "\n".join(lines)]
    return "\n\n".join(parts)


def _cost_table(rows: Sequence[Mapping[str, Any]], first: str) -> str:
    shown = [
        {
            "phase": row["phase"],
            "runs": row["runs"],
            "budgets": ", ".join(map(short_budget, row["budgets"])) if len(row["budgets"]) < 5 else _span(row),
            "nominal": f"{row['nominal_flops']:.2e}",
            "real": f"{row['real_flops']:.2e}",
            "tokens": count(row["tokens"]) if row["tokens"] else "0",
            "seconds": round(row["device_seconds"], 1),
            "share": f"{row['share']:.1%}",
        }
        for row in rows
    ]
    names = {"runs": "runs", "nominal": "nominal FLOPs", "real": "real FLOPs", "tokens": "tokens"}
    if first != "budget":
        names = {"budgets": "budgets"} | names
    return markdown_table(shown, {"phase": first} | names | {"seconds": "device seconds", "share": "of the real FLOPs"})


def _span(row: Mapping[str, Any]) -> str:
    return f"{len(row['budgets'])} from {short_budget(row['budgets'][0])} to {short_budget(row['budgets'][-1])}"


def _sweeps_section(study: Study, folder: Path) -> str:
    parts = ["## Learning rate, batch size, shape and seed"]
    if rates := sweeps.learning_rates(study.runs):
        report_plots.losses_by_rate(rates, folder / "rates.png")
        edges = sum(row["at_edge"] for row in rates)
        parts += [
            f"The best of the learning rates tried; in {edges} of {len(rates)} cases it is the lowest or the highest,"
            " so that a better one may lie beyond.",
            _rates_table(rates),
            "![Loss over learning rate, a line a size; dashed: the larger batch; rings: the best](rates.png)",
        ]
    if batches := sweeps.batch_sizes(study.runs):
        report_plots.differences_by_batch(batches, folder / "batches.png")
        wins = sum(row["losses"][min(row["losses"])] == min(row["losses"].values()) for row in batches)
        parts += [
            f"The smallest batch has the lowest loss in {wins} of {len(batches)} comparisons at one size and budget.",
            "![What a larger batch loses: twice the tokens a step, so half the steps](batches.png)",
        ]
    if shapes := sweeps.shapes(study.runs, study.main):
        report_plots.excess_by_shape(shapes, folder / "shapes.png")
        parts += [
            "Distance of shapes from their profile, a parabola through those of the ladder:",
            _shapes_table(shapes),
            "![Aspect ratio and head size; filled: off the ladder](shapes.png)",
        ]
    if seeds := sweeps.seeds(study.runs):
        columns = {"budget": "budget", "shape": "shape", "num_seeds": "seeds", "mean": "mean", "spread": "std, nats"}
        rows = [
            row
            | {"budget": short_budget(row["budget"]), "mean": f"{row['mean']:.4f}", "spread": f"{row['spread']:.4f}"}
            for row in seeds
        ]
        parts += ["The same run with other seeds:", markdown_table(rows, columns)]
    if len(parts) == 1:
        parts.append("No run differs from another in these alone.")
    return "\n\n".join(parts)


def _rates_table(rows: Sequence[sweeps.Row]) -> str:
    shown = []
    for row in rows:
        best = row["losses"][row["best_rate"]]
        others = [
            f"{rate:g} {f'{loss - best:+.3f}' if math.isfinite(loss) else 'diverged'}"
            for rate, loss in row["losses"].items()
            if rate != row["best_rate"]
        ]
        about = {"budget": short_budget(row["budget"]), "batch": row["batch_size"], "shape": row["shape"]}
        found = {"best": f"{row['best_rate']:g}", "loss": f"{best:.4f}", "others": ", ".join(others)}
        shown.append(about | found)
    names = {"budget": "budget", "batch": "batch", "shape": "shape", "best": "best rate", "loss": "its loss"}
    return markdown_table(shown, names | {"others": "other rates, and how much higher their loss is"})


def _shapes_table(rows: Sequence[sweeps.Row]) -> str:
    shown = [
        {
            "budget": short_budget(row["budget"]),
            "shape": row["shape"],
            "size": count(row["parameters"]),
            "aspect": f"{row['aspect_ratio']:.0f}",
            "head": f"{row['head_size']:.0f}",
            "excess": f"{row['excess']:+.4f}",
        }
        for row in rows
        if not row["on_ladder"]
    ]
    names = {"budget": "budget", "shape": "off the ladder", "size": "N", "aspect": "width / layers"}
    return markdown_table(shown, names | {"head": "width / heads", "excess": "loss less the profile's"})


def _utilisation_section(study: Study, sessions: Sequence[Mapping[str, Any]], folder: Path) -> str:
    parts = ["## Utilisation, packed and not"]
    rows = [
        row
        | {
            "real_flops": f"{row['real_flops']:.2e}",
            "tokens_per_second": f"{row['tokens_per_second']:,.0f}",
            "of_a_run": _share(row["of_a_run"]),
            "of_the_device": _share(row["of_the_device"]),
        }
        for row in ledger.packing(study.rows)
    ]
    names = {"hardware": "device", "packed": "at a time", "runs": "runs", "real_flops": "real FLOPs"}
    names |= {"tokens_per_second": "tokens/s", "of_a_run": "one run, median", "of_the_device": "all that share it"}
    parts += [markdown_table(rows, names) if rows else "No run has taken a step."]
    if any(run.utilisation for run in study.rows):
        report_plots.utilisations(study.rows, folder / "utilisation.png")
        parts.append("![Of the peak in bf16 that each run reached alone or beside others](utilisation.png)")
    else:
        parts.append("The peak of this device is not known, so no share of it.")
    if sessions:
        parts += ["Whole sessions, with start-up, recording and validation:", _sessions_table(sessions)]
    for same in ledger.sessions_of_the_same_runs(sessions):
        parts += [
            f"Of these, the same {same[0]['num_runs']} runs in several ways: what packing and recording are worth.",
            _sessions_table(same),
        ]
    return "\n\n".join(parts)


def _sessions_table(sessions: Sequence[Mapping[str, Any]]) -> str:
    shown = [
        {
            "date": str(each["date"])[:16],
            "packed": at_once(each),
            "recorded": each["recorded"],
            "runs": each["num_runs"],
            "seconds": each["elapsed_seconds"],
            "tokens": f"{each['tokens'] / max(0.01, each['elapsed_seconds']):,.0f}",
            "share": _share(each["utilisation"]),
        }
        for each in sessions
    ]
    names = {"date": "session", "packed": "at a time", "recorded": "CUDA graphs", "runs": "runs"}
    return markdown_table(shown, names | {"seconds": "seconds", "tokens": "tokens/s", "share": "of the peak"})


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"
