import pytest

from cs336.scaling.accounting import num_parameters, num_steps, num_tokens


def test_sizes_and_budgets_by_hand():
    assert num_parameters(num_layers=2, d_model=64) == 98_304
    assert num_tokens(600_000, 100) == 1_000


def test_steps_are_whole_and_may_be_none():
    """One step is 65,536 tokens at batch 128; 1e13 FLOPs pay for none above 25.4 M parameters."""
    assert num_steps(1e16, num_parameters(24, 1_024), 128) == 84  # the course's sample answer
    assert num_steps(1e13, 25_431_315, 128) == 1
    assert num_steps(1e13, 25_431_316, 128) == 0
    assert num_steps(1e18, num_parameters(2, 64), 256) * 131_072 == pytest.approx(1.7e12, rel=0.01)  # tokens
    assert num_steps(6 * 1_000 * 3 * 131_072, 1_000, 256) == 3
