"""The scaling exercise as an asset: its page and plots, and checks that fail when the fits are wrong."""

from __future__ import annotations

import copy
import shutil

import pytest

from cs336.files import read_json, write_json
from cs336.scaling.summary import FITS_FILE, RUNS_FILE
from cs336_assets.asset import Step
from cs336_assets.scaling_exercise import (
    scaling_exercise,
    sizes_and_tokens_cost_the_budget,
    the_lowest_runs_are_the_handouts,
    the_parametric_fit_finds_the_law,
)

CHECKS = (the_parametric_fit_finds_the_law, sizes_and_tokens_cost_the_budget, the_lowest_runs_are_the_handouts)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scaling_exercise")
    return folder, scaling_exercise(Step(folder), seed=0)


def test_it_shows_the_gap_the_fits_and_every_plot(made):
    folder, shown = made
    assert shown["gap_at_1e23"] == pytest.approx(-0.238, abs=0.001)
    assert shown["gap_at_1e24"] == pytest.approx(-0.314, abs=0.001)
    assert "1,000 bootstrap draws" in shown["fits"]["markdown"] and "Chinchilla" in shown["published"]["markdown"]
    for value in shown.values():
        if isinstance(value, dict) and "image" in value:
            assert (folder / value["image"]).stat().st_size > 5_000
    assert (folder / "fits.md").read_text() == shown["fits"]["markdown"]
    for check in CHECKS:
        assert check(folder)[0], check


def _wrong_law(said):
    said["approaches"]["parametric"]["law"]["alpha"]["value"] += 0.001


def _wrong_tokens(said):
    said["approaches"]["parabola"]["predictions"][1]["tokens"]["value"] *= 1.01


def _wrong_exponents(said):
    said["approaches"]["lowest run"]["b"]["value"] = 0.597


@pytest.mark.parametrize(
    ("spoil", "check"),
    [
        (_wrong_law, the_parametric_fit_finds_the_law),
        (_wrong_tokens, sizes_and_tokens_cost_the_budget),
        (_wrong_exponents, sizes_and_tokens_cost_the_budget),
    ],
)
def test_wrong_fits_fail_their_check(made, tmp_path, spoil, check):
    said = copy.deepcopy(read_json(made[0] / FITS_FILE))
    spoil(said)
    write_json(tmp_path / FITS_FILE, said)
    assert not check(tmp_path)[0]


def test_other_runs_fail_their_check(made, tmp_path):
    shutil.copy(made[0] / RUNS_FILE, tmp_path)
    rows = read_json(tmp_path / RUNS_FILE)
    write_json(tmp_path / RUNS_FILE, [row for row in rows if row["parameters"] != 762_100_000])
    assert not the_lowest_runs_are_the_handouts(tmp_path)[0]
