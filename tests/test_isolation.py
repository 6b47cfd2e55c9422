"""Items that hang or crash their process cost themselves alone, and order stays."""

import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest

from cs336.isolation import map_isolated

HANGS, ABORTS = "[None for _ in iter(int, 1)]", "__import__('os').abort()"
ROOT = Path(__file__).parents[1]


def evaluate(batches, num_workers=1):
    return list(map_isolated(eval, batches, cpu_seconds=0.3, lost="lost: {}".format, num_workers=num_workers))


@pytest.mark.parametrize("num_workers", [1, 3])
def test_results_come_in_the_order_of_the_items(num_workers):
    slow_first = [["__import__('time').sleep(0.3) or 0", "1"], *([f"{number}"] for number in range(2, 40))]
    assert evaluate(slow_first, num_workers) == list(range(40))
    assert evaluate([], num_workers) == []


@pytest.mark.parametrize("num_workers", [1, 2])
def test_what_hangs_or_crashes_costs_itself_alone(num_workers):
    batches = [["0", HANGS, "2"], [ABORTS, ABORTS, "5"], ["6", ABORTS]]
    late, crashed = "lost: over 0.3 s of CPU time", "lost: crashed (SIGABRT)"
    assert evaluate(batches, num_workers) == [0, late, 2, crashed, crashed, 5, 6, crashed]


def test_waiting_is_no_cpu_time_and_items_do_not_share_theirs():
    clock = "__import__('time').process_time()"
    busy = f"[1 for end in [{clock} + 0.2] for _ in iter(lambda: {clock} < end, False)] and 1"
    assert evaluate([["__import__('time').sleep(0.6) or 0", busy, busy, busy]]) == [0, 1, 1, 1]


def test_results_larger_than_a_pipe_do_not_block():
    assert [len(result) for result in evaluate([["'x' * 3_000_000"] * 4] * 3, 2)] == [3_000_000] * 12


def test_an_item_on_which_the_function_raises_costs_itself_alone():
    assert evaluate([["1", "1 / 0", "2"]]) == [1, "lost: ZeroDivisionError", 2]


def test_a_worker_killed_from_outside_is_an_error_and_not_the_items_fault():
    with pytest.raises(RuntimeError, match=r"SIGKILL \(out of memory\?\)"):
        evaluate([["__import__('os').kill(__import__('os').getpid(), 9)"]])
    with pytest.raises(RuntimeError, match="exit status 3"):
        evaluate([["__import__('os')._exit(3)"]])


def test_a_function_that_no_worker_can_load_is_an_error_and_no_items_fault(monkeypatch):
    module = types.ModuleType("only_in_this_process")
    exec("def work(item):\n    return item", vars(module))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    with pytest.raises(RuntimeError, match="a worker could not start"):
        list(map_isolated(module.work, [["1"]], cpu_seconds=1, lost=str))


def test_workers_die_when_their_parent_is_killed():
    script = (
        "from cs336.isolation import map_isolated\n"
        "tasks = [['__import__(\"os\").getpid()'], ['__import__(\"time\").sleep(60)']]\n"
        "for pid in map_isolated(eval, tasks, cpu_seconds=9, lost=str):\n"
        "    print(pid, flush=True)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{worker}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{worker}").exists()
