"""The recipe against the same model written in PyTorch's own modules, and against the specification's figures."""

import itertools
import math

import pytest
import torch
from torch import nn

from cs336.model.accounting import count_parameters
from cs336.model.transformer import TransformerLM
from cs336.scaling.cell import Cell
from cs336.scaling.recipe import config_hash, learning_rates, model_config, real_flops, tail_steps, train_config
from cs336.train.loss import cross_entropy
from tests.scaling.conftest import small_cell


class PlainModel(nn.Module):
    """The model of 2025 in `torch.nn`, read from its description."""

    def __init__(self, cell):
        super().__init__()
        d = cell.d_model
        self.tokens = nn.Embedding(cell.vocab_size, d)
        self.positions = nn.Embedding(cell.context_length, d)
        self.attentions = nn.ModuleList(
            nn.MultiheadAttention(d, cell.num_heads, dropout=0.1, bias=False, batch_first=True)
            for _ in range(cell.num_layers)
        )
        self.feed_forwards = nn.ModuleList(
            nn.Sequential(nn.Linear(d, 4 * d), nn.GELU(), nn.Linear(4 * d, d)) for _ in range(cell.num_layers)
        )
        self.first_norms = nn.ModuleList(nn.LayerNorm(d, bias=False) for _ in range(cell.num_layers))
        self.second_norms = nn.ModuleList(nn.LayerNorm(d, bias=False) for _ in range(cell.num_layers))
        self.last_norm = nn.LayerNorm(d, bias=False)
        self.head = nn.Linear(d, cell.vocab_size, bias=False)
        self.drop = nn.Dropout(0.1)

    def forward(self, ids):
        length = ids.shape[-1]
        mask = nn.Transformer.generate_square_subsequent_mask(length)
        x = self.drop(self.tokens(ids) + self.positions(torch.arange(length)))
        parts = zip(self.attentions, self.feed_forwards, self.first_norms, self.second_norms, strict=True)
        for attention, feed_forward, first, second in parts:
            normed = first(x)
            x = x + self.drop(attention(normed, normed, normed, attn_mask=mask, need_weights=False)[0])
            x = x + self.drop(feed_forward(second(x)))
        return self.head(self.last_norm(x))


def with_weights_of(plain, model):
    """`plain` with `model`'s weights, and for each of its parameters what it is in `model`."""
    pairs = {"tokens.weight": model.token_embeddings.weight, "positions.weight": model.position_embeddings.weight}
    pairs |= {"last_norm.weight": model.ln_final.weight, "head.weight": model.lm_head.weight}
    for number, layer in enumerate(model.layers):
        attention = layer.attn
        joined = [attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight]
        pairs[f"attentions.{number}.in_proj_weight"] = joined
        pairs[f"attentions.{number}.out_proj.weight"] = attention.output_proj.weight
        pairs[f"first_norms.{number}.weight"] = layer.ln1.weight
        pairs[f"second_norms.{number}.weight"] = layer.ln2.weight
        for place, linear in ((0, layer.ffn.w1), (2, layer.ffn.w2)):
            pairs[f"feed_forwards.{number}.{place}.weight"] = linear.weight
            pairs[f"feed_forwards.{number}.{place}.bias"] = linear.bias
    assert pairs.keys() == dict(plain.named_parameters()).keys()
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            ours = pairs[name]
            parameter.copy_(torch.cat(ours) if isinstance(ours, list) else ours)
    return pairs


def made_models(cell):
    torch.manual_seed(0)
    model = TransformerLM(model_config(cell))
    with torch.no_grad():  # ones and zeros would hide a norm or bias that is not there
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    plain = PlainModel(cell)
    return model, plain, with_weights_of(plain, model)


@pytest.mark.parametrize("fused", [False, True])
def test_values_and_gradients_are_those_of_plain_pytorch(fused):
    cell = small_cell()
    model, plain, pairs = made_models(cell)
    model.use_attention_kernel("fused" if fused else "reference").fuse(fused).eval()
    plain.eval()
    ids = torch.randint(cell.vocab_size, (3, cell.context_length))
    targets = torch.randint(cell.vocab_size, (3, cell.context_length))
    ours, theirs = model(ids), plain(ids)
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-5)
    cross_entropy(ours, targets).backward()
    nn.functional.cross_entropy(theirs.flatten(0, 1), targets.flatten()).backward()
    for name, parameter in plain.named_parameters():
        mine = pairs[name]
        gradient = torch.cat([each.grad for each in mine]) if isinstance(mine, list) else mine.grad
        torch.testing.assert_close(
            gradient, parameter.grad, atol=1e-6, rtol=1e-4, msg=lambda text, n=name: f"{n} {text}"
        )


@pytest.mark.parametrize("fused", [False, True])
def test_dropout_acts_where_the_description_says_in_training_alone(fused):
    """The spread of outputs over draws is that of the plain model; without training there is none."""
    cell = small_cell()
    model, plain, _ = made_models(cell)
    model.fuse(fused, dropout=fused)
    ids = torch.randint(cell.vocab_size, (1, cell.context_length))
    spreads = []
    for each in (model, plain):
        torch.manual_seed(1)
        each.train()
        with torch.no_grad():
            draws = torch.stack([each(ids) for _ in range(300)])
        spreads.append(draws.std(dim=0).mean())
        each.eval()
        with torch.no_grad():
            assert torch.equal(each(ids), each(ids))
    assert spreads[0] == pytest.approx(spreads[1].item(), rel=0.04)


def test_parameters_are_the_nominal_ones_and_what_they_leave_out():
    cell = Cell(d_model=512, num_layers=8, num_heads=8, batch_size=128, learning_rate=1e-3, compute_budget=1e16)
    counted = count_parameters(model_config(cell))
    d, layers = 512, 8
    assert cell.parameters == 25_165_824
    assert counted.without_embeddings == cell.parameters + layers * 5 * d + (2 * layers + 1) * d  # biases; norms
    assert counted.head == 32_000 * d and counted.embeddings == (32_000 + 512) * d


@pytest.mark.parametrize(("shape", "ratio"), [((64, 2, 2), 23), ((512, 8, 8), 1.8), ((1_024, 24, 16), 1.2)])
def test_real_flops_are_so_many_times_the_nominal_ones(shape, ratio):
    """The specification's three figures, and its formula 1 + V/(12 L d) + T/(6 d)."""
    d, layers, heads = shape
    cell = Cell(d_model=d, num_layers=layers, num_heads=heads, batch_size=128, learning_rate=1e-3, compute_budget=1e18)
    measured = real_flops(cell) / (6 * cell.parameters * cell.tokens)
    assert measured == pytest.approx(1 + 32_000 / (12 * layers * d) + 512 / (6 * d), rel=1e-9)
    assert measured == pytest.approx(ratio, rel=0.03)


def test_steps_are_those_of_the_service():
    """84 steps of its sample run; none above 25.4 M parameters at 1e13, which costs a forward pass."""
    cell = Cell(d_model=1_024, num_layers=24, num_heads=16, batch_size=128, learning_rate=1e-3, compute_budget=1e16)
    assert cell.steps == 84 and cell.tokens == 84 * 65_536
    below = Cell(d_model=512, num_layers=9, num_heads=8, batch_size=128, learning_rate=1e-3, compute_budget=1e13)
    assert below.parameters > 25.4e6 and below.steps == below.tokens == tail_steps(below) == 0
    assert 0 < real_flops(below) < 1e14 and learning_rates(below) == []


def test_the_rate_falls_from_the_given_one_to_a_tenth_over_the_runs_steps():
    rates = learning_rates(small_cell(steps=101))
    assert len(rates) == 101
    assert rates[0] == 1e-3 and rates[50] == pytest.approx(5.5e-4) and rates[-1] == pytest.approx(1e-4)
    assert all(later < earlier for earlier, later in itertools.pairwise(rates))
    assert learning_rates(small_cell(steps=1)) == [1e-3]


def test_the_settings_are_the_recipes():
    config = train_config(small_cell(steps=7))
    assert (config.weight_decay, config.max_grad_norm, config.warmup_steps) == (0.01, 1.0, 0)
    assert config.num_steps == 7 and config.decay_all
    assert (tail_steps(small_cell(steps=7)), tail_steps(small_cell(steps=200))) == (1, 10)


@pytest.mark.parametrize(
    "changes",
    [{"seed": 1}, {"learning_rate": 2e-3}, {"batch_size": 8}, {"num_heads": 4}, {"vocab_size": 65}, {"steps": 13}],
)
def test_what_changes_a_loss_changes_the_hash(changes):
    assert config_hash(small_cell(), "a") == config_hash(small_cell(), "a") != config_hash(small_cell(), "b")
    assert config_hash(small_cell(**changes), "a") != config_hash(small_cell(), "a")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"num_heads": 3}, "num_heads must divide"),
        ({"compute_budget": 0.0}, "above 0"),
        ({"learning_rate": math.nan}, "above 0"),
        ({"precision": "fp8"}, "precision is"),
        ({"num_layers": 0}, "num_layers is 1 or more"),
    ],
)
def test_a_cell_that_cannot_be_is_refused(changes, named):
    with pytest.raises(ValueError, match=named):
        small_cell(**changes)
