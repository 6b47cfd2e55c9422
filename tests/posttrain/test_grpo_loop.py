"""The GRPO run: rewards rise, every kind of loss runs, rows say what happened, and a killed run ends alike."""

import json
import math
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cs336.evals.rewards import reward_each
from cs336.files import UserError, read_jsonl
from cs336.generate.generators import generator_for
from cs336.model.logprobs import token_logprobs
from cs336.model.transformer import load_model
from cs336.posttrain.grpo import LOSS_TYPES, OFF_POLICY_LOSS_TYPES, GrpoConfig
from cs336.posttrain.grpo_loop import train_grpo
from cs336.posttrain.rollouts import Problem, problems_of_step, rollouts_path
from tests.posttrain.models import Saved, assert_same_weights, calls_of, curve, our_model, weights

PROBLEMS = [Problem(f"say {letters}: ", letters) for letters in ("abcdefgh", "ijklmnop", "qrstuvwx", "ABCDEFGH")]
CONFIG = GrpoConfig(
    n_grpo_steps=4,
    learning_rate=1e-2,
    rollout_batch_size=16,
    group_size=4,
    train_batch_size=16,
    gradient_accumulation_steps=2,
    sampling_min_tokens=1,
    sampling_max_tokens=5,
    valid_interval=2,
)
OFF_POLICY = replace(
    CONFIG, loss_type="grpo_clip", train_batch_size=8, gradient_accumulation_steps=1, epochs_per_rollout_batch=2
)


def said(response, letters):
    """Rewards of a response that says one of some letters; its form is right if it has any of the alphabet."""
    right = float(any(letter in response for letter in letters))
    return {"format_reward": float(any(map(str.isalpha, response))), "answer_reward": right, "reward": right}


def _run(folder, model=None, config=CONFIG, problems=PROBLEMS, **options):
    model = our_model(dropout=0.1) if model is None else model
    tokenizer = Saved()
    outcome = train_grpo(
        model,
        tokenizer,
        generator_for(model, tokenizer),
        problems,
        problems,
        config,
        **({"reward": reward_each(said), "seed": 0, "folder": folder} | options),
    )
    return model, outcome


def test_a_policy_learns_what_is_rewarded(tmp_path):
    config = replace(CONFIG, n_grpo_steps=20, rollout_batch_size=64, train_batch_size=64, group_size=16)
    _, outcome = _run(tmp_path, our_model(), replace(config, valid_interval=10))
    rows = curve(tmp_path)
    assert rows[1]["reward"] < 0.6 and rows[-1]["reward"] > 0.9 and outcome.best["valid_accuracy"] == 1.0


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_every_kind_of_loss_runs(loss_type, tmp_path):
    config = OFF_POLICY if loss_type in OFF_POLICY_LOSS_TYPES else CONFIG
    config = replace(config, loss_type=loss_type, n_grpo_steps=1, keep="last")
    model, outcome = _run(tmp_path, config=config)
    assert outcome.last_step == config.num_updates
    assert not torch.equal(weights(model)["lm_head.weight"], our_model().lm_head.weight)
    told = {
        name
        for name in ("clip_fraction", "would_clip_fraction", "ratio_mean", "ratio_max")
        if name in curve(tmp_path)[-1]
    }
    ratio = {"ratio_mean", "ratio_max"}
    expected = {"grpo_clip": {"clip_fraction"} | ratio, "grpo_no_clip": {"would_clip_fraction"} | ratio}
    assert told == expected.get(loss_type, set())


def test_ratios_are_told_of_a_loss_that_does_not_clip(tmp_path):
    """Each update of a batch is one further from the policy that sampled; micro-batches change none of the numbers."""
    config = replace(OFF_POLICY, loss_type="grpo_no_clip", n_grpo_steps=1)
    _run(tmp_path / "whole", our_model(), config)
    _run(tmp_path / "cut", our_model(), replace(config, gradient_accumulation_steps=4))
    whole, cut = (curve(tmp_path / name)[1:] for name in ("whole", "cut"))
    first, *later = whole
    assert first["ratio_mean"] == pytest.approx(1, abs=1e-5) == first["ratio_max"] and first["would_clip_fraction"] == 0
    assert all(row["ratio_max"] > row["ratio_mean"] > 0 for row in later)
    assert max(row["ratio_max"] for row in later) > 1.2 and any(row["would_clip_fraction"] > 0 for row in later)
    for name in ("ratio_mean", "ratio_max", "would_clip_fraction"):
        assert [row[name] for row in cut] == pytest.approx([row[name] for row in whole], rel=1e-3)


def test_rows_say_what_each_update_did(tmp_path):
    _run(tmp_path, our_model(), OFF_POLICY)
    rows = list(read_jsonl(tmp_path / "metrics.jsonl"))
    assert [row.get("grpo_step") for row in rows] == [None, *(step for step in (1, 2, 3, 4) for _ in range(4))]
    assert [row["step"] for row in rows if "valid_accuracy" in row] == [0, 8, 16]
    for update, row in enumerate(rows[1:]):
        assert 0 <= row["reward"] == row["answer_reward"] <= row["format_reward"] <= 1
        assert 0 < row["token_entropy"] < math.log(Saved.vocab_size) and 0 <= row["clip_fraction"] <= 1
        assert 1 <= row["mean_length"] <= 5 and row["grad_norm"] >= 0
        assert row["num_tokens"] > row["num_response_tokens"] >= 8
        first = update % 4 == 0
        assert ("generate_seconds" in row) == ("max_logprob_difference" in row) == first
        # Right after they are sampled no ratio is far from 1: none is clipped, nor is the generator another model.
        assert not first or (row["max_logprob_difference"] < 1e-4 and row["clip_fraction"] == 0)
    assert any(row["clip_fraction"] > 0 for row in rows[1:])


def test_responses_are_left_to_be_read_at_every_validation(tmp_path):
    model, _ = _run(tmp_path)
    for step in (0, 2, 4):
        rows = list(read_jsonl(rollouts_path(tmp_path, step)))
        assert [row["prompt"] for row in rows] == [problem.prompt for problem in PROBLEMS]
        assert [row["reward"] for row in rows] == [said(row["response"], row["ground_truth"])["reward"] for row in rows]
        assert all(0 < row["mean_token_entropy"] < math.log(Saved.vocab_size) for row in rows)
    assert_same_weights(weights(load_model(tmp_path)), weights(model))
    assert (tmp_path / "letters.txt").exists()


def test_an_update_is_the_policy_gradient_by_hand(tmp_path, monkeypatch):
    """On policy, without normalisation: the gradient of the mean over responses of -A times their mean log-prob."""
    config = replace(CONFIG, n_grpo_steps=1, use_std_normalization=False, max_grad_norm=1e9)
    _, answered = calls_of(monkeypatch)
    _run(tmp_path, our_model(), config, PROBLEMS[:4])
    samples = answered[1]  # the first are a validation's
    model, rows = our_model(), curve(tmp_path)
    asked = [problem for problem in problems_of_step(PROBLEMS, 4, 0, seed=0) for _ in range(4)]
    graded = zip(samples, asked, strict=True)
    rewards = torch.tensor([said(sample.text, problem.ground_truth)["reward"] for sample, problem in graded])
    advantages = (rewards.view(4, 4) - rewards.view(4, 4).mean(dim=1, keepdim=True)).flatten()
    loss = torch.zeros(())
    for problem, sample, advantage in zip(asked, samples, advantages, strict=True):
        made = list(sample.token_ids)
        ids = torch.tensor([Saved().encode(problem.prompt) + made])
        log_probs = token_logprobs(model(ids[:, :-1])[0, -len(made) :], ids[0, -len(made) :])
        loss = loss - advantage * log_probs.mean() / len(samples)
    loss.backward()
    norm = math.sqrt(sum(parameter.grad.square().sum().item() for parameter in model.parameters()))
    assert rows[1]["train_loss"] == pytest.approx(loss.item(), abs=1e-6)
    assert rows[1]["grad_norm"] == pytest.approx(norm, rel=1e-4) and norm > 0


KILLED = """
import os, signal, sys
from pathlib import Path
from tests.posttrain import test_grpo_loop
def kill(row):
    if row["step"] == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
test_grpo_loop._run(Path(sys.argv[1]), config=getattr(test_grpo_loop, sys.argv[2]), report=kill)
"""


@pytest.mark.parametrize(("config", "step"), [("OFF_POLICY", 11), pytest.param("CONFIG", 3, marks=pytest.mark.slow)])
def test_a_killed_run_ends_with_the_same_bytes(config, step, tmp_path):
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", KILLED, tmp_path / "killed", config, str(step)]
    assert subprocess.run(command, cwd=root, check=False).returncode == -signal.SIGKILL
    seen = []
    resumed, _ = _run(tmp_path / "killed", config=globals()[config], report=lambda row: seen.append(row["step"]))
    assert seen[0] > 0  # it went on
    whole, _ = _run(tmp_path / "whole", config=globals()[config])
    assert_same_weights(weights(resumed), weights(whole))
    assert curve(tmp_path / "killed") == curve(tmp_path / "whole")


class Ended(BaseException):
    """As an interrupt."""


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("config", [CONFIG, OFF_POLICY])
def test_on_a_gpu_an_interrupted_run_ends_with_the_same_weights(config, precision, tmp_path):
    config = replace(config, precision=precision, n_grpo_steps=6)

    def interrupt(row):
        if row["step"] == 4 * config.num_updates + 1:
            raise Ended

    with pytest.raises(Ended):
        _run(tmp_path / "ended", our_model().to("cuda"), config, report=interrupt)
    resumed, _ = _run(tmp_path / "ended", our_model().to("cuda"), config)
    whole, _ = _run(tmp_path / "whole", our_model().to("cuda"), config)
    assert_same_weights(weights(resumed), weights(whole))
    assert curve(tmp_path / "ended") == curve(tmp_path / "whole")
    assert max(row.get("mean_logprob_difference", 0) for row in curve(tmp_path / "whole")) < 0.05  # bf16 generates


def test_another_run_does_not_go_on(tmp_path):
    _run(tmp_path)
    with pytest.raises(UserError, match="of a run with other settings"):
        _run(tmp_path, config=replace(CONFIG, group_size=8))
    with pytest.raises(UserError, match="train_problems"):
        _run(tmp_path, problems=PROBLEMS[::-1])


def test_too_few_problems_are_an_error(tmp_path):
    with pytest.raises(ValueError, match="3 training and 3 validation problems; a rollout batch takes 4 questions"):
        _run(tmp_path, problems=PROBLEMS[:3])


def test_a_grading_that_was_ended_is_counted(tmp_path):
    def reward(responses, truths):
        return [said(*pair) | {"lost": "over 5 s"} for pair in zip(responses, truths, strict=True)]

    _run(tmp_path, config=replace(CONFIG, n_grpo_steps=1), reward=reward)
    assert curve(tmp_path)[1]["num_lost"] == 16
    assert json.loads(rollouts_path(tmp_path, 0).read_text().splitlines()[0])["lost"] == "over 5 s"
