"""Work on items that may hang or crash their process, such as pages for a parser in C: the loss is that item alone.

A parser that does not come back cannot be interrupted from Python. So it works in a process of its own, which the
kernel ends when an item has used up its CPU time; the item gets the reason as its result, and a new process goes on
with the next. Time of the CPU, not of the clock: a busy machine does not change what comes out (a slower one may).
"""

from __future__ import annotations

import contextlib
import os
import pickle
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, Pipe, wait
from typing import Any, Generic, TypeVar

from cs336.processes import die_with_parent, workers_by_now

A = TypeVar("A")
B = TypeVar("B")

_MAX_BYTES = 8 * 2**30  # of address space: what takes more fails alone, before the machine runs out of memory
_BATCHES_AHEAD = 4  # a worker: finished ones that wait for an earlier one
# How native code dies. Any other end, such as SIGKILL when memory runs out, says nothing of the item.
_CRASHES = (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL)


def map_isolated(
    function: Callable[[A], B],
    batches: Iterable[Sequence[A]],
    *,
    cpu_seconds: float,
    lost: Callable[[str], B],
    num_workers: int = 1,
) -> Generator[B, None, None]:
    """The function's result for each item of the batches, in order; one that it fails on costs itself alone.

    Args:
        function: importable from its module, and pure: it runs in other processes.
        batches: items that are sent to a worker together, none of them empty. They are taken when a worker is free.
        cpu_seconds: for one item.
        lost: reason -> the result of an item on which the function raised, used more time, or ended its process.
        num_workers: processes at most; never changes the result. They are started as `workers_by_now` says, none
            before there is a batch.

    Raises:
        RuntimeError: a worker could not start, or was killed from outside.
    """
    num_workers, begun = max(1, num_workers), time.monotonic()
    source = iter(batches)
    idle: list[_Worker[A, B]] = []
    busy: dict[Connection, _Worker[A, B]] = {}
    finished: dict[int, list[B]] = {}
    num_sent = num_out = 0
    exhausted = False
    try:
        while True:
            workers = workers_by_now(begun, num_workers)
            while not exhausted and len(busy) < workers and num_sent - num_out < _BATCHES_AHEAD * num_workers:
                batch = next(source, None)
                if batch is None:
                    exhausted = True
                    break
                worker = idle.pop() if idle else _spare_worker(function, cpu_seconds)
                busy[worker.connection] = worker
                worker.take(num_sent, batch)
                num_sent += 1
            while num_out in finished:
                yield from finished.pop(num_out)
                num_out += 1
            if not busy:
                if exhausted:
                    return
                continue  # what was handed out makes room
            ready = set(wait(list(busy)))
            for worker in [worker for connection, worker in busy.items() if connection in ready]:
                if not worker.receive(lost):
                    heir = worker.successor(lost)
                    del busy[worker.connection]
                    worker = busy[heir.connection] = heir
                if len(worker.results) == len(worker.items):
                    finished[worker.number] = worker.results
                    idle.append(busy.pop(worker.connection))
    finally:
        _spare.extend(idle)
        for worker in busy.values():
            worker.end()


def used_cpu_seconds() -> float:
    """Processor time of this process and of those it started, of workers that live on up to their last result."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + ended.ru_utime + ended.ru_stime + sum(worker.used for worker in list(_alive))


_alive: set[_Worker[Any, Any]] = set()  # the kernel counts the others, as ended children
_spare: list[_Worker[Any, Any]] = []  # idle ones of calls before: a crawl of many small files would start one for each


def _spare_worker(function: Callable[[A], B], cpu_seconds: float) -> _Worker[A, B]:
    """A worker for this function: one of an earlier call that is still alive, or a new one."""
    wanted = pickle.dumps((function, cpu_seconds))
    for worker in list(_spare):
        if worker.wanted == wanted:
            with contextlib.suppress(ValueError):  # another thread took it
                _spare.remove(worker)
                if worker.is_alive():
                    return worker
                worker.end()
    return _Worker(function, cpu_seconds)


@dataclass(eq=False)
class _Worker(Generic[A, B]):
    """A process that works on one batch at a time and sends each result as soon as it has it.

    Nobody waits for its start, so that many start at once: it says when it is ready, and then is sent what it has.
    """

    function: Callable[[A], B]
    cpu_seconds: float
    number: int = 0
    items: Sequence[A] = ()
    results: list[B] = field(default_factory=list)
    is_ready: bool = False
    used: float = 0.0  # seconds of processor time, at its last result

    def __post_init__(self) -> None:
        self.wanted = pickle.dumps((self.function, self.cpu_seconds))
        self.connection, other = Pipe()
        # Not multiprocessing's spawn, which would run the caller's script again if that has no main guard.
        start = f"from cs336.isolation import serve; serve({other.fileno()}, {os.getpid()})"
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", start],
            pass_fds=[other.fileno()],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        other.close()
        _alive.add(self)
        with contextlib.suppress(OSError):  # its end is seen when an answer is waited for
            self.connection.send((self.function, self.cpu_seconds))

    def take(self, number: int, items: Sequence[A]) -> None:
        """Begin a batch, at once or when it is ready."""
        self.number, self.items, self.results = number, items, []
        if self.is_ready:
            self._send_rest()

    def receive(self, lost: Callable[[str], B]) -> bool:
        """Take one result, or that it is ready; False if the process is dead instead.

        Raises:
            RuntimeError: it died before it was ready.
        """
        try:
            answer = self.connection.recv()
        except (EOFError, OSError):  # at the end of a message, or within one
            if not self.is_ready:
                self.end()
                raise RuntimeError(f"a worker could not start: exit status {self._process.returncode}") from None
            return False
        if self.is_ready:
            result, error, self.used = answer
            self.results.append(lost(error) if error else result)
        else:
            self.is_ready = True  # it has the function: from here on its end is an item's fault
            self._send_rest()
        return True

    def successor(self, lost: Callable[[str], B]) -> _Worker[A, B]:
        """A new process for what is left of a dead one's batch, without the item that it died of."""
        code = self._process.wait()
        self.end()
        if code == -signal.SIGPROF:
            reason = f"over {self.cpu_seconds:g} s of CPU time"
        elif -code in _CRASHES:
            reason = f"crashed ({signal.Signals(-code).name})"
        else:
            by = signal.Signals(-code).name + " (out of memory?)" if code < 0 else f"exit status {code}"
            raise RuntimeError(f"a worker ended with {by}")
        return _Worker(self.function, self.cpu_seconds, self.number, self.items, [*self.results, lost(reason)])

    def is_alive(self) -> bool:
        """Not so once the thread that started it has ended, as the kernel sees to it."""
        return self._process.poll() is None

    def end(self) -> None:
        self.connection.close()
        self._process.kill()
        self._process.wait()
        _alive.discard(self)

    def _send_rest(self) -> None:
        """The items without a result. Every result was received: so the other side reads, and nobody waits for ever."""
        if rest := self.items[len(self.results) :]:
            with contextlib.suppress(OSError):
                self.connection.send(rest)


def serve(file_descriptor: int, parent: int) -> None:
    """The worker's side: batches in, results out, until the parent closes the connection."""
    die_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's affair
    connection = Connection(file_descriptor)
    with contextlib.suppress(EOFError, OSError):
        function, cpu_seconds = connection.recv()
        with contextlib.suppress(ValueError, OSError):  # not every system has this limit
            resource.setrlimit(resource.RLIMIT_AS, (_MAX_BYTES, _MAX_BYTES))
        connection.send(None)
        while True:
            for item in connection.recv():
                signal.setitimer(signal.ITIMER_PROF, cpu_seconds)  # whose signal, unhandled, ends the process
                answer = _answer(function, item)
                signal.setitimer(signal.ITIMER_PROF, 0)
                connection.send((*answer, time.process_time()))


def _answer(function: Callable[[Any], Any], item: Any) -> tuple[Any, str]:
    try:
        return function(item), ""
    except Exception as error:
        return None, type(error).__name__
