"""Layers against PyTorch's own, and against values worked out by hand."""

import math

import pytest
import torch
from torch import nn

from cs336.model.layers import (
    Embedding,
    GELUFeedForward,
    LayerNorm,
    Linear,
    RMSNorm,
    RopeScaling,
    RotaryPositionalEmbedding,
    SiLUFeedForward,
    SwiGLU,
    default_d_ff,
    dropout,
    gelu,
    silu,
    softmax,
)

F = nn.functional


def test_linear_is_a_product_without_bias():
    layer = Linear(5, 3)
    x = torch.randn(2, 4, 5)
    torch.testing.assert_close(layer(x), torch.einsum("oi,bsi->bso", layer.weight, x))
    assert [name for name, _ in layer.named_parameters()] == ["weight"]
    assert layer.weight.shape == (3, 5)


def test_a_linear_layer_can_have_a_bias_which_starts_at_zero():
    layer = Linear(5, 3, bias=True)
    assert torch.equal(layer.bias, torch.zeros(3))
    layer.bias.data = torch.randn(3)
    x = torch.randn(2, 4, 5)
    torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias), atol=1e-6, rtol=1e-4)


def test_linear_starts_with_the_documented_spread():
    weight = Linear(300, 500).weight
    std = math.sqrt(2 / 800)
    assert weight.abs().max() <= 3 * std
    assert weight.std().item() == pytest.approx(std, rel=0.03)


def test_embedding_looks_rows_up_for_any_leading_shape():
    table = Embedding(10, 4)
    ids = torch.tensor([[[1, 9], [0, 1]]])
    assert torch.equal(table(ids), table.weight[ids])
    assert table.weight.abs().max() <= 3


def test_rmsnorm_equals_pytorchs():
    x = torch.randn(2, 3, 8)
    ours, theirs = RMSNorm(8), nn.RMSNorm(8, eps=1e-5)
    weight = torch.randn(8)
    ours.weight.data, theirs.weight.data = weight, weight
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-6, rtol=1e-4)


def test_layernorm_equals_pytorchs_without_bias():
    x = 3 + torch.randn(2, 3, 8)
    ours, theirs = LayerNorm(8, eps=1e-3), nn.LayerNorm(8, eps=1e-3, bias=False)
    weight = torch.randn(8)
    ours.weight.data, theirs.weight.data = weight, weight
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-6, rtol=1e-4)
    assert [name for name, _ in ours.named_parameters()] == ["weight"]


@pytest.mark.parametrize("norm", [RMSNorm, LayerNorm])
def test_norms_of_bf16_are_those_of_fp32_rounded_once(norm):
    x = torch.randn(4, 64).bfloat16()
    assert torch.equal(norm(64, dtype=torch.bfloat16)(x), norm(64)(x.float()).bfloat16())


def test_rmsnorm_of_huge_half_precision_values_stays_finite_and_half():
    out = RMSNorm(4, dtype=torch.float16)(torch.full((1, 4), 60_000.0, dtype=torch.float16))
    assert out.dtype == torch.float16
    torch.testing.assert_close(out, torch.ones(1, 4, dtype=torch.float16))


def test_silu_gelu_and_softmax_equal_pytorchs():
    x = 3 * torch.randn(3, 7)
    torch.testing.assert_close(silu(x), F.silu(x), atol=1e-6, rtol=0)
    torch.testing.assert_close(gelu(x), F.gelu(x), atol=1e-6, rtol=0)
    for dim in (0, 1):
        torch.testing.assert_close(softmax(x, dim), F.softmax(x, dim), atol=1e-6, rtol=0)


def test_softmax_does_not_change_under_a_large_common_shift():
    x = torch.randint(-40, 40, (3, 7)) / 8  # eighths: the shifted numbers are exact in fp32
    torch.testing.assert_close(softmax(x + 100_000, 1), softmax(x, 1), atol=1e-6, rtol=0)
    torch.testing.assert_close(softmax(x - 100_000, 1), softmax(x, 1), atol=1e-6, rtol=0)
    assert torch.isfinite(softmax(torch.tensor([1e38, 0.0]), 0)).all()


def test_swiglu_and_its_ungated_ablation_by_their_formulas():
    x = torch.randn(2, 5, 8)
    gated, plain = SwiGLU(8, 16), SiLUFeedForward(8, 32)
    expected = F.linear(F.silu(F.linear(x, gated.w1.weight)) * F.linear(x, gated.w3.weight), gated.w2.weight)
    torch.testing.assert_close(gated(x), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(
        plain(x), F.linear(F.silu(F.linear(x, plain.w1.weight)), plain.w2.weight), atol=1e-5, rtol=0
    )


def test_gelu_feed_forward_with_biases_by_its_formula():
    layer, x = GELUFeedForward(8, 32, bias=True), torch.randn(2, 5, 8)
    layer.w1.bias.data, layer.w2.bias.data = torch.randn(32), torch.randn(8)
    hidden = F.gelu(F.linear(x, layer.w1.weight, layer.w1.bias))
    torch.testing.assert_close(layer(x), F.linear(hidden, layer.w2.weight, layer.w2.bias), atol=1e-5, rtol=1e-4)


def test_dropout_zeroes_at_its_rate_and_keeps_the_mean():
    torch.manual_seed(0)
    out = dropout(torch.ones(200, 500), 0.1)
    assert set(out.unique().tolist()) == {0.0, torch.tensor(1 / 0.9).item()}
    assert (out == 0).float().mean().item() == pytest.approx(0.1, abs=0.005)  # five standard deviations
    torch.manual_seed(0)
    assert torch.equal(out, dropout(torch.ones(200, 500), 0.1))
    assert not torch.equal(out, dropout(torch.ones(200, 500), 0.1))
    half = dropout(torch.ones(200, 500, dtype=torch.bfloat16), 0.001)
    assert half.dtype == torch.bfloat16 and 50 < int((half == 0).sum()) < 150


def test_dropout_of_rate_zero_draws_nothing():
    before, x = torch.get_rng_state(), torch.randn(3)
    torch.set_rng_state(before)
    assert dropout(x, 0.0) is x
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("d_model", "d_ff"), [(512, 1344), (1600, 4288), (16, 64)])
def test_default_d_ff_is_the_nearest_multiple_of_64(d_model, d_ff):
    assert default_d_ff(d_model) == d_ff


@pytest.mark.parametrize("plain", ["silu", "gelu"])
def test_ungated_feed_forwards_get_the_same_number_of_parameters(plain):
    assert default_d_ff(768, plain) == 4 * 768
    assert 3 * default_d_ff(768) == 2 * default_d_ff(768, plain)


def test_rope_turns_adjacent_pairs_by_hand():
    rope = RotaryPositionalEmbedding(100.0, 4, 10)
    x = torch.tensor([[1.0, 0.0, 1.0, 0.0]])
    out = rope(x, torch.tensor([3]))
    slow = 3 * 100.0 ** (-2 / 4)  # pair 1 turns by 3 / 10
    expected = torch.tensor([[math.cos(3), math.sin(3), math.cos(slow), math.sin(slow)]])
    torch.testing.assert_close(out, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("shape", [(6, 8), (2, 6, 8), (2, 3, 6, 8)])
def test_rope_is_a_product_of_complex_numbers(shape):
    x, positions = torch.randn(shape), torch.tensor([0, 3, 1, 199, 7, 7])
    angles = positions[:, None].double() * 10_000.0 ** (-torch.arange(4).double() / 4)
    expected = torch.view_as_complex(x.double().unflatten(-1, (-1, 2))) * torch.polar(torch.ones(()).double(), angles)
    rope = RotaryPositionalEmbedding(10_000.0, 8, 200)
    actual = rope(x, positions)
    torch.testing.assert_close(actual, torch.view_as_real(expected).flatten(-2).float(), atol=1e-6, rtol=1e-4)
    # The other layout is the same rotation with the features in another order.
    half = RotaryPositionalEmbedding(10_000.0, 8, 200, layout="half")
    order = torch.tensor([0, 2, 4, 6, 1, 3, 5, 7])
    torch.testing.assert_close(half(x[..., order], positions), actual[..., order], atol=1e-6, rtol=1e-5)


def test_rope_positions_may_differ_between_sequences():
    rope, x = RotaryPositionalEmbedding(10_000.0, 8, 20), torch.randn(2, 3, 5, 8)
    positions = torch.stack([torch.arange(5), torch.arange(10, 15)])
    actual = rope(x, positions[:, None])
    for row in range(2):
        torch.testing.assert_close(actual[row], rope(x[row], positions[row]), atol=0, rtol=0)


def test_scaled_rope_slows_long_waves_alone_by_hand():
    # 32 tokens: 4 turns and more stay, 1 turn and fewer slow down 8 times, 2 turns lie at a third between.
    frequencies = 2 * math.pi / 32 * torch.tensor([32.0, 4.0, 2.0, 1.0, 0.1])
    kept = torch.tensor([1.0, 1.0, 1 / 3 + 2 / 3 / 8, 1 / 8, 1 / 8])
    scaling = RopeScaling(factor=8.0, original_context=32)
    torch.testing.assert_close(scaling.apply(frequencies), frequencies * kept)


def test_rope_scores_depend_on_distance_alone():
    rope = RotaryPositionalEmbedding(10_000.0, 16, 200)
    q, k = torch.randn(16), torch.randn(16)

    def score(i, j):
        return rope(q[None], torch.tensor([i])) @ rope(k[None], torch.tensor([j])).T

    torch.testing.assert_close(score(7, 3), score(107, 103), atol=1e-4, rtol=1e-4)
    assert "cos" not in rope.state_dict()


def test_rope_refuses_odd_features():
    with pytest.raises(ValueError, match="even"):
        RotaryPositionalEmbedding(10_000.0, 5, 10)
    with pytest.raises(ValueError, match="interleaved, half, got 'neox'"):
        RotaryPositionalEmbedding(10_000.0, 4, 10, layout="neox")
