"""What bounds our kernels, by the GPU's hardware counters, read by Nsight Compute (`ncu`).

  python -m benchmarks.counters                        all cases under ncu: rows, and a table at the end
  python -m benchmarks.counters --cases rms_norm       some of them
  python -m benchmarks.counters --read counters.csv    rows and table of what an earlier run of ncu wrote

Cases are attention, forward and backward, ours and cuDNN's, and ours of `python -m benchmarks kernels`. Each work runs
twice unseen, then every kernel that it launches is replayed until all counters are read. Shares are of the kernel's
whole time in which the unit was busy: tensor cores, exponentials (the unit of special functions), issue of
instructions, first-level cache and shared memory, second-level cache, memory. The busiest unit is what bounds a kernel.
Where none is near its limit, warps wait; the last column says for what.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks import attention, kernels
from benchmarks.measure import OURS, hardware
from cs336.files import UserError, append_jsonl
from cs336.profiling.tables import markdown_table
from cs336.store import describe_commit, versions_of

RESULTS = Path(__file__).parent / "results"
SECTIONS = (
    *("SpeedOfLight", "ComputeWorkloadAnalysis", "MemoryWorkloadAnalysis"),
    *("Occupancy", "LaunchStats", "SchedulerStats", "WarpStateStats"),
)
# Unit -> beginnings of the names of counters that hold its busy share, the first that the GPU has.
UNITS = {
    "tensor_cores": ("sm__pipe_tensor_cycles_active", "sm__inst_executed_pipe_tensor"),
    "exponentials": ("sm__inst_executed_pipe_xu",),
    "issue": ("sm__inst_issued", "sm__issue_active", "sm__instruction_throughput"),
    "first_level_cache": ("l1tex__throughput", "l1tex__data_pipe"),
    "second_level_cache": ("lts__throughput",),
    "memory": ("gpu__dram_throughput", "dram__throughput"),
}
_SHARE = "pct_of_peak_sustained_elapsed"
_STALL = re.compile(r"average_warps?_issue_stalled_(\w+?)_per_issue_active")
_MARK = re.compile(r"cs336 (\S+) (\S+) end")
_SMALL = 0.02  # of a case's time: kernels below it are left out of the table
_COLUMNS = {"case": "case", "contender": "contender", "kernel": "kernel", "milliseconds": "ms"}
_COLUMNS |= {unit: f"{unit.replace('_', ' ')}, %" for unit in UNITS}
_COLUMNS |= {"registers": "registers a thread", "occupancy": "occupancy, %", "waits_for": "warps wait for"}


def works() -> Iterator[tuple[str, str, Callable[[], Callable[[], Any]]]]:
    """Case, contender, and what prepares its work."""
    for shape in map(attention.Shape.parse, attention.SHAPES):
        for name in (OURS, attention.CUDNN):
            yield f"attention-{shape.name()}", name, lambda shape=shape, name=name: _attention(shape, name)  # type: ignore[misc]
    for name, make in kernels.KERNELS.items():
        yield name, OURS, lambda make=make: make(torch.device("cuda"), 1).works[OURS]()  # type: ignore[misc]


def _attention(shape: attention.Shape, name: str) -> Callable[[], Any]:
    device = torch.device("cuda")
    inputs = attention.inputs_of(shape, shape.length, torch.bfloat16, device)
    function = attention.attention_of(name, shape.length, device)
    grad = torch.randn_like(inputs[0])
    return lambda: torch.autograd.grad(function(*inputs), inputs, grad)


def run_works(cases: list[str]) -> None:
    """What ncu watches: each work twice unseen, then once between the profiler's start and stop."""
    for case, contender, prepare in works():
        if cases and case not in cases:
            continue
        work = prepare()
        for _ in range(2):
            work()
        torch.cuda.synchronize()
        mark = torch.cuda.nvtx.range_start(f"cs336 {case} {contender} end")  # of all threads: backward has its own
        torch.cuda.profiler.start()
        work()
        torch.cuda.synchronize()
        torch.cuda.profiler.stop()
        torch.cuda.nvtx.range_end(mark)
        del work
        torch.cuda.empty_cache()


def read_kernels(path: Path) -> list[dict[str, Any]]:
    """One record a kernel of ncu's raw page in CSV: case, contender, name, milliseconds, shares, registers, waits.

    Raises:
        UserError: the file is not such a page.
    """
    lines = [line for line in path.read_text().splitlines() if line.startswith('"')]
    if len(lines) < 3:
        raise UserError(f"{path}: no kernels; it must hold what `ncu --csv --page raw` prints")
    names, units, *values = csv.reader(lines)
    return [_kernel(dict(zip(names, line, strict=True)), dict(zip(names, units, strict=True))) for line in values]


def _kernel(row: dict[str, str], units: dict[str, str]) -> dict[str, Any]:
    mark = _MARK.search(" ".join(row.values()))
    time = next(name for name in row if name.startswith("gpu__time_duration"))
    per_unit = {"ns": 1e6, "us": 1e3, "ms": 1.0, "s": 1e-3, "nsecond": 1e6, "usecond": 1e3, "msecond": 1.0}[units[time]]
    stalls = {
        found[1].removesuffix("_not_issued"): _number(value)
        for name, value in row.items()
        if (found := _STALL.search(name)) and value
    }
    longest = max(stalls, key=lambda name: stalls[name], default="")
    return {
        "case": mark[1] if mark else "",
        "contender": mark[2] if mark else "",
        "kernel": row["Kernel Name"].partition("(")[0][:60],
        "milliseconds": _number(row[time]) / per_unit,
        **{unit: _first(row, [f"{start}*{_SHARE}" for start in starts]) for unit, starts in UNITS.items()},
        "registers": _first(row, ["launch__registers_per_thread"]),
        "occupancy": _first(row, ["sm__warps_active*"]),
        "waits_for": f"{longest} ({stalls[longest] / sum(stalls.values()):.0%})" if longest else "",
    }


def _first(row: dict[str, str], patterns: list[str]) -> float | None:
    for pattern in patterns:
        start, _, end = pattern.partition("*")
        for name, value in row.items():
            if name.startswith(start) and name.endswith(end) and value not in ("", "n/a"):
                return _number(value)
    return None


def _number(text: str) -> float:
    return float(text.replace(",", ""))


def _measure(cases: list[str], raw: Path) -> None:
    if shutil.which("ncu") is None:
        raise UserError("ncu is not installed; it comes with CUDA, as Nsight Compute")
    command = ["ncu", "--profile-from-start", "off", "--nvtx", "--csv", "--page", "raw", "--clock-control", "none"]
    command += ["--target-processes", "all", *(part for name in SECTIONS for part in ("--section", name))]
    command += [sys.executable, "-m", "benchmarks.counters", "--work", *(["--cases", *cases] if cases else [])]
    with raw.open("w") as output:
        status = subprocess.run(command, stdout=output, check=False).returncode
    if status:
        raise UserError(f"ncu ended with status {status}; {raw} holds what it said")


def main() -> int:
    """Run ncu, or read what it wrote; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.counters",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--cases", nargs="+", default=[], metavar="CASE", help="(default: all)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of counters.jsonl (default %(default)s)")
    parser.add_argument("--read", type=Path, metavar="CSV", help="what an earlier run of ncu wrote")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)  # what ncu runs
    options = parser.parse_args()
    if options.work:
        run_works(options.cases)
        return 0
    try:
        options.results.mkdir(parents=True, exist_ok=True)
        raw = options.read or options.results / "counters.csv"
        if options.read is None:
            _measure(options.cases, raw)
        found = read_kernels(raw)
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    facts = {"versions": versions_of(["torch", "triton"]), "hardware": hardware(), "commit": describe_commit()}
    for kernel in found:
        append_jsonl(options.results / "counters.jsonl", {"subject": "counters"} | kernel | facts | {"date": date})
    total: dict[tuple[str, str], float] = {}
    for kernel in found:
        total[_work_of(kernel)] = total.get(_work_of(kernel), 0.0) + kernel["milliseconds"]
    large = [kernel for kernel in found if kernel["milliseconds"] > _SMALL * total[_work_of(kernel)]]
    print(markdown_table(large, _COLUMNS))
    return 0


def _work_of(kernel: dict[str, Any]) -> tuple[str, str]:
    return kernel["case"], kernel["contender"]


if __name__ == "__main__":
    sys.exit(main())
