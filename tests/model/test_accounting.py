"""Closed forms against the handout's formulas and figures, built models, and FLOPs that PyTorch counts."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from cs336.model.accounting import (
    ADAMW_FLOPS_PER_PARAMETER,
    GPT2_SHAPES,
    activations,
    count_parameters,
    flops_by_part,
    forward_flops,
    gpt2_table,
    kv_cache_bytes,
    matrix_products,
    optimizer_flops,
    training_days,
    training_flops,
    training_memory,
)
from cs336.model.attention import KVCache
from cs336.model.transformer import ModelConfig, TransformerLM

XL = GPT2_SHAPES["xl"]
TINY = ModelConfig(context_length=16, d_model=32, num_layers=2, num_heads=4, vocab_size=50)
VARIANTS = {
    "default": TINY,
    "post-norm": replace(TINY, norm="post"),
    "no norm": replace(TINY, norm="none"),
    "ungated": replace(TINY, feed_forward="silu"),
    "tied": replace(TINY, tied=True),
    "grouped, wide heads, normed": replace(TINY, num_kv_heads=2, head_dim=12, qk_norm=True),
    "biases": replace(TINY, num_kv_heads=1, qkv_bias=True, output_bias=True, ffn_bias=True),
    "2025 scaling model": replace(
        TINY, norm_kind="layer", positions="learned", feed_forward="gelu", ffn_bias=True, dropout=0.1
    ),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_parameters_are_those_of_a_built_model(variant):
    counted = count_parameters(VARIANTS[variant])
    model = TransformerLM(VARIANTS[variant], device="meta")
    by_part = dict.fromkeys(("embeddings", "attention", "feed_forward", "norms", "head"), 0)
    for name, parameter in model.named_parameters():
        part = next(part for key, part in _PARTS.items() if key in name)
        by_part[part] += parameter.numel()
    assert {part: getattr(counted, part) for part in by_part} == by_part
    assert counted.total == sum(parameter.numel() for parameter in model.parameters())
    assert counted.without_embeddings == counted.total - counted.embeddings - counted.head


_PARTS = {"embeddings": "embeddings", "attn": "attention", "ffn": "feed_forward", "ln": "norms", "head": "head"}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("num_tokens", [16, 5])
def test_flops_are_those_that_pytorch_counts(variant, num_tokens):
    model = TransformerLM(VARIANTS[variant]).eval()
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(3, num_tokens, dtype=torch.long))
    assert counter.get_total_flops() == 3 * forward_flops(VARIANTS[variant], num_tokens)


def test_a_backward_pass_costs_two_forward_passes():
    model = TransformerLM(TINY)
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(3, 16, dtype=torch.long)).sum().backward()
    assert counter.get_total_flops() == training_flops(TINY, 3 * 16) == 9 * forward_flops(TINY)


@pytest.mark.parametrize("shape", GPT2_SHAPES)
@pytest.mark.parametrize("num_tokens", [1_024, 16_384])
def test_closed_forms_are_the_specifications(shape, num_tokens):
    config = replace(GPT2_SHAPES[shape], context_length=num_tokens)
    t, d, d_ff, layers, heads, v = num_tokens, config.d_model, config.d_ff, config.num_layers, config.num_heads, 50_257
    assert d_ff == 4 * d
    assert count_parameters(config).total == 2 * v * d + layers * (4 * d * d + 3 * d * d_ff + 2 * d) + d
    assert forward_flops(config) == layers * (8 * t * d**2 + 4 * t**2 * d + 6 * t * d * d_ff) + 2 * t * d * v
    assert activations(config) == layers * (16 * t * d + 2 * heads * t**2) + t * d + 2 * t * v


def test_the_figures_of_gpt2_xl():
    assert count_parameters(XL).total == 2_127_057_600
    assert 4 * count_parameters(XL).total == pytest.approx(8.51e9, rel=1e-3)
    assert forward_flops(XL) == pytest.approx(4.51e12, rel=1e-3)
    shares = {part: flops / forward_flops(XL) for part, flops in flops_by_part(XL).items()}
    assert {part: round(100 * share) for part, share in shares.items()} == {
        "projections": 22,
        "scores": 7,
        "feed-forward": 67,
        "head": 4,
    }
    long = forward_flops(XL, 16_384)
    assert long == pytest.approx(149.5e12, rel=1e-3) and round(long / forward_flops(XL)) == 33
    assert round(100 * flops_by_part(XL, 16_384)["scores"] / long) == 55
    assert [product.name for product in matrix_products(XL)][5:8] == ["attention output", "W1", "W3"]


def test_training_gpt2_xl_takes_34_gb_and_15_5_more_a_sequence():
    memory = training_memory(XL)
    assert memory.activations == pytest.approx(15.5e9, rel=2e-3)
    assert memory.fixed == pytest.approx(34.0e9, rel=2e-3) and memory.fixed == 16 * count_parameters(XL).total
    assert memory.largest_batch(80 * 10**9) == 2
    assert memory.total(2) <= 80 * 10**9 < memory.total(3)
    assert memory.largest_batch(30 * 10**9) == 0
    assert training_days(XL) == pytest.approx(6_600, rel=0.01)


def test_an_optimizer_step_costs_little_beside_the_passes():
    assert optimizer_flops(XL) == ADAMW_FLOPS_PER_PARAMETER * count_parameters(XL).total
    assert optimizer_flops(XL) < 0.01 * training_flops(XL, XL.context_length)


def test_adamws_operations_are_counted_by_hand():
    operations = []

    class Number:
        """Counts what is done with it."""

        def _one(self, *_):
            operations.append(1)
            return Number()

        __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = __pow__ = _one

    theta, gradient, m, v = (Number() for _ in range(4))
    beta1, beta2, one_less_beta1, one_less_beta2, alpha_t, alpha_times_decay, eps = (
        0.9,
        0.99,
        0.1,
        0.01,
        1e-3,
        1e-4,
        1e-8,
    )
    m = beta1 * m + one_less_beta1 * gradient
    v = beta2 * v + one_less_beta2 * gradient**2
    theta = theta - alpha_t * m / (v**0.5 + eps)
    theta = theta - alpha_times_decay * theta
    assert len(operations) == ADAMW_FLOPS_PER_PARAMETER


def test_the_table_has_the_handouts_shapes():
    rows = {row["model"]: row for row in gpt2_table()}
    assert list(rows) == ["small", "medium", "large", "xl"]
    assert rows["xl"]["num_parameters"] == 2_127_057_600
    for row in rows.values():
        assert sum(row[f"{part} share"] for part in flops_by_part(XL)) == pytest.approx(1)
    # The larger the model, the less the head counts and the more the feed-forward.
    heads = [row["head share"] for row in rows.values()]
    assert heads == sorted(heads, reverse=True) and heads[0] > 0.2
    long = {row["model"]: row for row in gpt2_table(16_384)}
    assert long["xl"]["forward_flops"] == forward_flops(XL, 16_384)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_cache_takes_what_it_is_said_to_take(variant):
    model = TransformerLM(VARIANTS[variant]).eval()
    caches = [KVCache() for _ in model.layers]
    model(torch.zeros(1, 7, dtype=torch.long), caches=caches)
    held = sum(tensor.nbytes for cache in caches for tensor in (cache.keys, cache.values))
    assert kv_cache_bytes(VARIANTS[variant], 7) == held
    assert kv_cache_bytes(VARIANTS[variant], 7, bytes_per_number=2) == held / 2


def test_tokens_that_fill_no_whole_context_are_an_error():
    with pytest.raises(ValueError, match="round to a multiple"):
        training_flops(TINY, 17)
