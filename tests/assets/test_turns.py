"""Turns on a device: processes wait for each other without spinning, threads of one share."""

import resource
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from cs336_assets.turns import device_turn, turn
from tests.assets.conftest import ROOT

HOLD = """
import sys, time
from pathlib import Path
from cs336_assets.turns import turn
with turn(Path(sys.argv[1]), print):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def holder(path, seconds):
    """Another process that holds the turn for a while."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path), str(seconds)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_process_says_so_and_waits_without_work(tmp_path):
    said = []
    with holder(tmp_path / "gpu", 2.5) as other:
        start, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF)
        with turn(tmp_path / "gpu", said.append):
            waited = time.monotonic() - start
            assert other.wait(5) == 0
    after = resource.getrusage(resource.RUSAGE_SELF)
    assert waited > 1 and after.ru_utime - before.ru_utime < 0.5
    assert said == ["waits: another run is using gpu; goes on when that one is done (Ctrl-C stops this one)"]


def test_a_killed_process_leaves_its_turn(tmp_path):
    with holder(tmp_path / "gpu", 60) as other:
        other.kill()
        with turn(tmp_path / "gpu", print):
            pass


def test_threads_of_one_process_share_a_turn(tmp_path):
    together = threading.Barrier(2, timeout=10)

    def work(_):
        with turn(tmp_path / "gpu", print):
            together.wait()

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(work, range(2)))
    with holder(tmp_path / "gpu", 0) as other:  # both have given it back
        assert other.wait(5) == 0


def test_only_the_pool_of_devices_takes_turns_here(tmp_path):
    with device_turn("crawl", tmp_path, "auto", print):
        assert not list(tmp_path.iterdir())
    with device_turn("gpu", tmp_path, "auto", print):
        assert [path.name[:8] for path in (tmp_path / ".locks").iterdir()] == ["gpu-auto"]


@pytest.mark.parametrize("remade", [False, True])
def test_a_run_beside_another_skips_what_is_unchanged_and_waits_for_the_rest(copied, remade):
    """As with two `cs336 run` at once: only a step that has something to make needs its turn."""
    if remade:
        shutil.rmtree(copied.artifacts / "perplexity")
    lock = copied.artifacts.parent / ".locks" / "gpu-auto"
    environment = copied.environment | {"CS336_DEVICE": "auto", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "cs336", "run", "--preset", "micro", "--job", "evals"]
    with holder(lock, 250) as other:
        run = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
        said = []
        for line in run.stderr:
            said.append(line)
            if "micro/perplexity: waits: another run is using gpu-auto" in line:
                other.kill()  # gives the turn back
        assert run.wait() == 0, "".join(said)
        waited = other.poll() is not None
        other.kill()
    assert waited == remade
