"""Medians and quartiles by hand, rounds taken together, and rows of either kind told apart."""

import pytest

from cs336.profiling.spread import (
    how_timed,
    median_and_quartiles,
    overlap,
    pooled,
    ratio_text,
    spread_of,
    spread_text,
)


def of_round(number, *steps, **more):
    times = {"steps_ms": list(steps), "parts_ms": {"forward": steps[0]}, "ms_by_rank": [steps[0], steps[-1]]}
    counts = {"num_warmup": 1, "num_steps": len(steps), "memory": None}
    return {"cell": {"form": "naive", "round": number}} | median_and_quartiles(steps) | times | counts | more


MEAN = {"cell": {"form": "flat"}, "ms": 100.0, "ms_std": 10.0, "num_steps": 10}


def test_the_median_and_the_quartiles_by_hand():
    assert median_and_quartiles([1.0, 4.0, 2.0, 3.0, 100.0]) == {"ms": 3.0, "ms_quartiles": [2.0, 4.0]}
    assert median_and_quartiles([7.0]) == {"ms": 7.0, "ms_quartiles": [7.0, 7.0]}


def test_the_steps_of_all_rounds_are_taken_together():
    rows = [of_round(0, 1.0, 2.0, memory={"peak": [5, 5]}), MEAN, of_round(1, 9.0), of_round(2, 3.0, 100.0)]
    naive, flat = pooled(rows)
    assert flat == MEAN
    assert naive["cell"] == {"form": "naive"} and naive["steps_ms"] == [1.0, 2.0, 9.0, 3.0, 100.0]
    assert naive["ms"] == 3.0 and naive["ms_quartiles"] == [2.0, 9.0]
    assert naive["num_steps"] == 5 and naive["num_rounds"] == 3 and naive["memory"] == {"peak": [5, 5]}
    assert naive["parts_ms"] == {"forward": 3.0} and naive["ms_by_rank"] == [3.0, 9.0]
    assert "medians of 5 steps of 3 rounds by turns" in how_timed([naive])


def test_of_a_round_that_was_measured_again_the_later_row_counts():
    failed = {"cell": {"form": "naive", "round": 0}, "failure": "rank 1 of 2 failed"}
    assert pooled([failed, of_round(0, 1.0), of_round(1, 3.0)])[0]["ms"] == 2.0
    assert pooled([of_round(0, 1.0), failed | {"cell": {"form": "naive", "round": 1}}]) == [
        {"cell": {"form": "naive"}, "failure": "rank 1 of 2 failed"}
    ]


def test_rounds_of_other_code_than_the_latest_are_left_out():
    older = of_round(0, 1.0) | {"commit": "a", "date": "2026-01-01"}
    newer = [of_round(number, 3.0 + number) | {"commit": "b", "date": f"2026-01-0{2 + number}"} for number in (1, 2)]
    (row,) = pooled([older, *newer])
    assert row["steps_ms"] == [4.0, 5.0] and row["num_rounds"] == 2 and row["commit"] == "b"
    gone_on = [newer[0], newer[1] | {"commit": "b+changes"}]  # by the rows of the first round themselves
    assert pooled(gone_on)[0]["num_rounds"] == 2


def test_rows_of_rounds_stand_for_an_older_row_of_the_same_cell():
    older = MEAN | {"cell": {"form": "naive"}}
    assert [row["ms"] for row in pooled([older, of_round(0, 1.0)])] == [1.0]


def test_spreads_of_both_kinds_are_compared():
    median = {"ms": 80.0, "ms_quartiles": [70.0, 85.0], "num_steps": 30}
    assert spread_of(MEAN) == (90.0, 110.0) and spread_of(median) == (70.0, 85.0)
    assert not overlap(MEAN, median) and ratio_text(median, MEAN) == "0.8"
    wider = median | {"ms_quartiles": [70.0, 95.0]}
    assert overlap(MEAN, wider) and overlap(wider, MEAN) and ratio_text(MEAN, wider) == "1.25 (spreads overlap)"
    assert spread_text(MEAN) == "± 10" and spread_text(median) == "70 to 85"
    assert spread_text({"ms": 1_200.0, "ms_quartiles": [1_100.4, 1_300.0]}) == "1,100 to 1,300"


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], ""),
        ([{"cell": {}, "state": "out of memory"}], ""),
        ([MEAN], "Times are means of 10 steps, their spread (±) a standard deviation."),
        (
            [MEAN, {"ms": 1.0, "ms_quartiles": [1.0, 1.0], "num_calls": 30}],
            "Times are means of 10 steps, their spread (±) a standard deviation; and medians of 30 calls, their spread"
            " the quartiles.",
        ),
    ],
)
def test_a_page_says_what_its_times_are(rows, said):
    assert how_timed(rows) == said
