"""Calls that may hang or eat all memory, such as the grading of a model's answer: what is lost is that call alone.

A call works in a process of its own, and a watchdog there ends the process when the call has taken too long: a thread
in C, which needs no signal, no main thread and not Python's lock, so even a power tower in SymPy ends. The call gets
the reason as its outcome, and a new process goes on with the next. Processes live on from call to call.

`cs336.isolation` counts processor time, which a call that waits for ever does not use, and ties its processes to the
thread that started them; rewards are asked for from whatever thread generates.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import traceback
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from cs336.processes import workers_by_now

A = TypeVar("A")
B = TypeVar("B")

_START_SECONDS = 120.0  # for imports and the warm-up; a process that takes longer will not start at all
_AT_ONCE = 32  # calls sent to a process together
_TURN_SECONDS = 0.1  # between two looks of a process that may not start yet
_TIMER_REUSE = 0.1  # share of the limit: starting a timer takes as long as an easy grading, so calls in a row share one
_TIME_IS_UP = 1  # the exit status that faulthandler gives
_STATM = Path("/proc/self/statm")  # pages of this process: all, resident


@dataclass(frozen=True)
class Outcome(Generic[B]):
    """What became of a call.

    Attributes:
        value: what the function returned; None where the call was lost.
        reason: why it was lost; None where it was not.
    """

    value: B | None
    reason: str | None


class Watchdog(Generic[A, B]):
    """A function that is called in other processes, each call within a time and memory limit.

    May be used from any thread, and from several at once. Processes are started when they are needed; they end with
    `close`, with this process, however it dies, and after a call that left them too large.

    Args:
        function: importable from its module; it gets one item.
        seconds: of the clock, for one call. A call is ended after this time, at most a tenth later.
        max_bytes: that a process may take beyond what it has once it is ready. On Linux a call that asks for more is
            lost; elsewhere nothing watches this.
        num_workers: processes at work at the same time, at most; never changes an outcome. They are started as
            `workers_by_now` says.
        warm_up: an item for a call without limits, and without consequences, that each process makes first: what is
            imported or compiled by a first call is no fault of its item.

    Raises:
        ValueError: a limit or number is not positive, or no other process can import the function.
    """

    def __init__(
        self,
        function: Callable[[A], B],
        *,
        seconds: float = 5.0,
        max_bytes: int = 2**30,
        num_workers: int = 1,
        warm_up: A | None = None,
    ) -> None:
        for name, value in (("seconds", seconds), ("max_bytes", max_bytes), ("num_workers", num_workers)):
            if value <= 0:
                raise ValueError(f"{name} is {value}; give a positive number")
        try:
            named = pickle.dumps(function)
        except (pickle.PicklingError, AttributeError, TypeError):  # a lambda, or one of another function
            named = b"__main__"
        if b"__main__" in named:
            raise ValueError(f"{function!r} cannot be imported by another process; move it to the top of a module")
        self._job = pickle.dumps((function, seconds, max_bytes, warm_up))
        self._seconds = seconds
        self._num_workers = num_workers
        self._slots = threading.Semaphore(num_workers)
        self._lock = threading.Lock()
        self._closed = False
        self._idle: list[_Worker[A, B]] = []
        self._finalizer = weakref.finalize(self, _end_all, self._idle)

    def map(self, items: Sequence[A]) -> list[Outcome[B]]:
        """The outcome of each call, in the order of the items.

        Raises:
            RuntimeError: the function raised (the message holds its traceback), or a process could not start.
            ValueError: this watchdog is closed.
        """
        outcomes: dict[int, Outcome[B]] = {}
        size = max(1, min(_AT_ONCE, len(items) // (2 * self._num_workers)))
        batches = deque(range(start, min(start + size, len(items))) for start in range(0, len(items), size))
        num_lanes = min(self._num_workers, len(batches))
        if num_lanes <= 1:
            self._work_off(items, batches, outcomes)
        else:
            begun, emptied = time.monotonic(), threading.Event()

            def in_turn(place: int) -> None:
                while place >= workers_by_now(begun, num_lanes):
                    if emptied.wait(_TURN_SECONDS):
                        return
                try:
                    self._work_off(items, batches, outcomes)
                finally:
                    emptied.set()

            with ThreadPoolExecutor(num_lanes) as pool:
                lanes = [pool.submit(in_turn, place) for place in range(num_lanes)]
                try:
                    for lane in lanes:
                        lane.result()
                finally:
                    batches.clear()  # of a call that was interrupted
        return [outcomes[place] for place in range(len(items))]

    def close(self) -> None:
        """End the processes; those at work end once they are done."""
        with self._lock:
            self._closed = True
        self._finalizer()

    def __enter__(self) -> Watchdog[A, B]:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _work_off(self, items: Sequence[A], batches: deque[range], outcomes: dict[int, Outcome[B]]) -> None:
        """Take batches until there are none. A deque's and a dict's single steps need no lock."""
        while True:
            try:
                batch = batches.popleft()
            except IndexError:
                return
            try:
                with self._slots:
                    self._call(items, batch, outcomes)
            except BaseException:
                batches.clear()  # the other lanes need not go on
                raise

    def _call(self, items: Sequence[A], batch: range, outcomes: dict[int, Outcome[B]]) -> None:
        worker = self._take()
        try:
            left = deque(batch)
            while left:
                for outcome in worker.results([items[place] for place in left]):
                    outcomes[left.popleft()] = outcome
                if left:
                    outcomes[left.popleft()] = Outcome(None, worker.cause_of_death())
                    worker = _Worker(self._job, self._seconds)
        except BaseException:
            worker.end()
            raise
        with self._lock:
            if not (self._closed or worker.is_large):
                self._idle.append(worker)
                return
        worker.end()

    def _take(self) -> _Worker[A, B]:
        with self._lock:
            if self._closed:
                raise ValueError("this watchdog is closed; make a new one")
            worker = self._idle.pop() if self._idle else None
        if worker is not None and worker.is_alive():
            return worker
        return _Worker(self._job, self._seconds)


def _end_all(workers: list[_Worker[Any, Any]]) -> None:
    while workers:
        workers.pop().end()


class _Worker(Generic[A, B]):
    """A process that is sent batches of items and answers each item as soon as it is done."""

    def __init__(self, job: bytes, seconds: float) -> None:
        self._seconds = seconds
        self._ready = False
        self._since = 0.0  # when the present call began, by the clock that never steps back
        self.is_large = False
        # Not multiprocessing's spawn, which would run the caller's script again if that has no main guard.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", "from cs336.evals.watchdog import serve; serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)},
        )
        self._send(job)

    def results(self, items: list[A]) -> Iterator[Outcome[B]]:
        """Outcomes of the items in their order; fewer than there are items if the process dies.

        Raises:
            RuntimeError: the function raised, or the process did not start.
        """
        if not self._ready:
            if self._receive() is None:
                raise RuntimeError(f"a worker could not start: exit status {self._process.wait()}")
            self._ready = True
        self._send(pickle.dumps(items))
        for _ in items:
            self._since = time.monotonic()
            answer = self._receive()
            if answer is None:
                return
            outcome, error, self.is_large = answer
            if error:
                raise RuntimeError(f"the function raised in a worker:\n{error}")
            yield outcome

    def cause_of_death(self) -> str:
        """Why the process ended in the midst of a call."""
        took = time.monotonic() - self._since
        code = self._process.wait()
        self.end()
        if code == _TIME_IS_UP and took >= self._seconds:
            return f"over {self._seconds:g} s"
        if code >= 0:
            return f"ended the process with status {code}"
        name = signal.Signals(-code).name
        return f"killed by {name} (out of memory?)" if name == "SIGKILL" else f"crashed ({name})"

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            with contextlib.suppress(OSError):  # what was not sent has no reader any more
                stream.close()

    def _send(self, message: bytes) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # it is dead, which is seen where its answer is waited for
            self._process.stdin.write(message)
            self._process.stdin.flush()

    def _receive(self) -> Any:
        assert self._process.stdout is not None
        try:
            return pickle.load(self._process.stdout)
        except (EOFError, OSError, pickle.UnpicklingError):  # it died, perhaps within a message
            return None


def serve() -> None:
    """A worker's side: a job, then batches of items in, answers out, until the other end of standard input closes."""
    inbox, outbox = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what the function prints must not come between the answers
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's affair
    with open(os.devnull, "w") as nowhere:
        faulthandler.dump_traceback_later(_START_SECONDS, exit=True, file=nowhere)
        function, seconds, max_bytes, warm_up = pickle.load(inbox)
        if warm_up is not None:
            with contextlib.suppress(Exception):
                function(warm_up)
        bytes_at_start = _limit_memory(max_bytes)
        pickle.dump("ready", outbox)
        outbox.flush()
        while True:
            faulthandler.cancel_dump_traceback_later()
            try:
                items = pickle.load(inbox)
            except EOFError:
                return
            timer_from = -seconds
            is_large = _resident_bytes() - bytes_at_start > max_bytes // 2
            for item in items:
                now = time.monotonic()
                if now - timer_from > _TIMER_REUSE * seconds:
                    faulthandler.dump_traceback_later((1 + _TIMER_REUSE) * seconds, exit=True, file=nowhere)
                    timer_from = now
                outbox.write(_answer(function, item, max_bytes, is_large))
                outbox.flush()


def _answer(function: Callable[[Any], Any], item: Any, max_bytes: int, is_large: bool) -> bytes:
    try:
        return pickle.dumps((Outcome(function(item), None), "", is_large))
    except MemoryError:
        lost = Outcome[Any](None, f"over {max_bytes:,} bytes of memory")
        return pickle.dumps((lost, "", is_large))
    except BaseException:  # such as SystemExit: what the function raises is for the caller
        return pickle.dumps((None, traceback.format_exc(), is_large))


def _limit_memory(max_bytes: int) -> int:
    """Let this process take so many bytes more than it has; returns how many of those it has are resident.

    Address space is what a limit can be set for, and Linux says how much of it is used.
    """
    if _STATM.exists():
        import resource

        used = int(_STATM.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + max_bytes, resource.RLIM_INFINITY))
    return _resident_bytes()


def _resident_bytes() -> int:
    """Memory of this process; 0 where the system does not say."""
    if not _STATM.exists():
        return 0
    import resource

    return int(_STATM.read_text().split()[1]) * resource.getpagesize()
