"""`cs336 scaling`: a table is printed, numbers and plots are written; mistakes are one line and leave nothing."""

import json

import pytest

from cs336.cli import main
from cs336.scaling.exercise import as_records, exercise_runs

PLOTS = {"parameters.png", "tokens.png", "loss.png", "profiles.png"}


@pytest.fixture(scope="module")
def runs_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "isoflops.json"
    path.write_text(json.dumps(as_records(exercise_runs())))
    return path


@pytest.mark.parametrize("at", [[], ["--at", "1e22", "--at", "1e25"]])
def test_fit_prints_what_it_writes(runs_file, tmp_path, capsys, at):
    assert main(["scaling", "fit", str(runs_file), "--out", str(tmp_path / "fits"), "--draws", "20", *at]) == 0
    printed = capsys.readouterr().out
    names = {path.name for path in (tmp_path / "fits").iterdir()}
    assert names == PLOTS | {"fits.json", "fits.md"}
    assert (tmp_path / "fits" / "fits.md").read_text() in printed
    said = json.loads((tmp_path / "fits" / "fits.json").read_text())
    targets = [each["compute"] for each in said["approaches"]["parabola"]["predictions"]]
    assert targets == ([1e22, 1e25] if at else [1e23, 1e24])
    assert "exact" not in said and ("206 B" in printed or at)


@pytest.mark.slow
def test_the_exercise_writes_runs_that_fit_reads(tmp_path, capsys):
    assert main(["scaling", "exercise", "--out", str(tmp_path / "one"), "--draws", "0"]) == 0
    assert "exact law" in capsys.readouterr().out
    runs = str(tmp_path / "one" / "isoflops.json")
    assert main(["scaling", "fit", runs, "--out", str(tmp_path / "two"), "--draws", "0"]) == 0
    one, two = (json.loads((tmp_path / name / "fits.json").read_text()) for name in ("one", "two"))
    assert one.pop("exact") and one == two
    assert one["approaches"]["lowest run"]["a"]["low"] is None  # no draws, no interval


def test_runs_alike_are_counted_and_the_lowest_kept(runs_file, tmp_path, capsys):
    rows = json.loads(runs_file.read_text())
    path = tmp_path / "runs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, rows[0] | {"final_loss": 9.0}]))
    assert main(["scaling", "fit", str(path), "--out", str(tmp_path / "fits"), "--draws", "0"]) == 0
    printed = capsys.readouterr().out
    assert "1 of 73 runs left out" in printed and "72 runs at 9 budgets" in printed


def test_published_is_printed(capsys):
    assert main(["scaling", "published"]) == 0
    assert "Chinchilla approach 3" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("[", "not valid JSON"),
        ('[{"parameters": 1}]', "run 1 has no compute_budget"),
        ('[{"parameters": 1, "compute_budget": 6, "final_loss": 2}]', "no approach can be fitted to its 1 runs"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_file(tmp_path, capsys, content, says):
    path = tmp_path / "mine.json"
    path.write_text(content)
    assert main(["scaling", "fit", str(path), "--out", str(tmp_path / "fits")]) == 1
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and str(path) in told and says in told
    assert [each.name for each in tmp_path.iterdir()] == ["mine.json"]


def test_a_folder_that_is_there_is_told_before_anything_is_fitted(runs_file, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("cs336.scaling.fits.fit_all", lambda *arguments, **options: pytest.fail("fitted"))
    (tmp_path / "mine.txt").touch()
    assert main(["scaling", "fit", str(runs_file), "--out", str(tmp_path)]) == 1
    assert "is there already" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [["--at", "-1"], ["--at", "nan"], ["--level", "95"]])
def test_a_wrong_number_is_told(runs_file, tmp_path, capsys, wrong):
    with pytest.raises(SystemExit):
        main(["scaling", "fit", str(runs_file), "--out", str(tmp_path / "fits"), *wrong])
    assert wrong[1] in capsys.readouterr().err


def test_a_negative_number_of_draws_is_told(runs_file, tmp_path, capsys):
    assert main(["scaling", "fit", str(runs_file), "--out", str(tmp_path / "fits"), "--draws", "-3"]) == 1
    assert "--draws is -3; give 0 or more" in capsys.readouterr().err
