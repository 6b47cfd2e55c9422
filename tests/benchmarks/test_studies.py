"""The handout's harness on the command line: cells, studies, and what goes on where it stopped."""

import json

import pytest

from benchmarks.__main__ import main


def _run(folder, *options):
    shared = ["--device", "cpu", "--results", str(folder), "--files", str(folder / "files")]
    return main(["train_step", *shared, *options])


def _rows(folder):
    return [json.loads(line) for line in (folder / "train_step.jsonl").read_text().splitlines()]


def test_cells_become_rows_like_those_of_the_presets_and_a_table(tmp_path, capsys):
    cell = ["--size", "16x32x2x2", "--context", "16", "--batch-size", "2", "--warmup", "0", "--steps", "2", "--nvtx"]
    assert _run(tmp_path, *cell, "--mode", "forward", "step") == 0
    rows = _rows(tmp_path)
    assert [row["settings"]["mode"] for row in rows] == ["forward", "step"]
    for row in rows:
        assert row["subject"] == "train_step" and row["unit"] == "tokens/s" and row["contender"] == "ours"
        assert row["figure"] == pytest.approx(32 / row["mean_seconds"])
        assert row["commit"] and row["hardware"]["cpu"] and row["case"].startswith("16x32x2x2, T=16")
    printed = capsys.readouterr().out
    assert printed.rstrip().splitlines()[-1].startswith("| 16x32x2x2 |      16 | step")
    assert _run(tmp_path, *cell, "--mode", "step") == 0
    assert len(_rows(tmp_path)) == 3, "a cell that is named is measured again"


def test_a_study_goes_on_where_it_stopped_and_prints_its_table_last(tmp_path, capsys):
    study = ["--preset", "tiny", "--size", "16x32x2x2", "--study"]
    assert _run(tmp_path, *study, "baseline", "--minutes", "0") == 0
    assert not (tmp_path / "train_step.jsonl").exists()
    assert _run(tmp_path, *study, "baseline") == 0
    assert len(_rows(tmp_path)) == 3
    capsys.readouterr()
    assert _run(tmp_path, *study, "baseline", "precision") == 0
    assert len(_rows(tmp_path)) == 3 + 4  # cells of fp32 are those of the baseline
    assert capsys.readouterr().out.rstrip().splitlines()[-1].startswith("| 16x32x2x2 | forward+backward |")
    assert (tmp_path / "files" / "baseline" / "page.md").exists()


def test_timelines_are_drawn(tmp_path):
    assert _run(tmp_path, "--preset", "tiny", "--study", "memory") == 0
    assert len(list((tmp_path / "files" / "memory" / "timelines").glob("*.png"))) == 8


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--size", "huge"], "no size 'huge'"),
        (["--size", "small", "--preset", "tiny"], "exclude each other"),
        (["--mode", "step", "--nvtx"], "--mode, --nvtx: of cells"),
        (["--study", "baseline", "--preset", "tiny", "--compile"], "--compile: of cells"),
        (["--study", "baseline", "--preset", "tiny", "--size", "small"], "of preset tiny have 16x32x2x2"),
        (["--size", "16x32x1x2", "--context", "8", "--memory-snapshot", "x.pickle"], "only CUDA's allocator"),
        (["--size", "16x32x1x2", "--context", "8", "16", "--memory-snapshot", "x.pickle"], "records one step"),
    ],
)
def test_mistakes_end_with_one_line(options, says, tmp_path, capsys):
    assert _run(tmp_path, *options) == 1
    error = capsys.readouterr().err.strip()
    assert says in error and len(error.splitlines()) == 1
