"""All studies at the tiny grids: every cell is measured, and every page has its tables."""

import pytest
import torch

from cs336.profiling import step_studies
from cs336.profiling.cells import FAILURE, run_cells
from cs336.profiling.config import TINY_PROFILING, ProfilingConfig
from cs336.profiling.studies import STUDIES

CPU = torch.device("cpu")
COMPILING = ("attention", "checkpointing")  # half a minute of compilation


@pytest.mark.parametrize("name", [name for name in STUDIES if name not in (*COMPILING, "errors")])
def test_a_tiny_study_on_a_cpu(name, tmp_path):
    _run(name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPILING)
def test_a_tiny_study_that_compiles(name, tmp_path):
    _run(name, tmp_path)


def _run(name, folder):
    study, sizes = STUDIES[name], TINY_PROFILING.sizes
    rows = run_cells(study.cells(TINY_PROFILING, sizes, CPU, folder), device=CPU)
    assert not [row[FAILURE] for row in rows if FAILURE in row]
    if name in step_studies.STUDIES:
        assert step_studies.rows_of_study(name, TINY_PROFILING, sizes, rows) == rows
    page = study.page(TINY_PROFILING, sizes, rows)
    page.write(folder)
    if name != "compile":  # its tiny grid is empty
        assert rows and (folder / "page.md").read_text().count("| ---") and r"\toprule" in page.latex()


@pytest.mark.parametrize("name", list(STUDIES))
def test_a_page_of_nothing_says_so(name):
    assert "Nothing was measured." in STUDIES[name].page(ProfilingConfig(), ("small",), []).markdown()
