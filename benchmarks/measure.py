"""What all subjects share: take times by turns, compare results first, describe the machine, write rows."""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from cs336.files import append_jsonl
from cs336.revision import describe_commit
from cs336.store import cpu_model, versions_of

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
        check: does the same work on a piece of the input, after `prepare`: its result is compared before anything
            is timed. None: a whole run is made for that.
    """

    name: str
    prepare: Callable[[], Callable[[], Any]]
    packages: tuple[str, ...] = ()
    check: Callable[[], Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Observation:
    """What a run returns that took its figures itself, such as one in a process of its own.

    Attributes:
        seconds: of each of the case's parts; one that the contender cannot do is missing.
        peak_bytes: the most memory that its process ever held.
        result: to be compared with ours of the same turn.
        details: of the contender alone, for its row.
    """

    seconds: dict[str, float]
    peak_bytes: int | None
    result: Any
    details: dict[str, Any] = field(default_factory=dict)


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
        parts: what one run times one after the other; each has rows of its own, named after it.
        repeats: timed runs of each contender; None for what the command line says.
        budget_seconds: a contender whose timed runs have taken this long gets no further ones.
        limits: what ours must not exceed: "seconds", "peak_bytes".
    """

    name: str
    amount: float
    unit: str
    contenders: list[Contender]
    difference: Callable[[Any, Any], str | None]
    input: dict[str, Any] = field(default_factory=dict)
    device: str = "cpu"
    parts: tuple[str, ...] = ("",)
    repeats: int | None = None
    budget_seconds: float = math.inf
    limits: dict[str, float] = field(default_factory=dict)


class Subject(Protocol):
    """What a module of this package offers to be a subject; its docstring is the help text.

    It may offer `instead_of_cases`, too: options -> exit status, or None where its cases are to be measured.
    """

    __doc__: str | None

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the subject's own options (`--repeats` and `--results` are there)."""

    def cases(self, options: argparse.Namespace) -> Iterator[Case]:
        """The cases to measure, one after the other."""


@dataclass(kw_only=True)
class Measurement:
    """Times of one contender.

    Attributes:
        seconds: of each run, by the case's parts.
        peak_bytes: memory that a run needed beyond what was held before, or that its own process held at most;
            None where unknown.
        details: what the last run said of itself.
    """

    seconds: dict[str, list[float]]
    peak_bytes: int | None
    details: dict[str, Any] = field(default_factory=dict)


def run_subject(name: str, subject: Subject, options: argparse.Namespace) -> int:
    """Measure all cases, append their rows, print figures and ratios.

    Returns:
        Exit status: 1 if ours failed anywhere, else 0.
    """
    surroundings = {
        "hardware": hardware(),
        "commit": describe_commit(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    ratios: dict[str, float | None] = {}
    rows: list[dict[str, Any]] = []
    for case in subject.cases(options):
        measured, messages = measure_case(case, repeats=case.repeats or options.repeats)
        for part in case.parts:
            name_of_part = "-".join(filter(None, [case.name, part]))
            of_part = [
                {"subject": name, "case": name_of_part, "contender": contender.name}
                | _figures(case, part, measured.get(contender.name), messages.get(contender.name))
                | {"input": case.input, "versions": versions_of(contender.packages)}
                | surroundings
                for contender in case.contenders
            ]
            figures = {row["contender"]: row["figure"] for row in of_part if "figure" in row}
            ours = figures.pop(OURS, None)
            ratios[name_of_part] = ours / max(figures.values()) if ours and figures else None
            for row in of_part:
                if row["contender"] == OURS and ours:
                    row["ratios"] = {peer: ours / figure for peer, figure in figures.items()}
                append_jsonl(options.results / f"{name}.jsonl", row)
                print(f"{name_of_part:<28} {row['contender']:<16} {_in_words(row)}", flush=True)
            rows += of_part
    print_table(rows)
    finish = getattr(subject, "finish", None)
    if finish:
        finish(rows, options)
    print()
    for case_name, ratio in ratios.items():
        print(f"ratio {name}/{case_name} {_ratio_in_words(ratio)}")
    known = [ratio for ratio in ratios.values() if ratio is not None]
    print(f"ratio {name} {_ratio_in_words(min(known, default=None))}")
    return 1 if any("failure" in row for row in rows if row["contender"] == OURS) else 0


def measure_case(case: Case, *, repeats: int) -> tuple[dict[str, Measurement], dict[str, str]]:
    """Prepare all contenders, compare their results with ours, then take times by turns.

    By turns, so that a machine that slows down slows all of them.

    Returns:
        Measurements of those that ran and agreed; messages of the others.
    """
    runs: dict[str, Callable[[], Any]] = {}
    measured: dict[str, Measurement] = {}
    messages: dict[str, str] = {}
    ours: Any = None
    for contender in case.contenders:
        peak = None
        try:
            run = contender.prepare()
            if contender.check is not None:
                result = contender.check()
            else:
                result, peak = with_peak_memory(run, device=case.device)  # the warm-up, too
            if contender.name == OURS:
                ours = result
            elif OURS in runs and (message := case.difference(ours, result)):
                messages[contender.name] = f"left out: its result differs: {message}"
                continue
            runs[contender.name] = run
            measured[contender.name] = Measurement(seconds={part: [] for part in case.parts}, peak_bytes=peak)
        except Exception as error:  # any failure of one is a message beside the figures of the others
            messages[contender.name] = f"{type(error).__name__}: {error}"
    spent = dict.fromkeys(runs, 0.0)
    for _ in range(repeats):
        for name in list(runs):
            if spent[name] >= case.budget_seconds:
                continue
            try:
                start = time.perf_counter()
                if name == OURS:
                    ours = None  # of the turn before
                result = _timed(case, runs[name], measured[name])
                spent[name] += time.perf_counter() - start
                if name == OURS:
                    ours = result
                elif ours is not None and result is not None and (message := case.difference(ours, result)):
                    raise ValueError(f"its result differs: {message}")
            except Exception as error:
                messages[name] = f"{type(error).__name__}: {error}"
                del runs[name]
    return {name: measured[name] for name in runs}, messages


def _timed(case: Case, run: Callable[[], Any], measurement: Measurement) -> Any:
    """Run once and note the times; returns what is to be compared, if the run took its times itself."""
    observed: list[Any] = []
    seconds = seconds_of(lambda: observed.append(run()), device=case.device)
    if not isinstance(observed[0], Observation):
        measurement.seconds[case.parts[0]].append(seconds)
        return None
    observation = observed[0]
    for part, of_part in observation.seconds.items():
        measurement.seconds[part].append(of_part)
    measurement.details.update(observation.details)
    if observation.peak_bytes is not None:
        measurement.peak_bytes = max(observation.peak_bytes, measurement.peak_bytes or 0)
    return observation.result


def in_fresh_process(module: str, job: dict[str, Any], *, environment: dict[str, str]) -> tuple[dict[str, Any], str]:
    """Run `python -m MODULE` with a job on its standard input, and read the JSON object of its last line.

    Returns:
        That object, and what the process wrote on standard error.

    Raises:
        Unavailable: the object has the key "unavailable".
        RuntimeError: the process failed; the message is the last line of its standard error.
    """
    done = subprocess.run(
        [sys.executable, "-m", module],
        input=json.dumps(job),
        env=os.environ | environment,
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise RuntimeError(lines[-1])
    answer = json.loads(done.stdout.strip().splitlines()[-1])
    if "unavailable" in answer:
        raise Unavailable(answer["unavailable"])
    return answer, done.stderr


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


def median_seconds(run: Callable[[], Any], *, device: str = "cpu", warmup_ms: int = 100, rep_ms: int = 400) -> float:
    """Median duration of many calls on a GPU, as `triton.testing.do_bench` takes it; of one call on a CPU."""
    if device != "cuda":
        return seconds_of(run)
    from triton.testing import do_bench

    return do_bench(run, warmup=warmup_ms, rep=rep_ms, return_mode="median") / 1e3


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
    resident_before = resident_bytes("VmRSS") if _reset_peak() else None
    result = run()
    peak = resident_bytes("VmHWM") if resident_before is not None else None
    return result, None if peak is None or resident_before is None else max(0, peak - resident_before)


def _reset_peak() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets VmHWM
    except OSError:
        return False
    return True


def resident_bytes(key: str = "VmHWM") -> int | None:
    """Resident memory of this process, by its name in Linux's status file: the most ever held, or "VmRSS" for now."""
    if not Path("/proc/self/status").exists():
        return None
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    return None


def _figures(case: Case, part: str, measurement: Measurement | None, message: str | None) -> dict[str, Any]:
    if measurement is None or not measurement.seconds[part]:
        return {"failure": message or f"left out: has no {part}"}
    seconds = measurement.seconds[part]
    rates = [case.amount / each for each in seconds]
    figures = {
        "figure": case.amount / statistics.median(seconds),
        "unit": case.unit,
        "spread": [min(rates), max(rates)],
        "repeats": len(rates),
        "seconds": statistics.median(seconds),
        "peak_bytes": measurement.peak_bytes,
        **measurement.details,
    }
    if case.limits:
        figures["limits"] = case.limits
        figures["within_limits"] = all((figures[key] or math.inf) <= limit for key, limit in case.limits.items())
    return figures


def _in_words(row: dict[str, Any]) -> str:
    if "failure" in row:
        return row["failure"]
    low, high = row["spread"]
    return f"{row['figure']:,.4g} {row['unit']} ({low:,.4g} to {high:,.4g}), peak memory {_peak_in_words(row)}"


def _peak_in_words(row: dict[str, Any]) -> str:
    return "unknown" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e6:,.0f} MB"


def print_table(rows: list[dict[str, Any]]) -> None:
    """All rows as a table: one line a contender, what ours is compared with it at the end."""
    heads = ["case", "contender", "figure", "spread", "seconds", "peak memory", "ours / this"]
    lines = []
    ours: dict[str, Any] = {}
    for row in rows:
        if row["contender"] == OURS:
            ours = row
        if "failure" in row:
            lines.append([row["case"], row["contender"], row["failure"][:90], "", "", "", ""])
            continue
        low, high = row["spread"]
        if "limits" in row:
            wanted = ", ".join(f"{key} <= {limit:,.4g}" for key, limit in row["limits"].items())
            last = f"{'within' if row['within_limits'] else 'BEYOND'} {wanted}"
        else:
            ratio = ours.get("ratios", {}).get(row["contender"])
            last = f"{ratio:.2f}" if ratio else ""
        lines.append(
            [
                row["case"],
                row["contender"],
                f"{row['figure']:,.4g} {row['unit']}",
                f"{low:,.4g} to {high:,.4g}",
                f"{row['seconds']:,.3g}",
                _peak_in_words(row),
                last,
            ]
        )
    widths = [max(len(line[column]) for line in [heads, *lines] if line[3] or column < 2) for column in range(7)]
    print()
    for line in [heads, *lines]:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _ratio_in_words(ratio: float | None) -> str:
    return "n/a (no peer ran beside ours)" if ratio is None else f"{ratio:.3g}"


def hardware() -> dict[str, Any]:
    """What the figures were taken on: CPU model, usable cores, memory, GPUs."""
    return {
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpus": _gpus(),
    }


def _gpus() -> list[str]:
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(
        ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True, check=False
    )
    return listed.stdout.strip().splitlines() if listed.returncode == 0 else []


def at_least_one(text: str) -> int:
    """An option's number, 1 or more."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is too few; give 1 or more")
    return number
