"""The whole model against PyTorch's layers, its variants by their formulas, its promises as properties."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from cs336.files import UserError
from cs336.model import attention, transformer
from cs336.model.attention import KVCache
from cs336.model.layers import RotaryPositionalEmbedding
from cs336.model.transformer import ModelConfig, TransformerBlock, TransformerLM, load_model, save_model

F = nn.functional

TINY = ModelConfig(context_length=16, d_model=32, num_layers=2, num_heads=4, vocab_size=50)


SCALING_MODEL = replace(  # of CS336's assignment 3 (2025)
    TINY, norm_kind="layer", positions="learned", feed_forward="gelu", ffn_bias=True, dropout=0.1
)
VARIANTS = {
    "default": TINY,
    "post-norm": replace(TINY, norm="post"),
    "no norm": replace(TINY, norm="none"),
    "NoPE": replace(TINY, positions="none"),
    "ungated": replace(TINY, feed_forward="silu"),
    "tied": replace(TINY, tied=True),
    "2025 scaling model": SCALING_MODEL,
    "qwen3": replace(TINY, num_kv_heads=2, head_dim=6, qk_norm=True, rope_layout="half"),
    "all biases": replace(TINY, qkv_bias=True, output_bias=True, ffn_bias=True),
    "stretched rotation": replace(TINY, rope_factor=8.0, rope_original_context=32),
}


def randomized(model):
    """Gains and biases away from their start, so that leaving one out shows."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.3 * torch.randn(parameter.shape)
    return model.eval()


def rotated_attention(block, config, x):
    """The attention of a block with rotary positions: adjacent features as complex numbers, PyTorch's attention."""
    q, k, v = (
        (x @ projection.weight.T).unflatten(-1, (config.num_heads, -1)).transpose(1, 2)
        for projection in (block.attn.q_proj, block.attn.k_proj, block.attn.v_proj)
    )
    pairs = torch.arange(q.shape[-1] // 2, dtype=torch.float64)
    angles = torch.arange(x.shape[1])[:, None] * config.rope_theta ** (-2 * pairs / q.shape[-1])
    turn = torch.polar(torch.ones_like(angles), angles)

    def rotated(features):
        turned = torch.view_as_complex(features.double().unflatten(-1, (-1, 2))) * turn
        return torch.view_as_real(turned).flatten(-2).float()

    attended = F.scaled_dot_product_attention(rotated(q), rotated(k), v, is_causal=True)
    return attended.transpose(1, 2).flatten(-2) @ block.attn.output_proj.weight.T


def pytorch_attention(block, config, x):
    """The attention of a block without rotation, by PyTorch's own module."""
    theirs = nn.MultiheadAttention(config.d_model, config.num_heads, bias=False, batch_first=True)
    ours = block.attn
    theirs.in_proj_weight.data = torch.cat([p.weight for p in (ours.q_proj, ours.k_proj, ours.v_proj)])
    theirs.out_proj.weight.data = ours.output_proj.weight
    later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)  # True forbids, there
    return theirs(x, x, x, attn_mask=later, need_weights=False)[0]


@pytest.mark.parametrize("norm", ["pre", "post", "none"])
@pytest.mark.parametrize("positions", ["none", "rope"])
@pytest.mark.parametrize("seq", [1, 7, 16])
def test_a_block_is_its_formula_for_each_place_of_the_norm(norm, positions, seq):
    config = replace(TINY, norm=norm, positions=positions)
    rope = None
    if positions == "rope":
        rope = RotaryPositionalEmbedding(config.rope_theta, config.features_per_head, config.context_length)
    block = randomized(TransformerBlock(config, rope=rope))
    x = torch.randn(2, seq, 32)

    def ln(layer, x):
        return F.rms_norm(x, (32,), layer.weight, 1e-5)

    def attn(x):
        return (pytorch_attention if rope is None else rotated_attention)(block, config, x)

    def ffn(x):
        w1, w2, w3 = block.ffn.w1.weight, block.ffn.w2.weight, block.ffn.w3.weight
        return (F.silu(x @ w1.T) * (x @ w3.T)) @ w2.T

    if norm == "pre":
        z = x + attn(ln(block.ln1, x))
        expected = z + ffn(ln(block.ln2, z))
    elif norm == "post":
        z = ln(block.ln1, x + attn(x))
        expected = ln(block.ln2, z + ffn(z))
    else:
        z = x + attn(x)
        expected = z + ffn(z)
        assert not hasattr(block, "ln1")
    torch.testing.assert_close(block(x), expected, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("seq", [1, 7, 16])
def test_the_scaling_model_equals_one_of_pytorchs_layers(seq):
    model = randomized(TransformerLM(SCALING_MODEL))
    ids = torch.randint(0, 50, (2, seq))
    x = model.token_embeddings.weight[ids] + model.position_embeddings.weight[:seq]
    for block in model.layers:
        x = x + pytorch_attention(block, SCALING_MODEL, F.layer_norm(x, (32,), block.ln1.weight))
        hidden = F.gelu(F.linear(F.layer_norm(x, (32,), block.ln2.weight), block.ffn.w1.weight, block.ffn.w1.bias))
        x = x + F.linear(hidden, block.ffn.w2.weight, block.ffn.w2.bias)
    expected = F.linear(F.layer_norm(x, (32,), model.ln_final.weight), model.lm_head.weight)
    torch.testing.assert_close(model(ids), expected, atol=1e-4, rtol=1e-4)
    assert block.ffn.w1.weight.shape == (4 * 32, 32)


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_position_sees_the_future(variant):
    model = TransformerLM(VARIANTS[variant]).eval()
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


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kernel", ["reference", "fused", "flash"])
def test_cached_steps_equal_one_pass(variant, kernel):
    model = TransformerLM(VARIANTS[variant]).eval()
    ids = torch.randint(0, 50, (2, 10))
    expected = model(ids)
    model.use_attention_kernel(kernel)
    caches = [KVCache() for _ in model.layers]
    parts = [model(ids[:, :6], caches=caches)]
    parts += [model(ids[:, i : i + 2], token_positions=torch.arange(i, i + 2), caches=caches) for i in (6, 8)]
    torch.testing.assert_close(torch.cat(parts, dim=1), expected, atol=1e-5, rtol=1e-4)
    assert caches[0].keys.shape == (2, model.config.kv_heads, 10, model.config.features_per_head)


@pytest.mark.parametrize("variant", VARIANTS)
def test_fused_kernels_change_neither_logits_nor_gradients(variant):
    model = TransformerLM(VARIANTS[variant])
    ids = torch.randint(0, 50, (2, 10))
    results = []
    for fused in (False, True):
        torch.manual_seed(0)
        logits = model.fuse(fused)(ids)
        results.append([logits, *torch.autograd.grad(logits.square().mean(), list(model.parameters()))])
    torch.testing.assert_close(*results, atol=1e-5, rtol=1e-4)


def test_fused_kernels_take_the_place_of_norms_rotations_and_gates():
    model = TransformerLM(TINY).fuse()
    nodes, seen = [model(torch.arange(5)[None]).grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is not None and node not in seen:
            seen.add(node)
            nodes += [following for following, _ in node.next_functions]
    names = [node.name() for node in seen]
    counts = [names.count(f"{kernel}Backward") for kernel in ("RMSNormFunction", "Rotation", "SwiGLUFunction")]
    assert counts == [2 * TINY.num_layers + 1, 2 * TINY.num_layers, TINY.num_layers]


@pytest.mark.parametrize("variant", VARIANTS)
def test_any_leading_dimensions_and_any_shorter_length(variant):
    model = TransformerLM(VARIANTS[variant]).eval()
    ids = torch.randint(0, 50, (2, 3, 16))
    logits = model(ids)
    assert logits.shape == (2, 3, 16, 50)
    torch.testing.assert_close(model(ids[1, 2]), logits[1, 2], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(model(ids[0, :, :5]), logits[0, :, :5], atol=1e-5, rtol=1e-4)


def test_order_matters_with_positions_and_their_offset_only_with_learned_ones():
    ids, swapped = torch.tensor([[4, 9, 2]]), torch.tensor([[9, 4, 2]])
    for positions, knows_order, knows_offset in [
        ("rope", True, False),
        ("learned", True, True),
        ("none", False, False),
    ]:
        model = TransformerLM(replace(TINY, num_layers=1, positions=positions)).eval()
        last = model(ids)[0, -1]
        assert torch.allclose(last, model(swapped)[0, -1], atol=1e-4) is not knows_order, positions
        later = model(ids, token_positions=torch.arange(5, 8))[0, -1]
        assert torch.allclose(last, later, atol=1e-4) is not knows_offset, positions


def test_rope_layouts_differ_by_the_order_of_rows_alone():
    interleaved, half = (TransformerLM(replace(TINY, rope_layout=layout)) for layout in ("interleaved", "half"))
    weights = interleaved.state_dict()
    order = torch.cat([8 * head + torch.tensor([0, 2, 4, 6, 1, 3, 5, 7]) for head in range(4)])
    for name in weights:
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            weights[name] = weights[name][order]
    half.load_state_dict(weights)
    ids = torch.randint(0, 50, (1, 16))
    torch.testing.assert_close(half(ids), interleaved(ids), atol=1e-4, rtol=1e-4)


def test_hidden_states_are_what_the_head_reads():
    model, ids = TransformerLM(TINY), torch.randint(0, 50, (2, 5))
    assert torch.equal(model.lm_head(model.hidden_states(ids)), model(ids))


def test_dropout_acts_in_training_alone_and_follows_pytorchs_seed():
    model = TransformerLM(SCALING_MODEL)
    ids = torch.randint(0, 50, (2, 12))
    without = TransformerLM(replace(SCALING_MODEL, dropout=0.0))
    without.load_state_dict(model.state_dict())
    assert torch.equal(model.eval()(ids), without.train()(ids))
    model.train()
    torch.manual_seed(1)
    first = model(ids)
    assert not torch.allclose(first, model(ids))
    torch.manual_seed(1)
    assert torch.equal(first, model(ids))


def test_dropout_acts_on_the_embedding_sum_attention_weights_and_each_sublayer(monkeypatch):
    seen = []

    def record(x, rate):
        seen.append((tuple(x.shape), rate))
        return x

    monkeypatch.setattr(attention, "dropout", record)
    monkeypatch.setattr(transformer, "dropout", record)
    TransformerLM(replace(SCALING_MODEL, num_layers=1)).train()(torch.zeros(2, 5, dtype=torch.long))
    assert seen == [((2, 5, 32), 0.1), ((2, 4, 5, 5), 0.1), ((2, 5, 32), 0.1), ((2, 5, 32), 0.1)]


def test_a_tied_head_starts_with_logits_of_order_one():
    torch.manual_seed(0)
    config = replace(TINY, d_model=256, vocab_size=500, tied=True)
    model = TransformerLM(config)
    assert model.lm_head.weight is model.token_embeddings.weight
    assert model.token_embeddings.weight.std().item() == pytest.approx(1 / 16, rel=0.05)
    assert 0.5 < model(torch.arange(16)).std().item() < 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_heads": 5}, "must divide d_model, got 5 heads for 32; or set head_dim"),
        ({"num_heads": 0}, "num_heads is 1 or more"),
        ({"context_length": 0}, "context_length is 1 or more"),
        ({"d_ff": -1}, "d_ff is 0"),
        ({"num_kv_heads": 3}, "must divide num_heads, got 3 for 4"),
        ({"num_kv_heads": 8}, "must divide num_heads, got 8 for 4"),
        ({"head_dim": 5}, "even number, got 5"),
        ({"norm": "sandwich"}, "norm is one of pre, post, none, got 'sandwich'"),
        ({"norm_kind": "batch"}, "norm_kind is one of rms, layer"),
        ({"norm_eps": 0.0}, "norm_eps is above 0"),
        ({"norm": "none", "qk_norm": True}, "leave out norm_kind and qk_norm"),
        ({"norm": "none", "norm_kind": "layer"}, "leave out norm_kind and qk_norm"),
        ({"positions": "alibi"}, "positions is one of rope, learned, none"),
        ({"positions": "learned", "rope_layout": "half"}, "rotates nothing; leave out rope_layout"),
        ({"positions": "none", "rope_factor": 8.0}, "rotates nothing; leave out rope_layout"),
        ({"rope_layout": "quarter"}, "rope_layout is one of interleaved, half"),
        ({"rope_theta": 0.0}, 'positions="none" turns rotation off'),
        ({"rope_factor": 0.5}, "rope_factor and rope_original_context are 1 or more"),
        ({"rope_factor": 2.0, "rope_low_frequency": 4.0}, "between 0 and rope_high_frequency"),
        ({"feed_forward": "relu"}, "feed_forward is one of swiglu, silu, gelu"),
        ({"dropout": 1.0}, r"dropout lies in \[0, 1\)"),
    ],
)
def test_settings_that_make_no_sense_are_errors_with_a_remedy(change, message):
    with pytest.raises(ValueError, match=message):
        replace(TINY, **change)


def test_positions_need_no_even_heads_unless_they_are_rotated():
    for positions in ("learned", "none"):
        model = TransformerLM(replace(TINY, head_dim=5, positions=positions))
        assert model(torch.zeros(1, 4, dtype=torch.long)).shape == (1, 4, 50)


def test_equal_seeds_give_equal_models_and_unfilled_ones_draw_nothing():
    torch.manual_seed(0)
    first = TransformerLM(TINY).state_dict()
    torch.manual_seed(0)
    TransformerLM.without_weights(TINY)
    second = TransformerLM(TINY).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_too_many_tokens_are_an_error():
    with pytest.raises(ValueError, match="context of 16"):
        TransformerLM(TINY)(torch.zeros(1, 17, dtype=torch.long))


def test_a_model_without_vocabulary_is_an_error():
    with pytest.raises(ValueError, match="vocab_size"):
        TransformerLM(replace(TINY, vocab_size=0))


@pytest.mark.parametrize("variant", VARIANTS)
def test_weights_survive_saving_and_compiled_names_are_accepted(variant, tmp_path):
    model = randomized(TransformerLM(VARIANTS[variant]))
    save_model(model, tmp_path)
    ids = torch.randint(0, 50, (1, 5))
    loaded = load_model(tmp_path)
    assert torch.equal(loaded(ids), model(ids)) and not loaded.training
    assert (loaded.lm_head.weight is loaded.token_embeddings.weight) is (variant == "tied")
    other = TransformerLM(VARIANTS[variant]).eval()
    other.load_state_dict({f"_orig_mod.{name}": value for name, value in model.state_dict().items()})
    assert torch.equal(other(ids), model(ids))


def test_missing_weights_are_named(tmp_path):
    save_model(TransformerLM(TINY), tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"model\.safetensors: not here"):
        load_model(tmp_path)


def test_weights_appear_whole_and_damaged_ones_are_one_line(tmp_path, monkeypatch):
    def interrupted(model, path):
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(transformer, "save_safetensors", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_model(TransformerLM(TINY), tmp_path)
    assert not (tmp_path / "model.safetensors").exists()
    monkeypatch.undo()
    save_model(TransformerLM(TINY), tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(UserError, match=r"model\.safetensors: not a readable safetensors file"):
        load_model(tmp_path)
