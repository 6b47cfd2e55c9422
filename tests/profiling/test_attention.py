"""Attention alone: every form of ours against fp64, and the memory of the formula in closed form."""

import pytest
import torch

from cs336.profiling.attention_errors import IN_TRITON, TRITON, error_cells, error_page, is_exact, triton_runs
from cs336.profiling.attention_times import (
    attention_cells,
    attention_page,
    measure_attention,
    measured_saved_bytes,
    saved_attention_bytes,
)
from cs336.profiling.cells import FAILURE, run_cells
from cs336.profiling.config import TINY_PROFILING, ProfilingConfig
from cs336.profiling.tables import OUT_OF_MEMORY

CPU = torch.device("cpu")


def test_every_attention_is_near_fp64(tmp_path):
    cells = error_cells(TINY_PROFILING, (), CPU, tmp_path)
    quick = [cell for cell in cells if cell.settings["implementation"] not in IN_TRITON]
    rows = run_cells(quick, device=CPU)
    assert len(rows) == 12 and all(is_exact(row) for row in rows), error_page(TINY_PROFILING, (), rows).markdown()


def test_triton_in_its_interpreter_is_near_fp64(tmp_path):
    if not triton_runs(CPU):
        pytest.skip("Triton's interpreter is off where there is a GPU")
    cells = error_cells(TINY_PROFILING, (), CPU, tmp_path)
    rows = run_cells([cell for cell in cells if cell.settings["implementation"] == TRITON], device=CPU)
    assert [row["settings"]["dtype"] for row in rows] == ["float32"] * 2  # it computes bf16 wrongly
    assert all(is_exact(row) for row in rows), error_page(TINY_PROFILING, (), rows).markdown()


def test_a_wrong_attention_is_found(monkeypatch, tmp_path):
    from cs336.profiling import attention_errors

    monkeypatch.setattr(attention_errors.TiledAttention, "apply", lambda q, k, v, causal: q.softmax(-1) @ (k.mT @ v))
    cells = [cell for cell in error_cells(TINY_PROFILING, (), CPU, tmp_path) if "tiled, float32, causal" in cell.name]
    rows = run_cells(cells, device=CPU)
    assert not is_exact(rows[0]) and "Not within the limits: errors, tiled" in error_page(TINY_PROFILING, (), rows).text


@pytest.mark.parametrize(("batch", "length", "d"), [(8, 256, 16), (8, 16_384, 128), (1, 64, 32)])
def test_closed_form_is_what_the_graph_keeps(batch, length, d):
    assert saved_attention_bytes(batch, length, d) == measured_saved_bytes(batch, length, d)


def test_an_eager_cell_on_a_cpu():
    figures = measure_attention({"batch_size": 2, "d": 16, "length": 32, "compiled": False, "steps": 2}, CPU)
    assert figures["forward_seconds"] > 0 and figures["backward_seconds"] > 0 and figures["saved_bytes"] is None


def test_lengths_double_until_memory_ends_and_the_smallest_failure_is_accounted_for(tmp_path):
    grid = ProfilingConfig(attention_widths=(16, 32), attention_lengths=(256, 1_024), longest_attention=8_192)
    tried = []

    def fitting(settings):
        tried.append((settings["d"], settings["length"]))
        if settings["length"] > 1_024:
            raise torch.OutOfMemoryError
        return {"forward_seconds": 1e-3, "backward_seconds": 2e-3, "saved_bytes": settings["length"] ** 2}

    cells = [
        cell.__class__(
            cell.name, cell.settings, lambda cell=cell: fitting(cell.settings) | {"peak_bytes": 1}, cell.hopeless
        )
        for cell in attention_cells(grid, (), CPU, tmp_path)
        if not cell.settings["compiled"]
    ]
    rows = run_cells(cells, device=CPU)
    assert tried == [(16, 256), (16, 1_024), (16, 2_048), (32, 256), (32, 1_024), (32, 2_048)]
    assert [row.get(FAILURE) for row in rows].count(OUT_OF_MEMORY) == 6
    page = attention_page(grid, (), rows)
    assert "d = 16, T = 2,048" in page.text and "8 x 2,048² x 4 B = 0.12 GiB" in page.text
    assert "16 times as much at 4 times the length" in page.text
    assert page.markdown().count(OUT_OF_MEMORY) == 4  # of each width the first alone, forward and backward
