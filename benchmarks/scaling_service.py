"""The scaling service: latency of a loss, measured or from the surrogate, and 500 requests a second without an error.

The server is `cs336 serve scaling` in a process of its own, on SQLite, with its log; the client shares its cores.
Losses come from runs made from a law (tests/scaling/made_runs.py), as many as one GPU session measures. No peer. Rows
have the processor time that the server took for a request, too.

Cases:
  exact      new configurations that were measured, one after the other: a charge each; p50 at most 5 ms
  surrogate  new configurations that were not; p50 at most 20 ms
  sustained  new ones, repeated ones and lists of previous runs, from 64 keys, each at its time whether or not the one
             before was answered; latencies count from that time; one that is not answered by 200 is a failure

Examples:
  python -m benchmarks scaling_service
  python -m benchmarks scaling_service --per-second 1000 --seconds 60 --repeats 1
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import random
import tempfile
import time
import urllib.parse
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import OURS, Case, Contender, Observation
from cs336.processes import available_cores
from cs336.scaling.loss_model import configuration_of
from cs336.scaling.runs import append_run
from cs336.service.database import open_database
from cs336.service.keys import add_key
from tests.scaling.made_runs import made_runs
from tests.service.servers import Server

MAX_P50_MS = {"exact": 5.0, "surrogate": 20.0}
REQUESTS = 150  # of a latency case's run
KEYS, CONNECTIONS = 64, 32
PACKAGES = ("fastapi", "uvicorn", "sqlalchemy", "numpy")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --per-second and --seconds."""
    parser.add_argument("--per-second", type=int, default=500, help="requests of `sustained` (default %(default)s)")
    parser.add_argument("--seconds", type=int, default=20, help="how long (default %(default)s)")


def cases(options: argparse.Namespace) -> Iterator[Case]:
    """One server for all."""
    with tempfile.TemporaryDirectory(prefix="cs336-service-") as parent:
        folder = Path(parent)
        runs = made_runs(noise=0.01)
        for run in runs:
            append_run(folder / "runs.jsonl", run)
        database = open_database(f"sqlite:///{folder}/service.db")
        keys = (add_key(database, f"user-{number}") for number in itertools.count())
        server = Server(f"sqlite:///{folder}/service.db", folder, "--runs", str(folder / "runs.jsonl"))
        server.start()
        measured = [asdict(configuration_of(run)) for run in runs][:REQUESTS]
        work: dict[str, Callable[[], Observation]] = {
            "exact": lambda: _latencies("exact", server, next(keys), measured),
            "surrogate": lambda: _latencies("surrogate", server, next(keys), _others(measured)),
            "sustained": lambda: _sustained(server, list(itertools.islice(keys, KEYS)), measured, options),
        }
        try:
            for name, run_once in work.items():
                yield Case(
                    name=name,
                    amount=REQUESTS if name in MAX_P50_MS else options.per_second * options.seconds,
                    unit="requests/s",
                    contenders=[Contender(name=OURS, prepare=lambda once=run_once: once, packages=PACKAGES)],
                    difference=lambda ours, theirs: None,
                    input={"name": "runs made from a law", "runs": len(runs), "cores": available_cores()},
                )
        finally:
            server.stop()


def _others(measured: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Configurations beside the measured ones: another width, no multiple of the heads."""
    return [query | {"d_model": query["d_model"] + 1 + place % 7} for place, query in enumerate(measured)]


def _path(key: str, query: dict[str, Any], path: str = "/loss") -> bytes:
    target = f"{path}?{urllib.parse.urlencode(query | {'api_key': key})}"
    return f"GET {target} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()


async def _ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> int:
    """Send one request on a connection that stays open; returns the status once the body is there."""
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    await reader.readexactly(int(lengths[0].partition(b":")[2]))
    return int(head.split(b" ", 2)[1])


def _latencies(name: str, server: Server, key: str, queries: list[dict[str, Any]]) -> Observation:
    async def one_after_the_other() -> list[float]:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        seconds = []
        for query in queries:
            start = time.perf_counter()
            status = await _ask(reader, writer, _path(key, query))
            seconds.append(time.perf_counter() - start)
            if status != 200:
                raise ValueError(f"{query} was answered by {status}")
        writer.close()
        return seconds

    before = _cpu_seconds(server)
    seconds = asyncio.run(one_after_the_other())
    details = _percentiles(seconds) | {"server_cpu_ms": (_cpu_seconds(server) - before) / len(seconds) * 1e3}
    if details["p50_ms"] > MAX_P50_MS[name]:
        raise ValueError(f"p50 is {details['p50_ms']:.2f} ms, above {MAX_P50_MS[name]} ms: {details}")
    return Observation(seconds={"": sum(seconds)}, peak_bytes=None, result=None, details=details)


def _sustained(
    server: Server, keys: list[str], measured: list[dict[str, Any]], options: argparse.Namespace
) -> Observation:
    draw = random.Random(0)
    requests = []
    for number in range(options.per_second * options.seconds):
        key, query = keys[number % len(keys)], draw.choice(measured)
        new = query | {"train_flops": 10**13, "learning_rate": draw.uniform(1e-4, 1e-3)}
        kind = draw.random()
        if kind < 0.02:
            requests.append(_path(key, {}, "/previous_runs"))
        else:
            requests.append(_path(key, new if kind < 0.5 else query | {"train_flops": 10**13}))
    seconds: list[float] = []
    statuses: Counter[int] = Counter()

    async def all_at_their_times() -> float:
        start = time.perf_counter() + 0.1
        due = iter(enumerate(requests))

        async def one_connection() -> None:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            for number, request in due:
                at = start + number / options.per_second
                await asyncio.sleep(max(0.0, at - time.perf_counter()))
                statuses[await _ask(reader, writer, request)] += 1
                seconds.append(time.perf_counter() - at)
            writer.close()

        await asyncio.gather(*(one_connection() for _ in range(CONNECTIONS)))
        return time.perf_counter() - start

    before = _cpu_seconds(server)
    elapsed = asyncio.run(all_at_their_times())
    details = _percentiles(seconds) | {"server_cpu_ms": (_cpu_seconds(server) - before) / len(seconds) * 1e3}
    if set(statuses) != {200}:
        raise ValueError(f"answers by status: {json.dumps(statuses)}")
    if elapsed > 1.05 * options.seconds:
        raise ValueError(f"{len(requests)} requests took {elapsed:.1f} s, not {options.seconds} s: {details}")
    return Observation(seconds={"": elapsed}, peak_bytes=None, result=None, details=details)


def _cpu_seconds(server: Server) -> float:
    """Processor time that the server's process has taken so far, all threads."""
    assert server.process is not None
    user, system = Path(f"/proc/{server.process.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def _percentiles(seconds: list[float]) -> dict[str, float]:
    p50, p99, worst = np.percentile(np.array(seconds) * 1e3, (50, 99, 100))
    return {"p50_ms": float(p50), "p99_ms": float(p99), "worst_ms": float(worst)}
