"""Attention against PyTorch's, head by head, and grouped, normed and fused against the plain way."""

import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention as reference

from cs336.model.attention import (
    KERNELS,
    CausalMultiHeadSelfAttention,
    causal_mask,
    scaled_dot_product_attention,
)
from cs336.model.layers import RotaryPositionalEmbedding


@pytest.mark.parametrize("shape", [(5,), (2, 5), (2, 3, 5)])
@pytest.mark.parametrize("masked", [True, False])
def test_attention_equals_pytorchs(shape, masked):
    *batch, queries = shape
    Q, K, V = torch.randn(*batch, queries, 8), torch.randn(*batch, 7, 8), torch.randn(*batch, 7, 6)
    mask = causal_mask(queries, 7) if masked else None
    actual = scaled_dot_product_attention(Q, K, V, mask)
    torch.testing.assert_close(actual, reference(Q, K, V, attn_mask=mask), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("with_rope", [True, False])
def test_multi_head_attention_equals_heads_computed_apart(with_rope):
    rope = RotaryPositionalEmbedding(10_000.0, 8, 16) if with_rope else None
    layer = CausalMultiHeadSelfAttention(32, 4, rope=rope)
    x = torch.randn(2, 9, 32)
    heads = []
    for head in range(4):
        rows = slice(8 * head, 8 * head + 8)
        q, k, v = (x @ p.weight[rows].T for p in (layer.q_proj, layer.k_proj, layer.v_proj))
        if rope is not None:
            q, k = rope(q, torch.arange(9)), rope(k, torch.arange(9))
        heads.append(reference(q, k, v, is_causal=True))
    expected = torch.cat(heads, dim=-1) @ layer.output_proj.weight.T
    torch.testing.assert_close(layer(x), expected, atol=1e-6, rtol=1e-4)


def test_attention_takes_a_mask_of_its_own_for_each_batch_row():
    Q, K, V = torch.randn(2, 3, 5, 8), torch.randn(2, 3, 7, 8), torch.randn(2, 3, 7, 6)
    mask = torch.rand(2, 1, 5, 7) > 0.4
    mask[..., 0] = True
    actual = scaled_dot_product_attention(Q, K, V, mask)
    torch.testing.assert_close(actual, reference(Q, K, V, attn_mask=mask), atol=1e-6, rtol=1e-4)


def test_one_query_and_two_keys_by_hand():
    Q, K = torch.tensor([[2.0, 0.0, 0.0, 0.0]]), torch.tensor([[1.0, 0, 0, 0], [0, 1.0, 0, 0]])
    V = torch.tensor([[1.0], [0.0]])
    # Scores 2 / sqrt(4) = 1 and 0: weights e / (e + 1) and 1 / (e + 1).
    torch.testing.assert_close(scaled_dot_product_attention(Q, K, V), torch.tensor([[0.7310586]]))
    torch.testing.assert_close(
        scaled_dot_product_attention(Q, K, V, torch.tensor([[False, True]])), torch.tensor([[0.0]])
    )


def test_attention_weights_in_half_precision_are_rounded_once():
    torch.manual_seed(0)
    Q = torch.randint(-2, 3, (64, 16)).bfloat16()  # scores are quarters: exact in bf16
    K, V = torch.randint(-1, 2, (512, 16)).bfloat16(), torch.eye(512).bfloat16()
    exact = torch.softmax(Q.double() @ K.double().T / 4, dim=-1)
    actual = scaled_dot_product_attention(Q, K, V)
    assert actual.dtype == torch.bfloat16
    assert (actual.double() / exact - 1).abs().max() <= 2**-8  # twice that with a softmax in bf16


@pytest.mark.parametrize("shape", [(6,), (2, 6), (2, 3, 6)])
def test_multi_head_attention_takes_any_leading_dimensions(shape):
    layer = CausalMultiHeadSelfAttention(16, 2, rope=RotaryPositionalEmbedding(10_000.0, 8, 16))
    x = torch.randn(*shape, 16)
    rows = x.reshape(-1, 6, 16)
    expected = torch.stack([layer(row) for row in rows]).reshape(x.shape)
    torch.testing.assert_close(layer(x), expected, atol=1e-6, rtol=1e-4)


def test_multi_head_attention_equals_pytorchs_module():
    ours, theirs = CausalMultiHeadSelfAttention(24, 3), nn.MultiheadAttention(24, 3, bias=False, batch_first=True)
    theirs.in_proj_weight.data = torch.cat([p.weight for p in (ours.q_proj, ours.k_proj, ours.v_proj)])
    theirs.out_proj.weight.data = ours.output_proj.weight
    x = torch.randn(2, 7, 24)
    expected, _ = theirs(x, x, x, attn_mask=~causal_mask(7, 7), need_weights=False)
    torch.testing.assert_close(ours(x), expected, atol=1e-6, rtol=1e-4)


def test_explicit_positions_replace_the_default_ones():
    layer = CausalMultiHeadSelfAttention(16, 2, rope=RotaryPositionalEmbedding(100.0, 8, 16))
    x = torch.randn(2, 5, 16)
    assert torch.equal(layer(x, token_positions=torch.arange(5)), layer(x))
    torch.testing.assert_close(layer(x, token_positions=torch.arange(9, 14)), layer(x), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(layer(x, token_positions=torch.tensor([0, 2, 4, 6, 8])), layer(x), atol=1e-3)
    both = torch.stack([torch.arange(5), torch.tensor([0, 2, 4, 6, 8])])
    rows = torch.stack([layer(x[i], token_positions=both[i]) for i in range(2)])
    torch.testing.assert_close(layer(x, token_positions=both), rows, atol=1e-6, rtol=1e-4)


def test_grouped_queries_equal_full_heads_with_keys_and_values_copied():
    grouped = CausalMultiHeadSelfAttention(16, 4, num_kv_heads=2, head_dim=6, qkv_bias=True, output_bias=True)
    full = CausalMultiHeadSelfAttention(16, 4, head_dim=6, qkv_bias=True, output_bias=True)
    weights = {name: torch.randn(value.shape) for name, value in grouped.state_dict().items()}
    grouped.load_state_dict(weights)
    for name in weights:
        if name.startswith(("k_proj", "v_proj")):  # heads 0 and 1 share the first, 2 and 3 the second
            first, second = weights[name].split(6)
            weights[name] = torch.cat([first, first, second, second])
    full.load_state_dict(weights)
    x = torch.randn(3, 5, 16)
    torch.testing.assert_close(grouped(x), full(x), atol=1e-4, rtol=1e-4)


def test_qk_norm_acts_on_each_head_before_the_rotation():
    rope = RotaryPositionalEmbedding(100.0, 8, 16)
    layer = CausalMultiHeadSelfAttention(16, 2, rope=rope, qk_norm=True, norm_eps=1e-3)
    layer.q_norm.weight.data, layer.k_norm.weight.data = torch.randn(8), torch.randn(8)
    x, heads = torch.randn(5, 16), []
    for head in range(2):
        rows = slice(8 * head, 8 * head + 8)
        q, k, v = (x @ p.weight[rows].T for p in (layer.q_proj, layer.k_proj, layer.v_proj))
        q = nn.functional.rms_norm(q, (8,), layer.q_norm.weight, 1e-3)
        k = nn.functional.rms_norm(k, (8,), layer.k_norm.weight, 1e-3)
        heads.append(reference(rope(q, torch.arange(5)), rope(k, torch.arange(5)), v, is_causal=True))
    expected = torch.cat(heads, dim=-1) @ layer.output_proj.weight.T
    torch.testing.assert_close(layer(x), expected, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("num_kv_heads", [4, 1])
@pytest.mark.parametrize("masked", [True, False])
def test_every_kernel_gives_the_same_output_and_gradients(num_kv_heads, masked):
    rope = RotaryPositionalEmbedding(100.0, 16, 16)
    layer = CausalMultiHeadSelfAttention(64, 4, num_kv_heads=num_kv_heads, rope=rope)
    x = torch.randn(2, 9, 64, requires_grad=True)
    mask = causal_mask(9, 9) & (torch.rand(2, 1, 9, 9) > 0.3) | torch.eye(9, dtype=torch.bool) if masked else None
    results = {}
    for kernel in KERNELS:
        layer.use_kernel(kernel)
        out = layer(x, mask=mask)
        results[kernel] = [out, *torch.autograd.grad(out.square().sum(), [x, *layer.parameters()])]
    for kernel in KERNELS:
        torch.testing.assert_close(results[kernel], results["reference"], atol=1e-4, rtol=1e-4)
    assert not torch.equal(results["fused"][0], results["reference"][0])  # it is another kernel
    assert torch.equal(results["flash"][0], results["fused"][0]) == masked  # what it does not do is PyTorch's


def test_heads_that_our_kernel_does_not_take_are_pytorchs():
    layer = CausalMultiHeadSelfAttention(48, 2, kernel="flash")  # 24 features a head
    x = torch.randn(9, 48)
    ours = layer(x)
    layer.use_kernel("fused")
    assert torch.equal(ours, layer(x))


def test_mistakes_are_errors():
    with pytest.raises(ValueError, match="must divide d_model"):
        CausalMultiHeadSelfAttention(16, 3)
    with pytest.raises(ValueError, match="must divide num_heads"):
        CausalMultiHeadSelfAttention(16, 4, num_kv_heads=3)
    with pytest.raises(ValueError, match="kernel is one of reference, fused, flash, got 'fast'"):
        CausalMultiHeadSelfAttention(16, 4, kernel="fast")
