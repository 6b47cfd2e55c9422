"""The kernels for Hopper: compiled everywhere, since a compiler needs no GPU; run by test_attention.py on one."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cs336.files import read_json
from cs336.kernels.tuned import TILES_FILE

SHARED_BYTES = 227 * 1024  # of a block on an H100, by NVIDIA's tuning guide
# Beside two sums of 128 columns not everything fits into 240 registers.
SPILLED_BYTES = {("_backward_dk_dv_kernel", 128): 160}


@pytest.fixture(scope="module")
def reports() -> list[dict]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "tests.kernels.compile_for_hopper"],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4_000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_all_kernels_compile_into_hoppers_products_with_nothing_in_their_way(reports):
    found = {(report["kernel"], report["d_head"], *report["tiles"]) for report in reports}
    names = {"forward": "_forward_kernel", "dq": "_backward_dq_kernel", "dk_dv": "_backward_dk_dv_kernel"}
    of_gpus = {
        (names[key.split()[1]], int(key.split()[2]), *entry["tiles"])
        for gpu in read_json(TILES_FILE).values()
        for key, entry in gpu.items()
        if key.startswith("hopper ")
    }
    assert {each[:2] for each in found} == set(itertools.product(names.values(), (64, 128)))
    assert of_gpus and of_gpus <= found
    for report in reports:
        assert report["products"] > 0, report
        assert not report["serialized"], report
        assert report["shared_bytes"] <= SHARED_BYTES, report
        allowed = SPILLED_BYTES.get((report["kernel"], report["d_head"]), 0)
        assert report["spilled_bytes"] <= allowed, report
