"""Ranks: joining a job's process group, and starting the processes of one on this machine.

Gloo connects processes on CPUs, NCCL those on GPUs, one GPU each. `torchrun` starts the processes of
training jobs and ends all of them when one dies; `run_ranks` does the same for tests and benchmarks and
hands back what each rank returned.
"""

from __future__ import annotations

import contextlib
import faulthandler
import multiprocessing
import multiprocessing.connection
import os
import pickle
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from cs336.files import UserError
from cs336.processes import available_cores, die_with_parent

_GRACE_SECONDS = 1.0  # in which the other ranks may say what they saw of a failure, before they are killed


class RankError(Exception):
    """A rank failed or gave no answer; one line says which and how.

    Attributes:
        rank: the one that failed first.
        details: its traceback, empty where it was killed or gave no answer.
    """

    def __init__(self, message: str, rank: int, details: str = "") -> None:
        super().__init__(message)
        self.rank = rank
        self.details = details
        if details:
            self.add_note(details)


@dataclass(frozen=True)
class Rank:
    """This process's place in the job.

    Attributes:
        rank: from 0 to world_size - 1.
        world_size: number of processes.
        device: where its tensors live.
        store: where the job's processes leave words for each other.
    """

    rank: int
    world_size: int
    device: torch.device
    store: dist.Store


def rank() -> int:
    """This process's rank; 0 without a process group."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes; 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


@contextlib.contextmanager
def process_group(
    *, device: str = "auto", timeout_seconds: float = 600.0, init_method: str = "env://"
) -> Iterator[Rank]:
    """Join the job that `torchrun` (or `run_ranks`) started, and leave it at the end.

    Args:
        device: "cpu" takes Gloo; "cuda" takes NCCL and the GPU of this process's number on its machine;
            "auto" takes GPUs where each process of this machine has one.
        timeout_seconds: after which a collective that some rank never joins is an error.
        init_method: where the ranks meet.

    Raises:
        UserError: the environment names no job, or fewer GPUs than processes on this machine.
    """
    try:
        place, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    except (KeyError, ValueError):
        raise UserError(
            "RANK and WORLD_SIZE are not set; start the processes with torchrun --nproc-per-node N"
        ) from None
    local_rank = int(os.environ.get("LOCAL_RANK", place))
    num_local = int(os.environ.get("LOCAL_WORLD_SIZE", size))
    num_gpus = torch.cuda.device_count() if device != "cpu" else 0
    if device == "cuda" and num_gpus < num_local:
        raise UserError(f"{num_local} processes for {num_gpus} GPUs; start as many as there are GPUs, or use the CPU")
    on_gpu = device == "cuda" or (device == "auto" and num_gpus >= num_local)
    chosen = torch.device("cuda", local_rank) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(chosen)
    timeout = timedelta(seconds=timeout_seconds)
    store, _, _ = next(iter(dist.rendezvous(init_method, place, size, timeout=timeout)))
    store.set_timeout(timeout)
    dist.init_process_group(
        "nccl" if on_gpu else "gloo",
        store=dist.PrefixStore("group", store),
        rank=place,
        world_size=size,
        timeout=timeout,
        device_id=chosen if on_gpu else None,
    )
    try:
        yield Rank(place, size, chosen, dist.PrefixStore("words", store))
    except BaseException as error:
        # No leave-taking after an error: NCCL would wait for collectives that nobody joins any more, and the
        # others' complaints that this rank is gone would come before its own. The process's end frees all.
        error.add_note(f"on rank {place} of {size}")
        raise
    dist.destroy_process_group()


def run_ranks(
    function: Callable[..., Any],
    world_size: int,
    *arguments: Any,
    device: str = "cpu",
    timeout_seconds: float = 120.0,
    start_method: str = "spawn",
) -> list[Any]:
    """Run `function(place, *arguments)` in `world_size` new processes of one job; returns their results by rank.

    The first failure ends all of them within seconds, also when a process is killed or hangs.

    Args:
        function: gets the process's `Rank`; importable by name, as are its arguments' and results' classes.
        device: see `process_group`.
        timeout_seconds: for the whole run, and for each collective in it.
        start_method: "spawn", or "forkserver", which imports PyTorch once for all runs.

    Raises:
        RankError: a rank raised, died or did not finish in time; the traceback is in `details`.
    """
    context = multiprocessing.get_context(start_method)
    if start_method == "forkserver":
        multiprocessing.set_forkserver_preload(["torch", "torch.distributed", __name__])
    with tempfile.TemporaryDirectory(prefix="cs336-ranks-") as folder:
        job = _Job(str(Path(folder) / "store"), world_size, device, timeout_seconds)
        processes, pipes = [], []
        try:
            for place in range(world_size):
                receiver, sender = context.Pipe(duplex=False)
                process = context.Process(  # type: ignore[attr-defined]
                    target=_run_rank, args=(job, place, sender, function, arguments), daemon=True, name=f"rank {place}"
                )
                process.start()
                sender.close()  # so that the pipe ends when the process does
                processes.append(process)
                pipes.append(receiver)
            reports = _gather_reports(processes, pipes, timeout_seconds)
        finally:
            for process in processes:
                process.kill()
            for process in processes:
                process.join()
            for pipe in pipes:
                pipe.close()
    return [report.value for report in reports]


@dataclass(frozen=True)
class _Job:
    store: str
    world_size: int
    device: str
    timeout_seconds: float


@dataclass(frozen=True)
class _Report:
    """What one rank sends back: its result, or what went wrong when (on the machine's monotonic clock)."""

    value: Any = None
    error: str = ""
    details: str = ""
    failed_at: float = 0.0


def _run_rank(
    job: _Job, place: int, pipe: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    die_with_parent()
    _die_with_launcher()
    faulthandler.enable()  # a crash outside Python leaves on stderr where Python stood
    os.environ |= {"RANK": str(place), "WORLD_SIZE": str(job.world_size), "LOCAL_RANK": str(place)}
    os.environ["LOCAL_WORLD_SIZE"] = str(job.world_size)
    if sys.platform == "linux":  # all ranks are here; a host name need not resolve to an address that works
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(max(1, available_cores() // job.world_size))
    reported = False
    try:
        with process_group(
            device=job.device, timeout_seconds=job.timeout_seconds, init_method=f"file://{job.store}"
        ) as this:
            message = _message(function, this, arguments)
            # Before the group is left: the others' errors that we are gone must not come first.
            pipe.send_bytes(message)
            reported = True
    except BaseException as error:
        if not reported:
            pipe.send_bytes(pickle.dumps(_failure(error)))
    pipe.close()


def _die_with_launcher() -> None:
    """A forked rank's parent is the fork server, which lives as long as its ranks; so watch who asked it for them."""
    launcher = multiprocessing.parent_process()
    assert launcher is not None

    def watch() -> None:
        launcher.join()
        os._exit(1)

    threading.Thread(target=watch, name="launcher", daemon=True).start()


def _message(function: Callable[..., Any], this: Rank, arguments: tuple[Any, ...]) -> bytes:
    try:
        # Plain pickling copies tensors into the message; PyTorch's own would share memory that ends with us.
        return pickle.dumps(_Report(value=function(this, *arguments)))
    except BaseException as error:
        return pickle.dumps(_failure(error))


def _failure(error: BaseException) -> _Report:
    line = " ".join(f"{type(error).__name__}: {error}".split())
    return _Report(error=line, details="".join(traceback.format_exception(error)), failed_at=time.monotonic())


def _gather_reports(processes: list[BaseProcess], pipes: list[Connection], timeout_seconds: float) -> list[_Report]:
    """Wait for every rank's report.

    Raises:
        RankError: of the rank that failed first; the others' errors are mostly that it is gone.
    """
    world_size = len(processes)
    reports: dict[int, _Report] = {}
    deadline = time.monotonic() + timeout_seconds
    failed = False
    while len(reports) < world_size:
        waiting = {pipes[place]: place for place in range(world_size) if place not in reports}
        ready = multiprocessing.connection.wait(list(waiting), timeout=max(0.0, deadline - time.monotonic()))
        if not ready:
            break
        for pipe in ready:
            place = waiting[pipe]  # type: ignore[index]
            try:
                report = pickle.loads(pipe.recv_bytes())  # type: ignore[union-attr]
            except EOFError:
                processes[place].join()
                code = processes[place].exitcode or 0
                how = f"killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
                # Without a report of its own: it went first, whatever the others say.
                report = _Report(error=how)
            reports[place] = report
            if report.error and not failed:
                failed, deadline = True, time.monotonic() + _GRACE_SECONDS
    errors = {place: report for place, report in reports.items() if report.error}
    if errors:
        place = min(errors, key=lambda place: (errors[place].failed_at, place))
        raise RankError(
            f"rank {place} of {world_size} failed: {errors[place].error}", rank=place, details=errors[place].details
        )
    missing = [place for place in range(world_size) if place not in reports]
    if missing:
        named = ", ".join(map(str, missing))
        raise RankError(
            f"no result of rank {named} of {world_size} after {timeout_seconds:g} s;"
            " one of them waits for a collective that another never joins, or computes for too long",
            rank=missing[0],
        )
    return [reports[place] for place in range(world_size)]
