"""Studies of memory: a step over time, what one block keeps, and activation checkpointing."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from cs336.files import write_json
from cs336.profiling.cells import FAILURE, Cell, Row
from cs336.profiling.checkpointing import best_segment, block_memory, halving_answer, norm_saves, segment_bytes
from cs336.profiling.config import ProfilingConfig
from cs336.profiling.memory import record_step, thinned
from cs336.profiling.pages import Page, Table
from cs336.profiling.step_studies import step_cell
from cs336.profiling.step_times import BOTH, FORWARD_ONLY, STEP, StepConfig, parse_size
from cs336.profiling.tables import OUT_OF_MEMORY

TIMELINES = "timelines"
_PRECISIONS = ("float32", "bfloat16")


# ---- a step over time


def memory_cells(config: ProfilingConfig, sizes: Sequence[str], device: torch.device, folder: Path) -> list[Cell]:
    """Contexts x (forward, step) x (fp32, bf16 autocast) of one size."""
    return [
        Cell(
            name=f"memory, {step.name()}",
            settings={"kind": "memory"} | dataclasses.asdict(step),
            measure=partial(_recorded, step, device, folder),
        )
        for precision in _PRECISIONS
        for context in config.memory_contexts
        for mode in (FORWARD_ONLY, STEP)
        for step in [
            StepConfig(
                size=config.memory_size,
                context_length=context,
                batch_size=config.batch_size,
                mode=mode,
                precision=precision,
                warmup=1,  # a first step allocates the optimizer's states
                steps=1,
            )
        ]
    ]


def _recorded(step: StepConfig, device: torch.device, folder: Path) -> Row:
    name = f"{step.size}-T{step.context_length}-{step.mode}-{step.precision}"
    snapshot = folder / "snapshots" / f"{name}.pickle.gz" if device.type == "cuda" else None
    timeline = record_step(step, device, snapshot)
    write_json(folder / TIMELINES / f"{name}.json", thinned(timeline))
    return {
        "timeline": name,
        "peak_bytes": timeline.peak_bytes,
        "peak_stage": timeline.peak_stage,
        "held_bytes": timeline.active_bytes[0],
        "largest": timeline.largest,
    }


def memory_page(config: ProfilingConfig, sizes: Sequence[str], rows: Sequence[Row]) -> Page:
    """Peaks by context, the residual stream, and the largest allocations."""
    chosen = [row for row in rows if row["settings"]["kind"] == "memory"]
    cells = {tuple(row["settings"][name] for name in ("context_length", "precision", "mode")): row for row in chosen}
    lines = []
    for context in dict.fromkeys(context for context, _, _ in cells):
        line: Row = {"context": context, "residual": residual_mib(config, context)}
        for precision in _PRECISIONS:
            for mode in (FORWARD_ONLY, STEP):
                row = cells.get((context, precision, mode))
                line[f"{mode} {precision}"] = row and (row.get(FAILURE) or row["peak_bytes"] / 2**30)
        lines.append(line)
    return Page(
        text=f"{config.memory_size}, batch {config.batch_size}, eager, reference attention. Forward is inference: it"
        " keeps nothing for a backward pass. The residual stream stays fp32 under autocast, as the embedding and the"
        " sums are; weights do too, and their bf16 copies come on top."
        f" {_peaks_in_words(chosen)}",
        tables=[
            Table(
                lines,
                {"context": "context", "residual": "one residual-stream tensor, fp32, MiB"}
                | {
                    f"{mode} {precision}": f"{mode}, {name}, peak GiB"
                    for precision, name in zip(_PRECISIONS, ("fp32", "bf16 autocast"), strict=True)
                    for mode in (FORWARD_ONLY, STEP)
                },
                "Peak memory",
            ),
            Table(
                _largest_lines(chosen),
                {"cell": "step", "mib": "MiB", "count": "times", "origin": "asked for by"},
                "Largest allocations, of the longest context that fitted",
            ),
        ],
    )


def residual_mib(config: ProfilingConfig, context: int) -> float:
    """One tensor of the residual stream in fp32: batch x context x d_model x 4 B."""
    return 4 * config.batch_size * context * parse_size(config.memory_size).d_model / 2**20


def _peaks_in_words(rows: Sequence[Row]) -> str:
    stages = {row["peak_stage"] for row in rows if FAILURE not in row and row["settings"]["mode"] == STEP}
    return f"The peak of a whole step lies in: {', '.join(sorted(stages))}." if stages else ""


def _largest_lines(rows: Sequence[Row]) -> list[Row]:
    lines = []
    for mode in (FORWARD_ONLY, STEP):
        fitted = [
            row
            for row in rows
            if FAILURE not in row and row["settings"]["mode"] == mode and row["settings"]["precision"] == "float32"
        ]
        if fitted:
            row = max(fitted, key=lambda row: row["settings"]["context_length"])
            name = f"{mode}, T={row['settings']['context_length']}"
            lines += [
                {"cell": name, "mib": each["num_bytes"] / 2**20} | {key: each[key] for key in ("count", "origin")}
                for each in row["largest"][:6]
            ]
    return lines


# ---- what one block keeps, and checkpoints


def checkpoint_cells(config: ProfilingConfig, sizes: Sequence[str], device: torch.device, folder: Path) -> list[Cell]:
    """RMSNorm and a block, eager and compiled; then the whole model with segments of k layers."""
    shape = parse_size(config.recompute_size, context_length=config.recompute_context)
    cells = []
    for compiled in (False, True):
        about = {"size": config.recompute_size, "context_length": config.recompute_context, "compiled": compiled}
        about |= {"batch_size": config.batch_size}
        how = "compiled" if compiled else "eager"
        cells.append(
            Cell(
                name=f"RMSNorm, {how}",
                settings={"kind": "norm"} | about,
                measure=partial(_norm, config, shape.d_model, device, compiled),
            )
        )
        for precision in _PRECISIONS:
            # Eager code says what it keeps without being computed; compiled code has to run.
            measure = partial(
                block_memory,
                shape,
                config.batch_size,
                device=device if compiled else torch.device("meta"),
                compiled=compiled,
                precision=precision,
            )
            if not compiled and precision != "float32":  # autocast knows no device "meta"
                measure.keywords["device"] = device
            settings = {"kind": "block", "precision": precision} | about
            cells.append(Cell(name=f"block, {how}, {precision}", settings=settings, measure=measure))
    return [*cells, *(step_cell(step, device) for step in segment_configs(config))]


def _norm(config: ProfilingConfig, d_model: int, device: torch.device, compiled: bool) -> Row:
    saved = norm_saves(config.batch_size, config.recompute_context, d_model, device, compiled=compiled)
    return {"saved": saved, "saved_bytes": sum(each["num_bytes"] for each in saved)}


def segment_configs(config: ProfilingConfig) -> list[StepConfig]:
    """Forward and backward with one level of checkpoints, eager and with compiled blocks, k rising."""
    return [
        StepConfig(
            size=config.recompute_size,
            context_length=config.recompute_context,
            batch_size=config.batch_size,
            mode=BOTH,
            compile=compiled,
            layers_per_segment=layers,
            warmup=1,
            steps=2,  # its memory is asked for
        )
        for compiled in (False, True)
        for layers in config.recompute_segments
    ]


def checkpoint_page(config: ProfilingConfig, sizes: Sequence[str], rows: Sequence[Row]) -> Page:
    """What norm and block keep, recursive halving, and peaks by segment against the derived ones."""
    blocks = [row for row in rows if row["settings"]["kind"] == "block"]
    lines = _segment_lines(config, rows)
    return Page(
        text="\n\n".join([_block_answer(blocks), halving_answer(), _segment_answer(config, blocks, lines)]),
        tables=[
            Table(
                _norm_lines([row for row in rows if row["settings"]["kind"] == "norm"]),
                {"compiled": "compiled", "shape": "shape", "dtype": "type", "mib": "MiB", "origin": "kept by"},
                "Kept for the backward pass by RMSNorm alone (its gain left out)",
            ),
            Table(
                [_block_line(row) for row in blocks],
                {"compiled": "compiled", "precision": "precision", "saved": "kept, MiB", "count": "tensors"}
                | {"residual": "one residual-stream tensor, MiB", "gradient": "gradients, MiB"}
                | {"expected": "gradients expected, MiB"},
                "Kept for the backward pass by one block (parameters left out, each storage once)",
            ),
            Table(
                _contributor_lines(blocks),
                {"compiled": "compiled", "mib": "MiB", "share": "share", "tensors": "tensors", "origin": "kept by"},
                "The five largest contributors, fp32",
            ),
            Table(
                lines,
                {"compiled": "blocks compiled", "layers": "layers a segment", "peak": "measured peak, GiB"}
                | {"derived": "derived peak, GiB", "milliseconds": "ms"},
                "(b) Peak of forward and backward with checkpoints, fp32",
            ),
        ],
    )


def _norm_lines(rows: Sequence[Row]) -> list[Row]:
    lines = []
    for row in rows:
        compiled = row["settings"]["compiled"]
        if FAILURE in row:
            lines.append({"compiled": compiled, "shape": row[FAILURE]})
            continue
        lines += [
            {"compiled": compiled, "shape": " x ".join(map(str, each["shape"])), "dtype": each["dtype"]}
            | {"mib": each["num_bytes"] / 2**20, "origin": each["origin"]}
            for each in row["saved"]
        ]
    return lines


def _block_line(row: Row) -> Row:
    line = {name: row["settings"][name] for name in ("compiled", "precision")}
    if FAILURE in row:
        return line | {"saved": row[FAILURE]}
    return line | {
        "saved": row["saved_bytes"] / 2**20,
        "count": row["num_saved"],
        "residual": row["residual_bytes"] / 2**20,
        "gradient": row["gradient_bytes"] / 2**20,
        "expected": row["expected_gradient_bytes"] / 2**20,
    }


def _contributor_lines(rows: Sequence[Row]) -> list[Row]:
    return [
        {"compiled": row["settings"]["compiled"], "mib": each["num_bytes"] / 2**20, "share": f"{each['share']:.1%}"}
        | {"tensors": each["tensors"], "origin": each["origin"]}
        for row in rows
        if FAILURE not in row and row["settings"]["precision"] == "float32"
        for each in row["largest"]
    ]


def _block_answer(rows: Sequence[Row]) -> str:
    sound = [row for row in rows if FAILURE not in row]
    if not sound:
        return "No block could be looked at."
    agree = all(row["gradient_bytes"] == row["expected_gradient_bytes"] for row in sound)
    return (
        "Saved tensors are seen by `saved_tensors_hooks`, each storage once, however many views of it are kept. The"
        " gradients of a block are as large as its parameters in fp32"
        + (", as the closed form says." if agree else ", but the closed form says otherwise.")
    )


def _block_bytes(rows: Sequence[Row], *, compiled: bool) -> Row | None:
    for row in rows:
        if FAILURE not in row and row["settings"]["compiled"] == compiled and row["settings"]["precision"] == "float32":
            return row
    return None


def _segment_lines(config: ProfilingConfig, rows: Sequence[Row]) -> list[Row]:
    """Measured peaks beside weights, gradients and what one level of checkpoints holds by the closed form."""
    blocks = [row for row in rows if row["settings"]["kind"] == "block"]
    wanted = {_identity(dataclasses.asdict(step)) for step in segment_configs(config)}
    num_layers = parse_size(config.recompute_size).num_layers
    lines = []
    for row in rows:
        settings = row["settings"]
        if settings["kind"] != "step" or _identity(settings) not in wanted:
            continue
        line: Row = {"compiled": settings["compile"], "layers": settings["layers_per_segment"]}
        line["peak"] = row.get(FAILURE) or (row["peak_bytes"] and row["peak_bytes"] / 2**30)
        line["milliseconds"] = None if FAILURE in row else 1e3 * row["mean_seconds"]
        block = _block_bytes(blocks, compiled=settings["compile"])
        if block is not None and FAILURE not in row:
            held = segment_bytes(
                num_layers,
                settings["layers_per_segment"],
                residual_bytes=block["residual_bytes"],
                block_bytes=block["saved_bytes"],
            )
            line["derived"] = (2 * 4 * row["num_parameters"] + held) / 2**30
        lines.append(line)
    return lines


def _identity(settings: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple(sorted((name, value) for name, value in settings.items() if name != "kind"))


def _segment_answer(config: ProfilingConfig, blocks: Sequence[Row], lines: Sequence[Row]) -> str:
    num_layers = parse_size(config.recompute_size).num_layers
    said = [
        f"**(b) One level of checkpoints, {config.recompute_size}, batch {config.batch_size}, context"
        f" {config.recompute_context:,}.** With segments of k layers the peak of the activations is about"
        f" ({num_layers}/k) x one residual-stream tensor + k x one block's residuals; the derived column adds weights"
        " and gradients in fp32. What the backward pass makes beside a block's residuals, such as the gradient of its"
        " scores, is not in it; and when the last gradients come, the checkpoints are gone."
    ]
    for compiled in (False, True):
        block = _block_bytes(blocks, compiled=compiled)
        how = "compiled" if compiled else "eager"
        if block is not None:
            best = best_segment(num_layers, residual_bytes=block["residual_bytes"], block_bytes=block["saved_bytes"])
            said.append(
                f"{how.capitalize()}: {block['residual_bytes'] / 2**20:,.0f} MiB and"
                f" {block['saved_bytes'] / 2**20:,.0f} MiB, so k = {best} is best by the formula;"
                f" {_measured_best(lines, compiled)}."
            )
    return " ".join(said)


def _measured_best(lines: Sequence[Row], compiled: bool) -> str:
    measured = {line["layers"]: line["peak"] for line in lines if line["compiled"] == compiled}
    fitted = {layers: peak for layers, peak in measured.items() if isinstance(peak, float)}
    if not fitted:
        return "no peak was measured"
    best = min(fitted, key=lambda layers: fitted[layers])
    others = [
        f"k = {layers}: {peak if peak == OUT_OF_MEMORY else f'{peak:.1f} GiB'}"
        for layers, peak in measured.items()
        if layers != best and peak is not None
    ]
    return f"measured, k = {best} is: {fitted[best]:.1f} GiB ({', '.join(others[:2]) or 'no other'})"
