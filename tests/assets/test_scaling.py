"""The scaling grid's assets: a cell's row, all rows together, and the check of them."""

import json
from dataclasses import replace

import pytest

from cs336.preset_lookup import find_preset
from cs336.scaling.grid import ScalingConfig
from cs336.scaling.runs import read_runs
from cs336.tokenizer.bpe import Tokenizer
from cs336_assets.asset import STAGES, Step
from cs336_assets.scaling import ROWS_FILE, every_run_has_a_loss, isoflop_profiles, isoflop_runs
from tests.scaling.conftest import VOCABULARY, token_folder  # noqa: F401 - a fixture

MICRO = ScalingConfig(grid="tests/scaling/micro.toml")


@pytest.fixture
def tokenizer(tmp_path):
    folder = tmp_path / "tokenizer"
    Tokenizer({number: bytes([number]) for number in range(256)}, []).save(folder)
    return folder


def made_cells(folder, token_folder, tokenizer, cells):  # noqa: F811
    folders = []
    for name, cell in cells.items():
        folders.append(folder / name)
        folders[-1].mkdir(parents=True)
        shown = isoflop_runs(Step(folder=folders[-1], device="cpu"), [token_folder], tokenizer, cell, MICRO)
        assert shown["outcome"].startswith(("finished", "diverged")) and shown["steps"] > 0
    return folders


def test_cells_are_those_of_the_presets_grid():
    stage = STAGES["isoflop_runs"]
    assert next(iter(stage.cells(find_preset("scaling")))) == "1e13-36x1x1-b128-lr0.0556"
    assert len(stage.cells(find_preset("scaling"))) >= 150
    assert {cell.vocab_size for cell in stage.cells(find_preset("tiny")).values()} == {4_096}


def test_a_cell_leaves_one_row_and_all_of_them_are_joined(tmp_path, token_folder, tokenizer, monkeypatch):  # noqa: F811
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    everything = STAGES["isoflop_runs"].cells(replace(find_preset("tiny"), scaling=MICRO))
    cells = {name: cell for name, cell in everything.items() if cell.compute_budget == 6e8 and cell.d_model > 36}
    assert len(everything) == 15 and len(cells) == 3
    folders = made_cells(tmp_path / "runs", token_folder, tokenizer, cells)
    for folder, cell in zip(folders, cells.values(), strict=True):
        (run,) = read_runs(folder / ROWS_FILE)
        assert run.vocab_size == 256, "the tokenizer's"
        assert (run.steps, run.parameters) == (cell.steps, cell.parameters) and VOCABULARY < 256
    study = tmp_path / "study"
    study.mkdir()
    metadata = isoflop_profiles(Step(folder=study), folders)
    assert metadata["num_runs"] == 3 and metadata["num_without_a_loss"] == 0
    rows = read_runs(study / ROWS_FILE)
    assert [run.parameters for run in rows] == [cell.parameters for cell in cells.values()]
    (profile,) = json.loads((study / "profiles.json").read_text())
    best = min(rows, key=lambda run: run.final_loss)
    sizes = [run.parameters for run in rows]
    assert profile["best_parameters"] == best.parameters and profile["num_sizes"] == 3
    assert profile["bracketed"] == (min(sizes) < best.parameters < max(sizes))
    assert every_run_has_a_loss(study)[0]


def test_a_run_that_diverged_is_a_row_and_fails_the_check(tmp_path, token_folder, tokenizer):  # noqa: F811
    cell = next(iter(STAGES["isoflop_runs"].cells(replace(find_preset("tiny"), scaling=MICRO)).values()))
    folders = made_cells(tmp_path / "runs", token_folder, tokenizer, {"wild": replace(cell, learning_rate=1e30)})
    study = tmp_path / "study"
    study.mkdir()
    assert isoflop_profiles(Step(folder=study), folders)["num_without_a_loss"] == 1
    passed, metadata = every_run_has_a_loss(study)
    assert not passed and "diverged" in str(metadata["failed"])
