"""The scheduler: once a second it looks after the jobs that run, and gives free workers to those that wait."""

from __future__ import annotations

import fcntl
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO, Protocol

from cs336.service import life_cycle
from cs336.service.job_models import Finish, Preempted
from cs336.service.jobs import Jobs, Running
from cs336.service.life_cycle import WrongState

NUM_WORKERS = 100  # of the contest's own cluster
POLL_SECONDS = 1.0
PATIENCE_SECONDS = 180.0  # three missed heartbeats

log = logging.getLogger(__name__)


class Pool(Protocol):
    """What runs workers. A run id names a run for ever; launching one twice runs it once."""

    def ensure(self, job: Running) -> bool:
        """Launch the run if it never was; False if its worker is gone."""

    def last_words(self, run_id: str) -> Finish | None:
        """How a run whose worker is gone ended, if it wrote that down."""

    def end(self, run_id: str) -> None:
        """Kill the run's worker, if it lives."""

    def settle(self, running: set[str]) -> None:
        """End every worker whose run is not one of these."""

    def preempt_all(self) -> None:
        """Ask all workers to stop, and wait until they have."""


class Scheduler(threading.Thread):
    """Looks after jobs until `stop`. Of several processes on one machine only one does, and the next when that ends.

    Args:
        folder: where the lock lies by which they agree.
        num_workers: jobs that run at once.
        patience_seconds: without news of a worker, after which its run is given up.
        on_turn: called once it is this one that looks after jobs.
    """

    def __init__(
        self,
        jobs: Jobs,
        pool: Pool,
        *,
        folder: Path,
        num_workers: int = NUM_WORKERS,
        poll_seconds: float = POLL_SECONDS,
        patience_seconds: float = PATIENCE_SECONDS,
        on_turn: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(name="scheduler", daemon=True)
        self.jobs, self.pool = jobs, pool
        self.num_workers, self.poll_seconds, self.patience_seconds = num_workers, poll_seconds, patience_seconds
        self._on_turn = on_turn
        self._folder, self._stopped, self._since = folder, threading.Event(), jobs.now()

    def run(self) -> None:
        """Tick until stopped. One that fails is logged, and the next tries again."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / "scheduler.lock").open("w") as lock:
            while not _locked(lock):
                if self._stopped.wait(self.poll_seconds):
                    return
            self._on_turn()
            while not self._stopped.is_set():
                try:
                    self.tick()
                except Exception:
                    log.exception("the scheduler's tick failed")
                self._stopped.wait(self.poll_seconds)
            self._preempt()

    def stop(self) -> None:
        """Preempt what runs, so that it waits for the next start, and end the thread."""
        self._stopped.set()
        if self.is_alive():
            self.join()

    def tick(self) -> None:
        """One look at all jobs that run, then at the queue."""
        running = self.jobs.running()
        self.pool.settle({job.run_id for job in running})
        for job in running:
            self._look_after(job)
        for job in self.jobs.dispatch(self.num_workers):
            self._launch(job)

    def _look_after(self, job: Running) -> None:
        now, limit = self.jobs.now(), job.config.max_runtime_seconds
        overdue = life_cycle.is_overdue(job.status, limit, now)
        # While the service was away nobody could be heard; patience begins anew with it.
        patient = (now - self._since).total_seconds() <= self.patience_seconds
        silent = not patient and life_cycle.is_silent(job.status, self.patience_seconds, now)
        stuck = not patient and life_cycle.is_stuck(job.status, now)
        lives = silent or stuck or self._launch(job)
        if lives and not (overdue or silent or stuck):
            return
        words = self.pool.last_words(job.run_id)
        self.pool.end(job.run_id)
        if words is not None:
            self._take(job, words)
        elif not lives:  # though its time be over: it may have died long before, and is charged to its last word
            self._finish(job, error="the worker died without a word")
        elif overdue:
            self._finish(job, used_seconds=limit, failure="timeout", error="ended by the watchdog")
        elif silent:
            self._finish(job, error=f"the worker was silent for more than {self.patience_seconds:g} s")
        else:
            self._finish(job, error=f"training did not begin within {life_cycle.MAX_SETUP_SECONDS:g} s")

    def _launch(self, job: Running) -> bool:
        try:
            return self.pool.ensure(job)
        except OSError:  # such as no memory for a process: the next tick tries again, until patience ends
            log.exception("experiment %s: its worker could not be launched", job.experiment_id)
            return True

    def _finish(
        self,
        job: Running,
        *,
        error: str,
        used_seconds: float | None = None,
        failure: life_cycle.Failure = "unexpected",
    ) -> None:
        used = life_cycle.trained_seconds(job.status) if used_seconds is None else used_seconds
        self._take(job, Finish(run_id=job.run_id, used_seconds=used, failure=failure, error=error))

    def _take(self, job: Running, finish: Finish) -> None:
        try:
            self.jobs.finish(job.experiment_id, finish)
        except WrongState:  # its worker said so itself, between our look and now
            log.info("experiment %s had ended already", job.experiment_id)

    def _preempt(self) -> None:
        self.pool.preempt_all()
        for job in self.jobs.running():
            words = self.pool.last_words(job.run_id)
            if words is not None:
                self._take(job, words)
            else:
                self.jobs.worker_event(job.experiment_id, Preempted(type="preempted", run_id=job.run_id))


def _locked(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
