import pytest

from cs336.model.accounting import training_flops
from cs336.model.transformer import ModelConfig
from cs336.scaling.accounting import (
    nominal_flops,
    num_parameters,
    num_steps,
    num_tokens,
    real_flops,
    real_over_nominal,
)


def test_sizes_and_budgets_by_hand():
    assert num_parameters(num_layers=2, d_model=64) == 98_304
    assert nominal_flops(100, 1_000) == 600_000
    assert num_tokens(600_000, 100) == 1_000


def test_steps_are_whole_and_may_be_none():
    """One step is 65,536 tokens at batch 128; 1e13 FLOPs pay for none above 25.4 M parameters."""
    assert num_steps(1e16, num_parameters(24, 1_024), 128) == 84  # the course's sample answer
    assert num_steps(1e13, 25_431_315, 128) == 1
    assert num_steps(1e13, 25_431_316, 128) == 0
    assert num_steps(1e18, num_parameters(2, 64), 256) * 131_072 == pytest.approx(1.7e12, rel=0.01)  # tokens
    assert num_steps(6 * 1_000 * 3 * 131_072, 1_000, 256) == 3


@pytest.mark.parametrize(("d_model", "num_layers", "ratio"), [(64, 2, 23), (512, 8, 1.8), (1_024, 24, 1.2)])
def test_small_models_cost_far_more_than_their_label(d_model, num_layers, ratio):
    assert real_over_nominal(num_layers, d_model) == pytest.approx(ratio, rel=0.02)


def test_real_flops_are_those_of_the_models_matrix_products():
    """Counted product by product for the course's model: two matrices of 4 d a block, a head, attention in full."""
    config = ModelConfig(
        vocab_size=32_000, context_length=512, num_layers=8, d_model=512, num_heads=8, d_ff=2_048, feed_forward="gelu"
    )
    expected = training_flops(config, 10 * 512)
    assert real_flops(8, 512, 10 * 512) == pytest.approx(expected, rel=1e-12)
