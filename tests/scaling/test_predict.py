"""Predictions from rows that follow a published law, and their check; one fitter here is the plainest there is."""

import json
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import numpy as np
import pytest

from cs336.cli import main
from cs336.files import UserError, read_json
from cs336.revision import describe_commit
from cs336.scaling.grid import find_grid
from cs336.scaling.measurements import CannotFit
from cs336.scaling.parametric import ParametricLaw
from cs336.scaling.predict import FITTERS, check, edge_of, predict, write_prediction
from cs336.scaling.profiles import points
from cs336.scaling.runs import append_run
from tests.scaling.test_runs import made_run

BUDGETS = (1e13, 1e14, 1e15)
WIDE_BUDGETS = (1e13, 3e13, 1e14, 3e14, 1e15)
SHAPES = [(width, layers, width // 32) for width, layers in ((64, 2), (128, 2), (128, 4), (256, 4), (384, 6), (512, 8))]


# Chinchilla's form with coefficients that put the minima of small budgets between the sizes here.
LAW = ParametricLaw(1.7, 400, 800, 0.34, 0.34)


# With minima where our grid's profiles are.
GRID_LAW = ParametricLaw(3.0, 14, 15_200, 0.2, 0.6)


def law(parameters, compute, of=LAW):
    return of(parameters, compute / (6 * parameters))


def made_rows(budgets=BUDGETS, **changes):
    rows = []
    for budget in budgets:
        for d_model, num_layers, num_heads in SHAPES:
            parameters = 12 * num_layers * d_model**2
            values = {"d_model": d_model, "num_layers": num_layers, "num_heads": num_heads, "parameters": parameters}
            values |= {"final_loss": law(parameters, budget), "config_hash": f"{budget:.0e} {parameters}"}
            rows.append(made_run(compute_budget=budget, train_flops=budget, steps=100, **(values | changes)))
    return rows


@dataclass
class Lines:
    """Straight lines in log-log space."""

    size: np.ndarray
    height: np.ndarray

    def parameters(self, compute):
        return np.exp(np.polynomial.polynomial.polyval(np.log(compute), self.size))

    def loss(self, compute):
        return np.exp(np.polynomial.polynomial.polyval(np.log(compute), self.height))


def fit_lines(runs):
    """The parabola's vertex at each budget, and lines through them; draws leave one size out at a time."""

    parameters, compute, losses = runs

    def fitted(kept):
        sizes, heights, budgets = [], [], np.unique(compute)
        for budget in budgets:
            here = kept & (compute == budget)
            c, b, a = np.polyfit(np.log(parameters[here]), losses[here], 2)
            sizes.append(-b / (2 * c))
            heights.append(np.log(a - b * b / (4 * c)))
        lines = (np.polynomial.polynomial.polyfit(np.log(budgets), each, 1) for each in (sizes, heights))
        return Lines(*lines)

    draws = [fitted(parameters != size) for size in np.unique(parameters)]
    together = Lines(np.stack([draw.size for draw in draws], axis=1), np.stack([draw.height for draw in draws], axis=1))
    return fitted(np.ones(len(losses), dtype=bool)), together


def made_prediction(rows, **changes):
    settings = {"target": 1e16, "max_budget": 1e15, "shapes": SHAPES, "unique_tokens": 30_000_000}
    return predict(rows, **(settings | {"fitters": {"lines": fit_lines}} | changes))


def test_a_prediction_is_what_the_fitter_says_and_names_the_run_that_checks_it():
    rows = made_rows()
    prediction = made_prediction([*rows, *made_rows((1e16,), final_loss=0.5)])
    frontier, draws = fit_lines(points(rows, max_budget=1e15))
    size, loss = (prediction["predictions"]["lines"][name] for name in ("parameters", "loss"))
    assert size["estimate"] == pytest.approx(frontier.parameters(1e16)) and loss["estimate"] == frontier.loss(1e16)
    assert size["low"] <= size["estimate"] <= size["high"]
    assert loss["low"] == pytest.approx(np.quantile(draws.loss(1e16), 0.025)) and loss["num_draws"] == len(SHAPES)
    named = prediction["check"]
    nearest = min(SHAPES, key=lambda shape: abs(np.log(12 * shape[1] * shape[0] ** 2 / size["estimate"])))
    assert named["shape"] == "x".join(map(str, nearest))
    assert named["epochs"] == pytest.approx(1e16 / 6 / named["parameters"] / 30e6, rel=1e-3)
    assert (prediction["num_points"], prediction["num_rows"]) == (18, 18), (
        "the budget that is predicted is not looked at"
    )
    assert made_prediction(rows)["rows"] == prediction["rows"] != made_prediction(made_rows(seed=1)[:-1])["rows"]


def bent(rows):
    """The rows with losses that bend towards 10.5, that of an untrained model, as few steps have it."""
    return [replace(run, final_loss=(run.final_loss**-6 + 10.5**-6) ** (-1 / 6)) for run in rows]


def test_budgets_near_the_start_of_training_may_be_left_out_and_the_error_held_out_tells():
    rows = bent(made_rows((*WIDE_BUDGETS, 6e14)))
    every = made_prediction(rows, fitters=FITTERS)
    some = made_prediction(rows, fitters=FITTERS, min_budget=1e14)
    assert (some["min_budget"], some["num_points"]) == (1e14, 4 * len(SHAPES)) and some["rows"] != every["rows"]
    truth = bent(made_rows((1e16,)))
    lowest = min(run.final_loss for run in truth)
    far, near = (abs(made["predictions"]["parabola"]["loss"]["estimate"] - lowest) for made in (every, some))
    assert near < far / 2
    far, near = (abs(made["held_out_loss_errors"]["parabola"]) for made in (every, some))
    assert near < far / 2, "known before anything is trained there"
    three = made_prediction(made_rows((1e14, 3e14, 1e15)), fitters=FITTERS)
    assert three["held_out_loss_errors"]["parabola"] is None, "two budgets leave a floor open"


def test_a_prediction_that_needs_no_extrapolation_or_has_no_answer_is_refused():
    with pytest.raises(UserError, match="predicts nothing"):
        made_prediction(made_rows(), target=1e15)
    nowhere = Lines(np.array([np.nan, 0.0]), np.array([0.0, 0.0]))
    with pytest.raises(UserError, match="no prediction by the none: it has no answer at the target"):
        made_prediction(made_rows(), fitters={"none": lambda runs: (nowhere, nowhere)})


def test_an_approach_that_stands_beside_the_prediction_may_have_no_answer():
    def cannot(runs):
        raise CannotFit("too few")

    prediction = made_prediction(made_rows(), fitters={"lines": fit_lines, "other": cannot})
    assert list(prediction["predictions"]) == ["lines"] and prediction["left_out"] == {"other": "too few"}
    turned = made_prediction(made_rows(), fitters={"other": cannot, "lines": fit_lines})
    assert turned["approach"] == "lines" and turned["left_out"] == {"other": "too few"}
    with pytest.raises(UserError, match="no prediction by the other: too few; by the last: too few"):
        made_prediction(made_rows(), fitters={"other": cannot, "last": cannot})


def test_where_the_text_ends_before_the_minimum_the_best_size_that_it_allows_is_predicted():
    text, budgets = 30_000_000, (3e13, 6e13, 1e14, 3e14, 6e14, 1e15)
    falling = ParametricLaw(2.0, 40, 20_000, 0.2, 0.4)  # smaller sizes would be better still
    noise = np.random.default_rng(0)
    rows = []
    for budget in budgets:
        for times in (1.0, 1.5, 2.0, 3.0, 5.0):
            parameters = round(times * budget / 6 / (4 * text))
            loss = law(parameters, budget, falling) + noise.normal(0, 0.003)
            values = {"parameters": parameters, "final_loss": loss, "config_hash": f"{budget:.0e} {parameters}"}
            rows.append(made_run(compute_budget=budget, train_flops=budget, steps=100, **values))
    asked = {"fitters": FITTERS, "unique_tokens": text, "max_budget": 1e15}
    with pytest.raises(UserError, match=r"no prediction by the parabola: 0 of 6 .* by the lowest run: 0 of 6"):
        made_prediction(rows, **asked)
    made = made_prediction(rows, **asked, max_epochs=4.0, rate_per_width=0.5)
    assert (made["approach"], list(made["predictions"])) == ("text limit", ["text limit"])
    size, loss = (made["predictions"]["text limit"][name] for name in ("parameters", "loss"))
    least = 1e16 / 6 / (4 * text)
    assert size["estimate"] == pytest.approx(least, rel=1e-3) and size["low"] <= size["estimate"] <= size["high"]
    truth = law(least, 1e16, falling)
    assert loss["estimate"] == pytest.approx(truth, abs=0.05) and loss["low"] < truth < loss["high"] < loss["low"] + 0.3
    assert abs(made["held_out_loss_errors"]["text limit"]) < 0.02
    assert "residuals" in made["method"] and made["check"]["rate_per_width"] == 0.5
    assert made["check"]["learning_rate"] == float(f"{0.5 / int(made['check']['shape'].split('x')[0]):.3g}")
    with pytest.raises(
        UserError, match="by the text limit: 0 of 6 budgets have their lowest loss between two sizes or"
    ):
        made_prediction(rows, **asked, max_epochs=5.0)  # the sizes would have to be smaller


def test_the_grids_own_cells_predict_the_law_that_they_follow():
    noise = np.random.default_rng(0)
    rows = []
    for cell in find_grid("h100").cells().values():
        loss = (
            law(cell.parameters, cell.compute_budget, GRID_LAW)
            + 0.2 * abs(np.log(cell.learning_rate * cell.d_model / 2))
            + noise.normal(0, 0.005)
        )
        shape = {name: getattr(cell, name) for name in ("d_model", "num_layers", "num_heads", "parameters", "steps")}
        recipe = {name: getattr(cell, name) for name in ("batch_size", "learning_rate", "seed", "compute_budget")}
        rows.append(made_run(final_loss=loss, config_hash=cell.name, **shape, **recipe))
    predicted = made_prediction(rows, fitters=FITTERS)["predictions"]
    assert list(predicted) == ["parabola", "lowest run"]
    size, loss = predicted["parabola"]["parameters"], predicted["parabola"]["loss"]
    frontier = GRID_LAW.frontier()
    assert size["estimate"] == pytest.approx(frontier.parameters(1e16), rel=0.12), "its profiles are no parabolas"
    assert size["low"] < frontier.parameters(1e16) < size["high"] < 1.5 * size["low"]
    assert loss["estimate"] == pytest.approx(frontier.loss(1e16), abs=0.05)
    assert loss["low"] < frontier.loss(1e16) < loss["high"] < loss["low"] + 0.2
    assert loss["num_draws"] > 900
    coarse = predicted["lowest run"]["parameters"]
    assert coarse["high"] / coarse["low"] > 2 * size["high"] / size["low"], "as coarse as the sizes tried"


def test_the_check_compares_the_best_size_and_its_loss():
    prediction = made_prediction(made_rows())
    later = made_rows((1e16,), date="2999-01-01T00:00:00+00:00")
    named = next(run for run in later if run.parameters == prediction["check"]["parameters"])
    seeds = [replace(named, seed=seed, final_loss=named.final_loss + noise) for seed, noise in ((1, 0.02), (2, -0.02))]
    checked = check(prediction, [*made_rows(), *later, *seeds])
    best = min(later, key=lambda run: run.final_loss)
    assert checked["best_parameters"] == best.parameters and edge_of(checked) == ""
    smaller, larger = ([run for run in later if sign * (run.parameters - best.parameters) >= 0] for sign in (-1, 1))
    assert (edge_of(check(prediction, smaller)), edge_of(check(prediction, larger))) == ("largest", "smallest")
    assert checked["best_loss"] == pytest.approx(best.final_loss, abs=1e-5)
    assert checked["seed_spread"] == pytest.approx(0.02) and checked["num_seeds"][str(named.parameters)] == 3
    assert checked["loss_error"] == pytest.approx(
        prediction["predictions"]["lines"]["loss"]["estimate"] - best.final_loss, abs=1e-5
    )
    off = replace(best, final_loss=best.final_loss - 2)
    assert not check(prediction, [off])["loss_within"] and check(prediction, [off])["vertex"] is None
    vertex = checked["vertex"]
    assert min(run.parameters for run in later) < vertex["parameters"] < max(run.parameters for run in later)
    assert vertex["parameters"] == pytest.approx(LAW.frontier().parameters(1e16), rel=0.3)


def test_a_check_that_is_older_or_on_other_text_is_none():
    prediction = made_prediction(made_rows())
    with pytest.raises(UserError, match="no finished run at 1e"):
        check(prediction, made_rows())
    with pytest.raises(UserError, match="is older than the prediction"):
        check(prediction, made_rows((1e16,), date="2020-01-01T00:00:00Z"))
    made = datetime.fromisoformat(prediction["made"])
    ended = (made + timedelta(seconds=60)).isoformat()
    assert check(prediction, made_rows((1e16,), date=ended, wall_seconds=59.0))["best_loss"] > 0
    with pytest.raises(UserError, match="is older than the prediction"):  # it ended later, but it began before
        check(prediction, made_rows((1e16,), date=ended, wall_seconds=61.5))  # dates are cut to whole seconds
    with pytest.raises(UserError, match="text is not the prediction's"):
        check(prediction, made_rows((1e16,), date="2999-01-01T00:00:00Z", data="other"))


def test_runs_of_another_recipe_than_the_predictions_check_nothing():
    prediction = made_prediction(made_rows())
    later = made_rows((1e16,), date="2999-01-01T00:00:00+00:00")
    others = [replace(run, batch_size=256, final_loss=run.final_loss - 1) for run in later]
    assert check(prediction, [*later, *others]) == check(prediction, later)
    with pytest.raises(UserError, match=r"has batch 128 and learning rate 0\.001, which the prediction is for"):
        check(prediction, others)


def test_a_prediction_from_rates_over_the_width_is_checked_by_such_rates():
    def with_rates(rows):
        return [replace(run, learning_rate=float(f"{2 / run.d_model:.3g}")) for run in rows]

    prediction = made_prediction(with_rates(made_rows()))
    d_model = int(prediction["check"]["shape"].split("x")[0])
    assert prediction["check"]["rate_per_width"] == 2.0
    assert prediction["check"]["learning_rate"] == float(f"{2 / d_model:.3g}")
    later = with_rates(made_rows((1e16,), date="2999-01-01T00:00:00+00:00"))
    others = [replace(run, learning_rate=1e-3, final_loss=run.final_loss - 1) for run in later]
    assert check(prediction, [*later, *others]) == check(prediction, later)
    assert len(check(prediction, later)["losses"]) == len({run.parameters for run in later}) > 1
    with pytest.raises(UserError, match="learning rate 2/width, which the prediction is for"):
        check(prediction, others)


def test_a_prediction_is_written_once(tmp_path):
    prediction = made_prediction(made_rows())
    write_prediction(tmp_path / "prediction.json", prediction)
    assert read_json(tmp_path / "prediction.json") == prediction
    with pytest.raises(UserError, match="it stays"):
        write_prediction(tmp_path / "prediction.json", prediction)


def rows_file(path, rows):
    for run in rows:
        append_run(path, run)
    return str(path)


def test_the_commands_write_a_prediction_once_and_check_it(tmp_path, capsys):
    rows = rows_file(tmp_path / "runs.jsonl", made_rows(WIDE_BUDGETS))
    out = tmp_path / "prediction.json"
    ask = ["scaling", "predict", rows, "--target", "1e16", "--max-budget", "1e15", "--out", str(out)]
    assert main(ask) == 0
    printed = capsys.readouterr().out
    prediction = read_json(out)
    assert (
        prediction["commit"] == describe_commit()
        and prediction["rows"] in printed
        and "parabola" in prediction["method"]
    )
    assert prediction["check"]["shape"] in printed and prediction["check"]["epochs"] <= 5.0
    assert main(ask) == 1 and "it stays" in capsys.readouterr().err and read_json(out) == prediction

    later = rows_file(tmp_path / "check.jsonl", made_rows((1e16,), date="2999-01-01T00:00:00+00:00"))
    assert main(["scaling", "check", str(out), later, "--out", str(tmp_path / "checked.json")]) == 0
    printed = capsys.readouterr().out
    checked = read_json(tmp_path / "checked.json")
    assert checked == check(prediction, made_rows((1e16,), date="2999-01-01T00:00:00+00:00"))
    assert f"{checked['loss_error']:+.4f} nats" in printed and "in interval" in printed


def test_a_command_that_cannot_answer_says_why_and_writes_nothing(tmp_path, capsys):
    rows = rows_file(tmp_path / "runs.jsonl", made_rows((1e15,)))
    out = tmp_path / "prediction.json"
    ask = ["scaling", "predict", rows, "--max-budget", "1e15", "--out", str(out)]
    assert main([*ask, "--target", "1e16"]) == 1
    assert "no prediction by the parabola: 1 of 1 budgets have" in capsys.readouterr().err
    assert main([*ask, "--target", "2e16"]) == 1
    assert "grid check trains nothing at 2e+16" in capsys.readouterr().err
    assert not out.exists()
    (tmp_path / "other.json").write_text(json.dumps({"made": "today"}))
    assert main(["scaling", "check", str(tmp_path / "other.json"), rows]) == 1
    assert "no prediction" in capsys.readouterr().err
