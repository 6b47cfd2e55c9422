"""The study's assets on a grid that is trained for real, a second a run; and on rows of known laws."""

import json
from dataclasses import replace

import numpy as np
import pytest

from cs336.files import read_json, write_json
from cs336.preset_lookup import find_preset
from cs336.scaling import predict, report, runs
from cs336.scaling.grid import PredictionConfig, ScalingConfig
from cs336.scaling.runs import append_run, read_runs
from cs336.service.commands import open_surrogate
from cs336.tokenizer.bpe import Tokenizer
from cs336.tokens.shards import TOKEN_DTYPE
from cs336_assets import scaling_study as study
from cs336_assets.asset import ELSEWHERE, STAGES, Step
from cs336_assets.scaling import ROWS_FILE, isoflop_profiles, isoflop_runs, profiles_have_their_minimum_inside
from tests.scaling.made_runs import configuration, made_runs
from tests.scaling.test_predict import WIDE_BUDGETS, made_rows
from tests.scaling.test_runs import made_run

VOCABULARY = 64
GRID = ScalingConfig(grid="tests/scaling/micro.toml")
PREDICTION = PredictionConfig(max_budget=1.2e9, check="tests/scaling/micro_check.toml")
MICRO = replace(find_preset("tiny"), scaling=GRID, prediction=PREDICTION)


class Made:
    """Folders of the assets that were made so far, one below the other."""

    def __init__(self, folder):
        self.folder, self.shown = folder, {}

    def make(self, asset, *inputs, name=None, **settings):
        folder = self.folder / (name or asset.__name__)
        folder.mkdir(parents=True, exist_ok=True)
        self.shown[name or asset.__name__] = asset(Step(folder=folder, device="cpu"), *inputs, **settings)
        return folder

    def __getitem__(self, name):
        return self.folder / name


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Token arrays in which each token mostly tells the next, and a tokenizer of their vocabulary."""
    folder = tmp_path_factory.mktemp("inputs")
    draw = np.random.default_rng(0)
    after = draw.permutation(VOCABULARY)
    for split, count in (("train", 60_001), ("valid", 500)):
        ids = np.zeros(count, dtype=int)
        surprise, others = draw.random(count) < 0.1, draw.integers(0, VOCABULARY, count)
        for place in range(1, count):
            ids[place] = others[place] if surprise[place] else after[ids[place - 1]]
        ids.astype(TOKEN_DTYPE).tofile(folder / f"{split}.bin")
    Tokenizer({number: bytes([number]) for number in range(VOCABULARY)}, []).save(folder / "tokenizer")
    return [folder], folder / "tokenizer"


@pytest.fixture(scope="module")
def trained(inputs, tmp_path_factory):
    """The whole group on the tests' grid, trained for real."""
    made = Made(tmp_path_factory.mktemp("study"))
    cells = STAGES["isoflop_runs"].cells(MICRO)
    folders = [made.make(isoflop_runs, *inputs, cell, GRID, name=f"runs/{name}") for name, cell in cells.items()]
    profiles = made.make(isoflop_profiles, folders)
    made.make(study.scaling_fits, profiles, prediction=PREDICTION, seed=0)
    made.make(study.scaling_surrogate, profiles)
    prediction = made.make(study.scaling_prediction, profiles, prediction=PREDICTION)
    made.check_folders = [
        made.make(study.check_runs, prediction, *inputs, cell, PREDICTION, name=f"check/{name}")
        for name, cell in STAGES["check_runs"].cells(MICRO).items()
    ]
    made.make(study.scaling_check, prediction, made.check_folders)
    with pytest.MonkeyPatch.context() as patch:  # the handout's exercise is drawn in the report's own tests
        patch.setattr(report, "exercise_section", lambda folder, num_draws: "")
        made.make(study.scaling_report, profiles, prediction, made.check_folders, seed=0)
    return made


def test_a_trained_grid_is_fitted_predicted_from_and_checked(trained):
    rows = read_runs(trained["isoflop_profiles"] / ROWS_FILE)
    assert len(rows) == 15 and all(run.finished and run.vocab_size == VOCABULARY for run in rows)
    assert profiles_have_their_minimum_inside(trained["isoflop_profiles"], GRID)[0]
    fits = read_json(trained["scaling_fits"] / "fits.json")
    assert {"lowest run", "parabola", "parametric"} <= set(fits["approaches"]) and fits["num_runs"] == 15
    assert study.sizes_and_tokens_cost_what_they_may(trained["scaling_fits"])[0]
    assert "held_out_error_of_parametric_nats" in trained.shown["scaling_fits"]
    made = read_json(trained["scaling_prediction"] / "prediction.json")
    assert made["target_budget"] == 2e9 and made["check"]["shape"] in ("48x1x1", "64x1x1", "96x1x1")
    assert study.a_prediction_was_made(trained["scaling_prediction"])[0]
    checked = read_json(trained["scaling_check"] / "checked.json")
    assert set(checked["num_seeds"].values()) == {3} and checked["prediction_made"] == made["made"]
    assert trained.shown["scaling_check"]["loss_error"] == checked["loss_error"]
    folders = trained["scaling_check"], trained["scaling_prediction"]
    assert study.the_prediction_came_first(*folders, trained.check_folders)[0]
    assert study.the_named_shape_has_three_seeds(*folders)[0]
    passed, facts = study.the_predicted_loss_was_measured(trained["scaling_check"])
    assert facts == {"loss_error_nats": checked["loss_error"]}
    assert passed == (checked["loss_within"] and abs(checked["loss_error"]) <= 0.05)


def test_its_report_tells_all_of_it(trained):
    shown, folder = trained.shown["scaling_report"], trained["scaling_report"]
    page = (folder / "report.md").read_text()
    checked = read_json(trained["scaling_check"] / "checked.json")
    assert f"{checked['loss_error']:+.4f} nats" in page and "24 runs at 4 budgets" in page
    assert shown["num_rows"] == 24 and "data:image" in (folder / "report.html").read_text()
    assert {"costs", "profiles", "parameters", "residuals", "check"} <= set(shown)
    assert "![" not in shown["report"]["markdown"]
    inputs = trained["isoflop_profiles"], trained.check_folders
    assert study.every_row_is_in_the_report(folder, *inputs) == (True, {"num_runs": 24, "in_the_ledger": 24})
    assert not study.every_row_is_in_the_report(folder, inputs[0], inputs[1][:-1])[0]


def test_rows_of_another_model_leave_the_service_its_published_law(trained):
    shown = trained.shown["scaling_surrogate"]
    assert shown["measured_runs"] == 0 and "published" in shown["model"]
    assert not study.the_surrogate_is_near_runs_held_out(trained["scaling_surrogate"])[0]
    assert study.more_compute_never_costs_loss(trained["scaling_surrogate"])[0]


def joined(folder, rows):
    """A folder as `isoflop_profiles` leaves it."""
    for run in rows:
        append_run(folder / ROWS_FILE, run)
    return folder


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    made = Made(tmp_path_factory.mktemp("served"))
    rows = made_runs(noise=0.005, budgets=(10**14, 3 * 10**14, 10**15, 3 * 10**15), keep=0.35)
    made.make(study.scaling_surrogate, joined(made["profiles"], rows))
    return made, rows


def test_the_surrogate_is_what_the_server_reads(served):
    made, rows = served
    folder = made["scaling_surrogate"]
    assert (folder / "parity.png").exists() and "1e15" in made.shown["scaling_surrogate"]["held_out"]["markdown"]
    assert study.measured_runs_are_answered_by_their_own_loss(folder)[0]
    assert study.more_compute_never_costs_loss(folder)[0]
    surrogate = open_surrogate(folder)
    asked = configuration(*(getattr(rows[0], name) for name in configuration.__code__.co_varnames[:6]))
    assert surrogate.predict(asked).loss == rows[0].final_loss


@pytest.mark.parametrize(
    ("shift", "other_shift", "from_budget", "passes"),
    [
        (0.029, 0.0, 0, True),
        (0.031, 0.0, 0, False),
        (0.0, 0.5, 0, True),  # of rows that the API would not accept
        (0.5, 0.5, 3e15, False),
        (0.0, 0.0, 1e16, False),  # no rows are no proof
    ],
)
def test_a_surrogate_far_from_runs_held_out_fails_its_check(served, tmp_path, shift, other_shift, from_budget, passes):
    known = read_json(served[0]["scaling_surrogate"] / "surrogate.json")
    pairs = [(budget, loss) for budget, loss, _, of_api in known["held_out_pairs"] if of_api and budget >= from_budget]
    known["held_out_pairs"] = [[budget, loss, loss + shift, True] for budget, loss in pairs]
    known["held_out_pairs"] += [[budget, loss, loss - other_shift, False] for budget, loss in pairs]
    known["held_out_pairs"].append([1e14, 7.0, 9.0, True])  # below 1e15
    write_json(tmp_path / "surrogate.json", known)
    passed, facts = study.the_surrogate_is_near_runs_held_out(tmp_path)
    assert passed == passes
    if pairs:
        assert facts["rms_nats"] == pytest.approx(shift)
        assert facts["rms_nats_of_all"] == pytest.approx(((shift**2 + other_shift**2) / 2) ** 0.5)
        assert facts["num_of_all"] == 2 * facts["num_runs"] > 0


def test_fits_that_miss_the_largest_budget_or_cost_too_much_fail_their_checks(tmp_path):
    made = Made(tmp_path)
    config = PredictionConfig(max_budget=1e15, check="check")
    folder = made.make(study.scaling_fits, joined(made["profiles"], made_rows(WIDE_BUDGETS)), prediction=config, seed=0)
    said = json.loads((folder / "fits.json").read_text())
    assert said["approaches"]["parabola"]["predictions"][0]["compute"] == 1e16
    said["approaches"]["parabola"]["held_out"]["loss_error"] = -0.04
    write_json(folder / "fits.json", said)
    assert study.the_largest_budget_is_foreseen(folder)[0]
    said["approaches"]["parabola"]["held_out"]["loss_error"] = -0.06
    said["approaches"]["parabola"]["predictions"][0]["tokens"]["value"] *= 1.01
    write_json(folder / "fits.json", said)
    assert not study.the_largest_budget_is_foreseen(folder)[0]
    assert not study.sizes_and_tokens_cost_what_they_may(folder)[0]
    said["approaches"] = {}
    write_json(folder / "fits.json", said)
    passed, facts = study.the_largest_budget_is_foreseen(folder)
    assert not passed and "train more budgets" in facts["state"]


def test_budgets_below_the_presets_smallest_are_in_no_law_and_no_prediction(tmp_path):
    made, rows = Made(tmp_path), made_rows((*WIDE_BUDGETS, 6e14))
    config = PredictionConfig(min_budget=1e14, max_budget=1e15, check="check")
    profiles = joined(made["profiles"], rows)
    fits = made.make(study.scaling_fits, profiles, prediction=config, seed=0)
    assert read_json(fits / "fits.json")["budgets"] == [1e14, 3e14, 6e14, 1e15]
    said = read_json(made.make(study.scaling_prediction, profiles, prediction=config) / "prediction.json")
    assert said["min_budget"] == 1e14 and said["num_rows"] == sum(run.compute_budget >= 1e14 for run in rows)
    (tmp_path / "report").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "exercise_section", lambda folder, num_draws: "")
        page = report.write_report(tmp_path / "report", rows, prediction=said, num_draws=5)
    assert "Budgets from 1e14 to 1e15 FLOPs." in page and "runs of 1e14 to 1e15 (rows" in page
    assert f"{said['held_out_loss_errors']['parabola']:+.4f}" in page


def test_rows_that_allow_no_prediction_say_why_down_to_the_report(tmp_path):
    made = Made(tmp_path)
    config = PredictionConfig(max_budget=1e15, check="check")
    profiles = joined(made["profiles"], made_rows((1e15,))[:3])
    prediction = made.make(study.scaling_prediction, profiles, prediction=config)
    why = read_json(prediction / "prediction.json")["reason"]
    assert "have their lowest loss between two sizes" in why
    assert study.a_prediction_was_made(prediction) == (False, {"reason": why})
    check = made.make(study.scaling_check, prediction, [])
    assert made.shown["scaling_check"] == {"reason": why}
    for passed, facts in (
        study.the_prediction_came_first(check, prediction, []),
        study.the_predicted_loss_was_measured(check),
        study.the_named_shape_has_three_seeds(check, prediction),
    ):
        assert not passed and facts == {"state": why}


def test_a_check_that_is_older_than_its_prediction_is_none(tmp_path):
    made = Made(tmp_path)
    config = PredictionConfig(max_budget=1e15, check="check")
    prediction = made.make(
        study.scaling_prediction, joined(made["profiles"], made_rows(WIDE_BUDGETS)), prediction=config
    )
    older = joined(made["older"], [made_rows((1e16,), date="2020-01-01T00:00:00+00:00")[0]])
    check = made.make(study.scaling_check, prediction, [older])
    assert "is older than the prediction" in made.shown["scaling_check"]["reason"]
    passed, facts = study.the_prediction_came_first(check, prediction, [older])
    assert not passed and facts["num_older"] == 1


def test_a_prediction_that_comes_with_the_rows_stays_as_it_was_made(tmp_path, monkeypatch):
    made, rows = Made(tmp_path), made_rows(WIDE_BUDGETS)
    config = PredictionConfig(max_budget=1e15, check="check")
    first = read_json(
        made.make(study.scaling_prediction, joined(made["one"], rows), prediction=config) / "prediction.json"
    )
    monkeypatch.setattr(predict, "MEASURED_PREDICTION", tmp_path / "committed.json")
    write_json(tmp_path / "committed.json", first | {"made": "2020-01-01T00:00:00+00:00"})
    again = made.make(study.scaling_prediction, made["one"], prediction=config, name="again") / "prediction.json"
    assert read_json(again)["made"] == "2020-01-01T00:00:00+00:00"
    rate = replace(config, rate_per_width=0.5)
    faster = made.make(study.scaling_prediction, made["one"], prediction=rate, name="faster") / "prediction.json"
    assert read_json(faster)["check"]["rate_per_width"] == 0.5
    other = made.make(study.scaling_prediction, joined(made["two"], rows[:-1]), prediction=config, name="other")
    assert read_json(other / "prediction.json")["made"] != "2020-01-01T00:00:00+00:00"


def test_a_cell_that_was_measured_on_this_text_is_not_trained_again(trained, inputs, tmp_path, monkeypatch):
    name, cell = next(iter(STAGES["isoflop_runs"].cells(MICRO).items()))
    (own,) = read_runs(trained[f"runs/{name}"] / ROWS_FILE)
    monkeypatch.setattr(runs, "MEASURED_RUNS", tmp_path / "measured.jsonl")
    append_run(tmp_path / "measured.jsonl", made_run(config_hash="another"))
    append_run(tmp_path / "measured.jsonl", replace(own, hardware="a GPU far away", final_loss=0.5))
    made = Made(tmp_path)
    folder = made.make(isoflop_runs, *inputs, cell, GRID, name="again")
    (row,) = read_runs(folder / ROWS_FILE)
    assert row.final_loss == 0.5 and made.shown["again"][ELSEWHERE] == "a GPU far away"
    seeded = made.make(isoflop_runs, *inputs, replace(cell, seed=7), GRID, name="seeded")
    assert read_runs(seeded / ROWS_FILE)[0].hardware != "a GPU far away"
