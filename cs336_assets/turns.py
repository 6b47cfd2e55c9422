"""One run at a time on a device, however many processes want it: a wait that costs nothing and can be interrupted.

Dagster's pools queue the steps of runs started in the UI. In one process (`cs336 run`) Dagster would wait for a place
without sleeping, and asks for one even for a step that will be skipped; so there the turn is taken here.
"""

from __future__ import annotations

import fcntl
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import IO

POLL_SECONDS = 1.0


class _Turn:
    """A lock between processes that the threads of one process hold together."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._guard = threading.Lock()
        self._holders = 0
        self._file: IO[str] | None = None

    def take(self, say: Callable[[str], None]) -> None:
        with self._guard:  # other threads of this process wait here for the first one
            if not self._holders:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                file = self._path.open("w")
                try:
                    _wait_for(file, say, self._path)
                except BaseException:
                    file.close()
                    raise
                self._file = file
            self._holders += 1

    def give_back(self) -> None:
        with self._guard:
            self._holders -= 1
            if not self._holders and self._file is not None:
                self._file.close()  # which unlocks; the kernel does so at any death


def _wait_for(file: IO[str], say: Callable[[str], None], path: Path) -> None:
    said = False
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not said:
                say(f"waits: another run is using {path.name}; goes on when that one is done (Ctrl-C stops this one)")
                said = True
            time.sleep(POLL_SECONDS)


_turns: dict[Path, _Turn] = {}
_registry = threading.Lock()


@contextmanager
def turn(path: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock file `path` for the time of the block.

    Args:
        say: called once with a line if another process has it.
    """
    with _registry:
        held = _turns.setdefault(path, _Turn(path))
    held.take(say)
    try:
        yield
    finally:
        held.give_back()


def device_turn(pool: str | None, root: Path, device: str, say: Callable[[str], None]) -> AbstractContextManager[None]:
    """A step of the pool `gpu` has its device for itself; what is unchanged was skipped before it came here."""
    if pool != "gpu":
        return nullcontext()
    name = re.sub(r"\W+", "-", f"{device}-{os.environ.get('CUDA_VISIBLE_DEVICES', '')}").strip("-")
    return turn(root / ".locks" / f"{pool}-{name}", say)
