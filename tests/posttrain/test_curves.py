"""How columns moved, by hand."""

import pytest

from cs336.posttrain.curves import by_update, mean_of, moved, reached


def test_a_column_moves_from_its_first_quarter_to_its_last():
    rows = [{"step": 0}, *({"entropy": value} for value in (1.0, 3.0, 9.0, 9.0, 9.0, 9.0, 4.0, 8.0)), {"entropy": None}]
    assert moved(rows, "entropy") == (2.0, 6.0) and moved(rows, "entropy").change == 4.0
    assert moved(rows[:3], "entropy") == (1.0, 3.0)
    assert moved(rows, "length") is None
    assert mean_of(rows, "entropy") == 6.5 and mean_of(rows, "length") is None


def test_updates_of_a_batch_are_told_apart():
    rows = [{"step": 0, "valid_accuracy": 0.1}]
    rows += [{"grpo_step": step, "ratio_max": step + 10.0 * place} for step in (1, 2) for place in range(3)]
    assert by_update(rows, "ratio_max") == [1.5, 11.5, 21.5]
    assert by_update(rows[:-1], "ratio_max") == [1.5, 11.5, 21.0], "a run that ended within a batch"
    assert by_update(rows, "clip_fraction") == [] == by_update(rows[:1], "ratio_max")


@pytest.mark.parametrize(
    ("accuracy", "found"), [(0.1, (0, 0.0)), (0.2, (5, 7.0)), (0.5, (5, 7.0)), (0.6, (9, 20.0)), (0.7, None)]
)
def test_an_accuracy_is_reached_at_its_first_validation(accuracy, found):
    rows = [
        {"step": 0, "valid_accuracy": 0.1, "seconds": 0.0},
        {"step": 19, "grpo_step": 5, "seconds": 6.0},
        {"step": 20, "grpo_step": 5, "seconds": 7.0, "valid_accuracy": 0.5},
        {"step": 30, "grpo_step": 8, "seconds": 15.0, "valid_accuracy": 0.4},
        {"step": 36, "grpo_step": 9, "seconds": 20.0, "valid_accuracy": 0.6},
    ]
    assert reached(rows, accuracy) == found
