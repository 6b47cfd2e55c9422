"""The handout's shapes have the parameters that follow from its table."""

import pytest

from cs336.model.accounting import count_parameters
from cs336.model.sizes import SIZES, find_size

MILLIONS = {"small": 128.6, "medium": 423.2, "large": 969.4, "xl": 3_407, "10b": 12_830, "xl-2025": 1_998, "8b": 8_126}


@pytest.mark.parametrize("name", SIZES)
def test_number_of_parameters(name):
    assert count_parameters(SIZES[name]).total / 1e6 == pytest.approx(MILLIONS[name], rel=5e-4)


def test_another_context_and_an_unknown_name():
    assert find_size("xl", context_length=2_048).context_length == 2_048
    with pytest.raises(ValueError, match="no size 'huge'; there are small, medium"):
        find_size("huge")
