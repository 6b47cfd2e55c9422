"""A study survives what its cells do: no memory, a failure, the end of its time, a kill."""

import json

import pytest
import torch

from cs336.profiling.cells import FAILURE, Cell, is_out_of_memory, read_rows, run_cells
from cs336.profiling.tables import OUT_OF_MEMORY

CPU = torch.device("cpu")


def _cell(number, measure=None, **options):
    return Cell(f"cell {number}", {"number": number}, measure or (lambda: {"figure": number}), **options)


def _fails(error):
    def measure():
        raise error

    return measure


def test_a_cell_without_memory_is_a_result_and_the_study_goes_on(tmp_path):
    cells = [_cell(1), _cell(2, _fails(torch.OutOfMemoryError("CUDA out of memory"))), _cell(3)]
    rows = run_cells(cells, device=CPU, rows=tmp_path / "rows.jsonl")
    assert [row.get(FAILURE) for row in rows] == [None, OUT_OF_MEMORY, None]
    assert read_rows(tmp_path / "rows.jsonl") == rows


def test_a_second_run_measures_only_what_is_missing_or_failed(tmp_path):
    path, measured = tmp_path / "rows.jsonl", []

    def noted(number):
        return lambda: measured.append(number) or {"figure": number}

    run_cells([_cell(1, noted(1)), _cell(2, _fails(RuntimeError("no"))), _cell(3, noted(3))], device=CPU, rows=path)
    with path.open("a") as file:
        file.write('{"case": "cut o')  # by a kill
    rows = run_cells([_cell(number, noted(number)) for number in (1, 2, 3, 4)], device=CPU, rows=path)
    assert measured == [1, 3, 2, 4]
    assert [row["figure"] for row in rows] == [1, 2, 3, 4]
    assert all(json.loads(line) for line in path.read_text().splitlines())
    run_cells([_cell(1, noted(1))], device=CPU, rows=path, again=True)
    assert measured[-1] == 1


def test_what_is_hopeless_is_not_tried_and_not_written(tmp_path):
    cells = [
        _cell(1, _fails(MemoryError())),
        _cell(2, _fails(AssertionError("tried")), hopeless=lambda rows: rows[-1][FAILURE] == OUT_OF_MEMORY),
    ]
    rows = run_cells(cells, device=CPU, rows=tmp_path / "rows.jsonl")
    assert rows[1][FAILURE] == OUT_OF_MEMORY and rows[1]["tried"] is False
    assert len(read_rows(tmp_path / "rows.jsonl")) == 1


def test_no_cell_begins_after_the_time_is_over():
    assert run_cells([_cell(1)], device=CPU, max_seconds=-1) == []


@pytest.mark.parametrize(
    ("message", "expected"),
    [("CUDA out of memory. Tried to allocate 2 GiB", True), ("CUBLAS_STATUS_ALLOC_FAILED", True), ("shapes", False)],
)
def test_a_wrapped_error_is_looked_into(message, expected):
    try:
        try:
            raise RuntimeError(message)
        except RuntimeError as inner:
            raise ValueError("compilation failed") from inner
    except ValueError as error:
        assert is_out_of_memory(error) == expected
