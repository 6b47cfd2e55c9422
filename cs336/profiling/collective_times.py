"""How long an all-reduce takes: over sizes, numbers of processes and backends, and the line through the figures.

A ring all-reduce of S bytes over N ranks moves 2 (N - 1)/N · S bytes over each rank's link; divided by the time, that
is the bus bandwidth, which compares across numbers of ranks.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from timeit import default_timer
from typing import Any

import torch
import torch.distributed as dist

from cs336 import pictures
from cs336.parallel.process_group import Rank
from cs336.profiling.parallel_config import ParallelConfig
from cs336.profiling.rank_cells import Rows, Say, over_ranks, require_gpus, run_cell, start_together, synchronize
from cs336.profiling.spread import how_timed, median_and_quartiles, spread_of, spread_text
from cs336.profiling.tables import markdown_table

_COLUMNS = {
    "backend": "backend",
    "processes": "processes",
    "megabytes": "MB",
    "ms": "ms, slowest rank",
    "spread": "spread over calls",
    "ms_fastest_rank": "ms, fastest rank",
    "bus_gb_per_second": "bus bandwidth, GB/s",
    "state": "",
}


@dataclass(frozen=True)
class Line:
    """`seconds(S) = latency_seconds + S / bytes_per_second`: the o and w of the overhead model."""

    latency_seconds: float
    bytes_per_second: float


def measure_all_reduces(config: ParallelConfig, rows: Rows, say: Say) -> list[dict[str, Any]]:
    """Time the config's sizes on its numbers of processes, on as many as there are GPUs for.

    Each number of processes is started once; sizes that have a row already are left out.

    Raises:
        UserError: fewer GPUs than the least of the numbers.
    """
    backend = "nccl" if config.device == "cuda" else "gloo"
    require_gpus("all-reduce between GPUs", min(config.process_counts), config.device)
    found = []
    for count in config.process_counts:
        if config.device == "cuda" and count > torch.cuda.device_count():
            say(f"{backend} {count} processes: left out, there are {torch.cuda.device_count()} GPUs")
            continue
        cells = {
            size: {"collective": "all-reduce", "backend": backend, "processes": count, "bytes": size}
            for size in config.all_reduce_bytes
        }
        missing = [size for size, cell in cells.items() if rows.find(cell) is None]
        answer = (
            run_cell(
                time_all_reduces,
                count,
                missing,
                config.num_warmup,
                config.num_calls,
                device=config.device,
                timeout_seconds=config.timeout_seconds,
            )
            if missing
            else {}
        )
        for size, cell in cells.items():
            result = answer.get(str(size), answer)  # of the size, or what befell all of them
            found.append(rows.measure(cell, lambda result=result: result, say))  # type: ignore[misc]
    return found


def time_all_reduces(place: Rank, sizes: Sequence[int], num_warmup: int, num_calls: int) -> dict[str, Any]:
    """Time all-reduces of fp32 tensors; every rank calls it.

    Args:
        sizes: in bytes.

    Returns:
        For each size, as text: median `ms` over calls of the slowest rank, its `ms_quartiles`, the fastest rank's
        median, and `bus_gb_per_second`.
    """
    results = {}
    for num_bytes in sizes:
        tensor = torch.zeros(num_bytes // 4, dtype=torch.float32, device=place.device)
        seconds = []
        for number in range(num_warmup + num_calls):
            start_together(place)
            start = default_timer()
            dist.all_reduce(tensor)
            synchronize(place.device)  # the call returns when the work is queued, not when it is done
            if number >= num_warmup:
                seconds.append(default_timer() - start)
        of_ranks = over_ranks(seconds)
        times = median_and_quartiles([1e3 * max(each) for each in zip(*of_ranks, strict=True)])
        results[str(num_bytes)] = times | {
            "ms_fastest_rank": 1e3 * min(statistics.median(each) for each in of_ranks),
            "bus_gb_per_second": bus_bytes(num_bytes, place.world_size) / times["ms"] / 1e6,
            "num_warmup": num_warmup,
            "num_calls": num_calls,
        }
        del tensor
    return results


def bus_bytes(num_bytes: float, world_size: int) -> float:
    """What a ring all-reduce moves over each rank's link."""
    return 2 * (world_size - 1) / world_size * num_bytes


def fit_line(points: Sequence[tuple[float, float]]) -> Line:
    """The line through (bytes, seconds) with the least relative error, neither part of it negative.

    Raises:
        ValueError: fewer than two sizes.
    """
    if len({size for size, _ in points}) < 2:
        raise ValueError(f"a line needs at least two sizes, got {points}")
    # Least squares of (a + b·S - t) / t: every size counts alike, though times span three orders of magnitude.
    ones = [(1 / seconds, size / seconds) for size, seconds in points]
    aa, ab, bb = (sum(x * y for x, y in pairs) for pairs in _products(ones))
    a_one, b_one = sum(a for a, _ in ones), sum(b for _, b in ones)
    determinant = aa * bb - ab * ab
    latency = (a_one * bb - b_one * ab) / determinant
    per_byte = (b_one * aa - a_one * ab) / determinant
    if latency < 0:
        latency, per_byte = 0.0, b_one / bb
    return Line(latency, 1 / per_byte if per_byte > 0 else float("inf"))


def _products(ones: Sequence[tuple[float, float]]) -> list[list[tuple[float, float]]]:
    return [[(a, a) for a, _ in ones], [(a, b) for a, b in ones], [(b, b) for _, b in ones]]


def lines_of(rows: Sequence[dict[str, Any]]) -> dict[tuple[str, int], Line]:
    """Latency and bandwidth for each backend and number of processes of which two sizes were measured."""
    groups: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for row in rows:
        if "ms" in row:
            cell = row["cell"]
            groups.setdefault((cell["backend"], cell["processes"]), []).append((cell["bytes"], row["ms"] / 1e3))
    return {group: fit_line(points) for group, points in groups.items() if len(points) > 1}


def page(rows: Sequence[dict[str, Any]]) -> str:
    """The table, and what its figures say."""
    flat = [row["cell"] | {"megabytes": row["cell"]["bytes"] / 1e6} | row for row in rows]
    flat = [row | {"spread": spread_text(row)} if "ms" in row else row for row in flat]
    flat.sort(key=lambda row: (row["backend"], row["processes"], row["bytes"]))
    parts = [how_timed(rows), markdown_table(flat, _COLUMNS), *_comments(rows)]
    return "\n\n".join(part for part in parts if part)


def _comments(rows: Sequence[dict[str, Any]]) -> list[str]:
    comments = []
    lines = lines_of(rows)
    for (backend, count), line in lines.items():
        if not math.isfinite(line.bytes_per_second):
            comments.append(f"**{backend}, {count} processes.** The time does not grow with the size: it is noise.")
            continue
        even = line.latency_seconds * line.bytes_per_second
        comments.append(
            f"**{backend}, {count} processes.** A call costs {1e6 * line.latency_seconds:,.0f} µs however small it is,"
            f" and then {line.bytes_per_second / 1e9:,.3g} GB/s (bus"
            f" {bus_bytes(line.bytes_per_second, count) / 1e9:,.3g} GB/s): below {even / 1e6:,.3g} MB the call costs"
            " more than the bytes."
        )
    known = sorted(key for key, line in lines.items() if math.isfinite(line.bytes_per_second))
    for backend, group in groupby(known, key=lambda key: key[0]):
        counts = [count for _, count in group]
        if len(counts) > 1:
            ends = [(count, lines[backend, count]) for count in (counts[0], counts[-1])]
            calls = [1e6 * line.latency_seconds for _, line in ends]
            buses = [bus_bytes(line.bytes_per_second, count) / 1e9 for count, line in ends]
            comments.append(
                f"From {counts[0]} to {counts[-1]} processes {backend}'s latency goes from {calls[0]:,.0f} to"
                f" {calls[1]:,.0f} µs and the bus bandwidth goes from {buses[0]:,.3g} to {buses[1]:,.3g} GB/s; on links"
                " of their own the bandwidth would stay."
            )
    return comments


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Time and bus bandwidth over the tensor's size, a line for each backend and number of processes."""
    figure = pictures.new_figure(9.5, 3.6)
    times, buses = figure.subplots(1, 2)
    groups: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in rows:
        if "ms" in row:
            groups.setdefault((row["cell"]["backend"], row["cell"]["processes"]), []).append(row)
    for (backend, count), group in sorted(groups.items()):
        name = f"{backend}, {count} processes"
        group.sort(key=lambda row: row["cell"]["bytes"])
        sizes = [row["cell"]["bytes"] / 1e6 for row in group]
        spreads = [spread_of(row) for row in group]
        times.errorbar(
            sizes,
            [row["ms"] for row in group],
            yerr=[  # equal times may have quartiles that are off by a rounding
                [max(0.0, row["ms"] - low) for row, (low, _) in zip(group, spreads, strict=True)],
                [max(0.0, high - row["ms"]) for row, (_, high) in zip(group, spreads, strict=True)],
            ],
            fmt="o-",
            ms=3,
            lw=1.1,
            label=name,
        )
        buses.plot(sizes, [row["bus_gb_per_second"] for row in group], "o-", ms=3, lw=1.1, label=name)
    times.set(xlabel="MB", ylabel="ms, slowest rank", xscale="log", yscale="log")
    buses.set(xlabel="MB", ylabel="bus bandwidth, GB/s", xscale="log", yscale="log")
    for axes in (times, buses):
        pictures.tidy(axes)
    if groups:
        times.legend(frameon=False, fontsize=8)
    pictures.save(figure, path)
