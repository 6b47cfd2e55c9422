"""Items that hang or crash their process cost themselves alone, and order stays."""

import os
import pickle
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest

from cs336 import isolation
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


@pytest.fixture
def processes(monkeypatch):
    """Those that are started as workers; none is left of earlier calls."""
    started: list[subprocess.Popen] = []
    start = subprocess.Popen
    monkeypatch.setattr(isolation, "_spare", [])
    monkeypatch.setattr(
        subprocess, "Popen", lambda *args, **kwargs: started.append(start(*args, **kwargs)) or started[-1]
    )
    yield started
    for process in started:
        process.kill()
        process.wait()


def leaked(processes):
    """Workers that live on, though no later call will find them."""
    spare = [worker._process for worker in isolation._spare]
    return [process.pid for process in processes if process.poll() is None and process not in spare]


def raising(_):
    raise ZeroDivisionError


def ends_badly():
    yield ["1"]
    raise ZeroDivisionError


@pytest.mark.parametrize("num_workers", [1, 3])
@pytest.mark.parametrize(
    "batches",
    [
        lambda: [["1"], ["1 / 0"], ["2"]],  # what `lost` raises
        lambda: [["1"], [lambda: 0], ["2"]],  # cannot be sent
        ends_badly,
    ],
)
def test_no_worker_outlives_an_exception(processes, batches, num_workers):
    with pytest.raises((ZeroDivisionError, AttributeError, pickle.PicklingError)):
        list(map_isolated(eval, batches(), cpu_seconds=0.3, lost=raising, num_workers=num_workers))
    assert processes and not leaked(processes)


def test_no_worker_outlives_a_reader_that_stops_early(processes):
    batches = [["1"], *[["__import__('time').sleep(60)"]] * 2]
    results = map_isolated(eval, batches, cpu_seconds=9, lost=str, num_workers=3)
    assert next(results) == 1 and leaked(processes)
    results.close()
    assert not leaked(processes)


def test_workers_start_at_once(tmp_path, monkeypatch):
    work = "def double(item):\n    return 2 * item\n"
    wait = (
        "import os, time\n"
        f"folder = {str(tmp_path)!r}\n"
        "open(f'{folder}/{os.getpid()}.here', 'w').close()\n"
        "end = time.monotonic() + 30\n"
        "while sum(name.endswith('.here') for name in os.listdir(folder)) < 4:\n"
        "    assert time.monotonic() < end, 'alone'\n"
        "    time.sleep(0.01)\n"
    )
    (tmp_path / "rendezvous.py").write_text(wait + work)  # a worker that imports it waits for three others
    monkeypatch.syspath_prepend(tmp_path)
    module = types.ModuleType("rendezvous")
    exec(work, vars(module))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    batches = [[number] for number in range(4)]
    results = map_isolated(module.double, batches, cpu_seconds=9, lost=str, num_workers=4)
    assert list(results) == [0, 2, 4, 6]


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


def test_processor_time_of_workers_that_live_on_is_counted():
    clock = "__import__('time').process_time"
    spins = f"[1 for start in [{clock}()] for _ in iter(lambda: {clock}() - start > 0.4, True)] and 1"

    def results(item):
        return list(map_isolated(eval, [[item]], cpu_seconds=9, lost=str))

    results("0")
    before = isolation.used_cpu_seconds()
    assert results(spins) == [1]
    spent = isolation.used_cpu_seconds() - before
    assert 0.4 <= spent < 4
    for worker in isolation._spare:  # ended ones are counted by the kernel instead, not twice
        worker.end()
    isolation._spare.clear()
    assert spent - 0.1 < isolation.used_cpu_seconds() - before < spent + 2
