"""Measurements on several processes, one cell after the other, none able to spoil the next.

A cell starts ranks of its own: what it held is free again when they end, and a rank that runs out of memory, dies or
hangs ends its cell alone. Rows are appended as they are made, and a second run goes on where the first one stopped.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from timeit import default_timer
from typing import Any

import torch
import torch.distributed as dist

from cs336.files import UserError, append_jsonl
from cs336.parallel.process_group import Rank, RankError, run_ranks
from cs336.profiling.cells import read_rows
from cs336.profiling.spread import median_and_quartiles
from cs336.profiling.tables import OUT_OF_MEMORY

_OUT_OF_MEMORY_SIGNS = ("OutOfMemoryError", "out of memory", "can't allocate memory")
Say = Callable[[str], None]


def run_cell(
    function: Callable[..., Any], world_size: int, *arguments: Any, device: str, timeout_seconds: float
) -> dict[str, Any]:
    """What `function(place, *arguments)` returned on rank 0, or why there is nothing.

    Returns:
        Rank 0's own dictionary; `{"state": "out of memory", "rank": r}` where a rank had too little of it; else
        `{"failure": line}`.
    """
    try:
        return run_ranks(
            function,
            world_size,
            *arguments,
            device=device,
            timeout_seconds=timeout_seconds,
            start_method="forkserver",  # one import of PyTorch for all cells, in a process that never touches a GPU
        )[0]
    except RankError as error:
        if any(sign in f"{error} {error.details}" for sign in _OUT_OF_MEMORY_SIGNS):
            return {"state": OUT_OF_MEMORY, "rank": error.rank}
        return {"failure": str(error)}


def require_gpus(what: str, world_size: int, device: str) -> None:
    """Raises UserError, in one line, where a study needs more GPUs than there are."""
    there = torch.cuda.device_count() if device == "cuda" else world_size
    if there < world_size:
        raise UserError(
            f"{what} needs {world_size} GPUs, this machine has {there}; what was measured elsewhere can be read after"
            " `cs336 adopt`"
        )


class Rows:
    """A study's rows in a JSON Lines file; each has its cell's description under `cell`.

    Args:
        path: made when the first row comes.
        facts: of the machine and the code, added to each row; rows of other hardware are not taken for this one's.
        again: measure also what is there.
    """

    def __init__(self, path: Path, facts: dict[str, Any], *, again: bool = False) -> None:
        self.path, self._facts = path, facts
        self._latest: dict[str, dict[str, Any]] = {}
        for row in read_rows(path):
            if _machine(row) == _machine(facts):
                self._latest[_key(row["cell"])] = row
        self._to_measure = {key for key, row in self._latest.items() if again or "failure" in row}

    def latest(self) -> list[dict[str, Any]]:
        """The latest row of each cell on this hardware."""
        return list(self._latest.values())

    def find(self, cell: dict[str, Any]) -> dict[str, Any] | None:
        """The latest row of a cell that was measured or did not fit; failures are tried again."""
        key = _key(cell)
        return None if key in self._to_measure else self._latest.get(key)

    def add(self, cell: dict[str, Any], result: dict[str, Any]) -> dict[str, Any]:
        """Append a row; it is on disk when this returns."""
        row = {"cell": cell} | result | self._facts
        append_jsonl(self.path, row)
        self._latest[_key(cell)] = row
        self._to_measure.discard(_key(cell))
        return row

    def measure(self, cell: dict[str, Any], run: Callable[[], dict[str, Any]], say: Say) -> dict[str, Any]:
        """The row of a cell, measured now unless it is there."""
        known = self.find(cell)
        if known is not None:
            say(f"{_in_words(cell)}: there already")
            return known
        start = default_timer()
        row = self.add(cell, run())
        said = row.get("failure") or row.get("state") or "measured"
        say(f"{_in_words(cell)}: {said} ({default_timer() - start:.0f} s)")
        return row


def _key(cell: dict[str, Any]) -> str:
    return json.dumps(cell, sort_keys=True)


def _machine(row: dict[str, Any]) -> Any:
    hardware = row.get("hardware") or {}
    return hardware.get("cpu"), hardware.get("gpus") or hardware.get("gpu")


def _in_words(cell: dict[str, Any]) -> str:
    words = {key: value for key, value in cell.items() if not isinstance(value, dict)}
    return " ".join(f"profile of {value}" if key == "profiled" else str(value) for key, value in words.items())


# ---- inside a rank


def synchronize(device: torch.device) -> None:
    """Wait for the GPU; nothing on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def start_together(place: Rank) -> None:
    """Wait until all ranks are here and idle."""
    synchronize(place.device)
    dist.barrier()
    synchronize(place.device)


def over_ranks(value: Any) -> list[Any]:
    """The value of each rank, on all ranks."""
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, value)
    return gathered


class Stopwatch:
    """Seconds between marks, on the device's own clock: CUDA events on a GPU, wall time on a CPU."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._marks: list[tuple[str, Any]] = []

    def mark(self, name: str) -> None:
        """Name what ends here, and begins with the mark before; the first mark only begins."""
        if self._on_gpu:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append((name, event))
        else:
            self._marks.append((name, default_timer()))

    def seconds(self) -> dict[str, float]:
        """Of each part, those of one name added up; on a GPU after a synchronization."""
        parts: dict[str, float] = {}
        for (_, before), (name, after) in zip(self._marks, self._marks[1:], strict=False):
            lasted = before.elapsed_time(after) / 1e3 if self._on_gpu else after - before
            parts[name] = parts.get(name, 0.0) + lasted
        return parts


def time_steps(
    place: Rank,
    step: Callable[[Stopwatch], Any],
    *,
    num_warmup: int,
    num_steps: int,
    between: Callable[[], object] | None = None,
) -> dict[str, Any]:
    """Time a training step that all ranks make together.

    Every step starts together and ends with a synchronization; it has taken as long as its slowest rank.

    Args:
        step: gets a stopwatch to mark its parts with.
        between: called before each step, not timed.

    Returns:
        `ms` and `ms_quartiles` of the steps, `steps_ms`; medians `ms_by_rank`, and `parts_ms` over steps and ranks.
    """
    mine: list[float] = []
    parts: list[dict[str, float]] = []
    for number in range(num_warmup + num_steps):
        if between is not None:
            between()
        start_together(place)
        watch = Stopwatch(place.device)
        start = default_timer()
        step(watch)
        synchronize(place.device)
        if number >= num_warmup:
            mine.append(default_timer() - start)
            parts.append(watch.seconds())
    all_seconds, all_parts = over_ranks(mine), over_ranks(parts)
    slowest = [1e3 * max(each) for each in zip(*all_seconds, strict=True)]
    return {
        **median_and_quartiles(slowest),
        "steps_ms": slowest,
        "ms_by_rank": [1e3 * statistics.median(seconds) for seconds in all_seconds],
        "parts_ms": {
            name: 1e3 * statistics.median(row[name] for rows in all_parts for row in rows) for name in parts[0]
        },
        "num_warmup": num_warmup,
        "num_steps": num_steps,
    }


def peak_and_held(place: Rank) -> dict[str, list[int]] | None:
    """Bytes that the GPU holds now and at most since the last call, of each rank; None on a CPU, which does not count.

    All ranks call it; the peak starts again from what is held now.
    """
    if place.device.type != "cuda":
        return None
    torch.cuda.synchronize(place.device)
    held = over_ranks((torch.cuda.max_memory_allocated(place.device), torch.cuda.memory_allocated(place.device)))
    torch.cuda.reset_peak_memory_stats(place.device)
    return {"peak": [peak for peak, _ in held], "held": [now for _, now in held]}


def weights_agree(parameters: Sequence[torch.Tensor]) -> bool:
    """Whether all ranks hold the same weights, by the sums of their bits."""
    with torch.no_grad():
        sums = [parameter.detach().double().sum().item() for parameter in parameters]
    everyones = over_ranks(sums)
    return all(each == everyones[0] for each in everyones)
