"""Where time and memory of one GPU go (CS336, assignment 2): measurements, and for each a page of tables.

The models are the handout's, not the preset's. What is measured becomes rows; a run that was cut off goes on after its
last one. A table is made from rows wherever they lie, so that runs measured elsewhere are read without a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cs336.files import UserError, read_json
from cs336.hardware import pick_device
from cs336.model.sizes import SIZES
from cs336.presets import Preset
from cs336.profiling.attention_errors import is_exact
from cs336.profiling.cells import FAILURE, Row, read_rows, run_cells
from cs336.profiling.config import ProfilingConfig
from cs336.profiling.memory_study import TIMELINES
from cs336.profiling.pages import Page, Table
from cs336.profiling.precision import dtypes_as_derived
from cs336.profiling.step_studies import SMALL_SPREAD, rows_of_study
from cs336.profiling.studies import STUDIES
from cs336_assets import profiling_plots as plots
from cs336_assets.asset import Metadata, Step, asset, check

ROWS_FILE = "rows.jsonl"
STEP_STUDIES = ("baseline", "warmup", "precision", "compile", "kernels")  # in one asset's rows, a partition a size


def _sizes(preset: Preset) -> Mapping[str, ProfilingConfig]:
    return {size: preset.profiling.of_size(size) for size in preset.profiling.sizes}


def _measurement(cells: Callable[[Preset], Mapping[str, Any]] | None = None) -> Callable[..., Any]:
    """Declare what is measured on the device, alone on it; rows that are there stay when it is cut off."""
    return asset(group="kernels", kinds={"pytorch"}, owner="team:systems", cells=cells, pool="gpu", resumable=True)


_table = asset(group="kernels", kinds={"markdown"}, owner="team:systems")


# ---- correctness first


@_measurement()
def attention_errors(step: Step, profiling: ProfilingConfig) -> Metadata:
    """Errors against fp64 of every attention: reference, fused, tiled, and Triton's where a GPU or its interpreter is.

    Output and gradients, causal and full, in fp32 and bf16. No time is taken of any before these are small.
    """
    return _measure(step, ("errors",), profiling, needs_gpu=False)


@check(asset="attention_errors", blocking=True)
def attention_is_exact(attention_errors: Path) -> tuple[bool, Metadata]:
    """Output and gradients of every attention are within what their type allows of fp64."""
    rows = read_rows(attention_errors / ROWS_FILE)
    wrong = _wrong(rows)
    return bool(rows) and not wrong, {"num_cells": len(rows), "wrong": wrong}


def _wrong(rows: Sequence[Row]) -> list[str]:
    return [row["case"] for row in rows if not is_exact(row)]


# ---- times of a step


@_measurement(_sizes)
def step_times(step: Step, attention_errors: Path, cell: ProfilingConfig) -> Metadata:
    """Seconds and peak memory of forward, forward and backward, and whole step of one size of the handout.

    For the tables of baseline, warm-up, precision, compilation and attention kernels: 5 steps that do not count, 10
    that do, the device waited for after each.
    """
    _require_exact(attention_errors)
    return _measure(step, STEP_STUDIES, cell)


@_table
def baseline_times(step: Step, step_times: list[Path], profiling: ProfilingConfig) -> Metadata:
    """Baseline: every size, forward, forward and backward, and whole step; is the standard deviation small?"""
    rows = _rows(step_times)
    plots.milliseconds_by_size(rows_of_study("baseline", profiling, profiling.sizes, rows), step.folder / "times.png")
    return _page(step, "baseline", profiling, rows) | {"times": {"image": "times.png"}}


@check(asset="baseline_times")
def standard_deviations_are_small(step_times: list[Path]) -> tuple[bool, Metadata]:
    """No standard deviation after the most warm-up steps is above 5 % of its mean, and there are such cells."""
    measured = [row for row in _rows(step_times) if FAILURE not in row]
    most = max((row["settings"]["warmup"] for row in measured), default=0)
    sound = [row for row in measured if row["settings"]["warmup"] == most]
    spreads = {row["case"]: row["std_seconds"] / row["mean_seconds"] for row in sound}
    large = {name: round(spread, 3) for name, spread in spreads.items() if spread > SMALL_SPREAD}
    return bool(spreads) and not large, {"num_cells": len(spreads), "large": large}


@_table
def warmup_times(step: Step, step_times: list[Path], profiling: ProfilingConfig) -> Metadata:
    """Warm-up: what the first steps of a process cost, and what one or two warm-up steps leave of that."""
    return _page(step, "warmup", profiling, _rows(step_times))


@_table
def precision_times(step: Step, step_times: list[Path], profiling: ProfilingConfig) -> Metadata:
    """Mixed precision: fp32, TF32 and bf16 autocast, forward, and forward and backward, by size."""
    return _page(step, "precision", profiling, _rows(step_times))


@_table
def compile_times(step: Step, step_times: list[Path], profiling: ProfilingConfig) -> Metadata:
    """`torch.compile` on the whole model beside eager: forward, forward and backward, whole step."""
    return _page(step, "compile", profiling, _rows(step_times))


@_table
def kernel_choice_times(step: Step, step_times: list[Path], profiling: ProfilingConfig) -> Metadata:
    """The whole model with each attention kernel in place of the reference, under bf16 autocast."""
    return _page(step, "kernels", profiling, _rows(step_times))


# ---- kernels, attention, memory


@_measurement(_sizes)
def kernel_profile(step: Step, attention_errors: Path, cell: ProfilingConfig) -> Metadata:
    """Kernels of inference and of a training step of one size, context by context, by PyTorch's profiler.

    The folder `traces` holds kernels and ranges of each, for ui.perfetto.dev.
    """
    _require_exact(attention_errors)
    return _measure(step, ("profile",), cell)


@_table
def kernel_tables(step: Step, kernel_profile: list[Path], profiling: ProfilingConfig) -> Metadata:
    """The handout's five questions: the timer, the largest kernels, matrix products, softmax inside attention."""
    rows = _rows(kernel_profile)
    plots.shares_by_kind(rows, step.folder / "kinds.png")
    return _page(step, "profile", profiling, rows) | {"kinds": {"image": "kinds.png"}}


@_measurement()
def attention_baselines(step: Step, attention_errors: Path, profiling: ProfilingConfig) -> Metadata:
    """Single-head attention by the formula, eager and compiled, by width and length, until memory ends."""
    _require_exact(attention_errors)
    shown = _measure(step, ("attention",), profiling)
    plots.time_and_memory_by_length(read_rows(step.folder / ROWS_FILE), step.folder / "lengths.png")
    return shown | {"lengths": {"image": "lengths.png"}}


@_measurement()
def memory_profile(step: Step, profiling: ProfilingConfig) -> Metadata:
    """Memory of one step over time: inference and whole step, fp32 and bf16 autocast, context by context.

    The folder `snapshots` holds the allocator's histories, for pytorch.org/memory_viz (after gunzip).
    """
    shown = _measure(step, ("memory",), profiling)
    for path in sorted((step.folder / TIMELINES).glob("*.json")):
        plots.memory_timeline(read_json(path), path.stem, path.with_suffix(".png"))
        shown[path.stem] = {"image": path.with_suffix(".png").relative_to(step.folder).as_posix()}
    return shown


@_measurement()
def checkpointing_study(step: Step, profiling: ProfilingConfig) -> Metadata:
    """What RMSNorm and one block keep for the backward pass, and the peaks of a model with checkpointed segments."""
    return _measure(step, ("checkpointing",), profiling)


@check(asset="checkpointing_study")
def a_blocks_gradients_are_as_large_as_expected(checkpointing_study: Path) -> tuple[bool, Metadata]:
    """The gradients that a block's backward pass leaves have as many bytes as the closed form says."""
    rows = [row for row in read_rows(checkpointing_study / ROWS_FILE) if row["settings"]["kind"] == "block"]
    sound = [row for row in rows if FAILURE not in row]
    differ = [row["case"] for row in sound if row["gradient_bytes"] != row["expected_gradient_bytes"]]
    return bool(sound) and not differ, {"num_blocks": len(sound), "differ": differ}


@_measurement()
def precision_answers(step: Step, profiling: ProfilingConfig) -> Metadata:
    """The questions on mixed precision: sums in fp32 and fp16, and the types of a toy model under autocast."""
    return _measure(step, ("answers",), profiling, needs_gpu=False)


@check(asset="precision_answers")
def a_gpu_casts_as_derived(precision_answers: Path) -> tuple[bool, Metadata]:
    """Under fp16 autocast a GPU gives the toy model's tensors the types that autocast's rules say."""
    agrees = dtypes_as_derived(read_rows(precision_answers / ROWS_FILE))
    return agrees is not False, {"state": {True: "measured", False: "differs", None: "no GPU measured it"}[agrees]}


# ---- measuring and showing


def _measure(step: Step, names: Sequence[str], config: ProfilingConfig, *, needs_gpu: bool = True) -> Metadata:
    """Run the cells of some studies into the folder's rows; their pages as metadata.

    Raises:
        UserError: there is no GPU, and the sizes are the handout's.
    """
    device = pick_device(step.device)
    if needs_gpu and device.type != "cuda" and any(size in SIZES for size in config.sizes):
        raise UserError(
            f"{', '.join(config.sizes)}: these sizes need a CUDA device, and this run has none; `cs336 adopt` takes"
            " over what was measured elsewhere, and preset tiny has models for a CPU"
        )
    rows: list[Row] = []
    for name in names:
        cells = STUDIES[name].cells(config, config.sizes, device, step.folder)
        rows += run_cells(cells, device=device, rows=step.folder / ROWS_FILE, report=lambda case, row: _say(step, case))
    failed = [f"{row['case']}: {row[FAILURE]}" for row in rows if FAILURE in row and row.get("tried", True)]
    pages = {name: _with_devices(STUDIES[name].page(config, config.sizes, rows), rows) for name in names}
    for name, page in pages.items():
        page.write(step.folder / name if len(names) > 1 else step.folder)
    return {
        "device": rows[0]["device"],
        "num_cells": len(rows),
        "num_failed": len(failed),
        **({"failed": {"markdown": "\n".join(f"- {line}" for line in failed)}} if failed else {}),
        **{name: {"markdown": page.markdown()} for name, page in pages.items()},
    }


def _say(step: Step, case: str) -> None:
    if step.context is not None:
        step.context.log.info(f"measured: {case}")


def _require_exact(attention_errors: Path) -> None:
    """The check stands between the two in one run; this, where they are made in two."""
    if wrong := _wrong(read_rows(attention_errors / ROWS_FILE)):
        raise UserError(f"{attention_errors}: {len(wrong)} errors are too large ({wrong[0]}, ...); nothing is timed")


def _rows(folders: Sequence[Path]) -> list[Row]:
    return [row for folder in folders for row in read_rows(folder / ROWS_FILE)]


def _page(step: Step, name: str, config: ProfilingConfig, rows: Sequence[Row]) -> Metadata:
    """The page of all sizes, which may have been measured apart."""
    page = _with_devices(STUDIES[name].page(config, config.sizes, rows), rows)
    page.write(step.folder)
    devices = sorted({row["device"] for row in rows})
    return {"device": ", ".join(devices), name: {"markdown": page.markdown()}}


def _with_devices(page: Page, rows: Sequence[Row]) -> Page:
    """The page with the device in the title of each table; with several, which sizes were measured on which."""

    def titled(table: Table) -> Table:
        return replace(table, title=": ".join(each for each in (table.title, _devices_of(table, rows)) if each))

    return replace(page, tables=[titled(table) for table in page.tables])


def _devices_of(table: Table, rows: Sequence[Row]) -> str:
    devices = {row["device"] for row in rows}
    if len(devices) == 1:
        return devices.pop()
    shown = {line["size"] for line in table.rows}
    sizes: dict[str, list[str]] = {}
    for device, size in dict.fromkeys((row["device"], row["settings"]["size"]) for row in rows):
        if size in shown:
            sizes.setdefault(device, []).append(size)
    one = len(sizes) == 1
    return "; ".join(device if one else f"{device} ({', '.join(measured)})" for device, measured in sizes.items())
