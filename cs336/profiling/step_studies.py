"""The handout's tables of step times: which cells each needs, the table, and what its figures say."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from cs336.model.accounting import count_parameters
from cs336.model.attention import KERNELS
from cs336.profiling.cells import FAILURE, Cell, Row
from cs336.profiling.config import ProfilingConfig
from cs336.profiling.pages import Page, Table
from cs336.profiling.step_times import (
    BOTH,
    FORWARD_ONLY,
    MODES,
    PRECISIONS,
    StepConfig,
    measure_in_fresh_process,
    measure_step,
    parse_size,
)
from cs336.profiling.tables import span

SMALL_SPREAD = 0.05  # of the mean: a standard deviation up to this is called small
FRESH = "fresh process"


class Study(NamedTuple):
    """One table.

    Attributes:
        configs: its cells for one size.
        table: rows of the cells -> rows of the table.
        columns: key in those -> heading.
        comment: rows of the cells -> what they say.
        fresh: each cell is measured in a process of its own.
    """

    configs: Callable[[ProfilingConfig, str], list[StepConfig]]
    table: Callable[[Sequence[Row]], list[Row]]
    columns: dict[str, str]
    comment: Callable[[Sequence[Row]], str]
    fresh: bool = False


def study_cells(name: str, config: ProfilingConfig, size: str, device: torch.device) -> list[Cell]:
    """The cells of a study for one size."""
    study = STUDIES[name]
    return [step_cell(each, device, fresh=study.fresh) for each in study.configs(config, size)]


def step_cell(config: StepConfig, device: torch.device, *, fresh: bool = False, ranges: bool = False) -> Cell:
    """One cell of `measure_step`."""

    def measure() -> Row:
        if fresh:
            return measure_in_fresh_process(config, device)
        return measure_step(config, device, ranges=ranges)

    settings = {"kind": "step"} | dataclasses.asdict(config) | ({FRESH: True} if fresh else {})
    return Cell(name=config.name() + (f", {FRESH}" if fresh else ""), settings=settings, measure=measure)


def rows_of_study(name: str, config: ProfilingConfig, sizes: Sequence[str], rows: Sequence[Row]) -> list[Row]:
    """Those of a file's rows that are cells of the study, in its order."""
    by_settings = {_key(row["settings"]): row for row in rows}
    device = torch.device("cpu")
    wanted = [cell for size in sizes for cell in study_cells(name, config, size, device)]
    return [by_settings[_key(cell.settings)] for cell in wanted if _key(cell.settings) in by_settings]


def step_page(name: str, config: ProfilingConfig, sizes: Sequence[str], rows: Sequence[Row]) -> Page:
    """What a study's rows say."""
    study = STUDIES[name]
    chosen = rows_of_study(name, config, sizes, rows)
    return Page(text=study.comment(chosen), tables=[Table(study.table(chosen), study.columns)])


def _key(settings: Row) -> tuple[tuple[str, Any], ...]:
    return tuple(sorted(settings.items()))


# ---- the cells of each study


def _base(config: ProfilingConfig, size: str) -> StepConfig:
    return StepConfig(
        size=size,
        context_length=config.context_length,
        batch_size=config.batch_size,
        warmup=config.warmup_steps,
        steps=config.measured_steps,
    )


def _varied(base: StepConfig, **choices: Sequence[Any]) -> list[StepConfig]:
    """All combinations, the last choice running fastest."""
    found = [base]
    for name, values in choices.items():
        found = [dataclasses.replace(each, **{name: value}) for each in found for value in values]
    return found


def _baseline(config: ProfilingConfig, size: str) -> list[StepConfig]:
    return _varied(_base(config, size), mode=MODES)


def _warmup(config: ProfilingConfig, size: str) -> list[StepConfig]:
    if size not in config.warmup_sizes:
        return []
    return _varied(_base(config, size), mode=(BOTH,), warmup=config.warmup_counts)


def _precision(config: ProfilingConfig, size: str) -> list[StepConfig]:
    return _varied(_base(config, size), mode=(FORWARD_ONLY, BOTH), precision=PRECISIONS)


def _compile(config: ProfilingConfig, size: str) -> list[StepConfig]:
    if size not in config.compile_sizes:
        return []
    return _varied(_base(config, size), precision=config.compile_precisions, mode=MODES, compile=(False, True))


def _kernels(config: ProfilingConfig, size: str) -> list[StepConfig]:
    return _varied(_base(config, size), mode=(BOTH,), precision=("bfloat16",), attention=tuple(KERNELS))


# ---- tables


def _table(rows: Sequence[Row]) -> list[Row]:
    return [flat_row(row) for row in rows]


def flat_row(row: Row) -> Row:
    """A cell's row as one of a table: settings and figures side by side, the failure where the time would be."""
    flat = row["settings"] | row | {"milliseconds": _milliseconds(row)}
    if FAILURE not in row:
        flat["std_milliseconds"] = 1e3 * row["std_seconds"]
        flat["spread"] = f"{row['std_seconds'] / row['mean_seconds']:.1%}"
        flat["peak_gib"] = _gib(row["peak_bytes"])
        flat["teraflops_per_second"] = row["flops_per_second"] / 1e12
        flat["first_milliseconds"] = 1e3 * row["seconds"][0]
        flat["warmup_milliseconds"] = ", ".join(f"{1e3 * each:,.1f}" for each in row["warmup_seconds"])
    return flat


def _side_by_side(rows: Sequence[Row], by: str, values: Sequence[Any]) -> list[Row]:
    """One row for all cells that differ in `by` alone: a column of milliseconds a value, then the first over each."""
    groups: dict[Any, dict[Any, Row]] = {}
    for row in rows:
        others = {name: value for name, value in row["settings"].items() if name != by}
        groups.setdefault(_key(others), {})[row["settings"][by]] = row
    table = []
    for found in groups.values():
        line = dict(next(iter(found.values()))["settings"])
        for value in values:
            if value not in found:
                continue
            line[f"ms {value}"] = _milliseconds(found[value])
            line[f"GiB {value}"] = _gib(found[value].get("peak_bytes"))
            line[f"ratio {value}"] = _ratio(found.get(values[0]), found[value])
        table.append(line)
    return table


def _milliseconds(row: Row) -> Any:
    return row[FAILURE] if FAILURE in row else 1e3 * row["mean_seconds"]


def _gib(num_bytes: int | None) -> float | None:
    return None if num_bytes is None else num_bytes / 2**30


def _ratio(first: Row | None, other: Row) -> float | None:
    if first is None or FAILURE in first or FAILURE in other:
        return None
    return first["mean_seconds"] / other["mean_seconds"]


# ---- what the figures say


def _sound(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if FAILURE not in row]


def comment_on_baseline(rows: Sequence[Row]) -> str:
    """Whether the standard deviation is small, and what did not fit."""
    sound = _sound(rows)
    if not sound:
        return "No cell could be measured."
    worst = max(sound, key=lambda row: row["std_seconds"] / row["mean_seconds"])
    spread = worst["std_seconds"] / worst["mean_seconds"]
    failed = [row["case"] for row in rows if FAILURE in row]
    said = (
        f"The largest standard deviation is {spread:.1%} of its mean ({worst['case']}): "
        + ("small everywhere." if spread <= SMALL_SPREAD else f"not small, which is up to {SMALL_SPREAD:.0%} here.")
        + _backward_over_forward(sound)
    )
    return said + (f" Not measured: {'; '.join(failed)}." if failed else "")


def _backward_over_forward(rows: Sequence[Row]) -> str:
    times = {(row["settings"]["size"], row["settings"]["mode"]): row["mean_seconds"] for row in rows}
    ratios = [
        (times[size, BOTH] - seconds) / seconds
        for (size, mode), seconds in times.items()
        if mode == FORWARD_ONLY and (size, BOTH) in times
    ]
    if not ratios:
        return ""
    return f" A backward pass takes {span(ratios, '.1f')} times its forward pass; by FLOPs it is 2."


def comment_on_warmup(rows: Sequence[Row]) -> str:
    """Why the numbers differ without warm-up, and still do after one or two steps."""
    lines, settled = [], {}
    for size in dict.fromkeys(row["settings"]["size"] for row in _sound(rows)):
        cells = {row["settings"]["warmup"]: row for row in _sound(rows) if row["settings"]["size"] == size}
        most = cells[max(cells)]
        for count, row in sorted(cells.items()):
            if row is most:
                continue
            first = row["seconds"][0] / most["mean_seconds"]
            ratio = row["mean_seconds"] / most["mean_seconds"]
            lines.append(
                f"- {size}, w = {count}: mean {ratio:.2f} times, standard deviation {row['std_seconds'] * 1e3:,.1f} ms;"
                f" its first measured step took {first:.1f} times the mean after w = {max(cells)}."
            )
            if 0 < count < max(cells):
                is_steady = row["std_seconds"] <= SMALL_SPREAD * row["mean_seconds"]
                settled[f"{size}, w = {count}"] = is_steady and ratio <= 1 + SMALL_SPREAD
    return (
        "The first step of a process does what no later one does: it loads kernels onto the device, starts the"
        " library of matrix products and picks its algorithms, and asks the driver for the memory that the allocator"
        " then keeps. Measured without warm-up, all that is in the mean, and the standard deviation with it."
        + _after_few(settled)
        + "\n\n"
        + "\n".join(lines)
    )


def _after_few(settled: Mapping[str, bool]) -> str:
    """Whether one or two steps of warm-up were enough, by cell."""
    if not settled:
        return ""
    unsettled = [cell for cell, is_settled in settled.items() if not is_settled]
    if not unsettled:
        return " One or two steps end it here: means and deviations are those after more, to the twentieth."
    return (
        f" One or two steps do not always end it (here not at {'; '.join(unsettled)}): the second step still meets"
        " memory of other sizes, as the first had no gradients to free, and clocks and caches take some steps to"
        " settle."
    )


def comment_on_precision(rows: Sequence[Row]) -> str:
    """How the gain of bf16 changes with size."""
    lines = []
    for mode in (FORWARD_ONLY, BOTH):
        table = _side_by_side([row for row in rows if row["settings"]["mode"] == mode], "precision", PRECISIONS)
        gains = [(line["size"], line["ratio bfloat16"]) for line in table if line.get("ratio bfloat16")]
        gains.sort(key=lambda gain: count_parameters(parse_size(gain[0])).total)
        if gains:
            said = ", ".join(f"{size} {gain:.2f}" for size, gain in gains)
            trend = f"; {_trend([gain for _, gain in gains])}" if len(gains) > 1 else ""
            lines.append(f"- {mode}, times as fast under bf16 autocast as in fp32: {said}{trend}.")
    return (
        "Only matrix products gain from the matrix units; the rest gains at most what halving its bytes gives, and"
        " autocast adds casts of the weights. So the gain follows the share of matrix products, which is larger in a"
        " larger model. TF32 shows what the matrix units alone are worth: storage stays fp32.\n\n" + "\n".join(lines)
    )


def _trend(values: Sequence[float]) -> str:
    steps = [after - before for before, after in itertools.pairwise(values)]
    if min(steps) > 0:
        return "it rises from one size to the next"
    return "it falls from one size to the next" if max(steps) < 0 else "from one size to the next it rises and falls"


def comment_on_compile(rows: Sequence[Row]) -> str:
    """What compiling is worth by mode."""
    lines = []
    for precision in dict.fromkeys(row["settings"]["precision"] for row in rows):
        for mode in MODES:
            chosen = [
                row for row in rows if row["settings"]["mode"] == mode and row["settings"]["precision"] == precision
            ]
            gains = [
                f"{line['size']} {line['ratio True']:.2f}"
                for line in _side_by_side(chosen, "compile", (False, True))
                if line.get("ratio True")
            ]
            if gains:
                lines.append(f"- {precision}, {mode}, times as fast compiled: {', '.join(gains)}.")
    return (
        "Compilation merges elementwise work, norms and softmax into few kernels, so that their inputs are read once;"
        " matrix products stay the library's, and the optimizer is not compiled. So it gains most where products"
        " take the smaller share.\n\n" + "\n".join(lines)
    ).strip()


def comment_on_kernels(rows: Sequence[Row]) -> str:
    """What a kernel without stored scores is worth in the whole model."""
    lines = []
    for line in _side_by_side(rows, "attention", tuple(KERNELS)):
        gains = [f"{name} {line[f'ratio {name}']:.2f}" for name in KERNELS if line.get(f"ratio {name}")]
        lines.append(f"- {line['size']}, times as fast as the reference: {', '.join(gains) or 'not measured'}.")
    return "\n".join(lines)


_TIMES = {"milliseconds": "ms", "std_milliseconds": "std, ms", "spread": "std / mean"}
_SHAPE = {"size": "size", "mode": "mode"}
_PEAK = {"peak_gib": "peak GiB", "teraflops_per_second": "TFLOP/s"}

STUDIES: dict[str, Study] = {
    "baseline": Study(_baseline, _table, _SHAPE | _TIMES | _PEAK, comment_on_baseline),
    "warmup": Study(
        _warmup,
        _table,
        {"size": "size", "warmup": "w", **_TIMES, "first_milliseconds": "first measured, ms"}
        | {"warmup_milliseconds": "warm-up steps, ms"},
        comment_on_warmup,
        fresh=True,
    ),
    "precision": Study(
        _precision,
        lambda rows: _side_by_side(rows, "precision", PRECISIONS),
        _SHAPE
        | {f"ms {name}": f"{name}, ms" for name in PRECISIONS}
        | {f"ratio {name}": f"fp32 / {name}" for name in PRECISIONS[1:]}
        | {"GiB float32": "peak GiB, fp32", "GiB bfloat16": "peak GiB, bf16"},
        comment_on_precision,
    ),
    "compile": Study(
        _compile,
        lambda rows: _side_by_side(rows, "compile", (False, True)),
        {"size": "size", "precision": "precision", "mode": "mode", "ms False": "vanilla, ms", "ms True": "compiled, ms"}
        | {"ratio True": "vanilla / compiled", "GiB False": "vanilla, peak GiB", "GiB True": "compiled, peak GiB"},
        comment_on_compile,
    ),
    "kernels": Study(
        _kernels,
        lambda rows: _side_by_side(rows, "attention", tuple(KERNELS)),
        {"size": "size"}
        | {f"ms {name}": f"{name}, ms" for name in KERNELS}
        | {f"ratio {name}": f"reference / {name}" for name in list(KERNELS)[1:]}
        | {f"GiB {name}": f"{name}, peak GiB" for name in KERNELS},
        comment_on_kernels,
    ),
}
