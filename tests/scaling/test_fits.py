"""All approaches on one set of runs: what they say, what is left out, how fast, and what is drawn."""

import json
import time

import matplotlib.image
import numpy as np
import pytest

from cs336.scaling import fits, summary
from cs336.scaling.exercise import LAW, exercise_runs
from cs336.scaling.fits import APPROACHES, ENVELOPE, LOWEST, PARABOLA, PARAMETRIC, TEXT_LIMIT, fit_all
from cs336.scaling.measurements import CannotFit, Measurements, measurements
from cs336.scaling.parametric import ParametricLaw
from cs336.scaling.plots import draw_all
from cs336.scaling.text_limit import TextLimit

SECONDS_FOR_1000_DRAWS = 20  # the project's bound on 2 cores; here of processor time, as others use the cores too


@pytest.fixture(scope="module")
def exercise():
    return fit_all(exercise_runs(), num_draws=50)


@pytest.fixture(scope="module")
def ladder():
    """Five sizes at four budgets each, so that the envelope has something to say; noisy, and one-sided at the ends."""
    sizes, compute = (grid.ravel() for grid in np.meshgrid([1e6, 2e6, 4e6, 8e6, 1.6e7], [1e13, 1e14, 1e15, 1e16]))
    noise = np.exp(np.random.default_rng(0).normal(0, 0.003, len(sizes)))
    return measurements(sizes, compute, LAW(sizes, compute / 6 / sizes) * noise)


def test_every_approach_and_its_intervals(exercise):
    assert list(exercise.fits) == [LOWEST, PARABOLA, PARAMETRIC]
    assert exercise.left_out.keys() == {ENVELOPE}
    said = summary.summarize(exercise, (1e23,), truth=LAW)
    for name, each in said["approaches"].items():
        assert each["num_draws"] == 50 and each["num_draws_without_fit"] == 0
        assert each["a"]["value"] + each["b"]["value"] == pytest.approx(1)
        for number in (each["a"], *each["predictions"][0].values()):
            if isinstance(number, dict):
                slack = 1e-9 * number["value"] if name == PARAMETRIC else 0  # without noise its draws are all alike
                assert number["low"] - slack <= number["value"] <= number["high"] + slack, name
        assert len(each.get("minima", [])) in (0, 9)
    widths = [each["a"]["high"] - each["a"]["low"] for each in said["approaches"].values()]
    assert widths == sorted(widths, reverse=True)  # lowest run, parabola, parametric
    assert json.loads(json.dumps(said, allow_nan=False)) == json.loads(json.dumps(said))


def test_the_page_shows_the_exercises_rows_and_gaps(exercise):
    shown = summary.page(summary.summarize(exercise, truth=LAW))
    table = shown.partition("at 1e+24")[2].partition("\n\n")[0]
    rows = {line.split("|")[1].strip(): line for line in table.splitlines()[1:]}
    assert "206 B (" in rows[LOWEST] and "809 B (" in rows[LOWEST] and "-31.4%" in rows[LOWEST]
    assert "127 B" in rows[summary.RAW] and "1.33 T" in rows[summary.RAW]
    assert (
        "300 B" in rows[summary.EXACT]
        and "555 B" in rows[summary.EXACT]
        and "| 0.0%" in rows[summary.EXACT].replace("  ", "")
    )
    assert "72 runs at 9 budgets from 6e+18 to 3e+21 FLOPs. Ranges hold 95% of 50 bootstrap draws." in shown
    assert "E 2.6900 (2.6900 to 2.6900)" in shown
    assert "No envelope fit: the envelope needs two sizes" in shown


def test_the_largest_budget_is_left_out_of_the_fit_that_predicts_it(monkeypatch):
    seen = []
    whole = fits.fit_parametric
    monkeypatch.setattr(
        fits, "fit_parametric", lambda runs: seen.append(runs) or whole(runs, np.array([[7, 8, 1, 0.3, 0.3]]))
    )
    runs = exercise_runs()
    fit_all(runs, num_draws=0)
    assert [each.budgets[-1] for each in seen] == [3e21, 1e21]


def test_sizes_with_several_budgets_have_an_envelope_and_one_sided_minima_are_told(ladder):
    found = fit_all(ladder, num_draws=40)
    assert tuple(found.fits) == APPROACHES and not found.left_out
    said = summary.summarize(found, (1e17,))
    json.dumps(said, allow_nan=False)  # JSON knows no NaN: what has no value is null
    shown = summary.page(said)
    assert "No sizes bracket the lowest run's minimum at 1e+13" in shown
    assert "of the draws gave no lowest run fit" in shown


def test_runs_that_fit_nothing_leave_every_approach_out():
    found = fit_all(measurements([1, 2], [6, 6], [3, 2]), num_draws=10)
    assert not found.fits and set(found.left_out) == set(APPROACHES) and found.raw is None


def test_sizes_that_the_text_limits_are_an_approach_of_their_own_and_a_law_with_no_best_size_is_none():
    falling = ParametricLaw(2.0, 40, 20_000, 0.2, 0.4)
    pairs = [
        (times * budget / 6 / 1e8, budget) for budget in (1e13, 3e13, 1e14, 3e14, 1e15, 3e15) for times in (1, 2, 4)
    ]
    sizes, budgets = map(np.array, zip(*pairs, strict=True))
    runs = measurements(sizes, budgets, falling(sizes, budgets / 6 / sizes))
    limited = fit_all(runs, num_draws=20, max_tokens=1e8)
    fit = limited.fits[TEXT_LIMIT]
    assert tuple(limited.fits)[-1] == TEXT_LIMIT and LOWEST in limited.left_out
    assert fit.frontier.parameters.exponent == pytest.approx(1.0) and fit.frontier.tokens(1e17) == pytest.approx(1e8)
    assert fit.frontier.loss(1e17) == pytest.approx(falling(1e17 / 6e8, 1e8), abs=1e-3)
    assert abs(fit.held_out.loss_error) < 1e-3 and fit.held_out.compute == 3e15
    assert (
        fit.draws.loss(1e17).shape == (20,)
        and fit_all(runs, num_draws=0, max_tokens=1e8).fits[TEXT_LIMIT].draws is None
    )
    with pytest.raises(CannotFit, match="no budget has a best size under the limit"):
        TextLimit(2e8).held_out(runs)  # smaller sizes would have been allowed
    assert TEXT_LIMIT not in fit_all(runs, num_draws=0).fits

    growing = measurements(sizes, budgets, 2 + sizes**0.1 / 10 + (budgets / 6 / sizes) ** -0.1)
    assert "no size is best" in fit_all(growing, num_draws=0).left_out[PARAMETRIC]


def test_one_size_that_is_best_at_several_budgets_makes_no_line():
    columns = zip(
        *[(n, c, 3 + (n != 2) - np.log10(c) / 100) for c in (6.0, 12.0, 60.0) for n in (1, 2, 3)], strict=True
    )
    assert "2 parameters alone are the best" in fit_all(measurements(*columns), num_draws=0).left_out[LOWEST]


def test_a_mistake_in_a_fitter_is_not_taken_for_runs_that_do_not_fit(monkeypatch):
    def broken(*arguments):
        raise ValueError("a bug")

    monkeypatch.setattr(fits, "fit_parametric", broken)
    with pytest.raises(ValueError, match="a bug"):
        fit_all(exercise_runs(), num_draws=0)


def test_a_thousand_draws_take_seconds():
    exact = exercise_runs()
    noise = np.exp(np.random.default_rng(0).normal(0, 0.01, 72))
    runs = exact._replace(losses=exact.losses * noise)
    started = time.process_time()
    found = fit_all(runs, num_draws=1_000)
    assert time.process_time() - started < SECONDS_FOR_1000_DRAWS
    assert np.isfinite(found.fits[PARAMETRIC].draws.parameters(1e23)).sum() == 1_000


@pytest.mark.parametrize("which", ["exercise", pytest.param("ladder", marks=pytest.mark.slow)])
def test_pictures_are_drawn_the_same_each_time(which, request, tmp_path):
    runs = request.getfixturevalue(which)
    found = fit_all(runs, num_draws=5) if isinstance(runs, Measurements) else runs
    again = tmp_path / "again"
    again.mkdir()
    draw_all(found, again, truth=LAW)
    for name in draw_all(found, tmp_path, truth=LAW):
        assert matplotlib.image.imread(tmp_path / name).std() > 0.05  # not a blank page
        assert (tmp_path / name).read_bytes() == (again / name).read_bytes()


def test_lines_reach_1e24_in_logarithmic_axes_with_the_fitted_points(exercise, tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr("cs336.scaling.plots.save", lambda figure, path: drawn.update({path.name: figure.axes[0]}))
    draw_all(exercise, tmp_path, truth=LAW)
    for name in ("parameters.png", "tokens.png"):
        axes = drawn[name]
        assert axes.get_xscale() == axes.get_yscale() == "log"
        lines = {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}
        assert lines.keys() == {LOWEST, PARABOLA, PARAMETRIC, "exact law"}
        assert all(line.get_xdata()[-1] >= 1e24 * (1 - 1e-9) for line in lines.values())
        points = [line for line in axes.lines if line.get_label().startswith("_")]
        assert [len(each.get_xdata()) for each in points] == [9, 9]
    assert drawn["parameters.png"].lines[0].get_ydata()[-1] == pytest.approx(206e9, rel=0.01)


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (70.04e9, "70.0 B"),
        (1.331e12, "1.33 T"),
        (205.9e9, "206 B"),
        (999.6e6, "1.00 B"),
        (762_100, "762 k"),
        (42, "42.0"),
    ],
)
def test_counts_have_three_digits(number, text):
    assert summary.count(number) == text


def test_a_fit_without_an_answer_at_the_largest_budget_leaves_its_place_empty():
    nothing = {"compute": 1e15, "parameters_error": None, "loss_error": None}
    said = summary.summarize(fit_all(exercise_runs(), num_draws=0))
    said["approaches"]["parabola"]["held_out"] |= nothing
    line = next(
        line for line in summary.page(said).partition("Fitted to smaller")[2].splitlines() if "parabola" in line
    )
    assert [cell.strip() for cell in line.strip("|").split("|")] == ["parabola", "", ""]


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.0, "0.0%"), (-4e-4, "0.0%"), (4e-4, "0.0%"), (-6e-4, "-0.1%"), (0.1004, "+10.0%"), (-0.314, "-31.4%")],
)
def test_differences_have_a_sign_where_there_is_one(share, text):
    assert summary.percent(share) == text
