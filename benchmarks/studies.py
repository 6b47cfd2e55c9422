"""What `python -m benchmarks train_step --size ...` and `--study ...` do: cells of the handout's studies as rows."""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import OURS, hardware
from cs336.files import UserError, read_json
from cs336.hardware import pick_device
from cs336.model.attention import KERNELS
from cs336.model.sizes import CONTEXT_LENGTH, SIZES
from cs336.preset_lookup import find_preset
from cs336.profiling.cells import FAILURE, Cell, Row, run_cells
from cs336.profiling.memory import record_step, thinned
from cs336.profiling.memory_study import TIMELINES
from cs336.profiling.pages import Page, Table
from cs336.profiling.step_studies import flat_row, step_cell
from cs336.profiling.step_times import MODES, PRECISIONS, StepConfig
from cs336.profiling.studies import STUDIES
from cs336.profiling.tables import OUT_OF_MEMORY
from cs336.revision import describe_commit
from cs336.store import versions_of

SUBJECT = "train_step"
PACKAGES = ("torch", "triton")
DEFAULT_PRESET = "course"
_DEFAULTS = {field.name: field.default for field in dataclasses.fields(StepConfig)}
_OF_CELLS = ("context", "mode", "warmup", "steps", "precision", "compile", "attention", "layers_per_segment", "nvtx")
_OF_CELLS += ("memory_snapshot",)
_COLUMNS = {
    "size": "size",
    "context_length": "context",
    "mode": "mode",
    "precision": "precision",
    "compile": "compiled",
    "attention": "attention",
    "milliseconds": "ms",
    "std_milliseconds": "std, ms",
    "spread": "std / mean",
    "peak_gib": "peak GiB",
    "teraflops_per_second": "TFLOP/s",
    "mfu": "of the peak",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the harness's options (`--preset`, `--batch-size`, `--vocab-size` and `--device` are there)."""
    cell = parser.add_argument_group("one model instead of a preset's, by the handout's protocol")
    cell.add_argument(
        "--size", nargs="+", metavar="SIZE", help=f"{', '.join(SIZES)}, or D_MODELxD_FFxLAYERSxHEADS; several in turn"
    )
    cell.add_argument("--context", type=int, nargs="+", metavar="TOKENS", help=f"default {CONTEXT_LENGTH}")
    cell.add_argument("--mode", choices=MODES, nargs="+", help=f"default: {_DEFAULTS['mode']}")
    cell.add_argument("--warmup", type=int, help=f"steps that do not count (default {_DEFAULTS['warmup']})")
    cell.add_argument("--steps", type=int, help=f"steps that do (default {_DEFAULTS['steps']})")
    cell.add_argument("--precision", choices=PRECISIONS, nargs="+", help=f"default: {_DEFAULTS['precision']}")
    cell.add_argument("--compile", action="store_true", help="compile the whole model")
    cell.add_argument("--attention", choices=KERNELS, nargs="+", help=f"default: {_DEFAULTS['attention']}")
    cell.add_argument("--layers-per-segment", type=int, metavar="N", help="activation checkpointing")
    cell.add_argument(
        "--nvtx", action="store_true", help="ranges for a profiler: warm-up, passes, optimizer, parts of attention"
    )
    cell.add_argument(
        "--memory-snapshot", type=Path, metavar="FILE", help="record one step's memory, for pytorch.org/memory_viz"
    )
    study = parser.add_argument_group("the handout's studies; --size leaves out other sizes, --preset says whose grids")
    study.add_argument(
        "--study",
        nargs="+",
        choices=["all", *STUDIES],
        metavar="NAME",
        help="all, or " + "; ".join(f"{name}: {each.about}" for name, each in STUDIES.items()),
    )
    study.add_argument("--minutes", type=float, default=float("inf"), help="begin no cell after so long")
    study.add_argument("--again", action="store_true", help="measure also what the results hold already")
    study.add_argument(
        "--files", type=Path, default=Path("profiles"), metavar="FOLDER", help="pages, traces, pictures (%(default)s)"
    )


def run(options: argparse.Namespace) -> int | None:
    """Measure what the options name.

    Returns:
        The exit status, 1 if a cell failed otherwise than for memory; None without --size and --study.

    Raises:
        UserError: options that do not go together.
    """
    given = [f"--{name.replace('_', '-')}" for name in _OF_CELLS if getattr(options, name)]
    if given and (options.study or not options.size):
        raise UserError(f"{', '.join(given)}: of cells, which --size names; a study has its own")
    if not (options.size or options.study):
        return None
    device = pick_device(options.device)
    try:
        if options.study:
            return _run_studies(options, device)
        return _run_cells(options, device)
    except ValueError as error:
        raise UserError(str(error)) from None


def _run_studies(options: argparse.Namespace, device: torch.device) -> int:
    preset = find_preset(options.preset or DEFAULT_PRESET)
    grids = preset.profiling
    sizes = options.size or grids.sizes
    if unknown := set(sizes) - set(grids.sizes):
        raise UserError(
            f"--size {' '.join(sorted(unknown))}: the studies of preset {preset.name} have {', '.join(grids.sizes)}"
        )
    names = list(STUDIES) if "all" in options.study else options.study
    start = time.monotonic()
    rows: list[Row] = []
    pages: dict[str, Page] = {}
    for name in names:
        study = STUDIES[name]
        left = 60 * options.minutes - (time.monotonic() - start)
        found = _measure(study.cells(grids, sizes, device, options.files / name), options, device, left)
        rows += found
        pages[name] = study.page(grids, sizes, found)
        pages[name].write(options.files / name)
        for path in sorted((options.files / name / TIMELINES).glob("*.json")):
            _draw(read_json(path), path.stem, path.with_suffix(".png"))
    for name, page in pages.items():
        print(f"\n## {name}: {STUDIES[name].about}\n\n{page.markdown()}")
    return int(any(_failed(row) for row in rows))


def _run_cells(options: argparse.Namespace, device: torch.device) -> int:
    if options.preset:
        raise UserError("--preset and --size exclude each other; a preset's studies are run by --study")
    configs = [
        StepConfig(
            size=size,
            context_length=context,
            batch_size=options.batch_size or _DEFAULTS["batch_size"],
            vocab_size=options.vocab_size or 0,
            mode=mode,
            warmup=_DEFAULTS["warmup"] if options.warmup is None else options.warmup,
            steps=options.steps or _DEFAULTS["steps"],
            precision=precision,
            compile=options.compile,
            attention=attention,
            layers_per_segment=options.layers_per_segment or 0,
        )
        for size in options.size
        for context in options.context or [CONTEXT_LENGTH]
        for mode in options.mode or [_DEFAULTS["mode"]]
        for precision in options.precision or [_DEFAULTS["precision"]]
        for attention in options.attention or [_DEFAULTS["attention"]]
    ]
    if options.memory_snapshot:
        if len(configs) > 1:
            raise UserError("--memory-snapshot records one step; name one size, context, mode and precision")
        timeline = record_step(configs[0], device, options.memory_snapshot)
        _draw(thinned(timeline), configs[0].name(), options.memory_snapshot.with_suffix(".png"))
        print(f"{options.memory_snapshot}: peak {timeline.peak_bytes / 2**30:.2f} GiB, in {timeline.peak_stage}")
        return 0
    options.again = True  # who names a cell wants it measured
    cells = [step_cell(config, device, ranges=options.nvtx) for config in configs]
    rows = _measure(cells, options, device, 60 * options.minutes)
    print("\n" + Page(tables=[Table([flat_row(row) for row in rows], _COLUMNS)]).markdown())
    return int(any(_failed(row) for row in rows))


def _draw(timeline: Mapping[str, Any], title: str, path: Path) -> None:
    try:
        from cs336_assets.profiling_plots import memory_timeline
    except ImportError as error:  # the figures stand; a picture can be drawn elsewhere
        print(f"{path}: not drawn: {error}")
        return
    memory_timeline(timeline, title, path)


def _measure(cells: Sequence[Cell], options: argparse.Namespace, device: torch.device, max_seconds: float) -> list[Row]:
    surroundings = {
        "subject": SUBJECT,
        "contender": OURS,
        "hardware": hardware(),
        "versions": versions_of(PACKAGES),
        "commit": describe_commit(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    return run_cells(
        [dataclasses.replace(cell, measure=_with_figure(cell)) for cell in cells],
        device=device,
        rows=options.results / f"{SUBJECT}.jsonl",
        surroundings=surroundings,
        again=options.again,
        max_seconds=max_seconds,
        report=lambda name, row: print(f"{name:<60} {_in_words(row)}", flush=True),
    )


def _with_figure(cell: Cell) -> Callable[[], Row]:
    """The cell's measurement with what all rows of a subject have: case, figure and unit."""

    def measure() -> Row:
        row = cell.measure()
        if "tokens_per_second" in row:
            row |= {"figure": row["tokens_per_second"], "unit": "tokens/s"}
        return row

    return measure


def _in_words(row: Row) -> str:
    if FAILURE in row:
        return row[FAILURE]
    if "mean_seconds" not in row:
        return "measured"
    return f"{1e3 * row['mean_seconds']:,.2f} ms, std {1e3 * row['std_seconds']:,.2f} ms"


def _failed(row: Row) -> bool:
    return row.get(FAILURE) not in (None, OUT_OF_MEMORY)
