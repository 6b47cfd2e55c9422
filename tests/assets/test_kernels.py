"""The group `kernels` at tiny size, and what it says where there is no GPU."""

import json

import pytest

from cs336.files import UserError, append_jsonl
from cs336.preset_lookup import find_preset
from cs336.presets import TINY
from cs336.profiling.cells import read_rows
from cs336_assets import kernels, profiling_plots
from cs336_assets.asset import Step
from cs336_assets.flow import STAGES
from cs336_assets.selections import GROUPS, KERNELS


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Folders of errors and of the step times of all tiny sizes."""
    root = tmp_path_factory.mktemp("kernels")
    folders = {"attention_errors": root / "attention_errors"}
    kernels.attention_errors(_step(folders["attention_errors"]), TINY.profiling)
    for size, cell in STAGES["step_times"].cells(TINY).items():
        folders[size] = root / size
        kernels.step_times(_step(folders[size], part=size), folders["attention_errors"], cell)
    return folders


def _step(folder, **options):
    folder.mkdir(parents=True, exist_ok=True)
    return Step(folder, device="cpu", **options)


def _times(made):
    return [folder for name, folder in made.items() if name != "attention_errors"]


def test_tables_hold_every_size_and_the_picture_is_drawn(made, tmp_path):
    shown = kernels.baseline_times(_step(tmp_path), _times(made), TINY.profiling)
    page = shown["baseline"]["markdown"]
    assert all(page.count(f"| {size} |") == 3 for size in TINY.profiling.sizes)
    assert (tmp_path / "times.png").read_bytes().startswith(b"\x89PNG")
    assert r"\toprule" in (tmp_path / "tables.tex").read_text()
    for table in (kernels.warmup_times, kernels.precision_times, kernels.kernel_choice_times):
        assert "| ---" in str(table(_step(tmp_path), _times(made), TINY.profiling))
    assert kernels.standard_deviations_are_small(_times(made))[1].keys() == {"num_cells", "large"}


def test_tables_name_the_device_of_every_size(made, tmp_path):
    shown = kernels.compile_times(_step(tmp_path / "one"), _times(made), TINY.profiling)
    assert shown["compile"]["markdown"].endswith("Nothing was measured.\n"), "preset tiny compiles nothing"
    device = read_rows(_times(made)[0] / kernels.ROWS_FILE)[0]["device"]
    shown = kernels.baseline_times(_step(tmp_path / "one"), _times(made), TINY.profiling)
    assert f"\n\n**{device}**\n\n| size" in shown["baseline"]["markdown"]
    for row in read_rows(_times(made)[1] / kernels.ROWS_FILE):
        append_jsonl(tmp_path / "other" / kernels.ROWS_FILE, row | {"device": "NVIDIA H200"})
    first, second = TINY.profiling.sizes
    shown = kernels.baseline_times(_step(tmp_path / "two"), [_times(made)[0], tmp_path / "other"], TINY.profiling)
    assert f"**{device} ({first}); NVIDIA H200 ({second})**" in shown["baseline"]["markdown"]
    assert f"{device} ({first}); NVIDIA H200" in (tmp_path / "two" / "tables.tex").read_text()


def test_a_run_that_goes_on_measures_nothing_twice(made):
    folder = _times(made)[0]
    before = (folder / kernels.ROWS_FILE).read_bytes()
    kernels.step_times(_step(folder), made["attention_errors"], TINY.profiling.of_size(folder.name))
    assert (folder / kernels.ROWS_FILE).read_bytes() == before


def test_nothing_is_timed_when_an_attention_is_wrong(made, tmp_path):
    assert kernels.attention_is_exact(made["attention_errors"])[0]
    rows = read_rows(made["attention_errors"] / kernels.ROWS_FILE)
    append_jsonl(tmp_path / kernels.ROWS_FILE, rows[0] | {"grad_k": 0.5})
    passed, facts = kernels.attention_is_exact(tmp_path)
    assert not passed and facts["wrong"] == [rows[0]["case"]]
    with pytest.raises(UserError, match="errors are too large"):
        kernels.step_times(_step(tmp_path / "times"), tmp_path, TINY.profiling)
    assert not kernels.attention_is_exact(tmp_path / "times")[0], "no row is no proof"


def test_profiles_and_memory_become_pictures(made, tmp_path):
    size = TINY.profiling.sizes[1]
    kernels.kernel_profile(_step(tmp_path / size), made["attention_errors"], TINY.profiling.of_size(size))
    shown = kernels.kernel_tables(_step(tmp_path / "tables"), [tmp_path / size], TINY.profiling)
    assert "5. Inside attention" in shown["profile"]["markdown"]
    assert len(list((tmp_path / size / "traces").glob("*.json.gz"))) == 2 * len(TINY.profiling.profile_contexts)
    shown = kernels.memory_profile(_step(tmp_path / "memory"), TINY.profiling)
    images = [value["image"] for value in shown.values() if isinstance(value, dict) and "image" in value]
    assert len(images) == 4 * len(TINY.profiling.memory_contexts)
    assert all((tmp_path / "memory" / image).read_bytes().startswith(b"\x89PNG") for image in images)


@pytest.mark.parametrize("saved_bytes", [None, 2**20])
def test_pictures_of_what_failed_or_is_not_known_are_drawn_too(saved_bytes, tmp_path):
    settings = {"d": 16, "length": 256, "compiled": False, "size": "small", "mode": "step", "context_length": 128}
    failed = {"settings": settings, "failure": "out of memory"}
    row = {
        "settings": settings,
        "forward_seconds": 1.0,
        "backward_failure": "out of memory",
        "saved_bytes": saved_bytes,
    }
    profiling_plots.time_and_memory_by_length([failed, row], tmp_path / "lengths.png")
    profiling_plots.time_and_memory_by_length([failed], tmp_path / "nothing.png")
    profiling_plots.milliseconds_by_size([failed], tmp_path / "times.png")
    profiling_plots.shares_by_kind([failed], tmp_path / "kinds.png")
    assert len(list(tmp_path.iterdir())) == 4


def test_the_handouts_sizes_ask_for_a_gpu_in_one_line(made, tmp_path):
    course = find_preset("course").profiling
    assert course.sizes[-1] == "xl-2025"
    for measure in (kernels.memory_profile, kernels.checkpointing_study):
        with pytest.raises(UserError, match="need a CUDA device") as error:
            measure(_step(tmp_path), course)
        assert len(str(error.value).splitlines()) == 1
    with pytest.raises(UserError, match=r"^xl: these sizes need"):
        kernels.step_times(_step(tmp_path), made["attention_errors"], course.of_size("xl"))
    assert kernels.precision_answers(_step(tmp_path), course)["num_failed"] == 0


def test_steady_steps_are_those_after_warm_up_and_none_are_no_proof(tmp_path):
    def row(warmup: int, std: float) -> dict:
        return {"case": f"{warmup}", "settings": {"warmup": warmup}, "mean_seconds": 1.0, "std_seconds": std}

    assert not kernels.standard_deviations_are_small([tmp_path])[0]
    append_jsonl(tmp_path / kernels.ROWS_FILE, {"case": "x", "settings": {"warmup": 5}, "failure": "out of memory"})
    assert not kernels.standard_deviations_are_small([tmp_path])[0]
    append_jsonl(tmp_path / kernels.ROWS_FILE, row(0, 0.9))
    append_jsonl(tmp_path / kernels.ROWS_FILE, row(5, 0.01))
    assert kernels.standard_deviations_are_small([tmp_path]) == (True, {"num_cells": 1, "large": {}})
    append_jsonl(tmp_path / kernels.ROWS_FILE, row(5, 0.1) | {"case": "unsteady"})
    assert not kernels.standard_deviations_are_small([tmp_path])[0]


def test_no_other_job_holds_the_group():
    assert "kernels" not in {group for groups in GROUPS.values() for group in groups}
    assert all(STAGES[name].group == "kernels" for name in KERNELS["kernels"])


def test_a_block_with_other_gradients_is_found(tmp_path):
    row = {"case": "b", "settings": {"kind": "block"}, "gradient_bytes": 8, "expected_gradient_bytes": 8}
    append_jsonl(tmp_path / kernels.ROWS_FILE, row)
    assert kernels.a_blocks_gradients_are_as_large_as_expected(tmp_path)[0]
    append_jsonl(tmp_path / kernels.ROWS_FILE, json.loads(json.dumps(row)) | {"gradient_bytes": 9})
    assert not kernels.a_blocks_gradients_are_as_large_as_expected(tmp_path)[0]


@pytest.mark.slow
def test_the_job_runs_in_the_graph(project):
    printed = project.run("kernels")
    assert "micro/precision_answers: made" in printed and "micro/step_times[16x32x2x2]: made" in printed
    assert all("unchanged" in line for line in project.run("kernels").splitlines() if line.startswith("micro/"))
