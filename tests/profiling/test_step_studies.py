"""Tables of step times and what is said of them, from made-up rows by hand."""

import pytest
import torch

from cs336.profiling.cells import FAILURE
from cs336.profiling.config import ProfilingConfig
from cs336.profiling.step_studies import step_page, study_cells
from cs336.profiling.tables import OUT_OF_MEMORY

CPU = torch.device("cpu")


def _rows(name, seconds):
    """Made-up rows of the study for size small: seconds by the cells' order; None is out of memory."""
    cells = study_cells(name, ProfilingConfig(), "small", CPU)
    return [
        {"case": cell.name, "device": "cpu", "settings": cell.settings}
        | (
            {FAILURE: OUT_OF_MEMORY}
            if each is None
            else {"mean_seconds": each, "std_seconds": each / 100, "seconds": [3 * each], "warmup_seconds": [each]}
            | {"peak_bytes": 2**30, "flops_per_second": 1e12}
        )
        for cell, each in zip(cells, seconds, strict=True)
    ]


def _cells(page):
    lines = [line for line in page.markdown().splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_baseline_by_hand():
    page = step_page("baseline", ProfilingConfig(), ["small"], _rows("baseline", [0.1, 0.35, None]))
    assert _cells(page)[0] == ["small", "forward", "100", "1", "1.0%", "1", "1"]
    assert _cells(page)[2][:3] == ["small", "step", OUT_OF_MEMORY]
    assert "takes 2.5 times its forward pass" in page.text and "small everywhere" in page.text
    assert "Not measured: small, T=512, step, float32." in page.text


def test_precision_by_hand():
    page = step_page("precision", ProfilingConfig(), ["small"], _rows("precision", [0.4, 0.2, 0.1, 1.0, 0.5, None]))
    assert _cells(page)[0][:7] == ["small", "forward", "400", "200", "100", "2", "4"]
    assert _cells(page)[1][:7] == ["small", "forward+backward", "1,000", "500", OUT_OF_MEMORY, "2", ""]
    assert "as fast under bf16 autocast as in fp32: small 4.00" in page.text


def test_warmup_tells_the_first_step():
    page = step_page("warmup", ProfilingConfig(), ["small"], _rows("warmup", [0.4, 0.2, 0.11, 0.1]))
    assert "- small, w = 0: mean 4.00 times" in page.text and "took 12.0 times the mean after w = 5" in page.text


def test_a_size_that_a_study_names_must_be_in_the_grid():
    with pytest.raises(ValueError, match="sizes must hold large"):
        ProfilingConfig(sizes=("small",), compile_sizes=(), long_sizes=())


def test_compile_by_hand():
    page = step_page("compile", ProfilingConfig(), ["small"], _rows("compile", [0.2, 0.1, 0.6, 0.4, 0.8, None]))
    assert _cells(page)[0][:6] == ["small", "float32", "forward", "200", "100", "2"]
    assert _cells(page)[2][:6] == ["small", "float32", "step", "800", OUT_OF_MEMORY, ""]
    assert "- float32, forward+backward, times as fast compiled: small 1.50." in page.text
