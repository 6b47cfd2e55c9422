"""One worker: `python -m cs336.service.worker FOLDER` trains the job in a run's folder and reports to the service.

The folder has `job.json`; the worker holds a lock on `lock` as long as it lives, writes its end to `finish.json`
before it reports it, and is asked to stop by SIGTERM. The service's address and the internal key are read from the
files beside the folders at every attempt, so a worker outlives a service that comes back elsewhere.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import queue
import signal
import sys
import threading
import time
from pathlib import Path
from typing import IO, Any

import requests

from cs336.files import UserError, read_json, write_json

ADDRESS_FILE, KEY_FILE = "address", "internal_key"
JOB_FILE, LOCK_FILE, FINISH_FILE, LOG_FILE = "job.json", "lock", "finish.json", "log.txt"
HEARTBEAT_SECONDS = 20.0
_REQUEST_SECONDS = 10.0
_LONGEST_PAUSE_SECONDS = 10.0
_GIVE_UP_SECONDS = 3_600.0  # a service that does not come back for so long reads the end from the folder
_ERROR_CHARACTERS = 2_000


class PreemptedError(Exception):
    """The machine is taken away."""


class Reporter:
    """Sends news in their order from a thread of its own, a heartbeat where there are none for a while.

    What cannot be delivered is tried again, so the training never waits for the service.
    """

    def __init__(self, folder: Path, experiment_id: int, run_id: str) -> None:
        self.pool_folder, self.experiment_id, self.run_id = folder.parent.parent, experiment_id, run_id
        self._news: queue.Queue[tuple[str, dict[str, Any]] | None] = queue.Queue()
        self._hurry = threading.Event()
        self._thread = threading.Thread(target=self._send_all, name="reporter", daemon=True)
        self._thread.start()

    def event(self, kind: str, **detail: Any) -> None:
        """Queue an event."""
        self._news.put(("event", {"type": kind, "run_id": self.run_id, **detail}))

    def finish(self, finish: dict[str, Any]) -> None:
        """Queue the end."""
        self._news.put(("finish", finish))

    def close(self, *, hurry: bool = False) -> None:
        """Wait until all is sent, or, in a hurry, until one more attempt has failed."""
        if hurry:
            self._hurry.set()
        self._news.put(None)
        self._thread.join()

    def _send_all(self) -> None:
        while True:
            try:
                news = self._news.get(timeout=HEARTBEAT_SECONDS)
            except queue.Empty:
                news = ("event", {"type": "heartbeat", "run_id": self.run_id})
            if news is None:
                return
            self._send(*news)

    def _send(self, path: str, body: dict[str, Any]) -> None:
        pause, until = 0.2, time.monotonic() + _GIVE_UP_SECONDS
        while not self._sent(path, body):
            if self._hurry.is_set() or time.monotonic() > until:
                print(f"not delivered: {body}", flush=True)
                return
            self._hurry.wait(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    def _sent(self, path: str, body: dict[str, Any]) -> bool:
        try:
            address = (self.pool_folder / ADDRESS_FILE).read_text().strip()
            key = (self.pool_folder / KEY_FILE).read_text().strip()
            answer = requests.post(
                f"{address}/internal/worker/{self.experiment_id}/{path}",
                json=body,
                headers={"X-Internal-Key": key},
                timeout=_REQUEST_SECONDS,
            )
        except (requests.RequestException, OSError) as error:
            print(f"cannot reach the service: {error}", flush=True)
            return False
        if answer.status_code != 204:
            print(f"{path} {body}: the service answered {answer.status_code} {answer.text[:500]}", flush=True)
        # Anything but "later" is an answer that the same words would get again, such as to an end told twice.
        return answer.status_code not in (401, 429, 502, 503, 504)


def run(folder: Path) -> int:
    """Train the job of a run's folder; returns the exit status, 0 where the service was told how it ended."""
    lock = (folder / LOCK_FILE).open("a+")
    if not _take(lock):
        print("another process trains this run", flush=True)
        return 0
    lock.truncate(0)
    lock.write(str(os.getpid()))
    lock.flush()
    with contextlib.suppress(OSError):  # of a machine without memory, it is the worker that goes, not the service
        Path("/proc/self/oom_score_adj").write_text("1000")
    job = read_json(folder / JOB_FILE)
    reporter = Reporter(folder, job["experiment_id"], job["run_id"])
    try:
        finish = _train(job, reporter)
    except PreemptedError:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        reporter.event("preempted")
        reporter.close(hurry=True)
        return 0
    write_json(folder / FINISH_FILE, finish)
    reporter.finish(finish)
    reporter.close()
    return 0


def _train(job: dict[str, Any], reporter: Reporter) -> dict[str, Any]:
    """Train and say how it ended, whatever happens."""
    losses: list[float] = []
    start: list[float] = []

    def on_start() -> None:
        start.append(time.monotonic())
        reporter.event("started")

    def on_loss(number: int, loss: float) -> None:
        losses.append(loss)
        reporter.event("validation_loss", number=number, loss=loss)

    finish: dict[str, Any] = {"run_id": job["run_id"], "val_losses": losses, "failure": None, "error": None}
    try:
        signal.signal(signal.SIGTERM, _preempted)
        from cs336.service.job_config import TrainingConfig  # here, so that the import of PyTorch can be preempted
        from cs336.service.job_data import open_data
        from cs336.service.training import train_job

        config = TrainingConfig.model_validate(job["config"])
        outcome = train_job(
            config, open_data(Path(job["data"])), device=job["device"], on_start=on_start, on_loss=on_loss
        )
    except PreemptedError:
        raise
    except BaseException as error:  # the user is told, whatever it was
        used = time.monotonic() - start[0] if start else 0.0
        text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        return finish | {"used_seconds": used, "failure": "unexpected", "error": text[:_ERROR_CHARACTERS]}
    if outcome.timed_out:
        limit = f"{config.max_runtime_seconds} s were over after {len(losses)} of {config.n_evals} chunks"
        finish |= {"failure": "timeout", "error": limit}
    return finish | {"used_seconds": outcome.used_seconds}


def _preempted(signum: int, frame: object) -> None:
    raise PreemptedError


def _take(lock: IO[str]) -> bool:
    """Lock the run, unless another worker has it; a moment's lock of one who looks is waited out."""
    for _ in range(20):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.1)
        else:
            return True
    return False


if __name__ == "__main__":
    sys.exit(run(Path(sys.argv[1])))
