"""Layers against PyTorch's own, and against values worked out by hand."""

import math

import pytest
import torch
from torch import nn

from cs336.model.layers import (
    Embedding,
    Linear,
    RMSNorm,
    RotaryPositionalEmbedding,
    SiLUFeedForward,
    SwiGLU,
    default_d_ff,
    silu,
    softmax,
)


def test_linear_is_a_product_without_bias():
    layer = Linear(5, 3)
    x = torch.randn(2, 4, 5)
    torch.testing.assert_close(layer(x), torch.einsum("oi,bsi->bso", layer.weight, x))
    assert [name for name, _ in layer.named_parameters()] == ["weight"]
    assert layer.weight.shape == (3, 5)


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


def test_rmsnorm_of_huge_half_precision_values_stays_finite_and_half():
    out = RMSNorm(4, dtype=torch.float16)(torch.full((1, 4), 60_000.0, dtype=torch.float16))
    assert out.dtype == torch.float16
    torch.testing.assert_close(out, torch.ones(1, 4, dtype=torch.float16))


def test_silu_and_softmax_equal_pytorchs():
    x = torch.randn(3, 7)
    torch.testing.assert_close(silu(x), nn.functional.silu(x), atol=1e-6, rtol=1e-4)
    for dim in (0, 1):
        torch.testing.assert_close(softmax(x, dim), nn.functional.softmax(x, dim), atol=1e-6, rtol=1e-4)
        torch.testing.assert_close(softmax(x + 1e4, dim), softmax(x, dim), atol=1e-3, rtol=1e-3)
    assert torch.isfinite(softmax(torch.tensor([1e38, 0.0]), 0)).all()


def test_swiglu_and_its_ungated_ablation_by_their_formulas():
    x = torch.randn(2, 5, 8)
    gated, plain = SwiGLU(8, 16), SiLUFeedForward(8, 32)
    F = nn.functional
    expected = F.linear(F.silu(F.linear(x, gated.w1.weight)) * F.linear(x, gated.w3.weight), gated.w2.weight)
    torch.testing.assert_close(gated(x), expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(
        plain(x), F.linear(F.silu(F.linear(x, plain.w1.weight)), plain.w2.weight), atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize(("d_model", "d_ff"), [(512, 1344), (1600, 4288), (16, 64)])
def test_default_d_ff_is_the_nearest_multiple_of_64(d_model, d_ff):
    assert default_d_ff(d_model) == d_ff


def test_rope_turns_adjacent_pairs_by_hand():
    rope = RotaryPositionalEmbedding(100.0, 4, 10)
    x = torch.tensor([[1.0, 0.0, 1.0, 0.0]])
    out = rope(x, torch.tensor([3]))
    slow = 3 * 100.0 ** (-2 / 4)  # pair 1 turns by 3 / 10
    expected = torch.tensor([[math.cos(3), math.sin(3), math.cos(slow), math.sin(slow)]])
    torch.testing.assert_close(out, expected, atol=1e-6, rtol=1e-5)


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
