"""What both forms of vLLM, and our engine, must do; and what each is asked in their tests."""

import copy
import importlib.util

import pytest
import torch

from cs336.generate.backend import HuggingFaceCodec, SamplingParams
from cs336.generate.continuous import Engine
from cs336.generate.weight_sync import check_logprobs, sync_weights
from cs336.model.huggingface import load_huggingface

HAS_VLLM = importlib.util.find_spec("vllm") is not None
PARAMS = SamplingParams(
    n=2, temperature=0.8, top_p=0.9, top_k=7, max_tokens=5, min_tokens=1, stop=("</answer>",), seed=3, logprobs=True
)


def our_engine(folder):
    from transformers import AutoTokenizer

    return Engine(load_huggingface(folder), HuggingFaceCodec(AutoTokenizer.from_pretrained(folder)))


def check_against_ours(backend, folder):
    """What every backend must do, before and after a sync."""
    ours = our_engine(folder)
    prompts, greedy = ["hello", [5, 9, 2], "abc"], SamplingParams(temperature=0, max_tokens=24, logprobs=True)
    sampled = SamplingParams(n=4, max_tokens=16, min_tokens=4, seed=1, logprobs=True)
    trainer = copy.deepcopy(ours.model)
    for _ in range(2):
        for mine, theirs in zip(ours.generate(prompts, greedy), backend.generate(prompts, greedy), strict=True):
            assert theirs.prompt_ids == mine.prompt_ids
            for one, other in zip(mine.samples, theirs.samples, strict=True):
                assert (other.text, other.token_ids, other.finish) == (one.text, one.token_ids, one.finish)
                assert other.logprobs == pytest.approx(one.logprobs, abs=1e-3)
        first = backend.generate(prompts, sampled)
        for generation, again in zip(first, backend.generate(prompts, sampled), strict=True):
            assert [sample.text for sample in generation.samples] == [sample.text for sample in again.samples]
            assert len({sample.text for sample in generation.samples}) == 4
            assert all(len(sample.token_ids) >= 4 for sample in generation.samples)
        text = backend.generate(prompts, greedy)[0].samples[0].text
        for kept in (False, True):
            stopping = SamplingParams(temperature=0, max_tokens=24, stop=(text[3:5],), include_stop_str_in_output=kept)
            stopped = backend.generate(prompts, stopping)[0].samples[0]
            end = text.index(text[3:5])
            assert (stopped.text, stopped.finish) == (text[: end + 2 * kept], "stop")
        assert check_logprobs(trainer, backend, prompts, sampled).max_logprob_difference < 1e-3
        with torch.no_grad():
            for weight in trainer.parameters():
                weight += 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(2))
        assert check_logprobs(trainer, backend, prompts, sampled).max_logprob_difference > 0.01
        sync_weights(trainer, backend)
        sync_weights(trainer, ours)
