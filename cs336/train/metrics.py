"""One JSON line per step, written without making a GPU wait for it."""

from __future__ import annotations

import json
import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from cs336.files import write_jsonl
from cs336.hardware import peak_bytes, peak_flops_per_second

METRICS_FILE = "metrics.jsonl"
# Columns that vary from run to run and decide nothing (but where the run's settings ask for the clock).
WALL_CLOCK = ("seconds", "tokens_per_second", "peak_bytes", "mfu")
Report = Callable[[dict[str, Any]], None]

# Steps that a GPU may be ahead of the values read from it: more would let the clock of a run with a time
# limit lag behind, fewer could leave the GPU without work.
_STEPS_AHEAD = 4
_RATE_STEPS = 50  # tokens_per_second is that of the last so many steps
_PACE_STEPS = 8  # of these last steps is the next one's duration foretold


class Clock:
    """Seconds of training: wall time since the first step, pauses and compilation included.

    Args:
        seconds_before: of an earlier part of the same run.
    """

    def __init__(self, seconds_before: float = 0.0) -> None:
        self._start = time.monotonic() - seconds_before

    def seconds(self) -> float:
        return time.monotonic() - self._start


class MetricsLog:
    """Rows of `metrics.jsonl`, a few steps late on a GPU.

    `begin` takes a step's row and the tensor of its loss and gradient norm, and asks for a copy of the
    latter; after `end` the row is completed once the copy is there, in order. Reading a value at once would make
    the CPU wait for the GPU, and then the GPU for the CPU, at every step.

    Args:
        path: an existing file goes on; None writes nothing.
        clock: of the run; a row's `seconds` is the time at which its step was known to be done.
        tokens_per_step: for `tokens_per_second`.
        flops_per_token: for `mfu`.
        check: called with a row before it is written; raises if the run must not go on.
        report: called with every row written.
    """

    def __init__(
        self,
        path: Path | None,
        *,
        clock: Clock,
        device: torch.device,
        precision: str,
        tokens_per_step: int,
        flops_per_token: float,
        check: Callable[[dict[str, Any]], None],
        report: Report,
    ) -> None:
        self._file: IO[str] | None = None
        if path is not None:
            self._file = path.open("a", encoding="utf-8", buffering=1)  # line by line, for who looks on
        self._clock = clock
        self._device = device
        self._tokens_per_step = tokens_per_step
        self._flops_per_token = flops_per_token
        self._peak_flops = peak_flops_per_second(device, precision)
        self._check = check
        self._report = report
        self._pending: deque[_Pending] = deque()
        self._times = deque([clock.seconds()], maxlen=_RATE_STEPS + 1)
        self._pace = deque[float](maxlen=_PACE_STEPS + 1)

    def begin(self, row: dict[str, Any], loss_and_norm: Tensor) -> None:
        """Take a step's row."""
        self._pending.append(_Pending(row, loss_and_norm))

    def end(self) -> None:
        """The row begun last needs no more columns: write those that are old enough."""
        while len(self._pending) > (_STEPS_AHEAD if self._device.type == "cuda" else 0):
            self._fill(self._pending[0])
            self._write(self._pending.popleft())

    def seconds_of_next_step(self) -> float:
        """When a step that begins now will probably be done: after those that the device still has before it.

        The first step, which compiles, says nothing of the others.
        """
        if len(self._pace) < 2:
            return self._clock.seconds()
        seconds_per_step = (self._pace[-1] - self._pace[0]) / (len(self._pace) - 1)
        num_unknown = sum("seconds" not in pending.row for pending in self._pending)
        return max(self._clock.seconds(), self._pace[-1] + num_unknown * seconds_per_step) + seconds_per_step

    def settle(self) -> None:
        """Wait for all steps begun, and check their rows; the last one may then be added to."""
        for pending in self._pending:
            self._fill(pending)

    def add(self, **columns: Any) -> None:
        """More columns for the row begun last."""
        self._pending[-1].row.update(columns)

    def flush(self) -> None:
        """Write all rows, to the disk."""
        self.settle()
        while self._pending:
            self._write(self._pending.popleft())
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file; rows not written are dropped, as they are when the run is killed."""
        if self._file is not None:
            self._file.close()

    def _fill(self, pending: _Pending) -> None:
        if "seconds" in pending.row:
            return
        loss, norm = pending.values()
        now = self._clock.seconds()
        self._times.append(now)
        self._pace.append(now)
        rate = (len(self._times) - 1) * self._tokens_per_step / max(now - self._times[0], 1e-9)
        pending.row |= {"train_loss": loss, "grad_norm": norm, "seconds": round(now, 3)}
        pending.row |= {"tokens_per_second": round(rate), "peak_bytes": peak_bytes()}
        if self._peak_flops is not None:
            pending.row["mfu"] = round(rate * self._flops_per_token / self._peak_flops, 4)
        self._check(pending.row)

    def _write(self, pending: _Pending) -> None:
        if self._file is not None:
            self._file.write(json.dumps(pending.row) + "\n")
        self._report(pending.row)


class _Pending:
    """A row whose values are on their way from the device."""

    def __init__(self, row: dict[str, Any], values: Tensor) -> None:
        self.row = row
        self._event: torch.cuda.Event | None = None
        if values.is_cuda:
            self._values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._values.copy_(values, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()
        else:
            self._values = values

    def values(self) -> list[float]:
        if self._event is not None:
            self._event.synchronize()
        return self._values.tolist()


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Whole rows of a JSONL file that a kill may have left with half a line; none if it is not there."""
    if path.exists():
        *whole, _ = path.read_text(encoding="utf-8").split("\n")  # a sample may hold other ends of lines
        yield from map(json.loads, whole)


def drop_rows_after(path: Path, step: int) -> list[dict[str, Any]]:
    """Cut a file of rows back to a step whose successors will be made again; returns what is left."""
    rows = [row for row in read_rows(path) if row["step"] <= step]
    write_jsonl(path, rows)
    return rows


def is_finite(row: dict[str, Any]) -> bool:
    """Whether a step's loss and gradient are numbers."""
    return math.isfinite(row["train_loss"]) and math.isfinite(row["grad_norm"])
