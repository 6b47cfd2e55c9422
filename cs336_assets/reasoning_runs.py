"""Runs on a page of words: side by side in a table and a figure, and the sentence that compares their scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from cs336.evals.report import Share, difference
from cs336.posttrain.config import GrpoRun
from cs336.posttrain.curves import Moved, Rows, mean_of, moved
from cs336.train.metrics import METRICS_FILE, read_rows
from cs336_assets import reasoning_plots
from cs336_assets.asset import Metadata, Step
from cs336_assets.crawl import page_table
from cs336_assets.experiments import number_shown
from cs336_assets.reasoning_studies import accuracies_of, model_of


class Run(NamedTuple):
    """A run with its rows and, where it was scored, its accuracy on the held-out problems."""

    name: str
    rows: Rows
    score: Share | None


def runs_of(folders: Sequence[Path], scores: Sequence[Path]) -> dict[str, Run]:
    """Runs by the names of their folders, with their scores where they have one."""
    accuracies = accuracies_of(scores)
    runs = {}
    for folder in folders:
        found = accuracies.get(model_of(folder, folders, accuracies))
        score = Share(found["value"], found["low"], found["high"]) if found else None
        runs[folder.name] = Run(folder.name, list(read_rows(folder / METRICS_FILE)), score)
    return runs


def pair_of(runs: Mapping[str, Run], settings: Mapping[str, GrpoRun], field: str) -> tuple[Run, Run] | None:
    """The preset's own run, its first, and another that differs from it in one setting alone."""
    own, *others = runs
    same: dict[str, Any] = {field: getattr(settings[own].config, field)}
    for name in others:
        if replace(settings[name], config=replace(settings[name].config, **same)) == settings[own]:
            return runs[own], runs[name]
    return None


def side_by_side(runs: Sequence[Run]) -> str:
    """A table: scores, means, and what entropy and length were in the first and the last quarter of each run."""
    header = ["run", "accuracy, held out", "validation, best", "gradient norm", "entropy", "tokens", "updates", "s"]
    table = []
    for run in runs:
        best = max(row["valid_accuracy"] for row in run.rows if "valid_accuracy" in row)
        entropy, length = (moved(run.rows, column) for column in ("token_entropy", "mean_length"))
        norm, last = mean_of(run.rows, "grad_norm"), run.rows[-1]
        cells = [run.score or "-", f"{best:.1%}", number_shown(norm), _arrow(entropy, 4), _arrow(length, 0)]
        table.append([f"`{run.name}`", *cells, last["step"], round(last["seconds"])])
    return page_table(header, table)


def on_scores(run: Run, other: Run) -> str:
    """A sentence: by how many points one run's score is above another's, with the 95 % interval."""
    if run.score is None or other.score is None:
        return f"`{run.name}` and `{other.name}` were not both scored on the held-out problems."
    gain = difference(run.score, other.score)
    told = "told from chance" if gain.low > 0 or gain.high < 0 else "not told from chance"
    return (
        f"`{run.name}` less `{other.name}` on the held-out problems: {100 * gain.value:+.1f} points"
        f" ({100 * gain.low:+.1f} to {100 * gain.high:+.1f}), {told}."
    )


def draw(step: Step, runs: Sequence[Run], *columns: str) -> Metadata:
    """The runs' curves as the figure of the page."""
    reasoning_plots.run_panels({run.name: run.rows for run in runs}, columns, step.folder / "curves.png")
    return {"curves": {"image": "curves.png"}}


def _arrow(column: Moved | None, digits: int) -> str:
    return "-" if column is None else f"{column.first:.{digits}f} → {column.last:.{digits}f}"
