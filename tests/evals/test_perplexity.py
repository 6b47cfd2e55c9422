"""Perplexity: each token once, with enough context, in the right units."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from cs336.evals.perplexity import evaluate_perplexity, sliding_windows


class Bigram(nn.Module):
    """Logits of the next token read from a table, row by previous token."""

    def __init__(self, table):
        super().__init__()
        self.table = nn.Parameter(torch.as_tensor(table, dtype=torch.float32))

    def forward(self, ids):
        return self.table[ids]


class RunningSum(nn.Module):
    """Logits that depend on every token of the context, so windows matter."""

    def __init__(self, vocab_size):
        super().__init__()
        self.directions = nn.Parameter(torch.linspace(-1.0, 1.0, vocab_size))

    def forward(self, ids):
        return torch.sin(ids.cumsum(1) * 0.7).unsqueeze(-1) * self.directions


# p(next | 0) = (1/2, 1/4, 1/4); p(next | 1) = (1/8, 3/4, 1/8); p(next | 2) uniform
PROBABILITIES = [[1 / 2, 1 / 4, 1 / 4], [1 / 8, 3 / 4, 1 / 8], [1 / 3, 1 / 3, 1 / 3]]
TOKENS = np.array([0, 1, 1, 2, 0], dtype=np.uint16)


def bigram():
    return Bigram(np.log(PROBABILITIES))


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_a_bigram_tables_perplexity_by_hand(stride, batch_size):
    result = evaluate_perplexity(bigram(), TOKENS, context_length=3, stride=stride, batch_size=batch_size, num_bytes=10)
    # 0 -> 1, 1 -> 1, 1 -> 2, 2 -> 0
    nats = math.log(4) + math.log(4 / 3) + math.log(8) + math.log(3)
    assert result["num_predicted"] == 4
    assert result["num_tokens"] == 5
    assert result["total_nats"] == pytest.approx(nats, rel=1e-6)
    assert result["nats_per_token"] == pytest.approx(nats / 4, rel=1e-6)
    assert result["perplexity"] == pytest.approx(128 ** (1 / 4), rel=1e-6)  # 4 * 4/3 * 8 * 3 = 128
    assert result["bits_per_byte"] == pytest.approx(7 / 10, rel=1e-6)  # log2(128) bits over 10 bytes


def test_with_the_end_of_text_id_the_first_token_is_predicted_too():
    result = evaluate_perplexity(bigram(), TOKENS, context_length=3, num_bytes=10, end_of_text=2)
    assert result["num_predicted"] == 5
    assert result["total_nats"] == pytest.approx(math.log(128) + math.log(3), rel=1e-6)


@given(st.integers(1, 60), st.integers(1, 12), st.integers(1, 12))
def test_windows_score_each_target_once_with_at_least_the_promised_context(num_targets, length, stride):
    length = min(length, num_targets)
    stride = min(stride, length)
    context_of = {}
    for window in sliding_windows(num_targets, length=length, stride=stride):
        for place in range(window.num_scored_before, length):
            target = window.start + place + 1
            assert target not in context_of
            context_of[target] = place + 1
    assert sorted(context_of) == list(range(1, num_targets + 1))
    assert all(context_of[target] == target for target in range(1, length + 1))
    assert all(context_of[target] > length - stride for target in range(length + 1, num_targets + 1))


@pytest.mark.parametrize(
    ("num_tokens", "context_length", "stride"), [(50, 8, 4), (50, 8, 8), (50, 8, 1), (7, 16, 8), (2, 1, 1)]
)
def test_windows_agree_with_predicting_token_by_token(num_tokens, context_length, stride):
    tokens = np.random.default_rng(0).integers(0, 5, num_tokens)
    model = RunningSum(5)
    # Independently: how far back each target may look, then one forward pass per target.
    nats, start, end = 0.0, 0, 0
    for target in range(1, num_tokens):
        if target > end:  # a new window; the last one is pulled back to end with the text
            start = 0 if end == 0 else min(start + stride, num_tokens - 1 - context_length)
            end = min(start + context_length, num_tokens - 1)
        context = torch.tensor(tokens[start:target])[None]
        nats -= torch.log_softmax(model(context)[0, -1].double(), dim=-1)[tokens[target]].item()
    result = evaluate_perplexity(model, tokens, context_length=context_length, stride=stride, num_bytes=1)
    assert result["total_nats"] == pytest.approx(nats, rel=1e-5)


def test_the_default_stride_is_half_the_context():
    assert evaluate_perplexity(bigram(), TOKENS, context_length=4, num_bytes=1)["stride"] == 2
    assert evaluate_perplexity(bigram(), TOKENS, context_length=1, num_bytes=1)["stride"] == 1


def test_a_uniform_model_has_the_vocabulary_as_perplexity_and_is_left_in_training_mode():
    model = Bigram(torch.zeros(3, 3)).train()
    assert evaluate_perplexity(model, TOKENS, context_length=2, num_bytes=1)["perplexity"] == pytest.approx(3)
    assert model.training


class Dropping(Bigram):
    """Wrong on purpose while training."""

    def forward(self, ids):
        return super().forward(ids) * (0.0 if self.training else 1.0)


def test_dropout_is_off_during_the_pass():
    dropping = Dropping(np.log(PROBABILITIES)).train()
    expected = evaluate_perplexity(bigram(), TOKENS, context_length=3, num_bytes=1)["total_nats"]
    assert evaluate_perplexity(dropping, TOKENS, context_length=3, num_bytes=1)["total_nats"] == expected


def test_a_memory_mapped_array_gives_the_same(tmp_path):
    TOKENS.tofile(tmp_path / "tokens.bin")
    mapped = np.memmap(tmp_path / "tokens.bin", dtype=np.uint16, mode="r")
    for end_of_text in (None, 2):
        results = [
            evaluate_perplexity(bigram(), tokens, context_length=3, num_bytes=9, end_of_text=end_of_text)
            for tokens in (TOKENS, mapped)
        ]
        assert results[0]["total_nats"] == results[1]["total_nats"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stride": 4}, "stride is 4"),
        ({"stride": 0}, "stride is 0"),
        ({"num_bytes": 0}, "num_bytes is 0"),
        ({"tokens": TOKENS[:1]}, "nothing to predict"),
        ({"tokens": TOKENS.reshape(5, 1)}, "nothing to predict"),
    ],
)
def test_what_cannot_be_measured_is_an_error(changes, message):
    arguments = {"tokens": TOKENS, "context_length": 3, "num_bytes": 10} | changes
    with pytest.raises(ValueError, match=message):
        evaluate_perplexity(bigram(), arguments.pop("tokens"), **arguments)


def test_a_broken_model_is_an_error_not_a_score():
    with pytest.raises(ValueError, match=r"loss is nan"):
        evaluate_perplexity(Bigram(torch.full((3, 3), float("nan"))), TOKENS, context_length=3, num_bytes=1)
