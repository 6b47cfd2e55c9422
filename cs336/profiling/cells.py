"""A study as a list of cells: each is measured by itself, its row is written at once, and what is there stays.

A cell that runs out of memory is a result; its memory is freed and the study goes on. A cell that fails otherwise is
recorded, too, and tried again by the next run.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from cs336.files import append_jsonl
from cs336.profiling.tables import OUT_OF_MEMORY

Row = dict[str, Any]
FAILURE = "failure"


@dataclass(frozen=True)
class Cell:
    """One measurement of a study.

    Attributes:
        name: in one line, for people.
        settings: JSON values that say what is measured; with the device they are its identity.
        measure: measures it and returns the figures.
        hopeless: the rows so far -> whether it would run out of memory too, as when a smaller one did; not tried then.
    """

    name: str
    settings: Row
    measure: Callable[[], Row]
    hopeless: Callable[[Sequence[Row]], bool] = field(default=lambda rows: False)


def run_cells(
    cells: Iterable[Cell],
    *,
    device: torch.device,
    rows: Path | None = None,
    surroundings: Row | None = None,
    again: bool = False,
    max_seconds: float = float("inf"),
    report: Callable[[str, Row], None] = lambda name, row: None,
) -> list[Row]:
    """Measure cells one after the other; returns a row for each that was measured, now or before.

    Args:
        rows: JSON Lines, to which each row is appended as soon as it is there. A cell of the same settings on the same
            device that stands there is taken from there.
        surroundings: what else each row holds, such as commit and date.
        again: measure what is there, too; its older row is left in the file, and the last one counts.
        max_seconds: after so long no further cell begins.
        report: called with the name and the row of each cell that was measured.
    """
    start = time.monotonic()
    known = {} if again or rows is None else {_identity(row): row for row in read_rows(rows)}
    found: list[Row] = []
    for cell in cells:
        row: Row = {"case": cell.name, "device": device_name(device), "settings": _plain(cell.settings)}
        done = known.get(_identity(row))
        if done is not None and done.get(FAILURE) in (None, OUT_OF_MEMORY):
            found.append(done)
            continue
        if cell.hopeless(found):  # said anew by every run, so not written
            found.append(row | {FAILURE: OUT_OF_MEMORY, "tried": False})
            continue
        if time.monotonic() - start > max_seconds:
            continue
        row = _plain(row | measured(cell.measure, device) | (surroundings or {}))
        if rows is not None:
            append_jsonl(rows, row)
        report(cell.name, row)
        found.append(row)
    return found


def measured(measure: Callable[[], Row], device: torch.device) -> Row:
    """The figures of one measurement, or {"failure": why there are none}; its memory is free afterwards."""
    release_memory(device)
    try:
        figures = measure()
    except Exception as error:  # any failure of one cell is a message beside the figures of the others
        lines = str(error).strip().splitlines() or [""]
        figures = {FAILURE: OUT_OF_MEMORY if is_out_of_memory(error) else f"{type(error).__name__}: {lines[0]}"}
    # Outside the `except`: until it ends, the traceback holds the tensors.
    release_memory(device)
    return figures


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this error, or one that it came from, says that the device's memory is full."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        # cuBLAS has no memory of its own left where the allocator has taken all; a compiler wraps the error.
        text = str(current)
        if isinstance(current, torch.OutOfMemoryError | MemoryError) or "CUDA out of memory" in text:
            return True
        if "CUBLAS_STATUS_ALLOC_FAILED" in text or "DefaultCPUAllocator: can't allocate memory" in text:
            return True
        seen.add(id(current))
        current = current.__cause__ or current.__context__
    return False


def release_memory(device: torch.device) -> None:
    """Give back what earlier cells held, compiled code included, and start counting the peak again."""
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()
    if device.type == "cuda":  # a CPU's memory is there again when the last name of a tensor is gone
        gc.collect()
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def device_name(device: torch.device) -> str:
    """The GPU's name, or "cpu"."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def read_rows(path: Path) -> list[Row]:
    """Rows of a file, none if it is not there; a last line that a killed run cut off is taken out of the file."""
    if not path.exists():
        return []
    whole, newline, cut_off = path.read_bytes().rpartition(b"\n")
    if cut_off:
        path.write_bytes(whole + newline)
    return [json.loads(line) for line in whole.splitlines() if line]


def _identity(row: Row) -> str:
    return json.dumps([row.get("device"), row.get("settings")], sort_keys=True)


def _plain(values: Row) -> Row:
    return json.loads(json.dumps(values))
