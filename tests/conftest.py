"""Fixtures that every test may use."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from xdist.remote import Producer
from xdist.scheduler.loadscope import LoadScopeScheduling

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # test processes share the cores
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # whose threads wait for each other where cores are taken
if not Path("/dev/nvidiactl").exists():  # kernels run in Triton's interpreter, which must be known before its import
    os.environ.setdefault("TRITON_INTERPRET", "1")


# Tests of these modules share what takes a minute to make: one worker makes it once, and runs them all.
ON_ONE_WORKER = (
    "assets/test_experiments.py",
    "assets/test_data_ablation.py",
    "assets/test_hostile_crawl.py",
    "assets/test_reasoning.py",
    "assets/test_scaling_study.py",
    "assets/test_instruct.py",
)


class _Scheduling(LoadScopeScheduling):
    """Tests go to whichever worker is free, one by one, but for the modules above.

    pytest-xdist's own groups are read from a field of tests that pytest 9.2 no longer has.
    """

    def _split_scope(self, nodeid: str) -> str:
        module = nodeid.split("::")[0]
        return module if module.endswith(ON_ONE_WORKER) else nodeid


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> _Scheduling:
    """Asked by pytest-xdist, with `-n`."""
    return _Scheduling(config, log)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data named by CS336_DATA; tests that need it skip where it is missing.

    With CS336_REQUIRE_DATA=1 its absence is a failure.
    """
    folder = Path(os.environ.get("CS336_DATA", "shared-data-not-set"))
    if (folder / "MANIFEST.json").exists():
        return folder.resolve()
    if os.environ.get("CS336_REQUIRE_DATA") == "1":
        pytest.fail(f"CS336_REQUIRE_DATA=1, but CS336_DATA={folder} holds no MANIFEST.json")
    pytest.skip("set CS336_DATA to a folder with the real data sets")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Makes a real file system of a size such as "64k", to be filled; skips where mounting is not allowed."""
    disk = tmp_path / "disk"
    mounted = []

    def mount(size: str) -> Path:
        disk.mkdir()
        if subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)], capture_output=True
        ).returncode:
            pytest.skip("needs the right to mount a small tmpfs")
        mounted.append(disk)
        return disk

    yield mount
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)
