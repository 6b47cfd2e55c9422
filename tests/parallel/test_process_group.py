"""Jobs of several ranks: results by rank, and failures that end all of them within seconds."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from cs336.files import UserError
from cs336.parallel.process_group import RankError, process_group, rank, run_ranks, world_size


def behave(place, how):
    """Rank 1 misbehaves while rank 0 waits for it in a collective."""
    total = torch.ones(3) * place.rank
    dist.all_reduce(total)
    if how == "well":
        return place.rank, rank(), world_size(), str(place.device), total
    if place.rank == 1:
        if how == "raise":
            raise ValueError("this rank has\nhad enough")
        if how == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)
    dist.all_reduce(total)
    return None


def test_results_come_by_rank():
    results = run_ranks(behave, 2, "well")
    assert [result[:4] for result in results] == [(0, 0, 2, "cpu"), (1, 1, 2, "cpu")]
    assert all(torch.equal(result[4], torch.ones(3)) for result in results)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("raise", r"^rank 1 of 2 failed: ValueError: this rank has had enough(\n|$)"),
        ("die", r"^rank 1 of 2 failed: killed by signal 9$"),
    ],
)
def test_a_rank_that_fails_ends_the_job_within_seconds(how, said):
    before = time.monotonic()
    with pytest.raises(RankError, match=said) as caught:
        run_ranks(behave, 2, how, start_method="forkserver")
    assert time.monotonic() - before < 60  # mostly the start; waiting for the other rank would take 120
    assert caught.value.rank == 1
    assert ("had enough" in caught.value.details) == (how == "raise")


def test_a_rank_that_hangs_is_named_after_the_time_limit():
    with pytest.raises(RankError, match=r"^no result of rank .* of 2 after 6 s"):
        run_ranks(behave, 2, "hang", timeout_seconds=6, start_method="forkserver")


ORPHANS = """
import sys
from tests.parallel.test_process_group import leave_name
from cs336.parallel.process_group import run_ranks
if __name__ == "__main__":
    run_ranks(leave_name, 2, sys.argv[1], start_method=sys.argv[2])
"""


def leave_name(place, folder):
    Path(folder, f"rank {place.rank}").write_text(str(os.getpid()))
    time.sleep(60)


def is_alive(number):
    status = Path(f"/proc/{number}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("start_method", [pytest.param("spawn", marks=pytest.mark.slow), "forkserver"])
def test_ranks_end_with_the_process_that_started_them(tmp_path, start_method):
    script = tmp_path / "script.py"
    script.write_text(ORPHANS)
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": str(root)}
    launcher = subprocess.Popen([sys.executable, str(script), str(tmp_path), start_method], env=environment)
    names = [tmp_path / f"rank {rank}" for rank in range(2)]
    while not all(name.exists() and name.read_text() for name in names):
        assert launcher.poll() is None
        time.sleep(0.05)
    launcher.kill()
    launcher.wait()
    numbers = [int(name.read_text()) for name in names]
    end = time.monotonic() + 20
    while any(map(is_alive, numbers)) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(map(is_alive, numbers))


SCRIPT = """
import torch
import torch.distributed as dist
from cs336.parallel.process_group import process_group
with process_group(device="cpu") as place:
    total = torch.ones(1) * (place.rank + 1)
    dist.all_reduce(total)
    print(f"the sum is {total.item():g}", flush=True)
    if place.rank == 1:
        raise ValueError("this rank has had enough")
    dist.all_reduce(total)
"""


def test_torchrun_starts_the_ranks_and_ends_all_when_one_fails(tmp_path):
    script = tmp_path / "job.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0 and done.stdout.count("the sum is 3") == 2
    assert "ValueError: this rank has had enough" in done.stderr and "on rank 1 of 2" in done.stderr


def test_without_a_job_it_says_how_to_start_one(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(UserError, match="torchrun"), process_group():
        pass
    assert (rank(), world_size()) == (0, 1)
