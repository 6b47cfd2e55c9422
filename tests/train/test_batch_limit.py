"""The search for the largest batch."""

from dataclasses import replace

import pytest
import torch

from cs336.model.transformer import ModelConfig
from cs336.train.batch_limit import largest_batch_size, largest_that_fits
from cs336.train.loop import TrainConfig, training_step

MODEL = ModelConfig(vocab_size=512, context_length=256, d_model=256, num_layers=2, num_heads=4)
CONFIG = TrainConfig(batch_size=1, num_steps=1, learning_rate=1e-3, min_learning_rate=1e-4, warmup_steps=0)


@pytest.mark.parametrize("largest", [0, 1, 2, 3, 7, 8, 31, 32, 33, 100, 777, 4_096, 10_000])
@pytest.mark.parametrize("limit", [1, 8, 1_000, 4_096])
def test_the_search_ends_within_three_percent_below_the_largest_that_fits(largest, limit):
    asked = []

    def fits(size):
        asked.append(size)
        return size <= largest

    found = largest_that_fits(fits, limit)
    wanted = min(largest, limit)
    assert wanted * (1 - 1 / 32) - 1 <= found <= wanted
    assert max(asked) <= limit and len(asked) <= 20


def test_without_a_gpu_the_limit_is_the_presets():
    assert largest_batch_size(MODEL, CONFIG, device=torch.device("cpu"), max_batch_size=48) == (48, 0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_batch_found_fits_and_one_much_larger_does_not():
    device = torch.device("cuda")
    torch.cuda.set_per_process_memory_fraction(0.05)  # a small GPU, so that the search is quick
    try:
        size, peak = largest_batch_size(MODEL, CONFIG, device=device, max_batch_size=1 << 20)
        assert 0 < peak <= 0.05 * torch.cuda.mem_get_info()[1]
        larger = size + size // 8 + 1
        _, step = training_step(MODEL, replace(CONFIG, batch_size=larger), device)
        tokens = torch.zeros(larger, MODEL.context_length, dtype=torch.long, device=device)
        with pytest.raises(torch.cuda.OutOfMemoryError):
            step(tokens, tokens), step(tokens, tokens)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
