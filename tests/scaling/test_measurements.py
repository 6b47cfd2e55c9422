"""Files of runs: the handout's array or JSON Lines; a mistake names file, run and remedy."""

import json

import pytest

from cs336.files import UserError
from cs336.scaling.measurements import best_of_equals, measurements, read_measurements

RUN = {"parameters": 50_000_000, "compute_budget": 6e18, "final_loss": 7.19}


def test_the_handouts_array_and_json_lines_say_the_same(tmp_path):
    rows = [RUN, RUN | {"final_loss": 6.75, "parameters": 78_730_505, "d_model": 512}]
    (tmp_path / "runs.json").write_text(json.dumps(rows))
    (tmp_path / "runs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    one, other = (read_measurements(tmp_path / name) for name in ("runs.json", "runs.jsonl"))
    for column, same, expected in zip(one, other, ([5e7, 78_730_505], [6e18, 6e18], [7.19, 6.75]), strict=True):
        assert column.tolist() == same.tolist() == expected
    assert one.tokens[0] == 6e18 / 6 / 5e7 and one.budgets.tolist() == [6e18]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{not json", "not valid JSON"),
        ("{}", "holds no list of runs"),
        ("[]", "holds no list of runs"),
        ("[3]", "run 1 has no parameters; each run needs parameters, compute_budget, final_loss"),
        (json.dumps([RUN, {"parameters": 1, "final_loss": 2}]), "run 2 has no compute_budget"),
        (json.dumps([RUN | {"final_loss": float("nan")}]), "run 1 has final_loss nan"),
        (json.dumps([RUN | {"final_loss": None}]), "run 1 has no final_loss"),
        (json.dumps([RUN | {"compute_budget": "1e18"}]), "run 1 has compute_budget '1e18'"),
        (json.dumps([RUN | {"parameters": 0}]), "run 1 has parameters 0; give a number above 0"),
    ],
)
def test_a_file_that_is_none_is_told_in_one_line(tmp_path, content, says):
    path = tmp_path / "runs.json"
    path.write_text(content)
    with pytest.raises(UserError) as told:
        read_measurements(path)
    assert str(path) in str(told.value) and says in str(told.value) and "\n" not in str(told.value)


def test_a_missing_file_is_told(tmp_path):
    for name in ("runs.json", "runs.jsonl"):
        with pytest.raises(UserError, match=f"{name}: not found"):
            read_measurements(tmp_path / name)


def test_of_runs_alike_the_lowest_counts():
    runs = best_of_equals(measurements([1, 2, 1, 1], [10, 10, 10, 30], [3.0, 2.0, 2.5, 4.0]))
    assert [column.tolist() for column in runs] == [[2, 1, 1], [10, 10, 30], [2.0, 2.5, 4.0]]


def test_numbers_that_are_none_are_an_error():
    with pytest.raises(ValueError, match="diverged"):
        measurements([1.0], [1.0], [float("inf")])
    with pytest.raises(ValueError, match="as many"):
        measurements([1.0, 2.0], [1.0], [1.0])
    with pytest.raises(ValueError, match="as many"):
        measurements([], [], [])
