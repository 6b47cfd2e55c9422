"""Batches: shifted by one, uniform, and the same for the same seed and step."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cs336.tokens.batches import Batches, documents_at, every_token_once, get_batch
from cs336.tokens.index import IndexedDocument, index_line
from cs336.tokens.shards import TOKEN_DTYPE, TokenArray

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


def batches(seed: int, tokens=TOKENS, **options) -> Batches:
    return Batches(tokens, batch_size=8, context_length=5, seed=seed, device="cpu", **options)


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


@pytest.mark.parametrize("options", [{"keep_on_device": True}, {"prefetch": True}])
@pytest.mark.parametrize("tokens", [TOKENS, TokenArray([TOKENS[:50], TOKENS[50:]]), np.full(10, 65_535, np.uint16)])
def test_where_tokens_are_kept_changes_no_batch(options, tokens):
    plain = batches(2, tokens)
    for step, (inputs, targets) in enumerate(batches(2, tokens, **options).in_order(range(3, 9)), 3):
        assert inputs.dtype == targets.dtype == torch.int64
        assert torch.equal(inputs, plain.at(step)[0]) and torch.equal(targets, plain.at(step)[1])
    assert step == 8


def test_a_batch_that_cannot_be_read_is_an_error_at_its_step():
    class Broken(TokenArray):
        def __getitem__(self, place):
            raise OSError("unreadable")

    stream = batches(2, Broken([TOKENS]), prefetch=True).in_order(range(5))
    with pytest.raises(OSError, match="unreadable"):
        next(stream)


@pytest.mark.parametrize("num_tokens", [2, 3, 5, 6, 7, 21, 22, 23, 40, 41, 42])  # shorter than a window, full, more
def test_a_full_pass_predicts_each_token_once(num_tokens):
    tokens = np.arange(100, 100 + num_tokens)
    predicted = []
    shapes = set()
    for inputs, targets, counted in every_token_once(tokens, batch_size=4, context_length=5, device="cpu"):
        assert torch.equal(targets, inputs + 1)
        predicted += targets[counted].tolist()
        shapes.add(tuple(inputs.shape))
    assert predicted == tokens[1:].tolist()
    assert shapes == {(4, min(5, num_tokens - 1))}  # one shape, so that a compiled model is compiled once


def test_a_part_of_a_pass_is_always_the_same_and_spread_over_the_text():
    tokens = np.arange(1_001)
    parts = [
        [
            batch.targets[batch.counted].tolist()
            for batch in every_token_once(tokens, batch_size=4, context_length=5, device="cpu", max_batches=10)
        ]
        for _ in range(2)
    ]
    assert parts[0] == parts[1]
    counted = [token for batch in parts[0] for token in batch]
    assert len(counted) == len(set(counted)) == 10 * 4 * 5
    assert counted[0] == 1 and counted[-1] > 950 and max(np.diff(counted)) < 50
    with pytest.raises(ValueError, match="1 tokens leave nothing to predict"):
        next(every_token_once(tokens[:1], batch_size=4, context_length=5, device="cpu"))


def test_shares_of_a_batch_are_its_slices():
    options = {"batch_size": 6, "context_length": 7, "seed": 3, "device": "cpu"}
    whole = Batches(TOKENS, **options)
    shares = [Batches(TOKENS, **options, share=(place, 3)) for place in range(3)]
    for step in (0, 5):
        for part, number in (("inputs", 0), ("targets", 1)):
            joined = torch.cat([share.at(step)[number] for share in shares])
            assert torch.equal(joined, whole.at(step)[number]), part
        assert all(torch.equal(share.starts(step), whole.starts(step)) for share in shares)


@pytest.mark.parametrize("num_shares", [2, 3, 7])
def test_shares_of_a_pass_are_its_batches_in_turn_and_equally_many(num_shares):
    tokens = np.arange(98)  # 20 windows: 5 batches of 4, the last window shorter than the others
    options = {"batch_size": 4, "context_length": 5, "device": "cpu"}
    whole = list(every_token_once(tokens, **options))
    shares = [list(every_token_once(tokens, **options, share=(place, num_shares))) for place in range(num_shares)]
    assert {len(share) for share in shares} == {-(-len(whole) // num_shares)}
    in_turn = [batch for group in zip(*shares, strict=True) for batch in group]
    for batch, expected in zip(in_turn, whole, strict=False):
        assert all(torch.equal(one, other) for one, other in zip(batch, expected, strict=True))
    assert not any(batch.counted.any() for batch in in_turn[len(whole) :])


def test_the_documents_of_a_batch_are_those_its_stretches_touch(tmp_path):
    lengths = {"a": [4, 3, 1, 6], "b": [2, 7]}  # tokens of each training document, in two shards
    owner = []
    for shard, sizes in lengths.items():
        lines, first = "", 0
        for number, size in enumerate(sizes):
            lines += index_line(IndexedDocument("train", first, size, 1, number, f"{shard}{number}", "", "", 0))
            owner += [f"{shard}{number}"] * size
            first += size
        (tmp_path / shard).mkdir()
        (tmp_path / shard / "train.jsonl").write_text(lines)
        np.zeros(first, TOKEN_DTYPE).tofile(tmp_path / shard / "train.bin")
    folders = [tmp_path / "a", tmp_path / "b"]
    rng = np.random.default_rng(0)
    for num_tokens in (1, 2, 5):
        for _ in range(40):
            starts = rng.integers(0, len(owner) - num_tokens + 1, size=rng.integers(1, 4)).tolist()
            touched = {owner[place] for start in starts for place in range(start, start + num_tokens)}
            found = [document.id for document in documents_at(folders, "train", starts, num_tokens)]
            assert found == [name for name in dict.fromkeys(owner) if name in touched]
