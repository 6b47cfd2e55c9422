"""The generation benchmark at a tiny shape: transformers' weights are ours, so its greedy texts are, too."""

import argparse
import json

import pytest

from benchmarks import generate, rollouts
from benchmarks.measure import Unavailable, run_subject


def test_ours_and_transformers_write_the_same(tmp_path):
    pytest.importorskip("transformers")
    parser = argparse.ArgumentParser()
    generate.add_arguments(parser)
    arguments = "--d-model 32 --num-layers 2 --num-heads 4 --vocab-size 99 --context-length 32 --tokens 12"
    options = parser.parse_args([*arguments.split(), "--num-prompts", "5", "--device", "cpu"])
    assert run_subject("generate", generate, argparse.Namespace(**vars(options), repeats=1, results=tmp_path)) == 0
    rows = [json.loads(line) for line in (tmp_path / "generate.jsonl").read_text().splitlines()]
    assert [(row["case"], row["contender"]) for row in rows] == [
        (case, contender) for case in generate.CASES for contender in ("ours", "transformers")
    ]
    assert not [row["failure"] for row in rows if "failure" in row]


def test_rollouts_are_timed_and_agree_with_the_trainer(tmp_path, monkeypatch):
    """Where vLLM is missing its row says so; ours is measured either way."""
    monkeypatch.setattr(rollouts, "_vllm", absent)
    parser = argparse.ArgumentParser()
    generate.add_arguments(parser)
    arguments = "--cases rollouts --rollout-shape tiny --rollout-prompts 3 --rollout-samples 4 --rollout-tokens 20"
    options = parser.parse_args([*arguments.split(), "--device", "cpu"])
    assert run_subject("generate", generate, argparse.Namespace(**vars(options), repeats=2, results=tmp_path)) == 0
    ours, vllm = [json.loads(line) for line in (tmp_path / "generate.jsonl").read_text().splitlines()]
    assert (ours["case"], ours["contender"], ours["unit"]) == ("rollouts", "ours", "tokens/s")
    assert ours["figure"] == pytest.approx(3 * 4 * 20 / ours["seconds"])
    assert ours["max_logprob_difference"] < 1e-4
    assert ours["num_checked_tokens"] == 3 * 4 * 20
    assert "not here" in vllm["failure"]


def absent(*arguments):
    raise Unavailable("not here")
