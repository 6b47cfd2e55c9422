"""Which weights travel together: found from lists of modules, shared weights and dtypes, without any ranks."""

import torch
from torch import nn

from cs336.parallel.fsdp_units import unit_plans
from tests.parallel.models import Feed, made


def found(module):
    names = {parameter: name for name, parameter in module.named_parameters()}
    return [(plan.name, plan.kinds, [names[parameter] for parameter in plan.weights]) for plan in unit_plans(module)]


def test_a_transformers_blocks_and_what_stands_outside():
    matrices = [f"attn.{name}_proj.weight" for name in ("q", "k", "v", "output")]
    matrices += [f"ffn.w{number}.weight" for number in (1, 2, 3)]
    blocks = [(f"layers.{n}", ["block"], [f"layers.{n}.{name}" for name in matrices]) for n in range(2)]
    ends = [
        ("token_embeddings", ["Embedding"], ["token_embeddings.weight"]),
        ("lm_head", ["Linear"], ["lm_head.weight"]),
    ]
    assert found(made("transformer")) == [ends[0], *blocks, ends[1]]
    tied = ("token_embeddings", ["Embedding", "Linear"], ["token_embeddings.weight"])
    assert found(made("transformer, tied")) == [tied, *blocks]


def test_a_weight_of_two_blocks_is_a_unit_by_itself():
    units = {name: weights for name, _, weights in found(made("blocks"))}
    assert units["layers.0.down"] == ["layers.0.down.weight"]  # of layers.2, too
    assert units["layers.2"] == [f"layers.2.{name}.weight" for name in ("first", "up", "frozen", "unused")]


def test_lists_within_lists_and_lists_of_layers():
    module = nn.ModuleDict({"towers": nn.ModuleList([nn.Sequential(Feed(), nn.Linear(4, 4)), nn.ModuleList([Feed()])])})
    assert found(module) == [
        ("towers.0.0", ["block"], ["towers.0.0.up.weight", "towers.0.0.down.weight"]),
        ("towers.0.1", ["Linear"], ["towers.0.1.weight"]),
        ("towers.1.0", ["block"], ["towers.1.0.up.weight", "towers.1.0.down.weight"]),
    ]
    # The list within a block is a part of it.
    block = Feed()
    block.experts = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
    assert [len(weights) for _, _, weights in found(nn.ModuleList([block]))] == [4]


def test_dtypes_of_a_block_travel_apart_and_empty_weights_not_at_all():
    module = nn.ModuleList([Feed(torch.bfloat16), Feed()])
    assert [weights for _, _, weights in found(module)] == [
        ["0.up.weight"],
        ["0.down.weight"],
        ["1.up.weight", "1.down.weight"],
    ]
    with_empty = nn.ModuleList([Feed()])
    with_empty[0].up = nn.Linear(4, 4)
    with_empty[0].up.weight = nn.Parameter(torch.empty(4, 0))
    assert [weights for _, _, weights in found(with_empty)] == [["0.down.weight"]]
