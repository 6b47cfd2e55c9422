"""Attention and the whole model against PyTorch's attention, and its promises as properties."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention as reference

from cs336.files import UserError
from cs336.model.attention import (
    CausalMultiHeadSelfAttention,
    KVCache,
    causal_mask,
    scaled_dot_product_attention,
)
from cs336.model.layers import RotaryPositionalEmbedding
from cs336.model.transformer import ModelConfig, TransformerLM, load_model, save_model

TINY = ModelConfig(context_length=16, d_model=32, num_layers=2, num_heads=4, vocab_size=50)


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


@pytest.mark.parametrize(
    "change", [{}, {"norm": "post"}, {"norm": "none"}, {"positions": "none"}, {"feed_forward": "silu"}, {"tied": True}]
)
def test_no_position_sees_the_future(change):
    model = TransformerLM(replace(TINY, **change))
    ids = torch.randint(0, 50, (2, 12))
    changed = ids.clone()
    changed[:, 8:] = torch.randint(0, 50, (2, 4))
    torch.testing.assert_close(model(ids)[:, :8], model(changed)[:, :8], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(model(ids)[:, 8:], model(changed)[:, 8:])


def test_parameters_have_the_specified_names_and_number():
    config = replace(TINY, d_ff=64)
    model = TransformerLM(config)
    names = set(model.state_dict())
    block = {f"attn.{p}_proj.weight" for p in ("q", "k", "v", "output")}
    block |= {"ln1.weight", "ln2.weight", "ffn.w1.weight", "ffn.w2.weight", "ffn.w3.weight"}
    assert names == {"token_embeddings.weight", "ln_final.weight", "lm_head.weight"} | {
        f"layers.{i}.{name}" for i in range(2) for name in block
    }
    d, f, v, layers = 32, 64, 50, 2
    assert sum(p.numel() for p in model.parameters()) == 2 * v * d + layers * (4 * d * d + 3 * d * f + 2 * d) + d


def test_cached_steps_equal_one_pass():
    model = TransformerLM(TINY).eval()
    ids = torch.randint(0, 50, (2, 10))
    caches = [KVCache() for _ in model.layers]
    first = model(ids[:, :6], caches=caches)
    rest = [model(ids[:, i : i + 1], token_positions=torch.tensor([i]), caches=caches) for i in range(6, 10)]
    torch.testing.assert_close(torch.cat([first, *rest], dim=1), model(ids), atol=1e-5, rtol=1e-4)


def test_too_many_tokens_are_an_error():
    with pytest.raises(ValueError, match="context of 16"):
        TransformerLM(TINY)(torch.zeros(1, 17, dtype=torch.long))


def test_a_model_without_vocabulary_is_an_error():
    with pytest.raises(ValueError, match="vocab_size"):
        TransformerLM(replace(TINY, vocab_size=0))


def test_weights_survive_saving_and_compiled_names_are_accepted(tmp_path):
    model = TransformerLM(TINY).eval()
    save_model(model, tmp_path)
    ids = torch.randint(0, 50, (1, 5))
    assert torch.equal(load_model(tmp_path)(ids), model(ids))
    other = TransformerLM(TINY).eval()
    other.load_state_dict({f"_orig_mod.{name}": value for name, value in model.state_dict().items()})
    assert torch.equal(other(ids), model(ids))


def test_missing_weights_are_named(tmp_path):
    save_model(TransformerLM(TINY), tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"model\.safetensors: not here"):
        load_model(tmp_path)
