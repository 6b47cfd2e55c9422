"""The comparison with one process passes for all forms, and finds a form that is wrong."""

import pytest

from cs336.parallel.process_group import run_ranks
from cs336.profiling import parallel_correctness
from cs336.profiling.parallel_correctness import FORMS, TOLERANCE, compare_forms, largest_differences


def with_gradients_summed(place):
    parallel_correctness.average_gradients = lambda parameters, flat=False: None  # of this process alone
    return largest_differences(place)


def with_gradients_that_are_no_numbers(place):
    def spoil(parameters, flat=False):
        for parameter in parameters:
            parameter.grad.fill_(float("nan"))

    parallel_correctness.average_gradients = spoil
    return largest_differences(place)


@pytest.mark.parametrize("world_size", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_all_forms_equal_one_process(world_size):
    found = compare_forms(world_size, "cpu", 200.0)
    assert found.keys() == FORMS.keys() and all(value <= TOLERANCE for value in found.values()), found


def test_a_form_that_averages_nothing_is_found():
    found = run_ranks(with_gradients_summed, 2, timeout_seconds=200, start_method="forkserver")[0]
    assert {form for form, value in found.items() if value > TOLERANCE} == {"naive", "flat"}


def test_weights_that_are_no_numbers_are_found():
    found = run_ranks(with_gradients_that_are_no_numbers, 2, timeout_seconds=200, start_method="forkserver")[0]
    assert {form for form, value in found.items() if not value <= TOLERANCE} == {"naive", "flat"}
