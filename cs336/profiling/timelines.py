"""What ran when, computation beside communication: a profiler's trace made small, measured and drawn."""

from __future__ import annotations

import gzip
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from cs336 import pictures

PHASES = ("forward", "backward", "synchronization", "optimizer")
_GPU_KINDS = ("kernel", "gpu_memcpy", "gpu_memset")
_MAX_NAME = 90  # letters kept of a kernel's name: the rest is template arguments

Span = tuple[float, float]


@dataclass(frozen=True)
class Timeline:
    """One step of one rank, in ms from its beginning.

    Attributes:
        computation, communication: spans in which such work ran, in order, without overlaps among themselves.
        phases: name, begin and end of the step's parts: on the GPU where there is one.
    """

    computation: list[Span]
    communication: list[Span]
    phases: list[tuple[str, float, float]]

    @property
    def communication_ms(self) -> float:
        """Time in which communication ran, waiting for other ranks included."""
        return _total(self.communication)

    @property
    def hidden_share(self) -> float:
        """Share of that time in which computation ran too; 0 without communication."""
        both = _total(intersection(self.computation, self.communication))
        return both / self.communication_ms if self.communication else 0.0


def record(step: Callable[[], Any], path: Path | None, device: torch.device) -> None:
    """Run a step under PyTorch's profiler.

    Args:
        path: where the small trace goes (`.json.gz`, which Perfetto opens too); None on ranks that write none.

    Raises:
        RuntimeError: on a GPU, the profiler saw no kernel.
    """
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as profiler:
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    if path is None:
        return
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(whole))
        events = json.loads(whole.read_text())["traceEvents"]
    if device.type == "cuda" and not any(event.get("cat") == "kernel" for event in events):
        raise RuntimeError("the profiler saw no kernel: it may not read the GPU's counters here")
    path.parent.mkdir(parents=True, exist_ok=True)
    content = json.dumps({"traceEvents": small_trace(events)}, separators=(",", ":"))
    path.write_bytes(gzip.compress(content.encode(), mtime=0))


def small_trace(events: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What is needed of a Chrome trace: work on the GPU (or the CPU's operators where none ran there), and phases."""
    timed = [event for event in events if event.get("ph") == "X" and event.get("dur", 0) > 0]
    on_gpu = any(event.get("cat") == "kernel" for event in timed)
    # Phases as the GPU went through them: the CPU only queues its work, long before.
    annotation = "gpu_user_annotation" if on_gpu else "user_annotation"

    def is_kept(event: dict[str, Any]) -> bool:
        if event["name"] in PHASES:
            return event.get("cat") == annotation
        if on_gpu:
            return event.get("cat") in _GPU_KINDS
        # Not autograd's own frames, which last as long as what their hooks wait for.
        return (event.get("cat") == "cpu_op" and event["name"].startswith("aten::")) or _communicates(event)

    return [
        {key: event[key] for key in ("ph", "cat", "ts", "dur", "pid", "tid")} | {"name": event["name"][:_MAX_NAME]}
        for event in filter(is_kept, timed)
    ]


def read_timeline(path: Path) -> Timeline:
    """The timeline in a trace that `record` wrote."""
    return timeline_of(json.loads(gzip.decompress(path.read_bytes()))["traceEvents"])


def timeline_of(events: Sequence[dict[str, Any]]) -> Timeline:
    """Spans of a small trace's events.

    Raises:
        ValueError: it holds none.
    """
    if not events:
        raise ValueError("the trace holds no timed event")
    begin = min(event["ts"] for event in events)
    work: list[Span] = []
    sent: list[Span] = []
    phases: dict[str, Span] = {}
    for event in events:
        name, start = event["name"], (event["ts"] - begin) / 1e3  # traces count microseconds
        end = start + event["dur"] / 1e3
        if name in PHASES:  # once for each stream that worked in it
            first, last = phases.get(name, (start, end))
            phases[name] = min(first, start), max(last, end)
        else:
            (sent if _communicates(event) else work).append((start, end))
    return Timeline(union(work), union(sent), _in_order(phases))


def _in_order(phases: dict[str, Span]) -> list[tuple[str, float, float]]:
    """Phases by their beginning; autograd's own thread starts the backward pass's work, so that may bear no name."""
    after = [phases[name][0] for name in PHASES[2:] if name in phases]
    if "backward" not in phases and "forward" in phases and after:
        phases = phases | {"backward": (phases["forward"][1], max(phases["forward"][1], min(after)))}
    return sorted(((name, start, end) for name, (start, end) in phases.items()), key=lambda phase: phase[1])


def _communicates(event: dict[str, Any]) -> bool:
    """NCCL's kernels on a GPU; its annotations are no work. On a CPU what Gloo's threads record."""
    name = event["name"]
    return (event.get("cat") == "kernel" and "nccl" in name) or name.startswith("gloo:")


def union(spans: Sequence[Span]) -> list[Span]:
    """Spans in order, those that touch made one."""
    merged: list[Span] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(end, merged[-1][1])
        else:
            merged.append((start, end))
    return merged


def intersection(some: Sequence[Span], others: Sequence[Span]) -> list[Span]:
    """Where spans of both lists run; each list in order and without overlaps."""
    shared, place = [], 0
    for start, end in some:
        while place < len(others) and others[place][1] <= start:
            place += 1
        here = place
        while here < len(others) and others[here][0] < end:
            shared.append((max(start, others[here][0]), min(end, others[here][1])))
            here += 1
    return shared


def _total(spans: Sequence[Span]) -> float:
    return sum(end - start for start, end in spans)


def draw(timelines: dict[str, Timeline], path: Path) -> None:
    """Each timeline as two rows, computation and communication, over one clock; phases behind them."""
    figure = pictures.new_figure(10.0, 1.0 + 1.5 * len(timelines))
    sides = figure.subplots(len(timelines), 1, sharex=True, squeeze=False)[:, 0]
    longest = max((end for timeline in timelines.values() for _, _, end in timeline.phases), default=0.0)
    for axes, (name, timeline) in zip(sides, timelines.items(), strict=True):
        for place, (phase, start, end) in enumerate(timeline.phases):
            axes.axvspan(start, end, color="grey", alpha=0.16 if place % 2 else 0.07, lw=0)
            if end - start > 0.05 * longest:  # room for its name
                axes.text((start + end) / 2, 1.78, phase, ha="center", va="top", fontsize=7, color="dimgrey")
        for height, color, spans in (
            (1.0, "#1f77b4", timeline.computation),
            (0.2, "#d62728", timeline.communication),
        ):
            axes.broken_barh([(start, end - start) for start, end in spans], (height, 0.5), color=color, lw=0)
        axes.set_yticks([1.25, 0.45], ["computation", "communication"])
        axes.set_ylim(0, 1.85)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_title(
            f"{name}: {timeline.communication_ms:,.4g} ms of communication,"
            f" {timeline.hidden_share:.0%} of it while computing",
            fontsize=9,
            loc="left",
        )
    sides[-1].set_xlabel("ms")
    pictures.save(figure, path)
