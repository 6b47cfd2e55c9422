"""Which tokens may be drawn, by hand; how often they are, against the probabilities; whose neighbours do not matter."""

import pytest
import torch

from cs336.generate.sampling import Sampling, next_token_probabilities, sample, uniforms_of

LOGITS = torch.log(torch.tensor([0.15, 0.5, 0.05, 0.3]))


def uniforms(count: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(uniforms_of(seed, 0, count))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0.15, 0.5, 0.05, 0.3]),
        ({"top_p": 0.6}, [0, 0.625, 0, 0.375]),  # 0.5 is too little, so 0.3, which crosses the line, stays
        ({"top_p": 0.81}, [0.15 / 0.95, 0.5 / 0.95, 0, 0.3 / 0.95]),
        ({"top_p": 1e-6}, [0, 1, 0, 0]),
        ({"top_k": 1}, [0, 1, 0, 0]),
        ({"top_k": 3}, [0.15 / 0.95, 0.5 / 0.95, 0, 0.3 / 0.95]),
        ({"top_k": 99}, [0.15, 0.5, 0.05, 0.3]),
        ({"top_k": 2, "top_p": 0.62}, [0, 1, 0, 0]),  # of the two, the first has 0.625 of the mass
        ({"top_k": 2, "top_p": 0.63}, [0, 0.625, 0, 0.375]),
    ],
)
def test_top_k_and_top_p_by_hand(options, expected):
    actual = next_token_probabilities(LOGITS, temperature=1.0, **options)
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=torch.float32))


def test_top_p_reached_exactly_needs_no_further_token():
    actual = next_token_probabilities(torch.zeros(4), temperature=1.0, top_p=0.5)
    torch.testing.assert_close(actual, torch.tensor([0.5, 0.5, 0.0, 0.0]))  # of equals, lower ids


def test_temperature_divides_the_logits_and_towards_zero_the_best_takes_all():
    logits = torch.tensor([0.1, 2.0, 1.9])
    torch.testing.assert_close(next_token_probabilities(logits, temperature=0.5), torch.softmax(2 * logits, dim=0))
    for temperature in (1e-3, 1e-30, 1e-42):
        actual = next_token_probabilities(logits, temperature=temperature)
        torch.testing.assert_close(actual, torch.tensor([0.0, 1.0, 0.0]))


def test_temperature_zero_is_argmax():
    logits = torch.tensor([[0.1, 2.0, 1.9], [5.0, 2.0, 1.9]])
    assert sample(logits, uniforms(2), Sampling()).tolist() == [1, 0]


@pytest.mark.parametrize("vocab", [40, 1_500])
@pytest.mark.parametrize(
    "options", [{}, {"top_k": 7}, {"top_p": 0.7}, {"top_p": 0.999}, {"top_k": 300, "top_p": 0.99}, {"temperature": 0.3}]
)
def test_tokens_are_drawn_as_often_as_they_are_probable(vocab, options):
    options = {"temperature": 1.0, **options}
    logits = 2 * torch.randn(vocab, generator=torch.Generator().manual_seed(4))
    probabilities = next_token_probabilities(logits, **options).double()
    draws = 5_000
    chosen = sample(logits.expand(draws, vocab), uniforms(draws), Sampling(**options))
    counts = torch.bincount(chosen, minlength=vocab)
    assert counts[probabilities == 0].sum() == 0
    deviation = (draws * probabilities * (1 - probabilities)).sqrt()
    assert ((counts - draws * probabilities).abs() <= 5 * deviation + 5).all()


@pytest.mark.parametrize("options", [{"top_p": 0.6}, {"top_p": 0.97}, {"top_k": 40, "top_p": 0.9}])
def test_the_short_way_through_a_large_vocabulary_draws_what_the_long_way_does(options):
    """Flat rows need more than the first candidates, rounded ones have equals at every edge."""
    generator = torch.Generator().manual_seed(1)
    sharp = 3 * torch.randn(20, 2_000, generator=generator)
    rows = torch.cat([sharp, 0.1 * torch.randn(20, 2_000, generator=generator), sharp.round(), torch.zeros(4, 2_000)])
    numbers = uniforms(len(rows))
    actual = sample(rows, numbers, Sampling(temperature=1.0, **options))
    for row, number, token in zip(rows, numbers, actual, strict=True):
        kept = next_token_probabilities(row, temperature=1.0, **options)
        ids = sorted(range(2_000), key=lambda token: (-float(kept[token]), token))
        ends = kept[ids].double().cumsum(0)
        assert ids[int((ends <= number * ends[-1]).sum())] == int(token)


def test_neighbours_do_not_matter():
    rows = torch.randn(9, 1_000, generator=torch.Generator().manual_seed(2))
    for sampling in (Sampling(temperature=1.0), Sampling(temperature=1.0, top_p=0.8)):
        together = sample(rows, uniforms(9), sampling)
        alone = [sample(rows[i : i + 1], uniforms(9)[i : i + 1], sampling) for i in range(9)]
        assert torch.equal(together, torch.cat(alone))


def test_the_ends_of_the_line_are_tokens_that_may_be_drawn():
    rows = torch.tensor([[-100.0, 0.0, 0.0, -100.0]] * 2).mul(10)
    edges = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    assert sample(rows, edges, Sampling(temperature=1.0)).tolist() == [1, 2]


def test_each_sample_has_its_own_numbers_and_a_longer_run_begins_with_a_shorter_one():
    assert uniforms_of(3, 0, 5).tolist() == uniforms_of(3, 0, 9)[:5].tolist()
    assert len({uniforms_of(seed, number, 1)[0] for seed in range(20) for number in range(20)}) == 400


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": 1.0, "top_p": 0.0}, "top_p"),
        ({"temperature": 1.0, "top_p": 1.5}, "top_p"),
        ({"temperature": 1.0, "top_k": -1}, "top_k"),
    ],
)
def test_settings_out_of_range_are_errors(bad, message):
    with pytest.raises(ValueError, match=message):
        next_token_probabilities(torch.zeros(3), **bad)
    with pytest.raises(ValueError, match=message):
        Sampling(**bad)


def test_greedy_has_no_probabilities_and_seeds_are_not_negative():
    with pytest.raises(ValueError, match="above 0"):
        next_token_probabilities(torch.zeros(3), temperature=0)
    with pytest.raises(ValueError, match="seed"):
        uniforms_of(-1, 0, 3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(top_p=0.9)])
def test_runs_that_are_equal_to_the_last_bit_sample_as_others_do_and_in_no_more_memory(sampling):
    logits = torch.randn((8, 50_257), generator=torch.Generator().manual_seed(0)).to("cuda")
    places = uniforms(8).to("cuda")
    expected = sample(logits, places, sampling)
    peak = torch.cuda.max_memory_allocated()
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.equal(sample(logits, places, sampling), expected)
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.cuda.max_memory_allocated() <= 2 * peak
