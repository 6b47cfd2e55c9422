"""The benchmark of a GRPO step: its parts add up, and time that kernels share counts once."""

import argparse
import json

import pytest
import torch

from benchmarks import grpo_step
from benchmarks.grpo_step import busy_nanoseconds
from benchmarks.measure import Unavailable

SMALL = "--shape tiny --rollouts 8 --group-size 4 --tokens 6 --prompt-tokens 4 --micro-batch-size 4 --device cpu"


def absent(*arguments, **options):
    raise Unavailable("vLLM is not here")


def test_the_parts_of_a_step_add_up_to_it_and_a_missing_peer_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(grpo_step, "start_vllm", absent)
    parser = argparse.ArgumentParser()
    grpo_step.add_arguments(parser)
    options = parser.parse_args([*SMALL.split(), "--generators", "ours", "vllm"])
    options = argparse.Namespace(**vars(options), repeats=2, results=tmp_path)
    assert grpo_step.instead_of_cases(options) == 0
    ours, vllm = map(json.loads, (tmp_path / "grpo_step.jsonl").read_text().splitlines())
    shares = [ours[f"{part}_share"] for part in ("sync", "generate", "grade", "train")]
    assert min(shares[1:]) > 0 and sum(shares) == pytest.approx(1)
    assert ours["tokens_per_second"] == pytest.approx(8 * 6 / ours["figure"]) and ours["repeats"] == 2
    assert ours["hours_of_200_steps"] == pytest.approx(ours["figure"] / 18)
    assert ours["max_logprob_difference"] < 1e-4
    assert "vLLM is not here" in vllm["failure"]


@pytest.mark.parametrize(
    ("spans", "busy"), [([], 0), ([(0, 2), (5, 6)], 3), ([(0, 4), (1, 2), (3, 7)], 7), ([(0, 9), (2, 3), (4, 12)], 12)]
)
def test_time_that_kernels_share_counts_once(spans, busy):
    assert busy_nanoseconds(spans) == busy


def test_idle_time_is_told_part_by_part():
    row = {"sync_seconds": 1, "generate_seconds": 4, "grade_seconds": 1, "step_seconds": 8}
    spans = [(second * 10**9, end * 10**9) for second, end in ((9, 10), (11, 13), (12, 14), (17, 99))]  # from 10 to 18
    shares = grpo_step.idle_shares(spans, 10 * 10**9, row)
    assert shares == {"sync_idle_share": 1, "generate_idle_share": 0.25, "grade_idle_share": 1, "train_idle_share": 0.5}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_what_ran_on_the_gpu_is_told_from_what_started_it():
    matrix = torch.ones(2_048, 2_048, device="cuda")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        for _ in range(3):
            matrix = matrix + 1  # one kernel each, whatever library is there
        torch.cuda.synchronize()
    spans = grpo_step.device_spans(profiler)
    assert len(spans) == 3 and spans == sorted(spans)
    assert 0 < busy_nanoseconds(spans) < 1e9
