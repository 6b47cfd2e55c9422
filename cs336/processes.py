"""Processes: a quick start; work on several cores in a fixed order, with helpers that never outlive their parent."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import itertools
import multiprocessing
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from typing import TypeVar

from cs336.files import UserError

A = TypeVar("A")
B = TypeVar("B")

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_FIRST_WORKERS = 4


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """What is made inside stays, such as modules: Python does not search it for garbage, now, later or at the end.

    PyTorch and Dagster make millions of objects when they are imported; to search them takes as long as to make them.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def wanted_workers() -> int:
    """`CS336_WORKERS`; 0, for one a core, where it is not set.

    Raises:
        UserError: it is no number.
    """
    value = os.environ.get("CS336_WORKERS") or "0"
    if not value.isdecimal():
        raise UserError(f"CS336_WORKERS is {value!r}; give a number, or 0 for one a core")
    return int(value)


def available_cores() -> int:
    """Cores that this process may use (containers and `taskset` may give fewer than there are)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def workers_by_now(begun: float, most: int) -> int:
    """Processes that work may have: four at first, twice as many with every second, `most` in the end.

    A process costs a second or two of a core before it is of use. A shard that four have done in three seconds takes
    longer with 64, which all want those seconds at once.

    Args:
        begun: by `time.monotonic`.
        most: as many as there are cores for.
    """
    seconds = int(time.monotonic() - begun)
    return min(most, _FIRST_WORKERS << min(seconds, 30))


def in_batches(items: Iterable[A], num_chars: Callable[[A], int], batch_chars: int) -> Iterator[list[A]]:
    """Items in their order, each batch ended by the first item with which it has `batch_chars` characters.

    Args:
        num_chars: of an item.
    """
    batch: list[A] = []
    size = 0
    for item in items:
        batch.append(item)
        size += num_chars(item)
        if size >= batch_chars:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def die_with_parent(parent: int | None = None) -> None:
    """Ask the kernel to kill this process when its parent dies, even by `kill -9`.

    Without this, orphans would go on writing into folders that the next run believes its own.
    Linux only; elsewhere it does nothing.

    Args:
        parent: the parent's id, where it is known: should it have died before this call, so does this
            process.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if parent is not None and os.getppid() != parent:
            os._exit(1)


def map_ordered(function: Callable[[A], B], items: Iterable[A], *, num_workers: int, per_task: int = 1) -> Iterator[B]:
    """`map(function, items)` on several processes; results come in the order of the items.

    The result never depends on `num_workers`: 1 runs in this process. At most four tasks a worker
    are in flight, so memory stays bounded however long `items` is. Processes start while there is work for them,
    as `workers_by_now` says.

    Args:
        function: importable from its module (the workers are fresh processes, not forks: forking
            a process with threads, such as PyTorch's, can deadlock).
        num_workers: how many processes at most.
        per_task: items sent to a worker at once; raise it when an item takes under a millisecond.

    Raises:
        Exception: what `function` raised, at the item that caused it.
    """
    if num_workers <= 1:
        yield from map(function, items)
        return
    chunks = _chunks(items, per_task)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        num_workers, mp_context=spawn, initializer=die_with_parent, initargs=(os.getpid(),)
    ) as pool:
        pending: deque[Future[list[B]]] = deque()
        begun = time.monotonic()
        try:
            for chunk in chunks:
                pending.append(pool.submit(_apply, function, chunk))  # starts a process where none is idle
                workers = workers_by_now(begun, num_workers)
                if len(pending) >= (workers if workers < num_workers else 4 * num_workers):
                    yield from pending.popleft().result()
            while pending:
                yield from pending.popleft().result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _chunks(items: Iterable[A], size: int) -> Iterator[list[A]]:
    iterator = iter(items)
    while chunk := list(itertools.islice(iterator, size)):
        yield chunk


def _apply(function: Callable[[A], B], items: list[A]) -> list[B]:
    return [function(item) for item in items]


def map_threads(function: Callable[[A], B], items: Iterable[A], *, num_threads: int) -> Iterator[B]:
    """`map(function, items)` on threads of this process, for functions that release the GIL; results in order.

    The result never depends on `num_threads`. At most two items a thread wait, so memory stays bounded however
    long `items` is.
    """
    if num_threads <= 1:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(num_threads) as pool:
        waiting: deque[Future[B]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > 2 * num_threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
