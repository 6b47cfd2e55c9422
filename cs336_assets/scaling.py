"""The scaling grid in the graph: each cell a run of its own, and what all of them say."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cs336.files import read_json, write_json
from cs336.presets import Preset
from cs336.scaling.cell import Cell
from cs336.scaling.grid import ScalingConfig, find_grid
from cs336.scaling.grid import profiles as grid_profiles
from cs336.scaling.profiles import Profile, fullest, profiles
from cs336.scaling.recipe import config_hash
from cs336.scaling.runner import Settings, train_shape, unfinished
from cs336.scaling.runs import Run, append_run, measured_run, read_runs
from cs336.scaling.windows import Text
from cs336.tokenizer.bpe import Tokenizer
from cs336_assets.asset import ELSEWHERE, Metadata, Step, asset, check
from cs336_assets.crawl import table

ROWS_FILE = "runs.jsonl"
PROFILES_FILE = "profiles.json"


def _cells(preset: Preset) -> Mapping[str, Cell]:
    return find_grid(preset.scaling.grid).cells()


@asset(
    group="scaling",
    kinds={"pytorch"},
    owner="team:models",
    cells=_cells,
    resumable=True,
    pool="gpu",
    runs=(train_shape,),
)
def isoflop_runs(step: Step, token_shards: list[Path], tokenizer: Path, cell: Cell, scaling: ScalingConfig) -> Metadata:
    """One run of the preset's scaling grid: the model of 2025 at one size, budget, batch size and learning rate.

    Its row holds the losses, real FLOPs beside nominal ones, and how often the text was read. A loss that stops being
    a number is a result. A run that was interrupted goes on where its last state was saved. One that was measured
    already, on this very text, is not trained again: its row comes with the library, and says on what device.
    """
    return train_cell(step, token_shards, tokenizer, cell, max_epochs=find_grid(scaling.grid).max_epochs)


def train_cell(step: Step, token_shards: list[Path], tokenizer: Path, cell: Cell, *, max_epochs: float) -> Metadata:
    """Leave the cell's row in the step's folder, trained here or measured elsewhere on the same tokens."""
    settings = Settings(rows=step.folder / ROWS_FILE, device=step.device)
    trained = dataclasses.replace(cell, vocab_size=Tokenizer.load(tokenizer).vocab_size)
    text = Text.open(token_shards)
    text.check([trained], max_epochs=max_epochs)
    measured = measured_run(config_hash(trained, text.checksum))
    if measured is not None:
        settings.rows.unlink(missing_ok=True)
        append_run(settings.rows, measured)
        return _shown(measured) | {ELSEWHERE: measured.hardware}
    train_shape(unfinished([trained], settings.rows, text.checksum), text, settings, print)
    shutil.rmtree(settings.checkpoints, ignore_errors=True)
    return _shown(read_runs(settings.rows)[-1])


@asset(group="scaling", kinds={"python"}, owner="team:models")
def isoflop_profiles(step: Step, isoflop_runs: list[Path]) -> Metadata:
    """The rows of all runs in one file, as fitters and service read it, and each profile's lowest run.

    A profile is all sizes of one budget and batch size at the best recipe that enough of them were trained with, of one
    learning rate or one over the width. One whose lowest run is its smallest or largest size has no minimum to fit.
    """
    runs = [read_runs(folder / ROWS_FILE)[-1] for folder in isoflop_runs]
    for run in runs:
        append_run(step.folder / ROWS_FILE, run)
    found = _profiles(runs)
    write_json(step.folder / PROFILES_FILE, found)
    columns = ["budget", "batch", "sizes", "best size", "loss", "rate", "minimum inside"]
    return {
        "num_runs": len(runs),
        "num_without_a_loss": sum(not run.finished for run in runs),
        "real_flops": sum(run.real_flops for run in runs),
        "profiles": table(columns, [list(profile.values()) for profile in found]),
    }


@check(asset="isoflop_profiles")
def every_run_has_a_loss(isoflop_profiles: Path) -> tuple[bool, Metadata]:
    """No run diverged, and each fitted into memory."""
    failed = [run.outcome for run in read_runs(isoflop_profiles / ROWS_FILE) if not run.finished]
    return not failed, {"failed": table(["outcome"], [[outcome] for outcome in failed])}


@check(asset="isoflop_profiles")
def profiles_have_their_minimum_inside(isoflop_profiles: Path, scaling: ScalingConfig) -> tuple[bool, Metadata]:
    """Each profile that the grid does not call one-sided has its lowest run between its smallest and largest size."""
    wanted = {(f"{budget:.0e}", batch_size) for budget, batch_size in grid_profiles(find_grid(scaling.grid))}
    found = read_json(isoflop_profiles / PROFILES_FILE)
    sound = {(each["budget"], each["batch_size"]) for each in found if each["bracketed"]}
    wrong = sorted(wanted - sound)
    facts = {"num_profiles": len(wanted), "without": table(["budget", "batch"], [list(each) for each in wrong])}
    return not wrong, facts


def _profiles(runs: list[Run]) -> list[dict[str, Any]]:
    """Budget, batch size, sizes, and the lowest run of each profile."""
    found: dict[tuple[float, int], list[Profile]] = {}
    for profile in profiles(runs):
        found.setdefault((profile.compute_budget, profile.batch_size), []).append(profile)
    return [
        {
            "budget": f"{budget:.0e}",
            "batch_size": batch_size,
            "num_sizes": len(profile.losses),
            "best_parameters": profile.best_size,
            "final_loss": round(profile.losses[profile.best_size], 4),
            "learning_rate": str(profile.rates),
            "bracketed": profile.bracketed,
        }
        for (budget, batch_size), some in found.items()
        for profile in [fullest(some)]
    ]


def _shown(run: Run) -> Metadata:
    names = ("parameters", "steps", "tokens", "epochs", "real_flops", "wall_seconds", "utilisation", "outcome")
    losses = {"final_loss": run.final_loss, "valid_loss": run.valid_loss} if run.finished else {}
    shown = {name: value for name in names if (value := getattr(run, name)) is not None}
    return shown | losses | {"curve": table(["step", "loss"], [list(point) for point in run.loss_curve])}
