"""A server as a user starts it: `cs336 serve scaling` in a process of its own."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import requests

ROOT = Path(__file__).parents[2]


class Server:
    """`cs336 serve scaling` on a free port; `kill` and `start` again as often as wanted."""

    def __init__(self, database_url: str, folder: Path, *options: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._command = [sys.executable, "-m", "cs336", "serve", "scaling", "--port", str(self.port), *options]
        self._command += ["--database", database_url, "--log", str(folder / "requests.jsonl")]
        self._errors = folder / "server.txt"
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        with self._errors.open("ab") as errors:
            self.process = subprocess.Popen(
                self._command, cwd=ROOT, stdout=errors, stderr=errors, env=os.environ | {"OMP_NUM_THREADS": "1"}
            )
        for _ in range(600):
            assert self.process.poll() is None, self._errors.read_text()
            try:
                requests.get(self.url + "/openapi.json", timeout=5)
                return
            except requests.ConnectionError:
                time.sleep(0.1)
        raise TimeoutError(self._errors.read_text())

    def kill(self) -> None:
        """As a power switch does: SIGKILL."""
        assert self.process is not None
        self.process.kill()
        assert self.process.wait(30) == -signal.SIGKILL

    def stop(self) -> None:
        """As a person does: SIGINT, and wait."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            self.process.wait(30)
