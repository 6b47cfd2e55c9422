"""Calls that hang, crash or take all memory cost themselves alone, on whatever thread, and processes live on."""

import os
import signal
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import pytest

from cs336.evals import watchdog as watchdog_module
from cs336.evals.watchdog import Outcome, Watchdog

ROOT = Path(__file__).parents[2]
PID = "__import__('os').getpid()"
SLEEPS, LOOPS = "__import__('time').sleep(60)", "[None for _ in iter(int, 1)]"
HOLDS_THE_LOCK = "9 ** 9 ** 9"  # one instruction of the interpreter: no signal handler and no other thread gets to run


def test_outcomes_come_in_the_order_of_the_items():
    items = [f"__import__('time').sleep(0.05) or {number}" if number % 7 == 0 else str(number) for number in range(100)]
    for num_workers in (1, 3):
        with Watchdog(eval, num_workers=num_workers) as watchdog:
            assert [outcome.value for outcome in watchdog.map(items)] == list(range(100))
            assert watchdog.map([]) == []


@pytest.mark.parametrize("hang", [SLEEPS, LOOPS, HOLDS_THE_LOCK])
def test_a_call_that_hangs_is_ended_with_its_reason_and_the_others_are_not(hang):
    with Watchdog(eval, seconds=0.5) as watchdog:
        before = watchdog.map([PID])[0].value
        start = time.monotonic()
        assert watchdog.map(["1", hang, "3"]) == [Outcome(1, None), Outcome(None, "over 0.5 s"), Outcome(3, None)]
        assert 0.5 <= time.monotonic() - start < 30
        assert watchdog.map([PID])[0].value != before
        with pytest.raises(ProcessLookupError):
            os.kill(before, 0)  # it is gone, not left behind


def test_calls_do_not_share_their_time():
    with Watchdog(eval, seconds=1.0) as watchdog:
        outcomes = watchdog.map(["__import__('time').sleep(0.4) or 1"] * 8)  # four are sent together
    assert outcomes == [Outcome(1, None)] * 8


def test_a_process_lives_on_from_call_to_call():
    with Watchdog(eval) as watchdog:
        pids = {outcome.value for _ in range(3) for outcome in watchdog.map([PID] * 5)}
    assert len(pids) == 1
    assert os.getpid() not in pids


def test_any_thread_may_ask_and_a_process_outlives_the_thread_that_started_it():
    found: dict[str, list[Outcome]] = {}
    with Watchdog(eval, seconds=0.5) as watchdog:
        for name in ("first", "second"):
            thread = threading.Thread(target=lambda name=name: found.update({name: watchdog.map([PID])}))
            thread.start()
            thread.join()
        assert found["first"] == found["second"]
        hung = threading.Thread(target=lambda: found.update(hung=watchdog.map([SLEEPS, "2"])))
        hung.start()
        hung.join()
    assert found["hung"] == [Outcome(None, "over 0.5 s"), Outcome(2, None)]


def test_threads_that_ask_at_once_get_their_own_outcomes_from_at_most_that_many_processes():
    found: dict[int, list[Outcome]] = {}
    with Watchdog(eval, num_workers=2) as watchdog:

        def ask(number):
            items = [f"({number}, {PID})"] * 50
            found[number] = watchdog.map(items)

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert all(outcome.value[0] == number for number, outcomes in found.items() for outcome in outcomes)
    assert len(found) == 6
    assert len({outcome.value[1] for outcomes in found.values() for outcome in outcomes}) <= 2


@pytest.mark.parametrize("allowed", [1, 3])
def test_processes_start_as_they_may_by_now(allowed, monkeypatch):
    monkeypatch.setattr(watchdog_module, "workers_by_now", lambda begun, most: allowed)
    item = f"__import__('time').sleep(0.01) or {PID}"
    with Watchdog(eval, num_workers=6) as watchdog:
        assert len({outcome.value for outcome in watchdog.map([item] * 60)}) <= allowed


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says how much address space is used")
def test_memory_is_bounded_for_one_call_and_over_many():
    with Watchdog(eval, max_bytes=500_000_000) as watchdog:
        assert watchdog.map(["len(bytes(100_000_000))", "len(bytes(10**10))", "3"]) == [
            Outcome(100_000_000, None),
            Outcome(None, "over 500,000,000 bytes of memory"),
            Outcome(3, None),
        ]
        before = watchdog.map([PID])[0].value
        keep = "setattr(__import__('sys'), 'kept', b'x' * 270_000_000)"
        assert watchdog.map([keep]) == [Outcome(None, None)]
        watchdog.map(["1"])  # sees that the process has stayed large
        assert watchdog.map([PID])[0].value != before


def test_a_call_that_ends_its_process_says_how():
    with Watchdog(eval) as watchdog:
        outcomes = watchdog.map(["__import__('os').abort()", "__import__('os')._exit(1)", "3"])
        killed = watchdog.map([f"__import__('os').kill({PID}, 9)"])[0]
    assert [outcome.reason for outcome in outcomes] == ["crashed (SIGABRT)", "ended the process with status 1", None]
    assert killed.reason == "killed by SIGKILL (out of memory?)"


@pytest.mark.parametrize("fault", ["1 / 0", "__import__('sys').exit(1)", "lambda: 0"])
def test_what_the_function_raises_is_no_lost_call_but_an_error_here(fault):
    with Watchdog(eval, num_workers=2) as watchdog:
        with pytest.raises(RuntimeError, match=r"raised in a worker:\nTraceback"):
            watchdog.map(["1", fault, "3"])
        assert watchdog.map(["4"]) == [Outcome(4, None)]


def test_what_a_function_prints_stays_out_of_the_answers(capfd):
    with Watchdog(eval) as watchdog:
        assert watchdog.map(["print('aside') or 1"]) == [Outcome(1, None)]
    assert capfd.readouterr().out == ""


def test_items_and_values_larger_than_a_pipe():
    with Watchdog(len) as measure, Watchdog(eval) as evaluate:
        assert [outcome.value for outcome in measure.map(["x" * 3_000_000] * 4)] == [3_000_000] * 4
        assert [len(outcome.value) for outcome in evaluate.map(["'x' * 3_000_000"] * 4)] == [3_000_000] * 4


def test_the_warm_up_comes_first_has_no_limit_and_may_fail():
    warm_up = "__import__('time').sleep(0.6) or setattr(__import__('sys'), 'warm', 1)"
    with Watchdog(eval, seconds=0.3, warm_up=warm_up) as watchdog:
        assert watchdog.map(["__import__('sys').warm"]) == [Outcome(1, None)]
    with Watchdog(eval, warm_up="1 / 0") as watchdog:
        assert watchdog.map(["1"]) == [Outcome(1, None)]


@pytest.mark.parametrize("option", [{"seconds": 0.0}, {"max_bytes": -1}, {"num_workers": 0}])
def test_limits_that_are_none_are_refused(option):
    with pytest.raises(ValueError, match="give a positive number"):
        Watchdog(eval, **option)


def test_functions_that_no_worker_can_load_are_refused(monkeypatch):
    with pytest.raises(ValueError, match="move it to the top of a module"):
        Watchdog(lambda item: item)
    module = types.ModuleType("only_in_this_process")
    exec("def work(item):\n    return item", vars(module))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    with Watchdog(module.work) as watchdog, pytest.raises(RuntimeError, match="a worker could not start"):
        watchdog.map([1])
    main = types.FunctionType((lambda item: item).__code__, {"__name__": "__main__"}, "work")
    main.__module__ = main.__qualname__ = "__main__"
    monkeypatch.setattr(sys.modules["__main__"], "__main__", main, raising=False)
    with pytest.raises(ValueError, match="move it to the top of a module"):
        Watchdog(main)


def test_a_closed_watchdog_has_no_processes_and_takes_no_calls():
    with Watchdog(eval) as watchdog:
        pid = watchdog.map([PID])[0].value
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    with pytest.raises(ValueError, match="closed"):
        watchdog.map(["1"])


def test_a_process_killed_between_calls_is_replaced():
    with Watchdog(eval) as watchdog:
        pid = watchdog.map([PID])[0].value
        os.kill(pid, signal.SIGKILL)
        time.sleep(0.2)
        outcome = watchdog.map([PID])[0]
    assert outcome.reason is None
    assert outcome.value != pid


def test_an_interrupt_from_the_keyboard_is_for_the_parent_alone():
    """The terminal sends it to both."""
    with Watchdog(eval) as watchdog:
        pid = watchdog.map([PID])[0].value
        os.kill(pid, signal.SIGINT)
        assert watchdog.map([PID]) == [Outcome(pid, None)]


@pytest.mark.parametrize("call", ["1", SLEEPS])
def test_no_process_outlives_a_parent_that_is_killed(tmp_path, call):
    """Neither an idle one nor one in a call that hangs."""
    note = tmp_path / "pid"
    item = f"open({str(note)!r}, 'w').write(str({PID})) and {call}"
    code = "from cs336.evals.watchdog import Watchdog\nimport time\nw = Watchdog(eval, seconds=2.0)\n"
    parent = subprocess.Popen([sys.executable, "-c", f"{code}w.map([{item!r}])\ntime.sleep(60)"], cwd=ROOT)
    try:
        deadline = time.monotonic() + 60
        while not (note.exists() and note.read_text()) and time.monotonic() < deadline:
            time.sleep(0.05)
        worker = int(note.read_text())
        os.kill(worker, 0)
    finally:
        parent.kill()
        parent.wait()
    while _runs(worker) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _runs(worker)


def _runs(pid: int) -> bool:
    """Whether a process is there and no zombie, which nobody may be there to fetch."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not (stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z")
