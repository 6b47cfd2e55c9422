"""Parallel training as assets: what needs GPUs says so, wrong results fail their checks, a dry run makes it all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cs336.files import UserError, read_json, read_jsonl, write_json, write_jsonl
from cs336.presets import COURSE, TINY
from cs336_assets import parallel
from cs336_assets.asset import STAGES, Step

STUDIES = ["all_reduce_times", "data_parallel_times", "optimizer_state_memory", "fsdp_study", "full_training_step"]


def folder(path: Path) -> Path:
    path.mkdir(parents=True)
    return path


@pytest.mark.parametrize("name", STUDIES)
def test_without_two_gpus_a_study_says_so_in_one_line(name, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    settings = {key: getattr(COURSE, key) for key in STAGES[name].settings}
    with pytest.raises(UserError, match=r"needs 2 GPUs, this machine has 1; .*cs336 adopt") as raised:
        STAGES[name].function(Step(tmp_path), parallel_correctness=tmp_path, **settings)
    assert "\n" not in str(raised.value)


def test_no_study_is_made_before_the_forms_are_known_to_be_right():
    for name in [*STUDIES, "gloo_all_reduce_times"]:
        assert "parallel_correctness" in STAGES[name].inputs


def test_a_form_that_differs_stops_the_studies(tmp_path):
    write_json(tmp_path / parallel.DIFFERENCES_FILE, {"naive": 1e-8, "FSDP": 1e-7})
    assert parallel.parallel_forms_equal_one_process(tmp_path)[0]
    for wrong in (1e-4, float("nan")):
        write_json(tmp_path / parallel.DIFFERENCES_FILE, {"naive": 1e-8, "FSDP": wrong})
        passed, facts = parallel.parallel_forms_equal_one_process(tmp_path)
        assert not passed and facts["wrong"] == ["FSDP"]
    write_json(tmp_path / parallel.DIFFERENCES_FILE, {})
    assert not parallel.parallel_forms_equal_one_process(tmp_path)[0]


def test_the_accounting_page_and_its_check(tmp_path):
    shown = parallel.parallel_accounting(Step(tmp_path))
    assert shown["num_answers"] == 13 and "219.8 B parameters" in shown["answers"]["markdown"]
    assert (tmp_path / "page.md").read_text().strip() == shown["answers"]["markdown"].strip()
    assert parallel.limits_are_where_communication_overtakes(tmp_path)[0]
    found = read_json(tmp_path / parallel.LIMITS_FILE)
    found[2]["above"] = True
    write_json(tmp_path / parallel.LIMITS_FILE, found)
    assert parallel.limits_are_where_communication_overtakes(tmp_path) == (False, {"wrong": ["FSDP, backward"]})


def test_a_failed_cell_fails_its_asset_and_is_tried_again(tmp_path, monkeypatch):
    outcomes = iter([{"failure": "rank 1 of 2 failed: killed by signal 9"}, {"parallel": 0.0}])
    monkeypatch.setattr(parallel, "compare_forms", lambda *arguments: next(outcomes))
    with pytest.raises(UserError, match="rank 1 of 2 failed"):
        parallel.parallel_correctness(Step(tmp_path), parallel=TINY.parallel)
    assert (
        "parallel" in parallel.parallel_correctness(Step(tmp_path), parallel=TINY.parallel)["differences"]["markdown"]
    )


@pytest.mark.slow
def test_the_whole_group_over_gloo(project):
    """Every study at two small layers on two and four ranks, under Dagster; a second run makes nothing again."""
    said = project.run("parallel")
    for name in [name for name, stage in STAGES.items() if stage.group == "parallel"]:
        assert f"micro/{name}: made in" in said, said
        assert (project.artifacts / name / "manifest.json").exists()
    data_parallel = project.artifacts / "data_parallel_times"
    assert {"timeline_own.png", "page.md", "rows.jsonl"} <= {path.name for path in data_parallel.iterdir()}
    memory = project.artifacts / "optimizer_state_memory"
    assert parallel.held_bytes_are_those_of_the_closed_form(memory)[0]
    rows = list(read_jsonl(memory / parallel.ROWS_FILE))
    rows[0]["stages"]["after the update"]["counted"][0]["states"] *= 2
    write_jsonl(folder(project.folder / "wrong") / parallel.ROWS_FILE, rows)
    assert not parallel.held_bytes_are_those_of_the_closed_form(project.folder / "wrong")[0]
    assert project.run("parallel").count("unchanged, skipped") == 9
