"""The report of rows whose law is known, with its prediction and check; of rows that allow no fit; and the command."""

import dataclasses
import gzip
import re
from collections import defaultdict

import numpy as np
import pytest

from cs336.cli import main
from cs336.files import UserError, append_jsonl, read_json, write_json
from cs336.scaling import report, report_laws, runs
from cs336.scaling.grid import find_grid
from cs336.scaling.isoflops import Minima
from cs336.scaling.predict import check
from cs336.scaling.report import write_report
from cs336.scaling.report_laws import law_sections
from cs336.scaling.report_page import pictures
from cs336.scaling.report_prediction import target_section
from cs336.scaling.runs import MEASURED_CHECK, MEASURED_PREDICTION, MEASURED_RUNS, append_run, read_runs
from cs336.scaling.study import make_study
from tests.scaling.test_predict import GRID_LAW, law, made_prediction
from tests.scaling.test_runs import made_run

LATER = "2999-01-01T00:00:00+00:00"


def grid_rows(name="h100", **changes):
    """A row for each cell of a grid: the law's loss, with a best rate, a larger batch that loses, and noise."""
    noise = np.random.default_rng(0)
    rows = []
    for number, cell in enumerate(find_grid(name).cells().values()):
        loss = law(cell.parameters, cell.compute_budget, GRID_LAW)
        loss += 0.05 * np.log(cell.learning_rate * cell.d_model / 2) ** 2
        loss += 0.02 * (cell.batch_size == 256) + noise.normal(0, 0.004)
        names = ("d_model", "num_layers", "num_heads", "parameters", "steps", "tokens", "batch_size", "learning_rate")
        values = {each: getattr(cell, each) for each in (*names, "seed", "compute_budget")}
        values |= {"train_flops": cell.compute_budget, "config_hash": f"{name} {number}", "final_loss": loss}
        rows.append(made_run(**(values | changes)))
    return rows


@pytest.fixture(scope="module")
def rows():
    lost = made_run(final_loss=float("nan"), outcome="diverged: step 3", learning_rate=2e-3, config_hash="lost")
    return [*grid_rows(), lost]


@pytest.fixture(scope="module")
def prediction(rows):
    from cs336.scaling.predict import FITTERS

    return made_prediction(rows, fitters=FITTERS, rate_per_width=1.0)  # as the grid `check` has it


@pytest.fixture(scope="module")
def written(rows, prediction, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    later = grid_rows("check", date=LATER)
    again = [dataclasses.replace(run, packed=1, utilisation=0.4) for run in rows[:10]]
    session = {"date": LATER, "packed": 3, "recorded": True, "num_runs": 9, "elapsed_seconds": 10.0}
    session |= {"hardware": "none", "real_flops": 1e9, "tokens": 1_000, "utilisation": 0.31}
    alone, other = session | {"packed": 1, "utilisation": 0.37}, session | {"tokens": 2_000, "packed": 2}
    sessions = [session, alone, other]
    page = write_report(folder, [*rows, *later, *again], prediction=prediction, sessions=sessions, num_draws=30)
    return folder, page, later


@pytest.fixture
def without_exercise(monkeypatch):
    """Reports end before the handout's exercise, which is the same in all of them and takes the longest."""
    monkeypatch.setattr(report, "exercise_section", lambda folder, num_draws: "")


def test_it_has_every_figure_and_loads_nothing(written):
    folder, page, _ = written
    names = {"costs", "rates", "batches", "shapes", "profiles", "parameters", "tokens", "loss", "residuals", "contours"}
    names |= {"parity", "utilisation", "check", "exercise/parameters", "exercise/tokens", "exercise/contours"}
    assert {name.removesuffix(".png") for name in pictures(page)} == names
    assert (folder / "report.md").read_text() == page
    html = (folder / "report.html").read_text()
    assert html.count("data:image/png;base64,iVBOR") == len(names) == html.count("<img ")
    assert not re.search(r"(src|href)=\"(?!data:|#)|@import|<script|<link", html)
    assert all((folder / name).stat().st_size > 5_000 for name in pictures(page))


def test_it_tells_the_ledger_the_sweeps_and_the_law(written, rows):
    _, page, later = written
    cost = sum(run.real_flops for run in [*rows, *later])
    (line,) = [line for line in page.splitlines() if line.startswith("| all ") and "from 1e13 to 1e16" in line]
    assert f"{cost:.2e}" in line and f" {len(rows) + len(later)} |" in line, "rows trained again cost nothing here"
    assert "64x2x2 at 1e13, batch 128, learning rate 0.002: diverged: step 3" in page
    found = re.search(r"in (\d+) of (\d+) cases it is the lowest or the highest", page)
    assert found and (int(found[1]), int(found[2])) == rates_at_edge([*rows, *later])
    (line,) = [line for line in page.splitlines() if re.match(r"\| 3e13 +\| +128 \| 64x2x2 .* 0\.004 ", line)]
    assert re.search(r"\| 0\.0312 +\| [\d.]+ +\| 0\.001 \+[\d.]+, 0\.004 \+[\d.]+, 0\.016 \+[\d.]+ ", line)
    fewest = re.search(r"The smallest batch has the lowest loss in (\d+) of (\d+) comparisons", page)
    assert fewest and fewest[1] == fewest[2]
    a = float(re.search(r"\| parabola +\| ([\d.]+) \(", page)[1])
    assert a == pytest.approx(GRID_LAW.frontier().parameters.exponent, abs=0.05)


def rates_at_edge(runs):
    """Of sizes at one budget and batch with several rates: how many have their best at an end; how many there are."""
    losses = defaultdict(lambda: defaultdict(list))
    for run in runs:
        if run.steps:
            size = run.compute_budget, run.batch_size, run.d_model, run.num_layers, run.num_heads
            losses[size][run.learning_rate].append(run.final_loss if run.finished else np.inf)
    several = [{rate: np.mean(each) for rate, each in some.items()} for some in losses.values() if len(some) > 1]
    return sum(min(some, key=some.get) in (min(some), max(some)) for some in several), len(several)


def test_it_tells_the_prediction_beside_what_was_measured(written, prediction):
    _, page, later = written
    checked = check(prediction, later)
    assert f"{checked['loss_error']:+.4f} nats" in page and prediction["made"] in page
    assert f"Named to check it: {prediction['check']['shape']}" in page
    section = page.partition("## The prediction and its check")[2].partition("\n## ")[0]
    assert "No finished run of that budget is older. Trained since:" in section
    for size, loss in checked["losses"].items():
        assert re.search(rf"\| {int(size):,} +\| {loss:.4f}", section)


def test_a_run_at_the_target_that_is_older_than_the_prediction_is_not_passed_over(
    rows, prediction, tmp_path, without_exercise
):
    """One early run makes the prediction one that was not blind: the later ones check it no more."""
    later = grid_rows("check", date=LATER)
    mixed = [dataclasses.replace(later[0], date="2020-01-01T00:00:00+00:00"), *later[1:]]
    page = write_report(tmp_path, [*rows, *mixed], prediction=prediction, num_draws=5)
    assert "Not checked: a run of 2020-01-01T00:00:00+00:00 is older than the prediction" in page
    assert "Trained since" not in page
    assert re.search(rf"\| check +\| 1e16 +\| +{len(mixed)} \|", page), (
        "what they were for does not hang on when they ended"
    )


def test_where_the_text_ends_before_the_minimum_the_measured_rows_say_what_holds_for_this_text_alone(tmp_path):
    rows = [*read_runs(MEASURED_RUNS), *read_runs(MEASURED_CHECK)]
    study = make_study(rows, read_json(MEASURED_PREDICTION), num_draws=20, seed=0)
    profiles, laws, *_ = law_sections(study, tmp_path)
    assert "no law but the text limit goes through it" in profiles and "| text limit " in laws
    predicted = study.prediction["predictions"]["text limit"]["loss"]["estimate"]
    assert f"| {predicted:.3f} (" in laws, "the report's limit is what was read most often, the prediction's its grid's"
    assert "These rows do not say" in target_section(study) and study.targets == (1e16,)


def test_it_names_the_run_of_the_exercise_with_all_its_settings(written):
    _, page, _ = written
    section = page.partition("## What to train with 1e19 FLOPs")[2].partition("\n## ")[0]
    width, layers, size = re.search(r"(\d+) wide, (\d+) layers, \d+ heads: ([\d.]+) B", section).groups()
    assert int(width) == 64 * int(layers)
    assert float(size) == pytest.approx(12 * int(layers) * int(width) ** 2 / 1e9, abs=0.005)
    best = GRID_LAW.frontier().parameters(1e19)
    assert 12 * int(layers) * int(width) ** 2 == pytest.approx(best, rel=0.6)
    assert (
        "128 sequences" in section
        and f"{float(f'{2 / int(width):.3g}'):g}, by a cosine" in section
        and "hours of one H100" in section
    )


def test_utilisation_is_told_for_runs_alone_and_together_and_for_sessions(written):
    section = written[1].partition("## Utilisation")[2].partition("\n## ")[0]
    assert re.search(r"\| none +\| +1 \| +10 \|.* 40.0% +\| 40.0%", section)
    assert re.search(r"\| none +\| +3 \|.* 15.0% +\| 45.0%", section) and "31.0%" in section
    compared = section.partition("the same 9 runs in several ways")[2]
    assert "31.0%" in compared and "37.0%" in compared and compared.count(LATER[:16]) == 2


def test_a_profile_that_a_smaller_budget_beats_is_no_minimum(rows, tmp_path, without_exercise):
    """Its lowest run lies between two sizes, which alone would make it one."""
    budgets = sorted({run.compute_budget for run in rows})[:2]
    worse = [
        dataclasses.replace(run, final_loss=run.final_loss + 2 * (run.compute_budget == budgets[1]))
        for run in rows
        if run.compute_budget in budgets
    ]
    page = write_report(tmp_path, worse, num_draws=5)
    first, second = re.findall(r"^\| (?:1e13|3e13) .*(?:k|M|less|one-sided) +\| \d\.\d+.*$", page, re.MULTILINE)[:2]
    assert "smaller budget" not in first and "a smaller budget has less" in second
    assert "none between the sizes" in second


def test_the_same_rows_give_the_same_page_and_four_of_them_no_law(rows, tmp_path, without_exercise):
    pages = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        page = write_report(tmp_path / name, rows[:4], num_draws=5)
        pages.append((tmp_path / name / "report.html").read_bytes())
    assert pages[0] == pages[1]
    assert "No approach can be fitted" in page and "- parametric: the law has 5 numbers; 4 runs" in page
    assert re.search(r"\| 1e13 +\| +4 \| 15.6 k to 37.6 k \| 37.6 k, one-sided", page)


def test_rows_that_allow_no_fit_have_a_report_that_says_so(tmp_path, without_exercise):
    lonely = made_run(vocab_size=64, context_length=16, num_layers=16, utilisation=None)
    page = write_report(tmp_path, [lonely], prediction={"reason": "too few"}, num_draws=5)
    assert "No law is fitted: no finished run has a budget from 0e+00 to inf" in page
    assert "There is none: too few." in page and "No run differs" in page and "1e19" not in page
    assert (tmp_path / "report.html").exists()
    with pytest.raises(UserError, match="no rows, so no report"):
        write_report(tmp_path, [])


@pytest.mark.parametrize("second", ["more.jsonl", "more.jsonl.gz"])
def test_the_command_takes_several_files_and_their_sessions(
    second, rows, prediction, tmp_path, capsys, without_exercise
):
    for run in rows[:3]:
        append_run(tmp_path / "runs.jsonl", run)
    append_run(tmp_path / "more.jsonl", rows[3])
    (tmp_path / "more.jsonl.gz").write_bytes(gzip.compress((tmp_path / "more.jsonl").read_bytes()))
    append_jsonl(
        tmp_path / "more.sessions.jsonl",
        {"date": LATER, "packed": 2, "recorded": False, "num_runs": 1, "elapsed_seconds": 2.0, "tokens": 2_468}
        | {"hardware": "none", "real_flops": 1e9, "utilisation": None},
    )
    write_json(tmp_path / "prediction.json", prediction)
    files = [str(tmp_path / name) for name in ("runs.jsonl", second)]
    ask = ["scaling", "report", *files, "--prediction", str(tmp_path / "prediction.json"), "--draws", "5"]
    assert main([*ask, "--out", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out" / "report.md").read_text()
    assert "4 runs at" in page and "1,234" in page
    assert "Not checked: no finished run at 1e+16" in page
    assert "4 rows" in capsys.readouterr().out
    assert main([*ask, "--out", str(tmp_path / "out")]) == 1 and "is there already" in capsys.readouterr().err


def test_without_measured_rows_the_command_names_the_remedy(tmp_path, capsys, monkeypatch):
    for name in ("MEASURED_RUNS", "MEASURED_CHECK", "MEASURED_PACKING", "MEASURED_PREDICTION"):
        monkeypatch.setattr(runs, name, tmp_path / f"{name}.json")
    assert main(["scaling", "report", "--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert "train a grid" in said and said.count("\n") == 1 and not (tmp_path / "out").exists()


def test_measured_rows_are_the_default_with_their_prediction_and_check(
    rows, prediction, tmp_path, monkeypatch, without_exercise
):
    alone = [dataclasses.replace(run, packed=1, utilisation=0.4) for run in rows[:2]]
    later = grid_rows("check", date=LATER)
    for name, some in (("MEASURED_RUNS", rows[:4]), ("MEASURED_CHECK", later), ("MEASURED_PACKING", alone)):
        monkeypatch.setattr(runs, name, tmp_path / f"{name}.jsonl")
        for run in some:
            append_run(tmp_path / f"{name}.jsonl", run)
    monkeypatch.setattr(runs, "MEASURED_PREDICTION", tmp_path / "prediction.json")
    write_json(tmp_path / "prediction.json", prediction)
    assert main(["scaling", "report", "--out", str(tmp_path / "out"), "--draws", "5"]) == 0
    page = (tmp_path / "out" / "report.md").read_text()
    assert "missed the loss" in page and f"{4 + len(later)} runs at" in page, "what was trained again counts once"
    assert re.search(r"\| none +\| +1 \| +2 \|.* 40.0% +\| 40.0%", page), "and tells what packing is worth"


def test_a_vertex_beyond_its_sizes_beats_no_later_budget():
    """Its loss is one that no run had."""
    compute = np.array([1e15, 1e16, 1e17])
    lowest = Minima(compute, np.array([1e6, 3e6, 9e6]), np.array([3.3, 3.0, 2.7]), np.array([False, True, True]))
    vertices = dataclasses.replace(lowest, losses=np.array([2.0, 2.9, 2.6]))
    assert report_laws._sound(vertices, lowest).bracketed.tolist() == [False, True, True]
    worse = dataclasses.replace(lowest, losses=np.array([3.3, 3.4, 2.7]))
    assert report_laws._sound(vertices, worse).bracketed.tolist() == [False, False, True]
