"""The sums of the handout, and what autocast casts where there is no GPU."""

import torch

from cs336.profiling.cells import run_cells
from cs336.profiling.config import TINY_PROFILING
from cs336.profiling.precision import (
    EXPECTED_DTYPES,
    accumulate,
    autocast_dtypes,
    dtypes_as_derived,
    precision_cells,
    precision_page,
)

CPU = torch.device("cpu")


def test_sums_by_hand():
    sums = accumulate()
    assert abs(sums["fp32 + fp32"] - 10) < 1e-3
    assert sums["fp16 + fp16"] == 9.953125  # from 4 up the addend is 2.56 spacings, which rounds to 3 and then to 2
    assert sums["fp32 + fp16"] == sums["fp32 + (fp16 upcast first)"]
    rounded = torch.tensor(0.01, dtype=torch.float16).item()
    assert abs(sums["fp32 + fp16"] - 1_000 * rounded) < 1e-3


def test_products_are_cast_and_parameters_are_not():
    found = autocast_dtypes(CPU, torch.bfloat16)
    for name in ("parameters", "gradients"):
        assert found[name] == "float32"
    assert found["fc1 output"] == found["logits"] == "bfloat16"


def test_the_page_says_that_no_gpu_measured_it_and_a_gpu_is_held_to_the_rules(tmp_path):
    rows = run_cells(precision_cells(TINY_PROFILING, (), CPU, tmp_path), device=CPU)
    assert "here no GPU measured it" in precision_page(TINY_PROFILING, (), rows).text
    assert dtypes_as_derived(rows) is None
    row = {"settings": {"kind": "autocast", "dtype": "float16"}, "device": "NVIDIA H100"} | EXPECTED_DTYPES
    assert dtypes_as_derived([row]) is True
    assert dtypes_as_derived([row | {"logits": "float32"}]) is False
