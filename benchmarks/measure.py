"""What all subjects share: take times by turns, compare results first, describe the machine, write rows."""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

OURS = "ours"


class Unavailable(Exception):
    """A contender cannot take part, such as a package that is not installed; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One way to do a case's work.

    Attributes:
        name: "ours", or the peer's.
        prepare: does what is not timed and returns the function that is; raises `Unavailable` if
            the contender cannot run here.
        packages: distributions whose versions belong to the figure.
    """

    name: str
    prepare: Callable[[], Callable[[], Any]]
    packages: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Case:
    """Work that several contenders do on the same input.

    Attributes:
        name: short, for rows and ratios.
        amount: of work in one run, in the unit whose quotient with seconds is the figure.
        unit: of the figure, such as "MB/s"; more is always better.
        contenders: ours first.
        difference: what is wrong with a contender's result, given ours and theirs, or None if they
            agree; it runs before anything is timed.
        input: what was worked on, for the row: bytes and SHA-256 at least.
        device: "cpu", or "cuda" for times by CUDA events.
    """

    name: str
    amount: float
    unit: str
    contenders: list[Contender]
    difference: Callable[[Any, Any], str | None]
    input: dict[str, Any] = field(default_factory=dict)
    device: str = "cpu"


class Subject(Protocol):
    """What a module of this package offers to be a subject; its docstring is the help text."""

    __doc__: str | None

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the subject's own options (`--repeats` and `--results` are there)."""

    def cases(self, options: argparse.Namespace) -> Iterator[Case]:
        """The cases to measure, one after the other."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Times of one contender.

    Attributes:
        seconds: of each run.
        peak_bytes: memory that a run needed beyond what was held before; None where unknown.
    """

    seconds: list[float]
    peak_bytes: int | None


def run_subject(name: str, subject: Subject, options: argparse.Namespace) -> int:
    """Measure all cases, append their rows, print figures and ratios.

    Returns:
        Exit status: 1 if ours failed anywhere, else 0.
    """
    surroundings = {
        "hardware": hardware(),
        "commit": git_commit(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    ratios: dict[str, float | None] = {}
    ours_failed = False
    for case in subject.cases(options):
        measured, messages = measure_case(case, repeats=options.repeats)
        figures: dict[str, float] = {}
        for contender in case.contenders:
            row: dict[str, Any] = {"subject": name, "case": case.name, "contender": contender.name}
            if contender.name in measured:
                row |= _figures(case, measured[contender.name])
                figures[contender.name] = row["figure"]
            else:
                row["failure"] = messages[contender.name]
            row |= {"input": case.input, "versions": versions(contender.packages)} | surroundings
            append_row(options.results / f"{name}.jsonl", row)
            print(f"{case.name:<20} {contender.name:<24} {_in_words(row)}", flush=True)
        ours_failed = ours_failed or OURS not in figures
        peers = [figure for contender_name, figure in figures.items() if contender_name != OURS]
        ratios[case.name] = figures[OURS] / max(peers) if peers and OURS in figures else None
    print()
    for case_name, ratio in ratios.items():
        print(f"ratio {name}/{case_name} {_ratio_in_words(ratio)}")
    known = [ratio for ratio in ratios.values() if ratio is not None]
    print(f"ratio {name} {_ratio_in_words(min(known, default=None))}")
    return 1 if ours_failed else 0


def measure_case(case: Case, *, repeats: int) -> tuple[dict[str, Measurement], dict[str, str]]:
    """Prepare all contenders, compare their results with ours, then take times by turns.

    By turns, so that a machine that slows down slows all of them.

    Returns:
        Measurements of those that ran and agreed; messages of the others.
    """
    runs: dict[str, Callable[[], Any]] = {}
    peaks: dict[str, int | None] = {}
    messages: dict[str, str] = {}
    ours: Any = None
    for contender in case.contenders:
        try:
            run = contender.prepare()
            result, peaks[contender.name] = with_peak_memory(run, device=case.device)  # the warm-up, too
            if contender.name == OURS:
                ours = result
            elif OURS in runs and (message := case.difference(ours, result)):
                messages[contender.name] = f"left out: its result differs: {message}"
                continue
            runs[contender.name] = run
        except Exception as error:  # any failure of one is a message beside the figures of the others
            messages[contender.name] = f"{type(error).__name__}: {error}"
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in list(runs.items()):
            try:
                times[name].append(seconds_of(run, device=case.device))
            except Exception as error:
                messages[name] = f"{type(error).__name__}: {error}"
                del runs[name]
    return {name: Measurement(seconds=times[name], peak_bytes=peaks[name]) for name in runs}, messages


def seconds_of(run: Callable[[], Any], *, device: str = "cpu") -> float:
    """Duration of one call: wall time on a CPU, time between CUDA events on a GPU."""
    if device != "cuda":
        start = time.perf_counter()
        run()
        return time.perf_counter() - start
    import torch

    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    begin.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1e3  # events count milliseconds


def with_peak_memory(run: Callable[[], Any], *, device: str = "cpu") -> tuple[Any, int | None]:
    """A call's result, and the most memory it needed beyond what was held before, in bytes.

    On a CPU this is the resident memory of this process (Linux only; None elsewhere); memory that an
    earlier call left to the allocator is used again and not seen, so it is a lower bound.
    """
    if device == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = run()
        torch.cuda.synchronize()
        return result, torch.cuda.max_memory_allocated() - before
    resident_before = _resident_bytes("VmRSS") if _reset_peak() else None
    result = run()
    peak = _resident_bytes("VmHWM") if resident_before is not None else None
    return result, None if peak is None or resident_before is None else max(0, peak - resident_before)


def _reset_peak() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets VmHWM
    except OSError:
        return False
    return True


def _resident_bytes(key: str) -> int | None:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    return None


def _figures(case: Case, measurement: Measurement) -> dict[str, Any]:
    rates = [case.amount / seconds for seconds in measurement.seconds]
    return {
        "figure": case.amount / statistics.median(measurement.seconds),
        "unit": case.unit,
        "spread": [min(rates), max(rates)],
        "repeats": len(rates),
        "peak_bytes": measurement.peak_bytes,
    }


def _in_words(row: dict[str, Any]) -> str:
    if "failure" in row:
        return row["failure"]
    low, high = row["spread"]
    peak = "unknown" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e6:,.0f} MB"
    return f"{row['figure']:,.4g} {row['unit']} ({low:,.4g} to {high:,.4g}), peak memory {peak}"


def _ratio_in_words(ratio: float | None) -> str:
    return "n/a (no peer ran beside ours)" if ratio is None else f"{ratio:.3g}"


def append_row(path: Path, row: dict[str, Any]) -> None:
    """Add one JSON line to a file of results."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")


def hardware() -> dict[str, Any]:
    """What the figures were taken on: CPU model, usable cores, memory, GPUs."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpus": _gpus(),
    }


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _gpus() -> list[str]:
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(
        ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True, check=False
    )
    return listed.stdout.strip().splitlines() if listed.returncode == 0 else []


def git_commit() -> str:
    """The commit of the code measured, with "+changes" when files differ from it."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    if commit is None:
        return "unknown"
    return commit + ("+changes" if git("status", "--porcelain") else "")


def versions(packages: tuple[str, ...]) -> dict[str, str]:
    """Versions of Python and of those of the packages that are installed."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
