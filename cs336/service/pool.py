"""A pool of workers on this machine: a process a job, on the CPU or on one of its GPUs.

    FOLDER/address, internal_key        how workers reach the service
    FOLDER/running/RUN_ID/              a run: job.json, lock, log.txt, finish.json
    FOLDER/done/RUN_ID/                 runs that are over, for whoever asks why

Workers live in sessions of their own. A service that is killed leaves them training; the next one finds them by
their locks.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from cs336.files import UserError, read_json, replacing, write_json
from cs336.service.job_models import Finish
from cs336.service.jobs import Running
from cs336.service.worker import ADDRESS_FILE, FINISH_FILE, JOB_FILE, KEY_FILE, LOCK_FILE, LOG_FILE

_PREEMPT_SECONDS = 10.0  # that workers get to stop by themselves


class LocalPool:
    """Workers of this machine.

    Args:
        folder: of the runs.
        data: folder of the token arrays, `train.bin` and `valid.bin`.
        devices: that runs are spread over, such as ["cuda:0", "cuda:1"].
        threads: of PyTorch in each worker on a CPU.
    """

    worker_module = "cs336.service.worker"  # run with a run's folder as its argument

    def __init__(
        self, folder: Path, *, data: Path, devices: Sequence[str] = ("auto",), threads: int | None = None
    ) -> None:
        self.folder, self.data, self.devices, self.threads = folder.resolve(), data.resolve(), devices, threads
        self._launched: dict[str, subprocess.Popen[bytes]] = {}
        for name in ("running", "done"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)

    def announce(self, address: str) -> None:
        """Tell workers where the service is, such as `http://127.0.0.1:8000`."""
        with replacing(self.folder / ADDRESS_FILE, "w") as file:
            file.write(address)

    def internal_key(self) -> str:
        """The secret between workers and service: made once, readable to this user only."""
        path = self.folder / KEY_FILE
        with contextlib.suppress(FileExistsError):
            partial = path.with_name(f".{KEY_FILE}.{os.getpid()}.partial")
            with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
                file.write(secrets.token_urlsafe(32))
            try:
                os.link(partial, path)  # unlike a rename, never in the place of a key that is there
            finally:
                partial.unlink()
        return path.read_text().strip()

    def ensure(self, job: Running) -> bool:
        """Launch the run if it never was; False if its worker is gone."""
        launched = self._launched.get(job.run_id)
        if launched is not None:
            return launched.poll() is None
        folder = self._run(job.run_id)
        if (folder / LOCK_FILE).exists():
            if _is_locked(folder / LOCK_FILE):
                return True
            if (folder / LOCK_FILE).read_text():  # it lived
                return False
        self._launch(job, folder)
        return True

    def last_words(self, run_id: str) -> Finish | None:
        """How a run whose worker is gone ended, if it wrote that down."""
        try:
            return Finish.model_validate(read_json(self._run(run_id) / FINISH_FILE))
        except (UserError, ValidationError):
            return None

    def end(self, run_id: str) -> None:
        """Kill the run's worker, if it lives."""
        self._signal(run_id, signal.SIGKILL)

    def settle(self, running: set[str]) -> None:
        """End every worker whose run is not one of these; the run's folder is put aside."""
        for folder in (self.folder / "running").iterdir():
            run_id = folder.name
            if run_id in running:
                continue
            launched = self._launched.get(run_id)
            if launched is not None and launched.poll() is None and (folder / FINISH_FILE).exists():
                continue  # it has told its end and is about to leave
            if _is_locked(folder / LOCK_FILE) or (launched is not None and launched.poll() is None):
                self.end(run_id)
                continue  # put aside at the next look
            self._launched.pop(run_id, None)
            folder.replace(self.folder / "done" / run_id)

    def preempt_all(self) -> None:
        """Ask all workers to stop, and wait until they have; those that do not are killed."""
        folders = [folder.name for folder in (self.folder / "running").iterdir()]
        for run_id in folders:
            self._signal(run_id, signal.SIGTERM)
        until = time.monotonic() + _PREEMPT_SECONDS
        while any(self._lives(run_id) for run_id in folders):
            if time.monotonic() > until:
                for run_id in folders:
                    self.end(run_id)
                until = float("inf")
            time.sleep(0.05)

    def _launch(self, job: Running, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        (folder / LOCK_FILE).touch()
        write_json(
            folder / JOB_FILE,
            {
                "experiment_id": job.experiment_id,
                "run_id": job.run_id,
                "config": job.config.model_dump(mode="json"),
                "data": str(self.data),
                "device": self._free_device(),
            },
        )
        environment = dict(os.environ)
        if self.threads is not None:
            environment["OMP_NUM_THREADS"] = str(self.threads)
        with (folder / LOG_FILE).open("ab") as log:
            self._launched[job.run_id] = subprocess.Popen(
                [sys.executable, "-m", self.worker_module, str(folder)],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _free_device(self) -> str:
        """The device with the fewest runs."""
        used: Counter[str] = Counter()
        for folder in (self.folder / "running").iterdir():
            with contextlib.suppress(UserError):
                used[read_json(folder / JOB_FILE)["device"]] += 1
        return min(self.devices, key=lambda device: used[device])

    def _lives(self, run_id: str) -> bool:
        launched = self._launched.get(run_id)
        if launched is not None:
            return launched.poll() is None
        return _is_locked(self._run(run_id) / LOCK_FILE)

    def _signal(self, run_id: str, number: int) -> None:
        launched = self._launched.get(run_id)
        if launched is not None:
            launched.send_signal(number)  # does nothing to one that has ended
        elif _is_locked(self._run(run_id) / LOCK_FILE):
            with contextlib.suppress(ProcessLookupError, ValueError):
                os.kill(int((self._run(run_id) / LOCK_FILE).read_text()), number)

    def _run(self, run_id: str) -> Path:
        return self.folder / "running" / run_id


def _is_locked(path: Path) -> bool:
    """Whether a worker holds this lock."""
    try:
        with path.open("r") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False
