"""Parallel maps keep order and errors; children die with their parent."""

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path

import pytest

from cs336 import processes
from cs336.processes import map_ordered, map_threads, uncollected, workers_by_now


def _square(x):
    if x == 13:
        raise ValueError("unlucky")
    return x * x


@pytest.mark.parametrize("num_workers", [1, 2])
def test_results_come_in_the_order_of_the_items(num_workers):
    assert list(map_ordered(abs, range(-50, 0), num_workers=num_workers, per_task=7)) == list(range(50, 0, -1))


@pytest.mark.parametrize("num_workers", [1, 2])
def test_an_error_in_a_worker_reaches_the_caller(num_workers):
    with pytest.raises(ValueError, match="13"):
        list(map_ordered(int, ["1", "x13"], num_workers=num_workers))


def test_processes_start_as_they_may_by_now(monkeypatch):
    monkeypatch.setattr(processes, "workers_by_now", lambda begun, most: 3)
    results = map_ordered(abs, range(40), num_workers=16)
    assert next(results) == 0 and len(multiprocessing.active_children()) <= 3
    assert list(results) == list(range(1, 40))


def test_long_work_has_twice_as_many_processes_with_every_second():
    now = time.monotonic()
    assert [workers_by_now(now - seconds - 0.5, 64) for seconds in (0, 1, 2, 3, 4, 9, 10**6)] == [
        4,
        8,
        16,
        32,
        64,
        64,
        64,
    ]
    assert workers_by_now(now, 2) == 2


@pytest.mark.parametrize("num_threads", [1, 3])
def test_threads_keep_order_and_errors_and_take_few_items_ahead(num_threads):
    taken = []
    results = map_threads(_square, (taken.append(x) or x for x in range(100)), num_threads=num_threads)
    assert [next(results) for _ in range(5)] == [0, 1, 4, 9, 16]
    assert len(taken) <= 5 + 2 * num_threads + 1
    with pytest.raises(ValueError, match="unlucky"):
        list(results)


def test_workers_die_when_their_parent_is_killed(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(
        "import os, time\n"
        "from cs336.processes import map_ordered\n"
        "if __name__ == '__main__':\n"
        "    tasks = ['__import__(\"os\").getpid()', '__import__(\"time\").sleep(60)']\n"
        "    for pid in map_ordered(eval, tasks, num_workers=2):\n"
        "        print(pid, flush=True)\n"
    )
    root = Path(__file__).parents[1]
    parent = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(root)}
    )
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{worker}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{worker}").exists()


def test_what_stays_is_not_searched_for_garbage_and_all_else_is_again():
    class Ring:
        pass

    def ring():
        one = Ring()
        one.itself = one
        return weakref.ref(one)

    with pytest.raises(KeyError), uncollected():
        assert not gc.isenabled()
        kept = ring()
        raise KeyError
    assert gc.isenabled()
    later = ring()
    gc.collect()
    assert kept() is not None and later() is None
