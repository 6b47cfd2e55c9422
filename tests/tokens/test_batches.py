"""Batches: shifted by one, uniform, and the same for the same seed and step."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cs336.tokens.batches import Batches, get_batch
from cs336.tokens.shards import TokenArray

TOKENS = np.arange(1_000, 1_100, dtype=np.uint16)


def test_targets_are_the_tokens_that_follow():
    inputs, targets = get_batch(TOKENS, 32, 7, "cpu")
    assert inputs.shape == targets.shape == (32, 7)
    assert inputs.dtype == targets.dtype == torch.int64
    assert torch.equal(targets, inputs + 1)
    assert torch.equal(inputs, inputs[:, :1] + torch.arange(7))


def test_starts_are_uniform_over_all_that_leave_room_for_a_target():
    generator = torch.Generator().manual_seed(0)
    inputs, _ = get_batch(TOKENS, 93_000, 7, "cpu", generator=generator)
    counts = torch.bincount(inputs[:, 0] - 1_000, minlength=100)
    assert counts[93:].sum() == 0  # 0 ... n - m - 1 = 92
    deviation = (1_000 * (1 - 1 / 93)) ** 0.5
    assert ((counts[:93] - 1_000).abs() < 5 * deviation).all()


def test_ids_above_32767_stay_positive():
    inputs, _ = get_batch(np.full(10, 65_535, np.uint16), 2, 3, "cpu")
    assert (inputs == 65_535).all()


def test_one_token_more_than_the_context_is_enough_and_less_is_an_error():
    inputs, targets = get_batch(TOKENS[:8], 4, 7, "cpu")
    assert (inputs[:, 0] == 1_000).all() and (targets[:, -1] == 1_007).all()
    with pytest.raises(ValueError, match="7 tokens are too few for a context of 7"):
        get_batch(TOKENS[:7], 4, 7, "cpu")


@pytest.mark.parametrize("device", ["no-such-device", "cuda:99"])
def test_a_bad_device_raises(device: str):
    with pytest.raises((RuntimeError, AssertionError)):
        get_batch(TOKENS, 4, 7, device)


def batches(seed: int, tokens=TOKENS) -> Batches:
    return Batches(tokens, batch_size=8, context_length=5, seed=seed, device="cpu")


def test_a_batch_depends_on_seed_and_step_alone():
    one, other = batches(seed=3), batches(seed=3)
    in_order = [one.at(step)[0] for step in range(6)]
    torch.manual_seed(123)  # neither the global generator nor the order of the calls matters
    for step in (5, 0, 3):
        assert torch.equal(other.at(step)[0], in_order[step])
    assert len({tuple(inputs[:, 0].tolist()) for inputs in in_order}) == 6
    assert not torch.equal(batches(seed=4).at(0)[0], in_order[0])
    assert not torch.equal(batches(seed=4).at(2)[0], in_order[3])  # seed + step is not all that counts


def test_shards_give_the_batches_of_one_array():
    shards = TokenArray([TOKENS[:3], TOKENS[3:40], TOKENS[40:]])
    for step in range(20):
        for actual, expected in zip(batches(1, shards).at(step), batches(1).at(step), strict=True):
            assert torch.equal(actual, expected)
