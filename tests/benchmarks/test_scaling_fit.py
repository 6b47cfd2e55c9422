"""The benchmark of bootstrap draws, with few of them: SciPy's searches end no lower than ours."""

import argparse
import json

import numpy as np

from benchmarks import scaling_fit
from benchmarks.measure import run_subject


def test_ours_and_scipys_draws_agree(tmp_path):
    options = argparse.Namespace(draws=5, repeats=1, results=tmp_path)
    assert run_subject("scaling_fit", scaling_fit, options) == 0
    rows = [json.loads(line) for line in (tmp_path / "scaling_fit.jsonl").read_text().splitlines()]
    assert [(row["case"], row["contender"]) for row in rows] == [("draws", "ours"), ("draws", "scipy")]
    assert not [row["failure"] for row in rows if "failure" in row]


def test_a_higher_objective_is_a_difference():
    assert "higher" in (scaling_fit._difference(np.array([1.0, 2.1]), np.array([1.0, 2.0])) or "")
    assert scaling_fit._difference(np.array([1.0, 1.9]), np.array([1.0, 2.0])) is None
