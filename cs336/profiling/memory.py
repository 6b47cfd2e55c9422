"""The memory of one step over time, from PyTorch's allocator history: what is held when, and who asked for it."""

from __future__ import annotations

import bisect
import contextlib
import gzip
import itertools
import json
import pickle
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from cs336.files import UserError
from cs336.profiling.ranges import BACKWARD, FORWARD, OPTIMIZER, named_range
from cs336.profiling.step_times import StepConfig, Workload

MAX_ENTRIES = 1_000_000  # of the history, as the handout has it
NO_FRAME = "backward pass, in PyTorch's own thread (no Python frame)"
_OURS = "/cs336/"
_MACHINERY = "/cs336/profiling/"  # of our frames, those that only call the others


@dataclass(frozen=True)
class Timeline:
    """Active memory after each allocation and each release of one step.

    Attributes:
        active_bytes: after each event; the first is what was held before.
        stages: name and number of the first event of each, in order.
        largest: allocations of the step, largest first: bytes, how many of that size from that line, and the line.
    """

    active_bytes: list[int]
    stages: list[tuple[str, int]]
    largest: list[dict[str, Any]]

    @property
    def peak_bytes(self) -> int:
        return max(self.active_bytes)

    @property
    def peak_stage(self) -> str:
        """The stage in which the peak lies."""
        place = self.active_bytes.index(self.peak_bytes)
        return next((name for name, first in reversed(self.stages) if first <= place), "before")


def record_step(config: StepConfig, device: torch.device, path: Path | None = None) -> Timeline:
    """Take the warm-up steps, then record one more.

    On a GPU the allocator's history is read. On a CPU, whose allocator keeps none, the profiler's count of what is
    asked for and given back stands for it, and the operator for the line of ours.

    Args:
        path: where the snapshot is written, for pytorch.org/memory_viz; gzipped if it ends in .gz.

    Raises:
        UserError: a snapshot is wanted, and the device is no GPU.
        torch.OutOfMemoryError: it does not fit.
    """
    if device.type == "cuda":
        return _recorded_by_allocator(config, device, path)
    if path is not None:
        raise UserError("only CUDA's allocator keeps a history to take a snapshot of, and this device is none")
    return _recorded_by_profiler(config, device)


def _recorded_by_allocator(config: StepConfig, device: torch.device, path: Path | None) -> Timeline:
    marks: list[tuple[str, int]] = []
    recording = False

    @contextlib.contextmanager
    def mark(name: str) -> Iterator[None]:
        if recording:
            marks.append((name, _num_allocations(device)))
        yield

    workload = Workload(config, device, mark=mark)
    for _ in range(config.warmup):
        workload.step()
    workload.synchronize()
    recording = True
    before = _num_allocations(device)
    # Python frames alone: to look up those of C++ takes minutes, and they are the same for every operator.
    torch.cuda.memory._record_memory_history(max_entries=MAX_ENTRIES, stacks="python")
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "snapshot.pickle"
        try:
            workload.step()
            workload.synchronize()
            torch.cuda.memory._dump_snapshot(str(plain))
        finally:
            torch.cuda.memory._record_memory_history(enabled=None)
        pickled = plain.read_bytes()
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(pickled) if path.suffix == ".gz" else pickled)
    return read_timeline(pickle.loads(pickled), [(name, count - before) for name, count in marks])


def _num_allocations(device: torch.device) -> int:
    return torch.cuda.memory_stats(device)["allocation.all.allocated"]


def read_timeline(snapshot: dict[str, Any], marks: Sequence[tuple[str, int]], *, num_largest: int = 12) -> Timeline:
    """A step's timeline from its snapshot.

    Args:
        snapshot: as `torch.cuda.memory._dump_snapshot` pickles it.
        marks: each stage, and the allocations of the step before it began.
    """
    trace: list[dict[str, Any]] = next((events for events in snapshot["device_traces"] if events), [])
    events = [event for event in trace if event["action"] in ("alloc", "free_completed")]
    changes = [event["size"] if event["action"] == "alloc" else -event["size"] for event in events]
    held_at_the_end = sum(
        block.get("requested_size", block["size"])  # as the events have it, not rounded up
        for segment in snapshot["segments"]
        for block in segment["blocks"]
        if block["state"] == "active_allocated"
    )
    active = list(itertools.accumulate(changes, initial=held_at_the_end - sum(changes)))
    allocations = [place for place, event in enumerate(events) if event["action"] == "alloc"]
    stages = [(name, allocations[count] + 1 if count < len(allocations) else len(active)) for name, count in marks]
    asked = [(events[place]["size"], origin(events[place].get("frames", []))) for place in allocations]
    return Timeline(active_bytes=active, stages=stages, largest=_largest(asked, num_largest))


def _largest(asked: Sequence[tuple[int, str]], count: int) -> list[dict[str, Any]]:
    ordered = sorted(Counter(asked).items(), key=lambda item: (-item[0][0], -item[1]))[:count]
    return [{"num_bytes": size, "count": times, "origin": line} for (size, line), times in ordered]


def origin(frames: Sequence[dict[str, Any]]) -> str:
    """The innermost line of our code in a stack (innermost first), as `model/layers.py:142 softmax`."""
    for frame in frames:
        name = frame["filename"].replace("\\", "/")
        if _OURS in name and _MACHINERY not in name:
            return f"{name.rpartition(_OURS)[2]}:{frame['line']} {frame['name']}"
    return "elsewhere in Python" if frames else NO_FRAME


def _recorded_by_profiler(config: StepConfig, device: torch.device) -> Timeline:
    workload = Workload(config, device, mark=named_range)
    for _ in range(config.warmup):
        workload.step()
    workload.model.zero_grad(set_to_none=True)  # the profiler sees no release of what was there before it
    held_bytes = _held_bytes(workload)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        workload.step()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text(errors="replace"))["traceEvents"]
    return read_profile(events, held_bytes)


def _held_bytes(workload: Workload) -> int:
    """Weights and the optimizer's states."""
    held = list(workload.model.parameters())
    if workload.optimizer is not None:
        held += [value for state in workload.optimizer.state.values() for value in state.values()]
    return sum(each.untyped_storage().nbytes() for each in held if isinstance(each, Tensor))


def read_profile(events: Sequence[dict[str, Any]], held_bytes: int, *, num_largest: int = 12) -> Timeline:
    """A step's timeline from a Chrome trace with PyTorch's memory events.

    Args:
        held_bytes: what was held before.
    """
    changes = sorted(
        ((event["ts"], event["args"]["Bytes"]) for event in events if event.get("name") == "[memory]"),
        key=lambda change: change[0],
    )
    active = list(itertools.accumulate((size for _, size in changes), initial=held_bytes))
    times = [time for time, _ in changes]
    complete = [event for event in events if event.get("ph") == "X"]
    stages = [
        (event["name"], bisect.bisect_left(times, event["ts"]) + 1)
        for event in sorted(complete, key=lambda event: event["ts"])
        if event.get("cat") == "user_annotation" and event["name"] in (FORWARD, BACKWARD, OPTIMIZER)
    ]
    operators = [event for event in complete if event.get("cat") == "cpu_op"]
    asked = [(size, _innermost(operators, time)) for time, size in changes if size > 0]
    return Timeline(active_bytes=active, stages=stages, largest=_largest(asked, num_largest))


def _innermost(operators: Sequence[dict[str, Any]], time: float) -> str:
    around = [event for event in operators if event["ts"] <= time <= event["ts"] + event["dur"]]
    return min(around, key=lambda event: event["dur"])["name"] if around else "no operator"


def thinned(timeline: Timeline, *, most: int = 4_000) -> dict[str, Any]:
    """The timeline as JSON values of at most about `most` points: of each run of events the largest value."""
    width = max(1, -(-len(timeline.active_bytes) // most))
    points = [
        max(timeline.active_bytes[start : start + width]) for start in range(0, len(timeline.active_bytes), width)
    ]
    return {
        "events_per_point": width,
        "active_bytes": points,
        "stages": [[name, first // width] for name, first in timeline.stages],
    }
