"""Direct preference optimization: the loss by hand and against logits, and runs that learn, resume, keep the best."""

import copy
import math
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from cs336.files import UserError
from cs336.posttrain.dpo import (
    DpoConfig,
    compute_per_instance_dpo_loss,
    dpo_loss,
    sequence_log_probs,
    train_dpo,
)
from cs336.posttrain.preferences import Preference
from tests.posttrain.models import MODELS, Saved, assert_same_weights, curve, weights
from tests.posttrain.tokenizers import BOS, END, Letters, TheirLetters

TEMPLATE = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{}\n\n### Response:\n{}"
)
PAIRS = [Preference(f"say {letter}", f"yes {letter}", "nope", "file") for letter in "abcdefghijklmn"]
TRAIN, VALID = PAIRS[:10], PAIRS[10:]
CONFIG = DpoConfig(
    batch_size=4, micro_batch_size=3, learning_rate=1e-3, num_epochs=4, valid_interval=3, optimizer="adamw"
)


def _model(kind="ours", seed=0, dropout=0.0):
    """With room for the template, which takes about 160 letters."""
    return MODELS[kind](seed, context_length=256, dropout=dropout)


def _pair(seed=0, kind="ours"):
    """A policy and a reference that is another."""
    return _model(kind, seed), _model(kind, seed + 1)


def _sum64(model, ids):
    """Log-probability of a text, in fp64."""
    output = model(torch.tensor([ids[:-1]]))
    log_p = torch.log_softmax(getattr(output, "logits", output).double(), dim=-1)[0]
    return sum(log_p[place, number] for place, number in enumerate(ids[1:]))


def test_the_loss_by_hand():
    """Rewards of 0.1 (-10 + 12) and 0.1 (-20 + 19): a margin of 0.3."""
    losses, rewards = dpo_loss(torch.tensor([[-10.0, -20.0]]), torch.tensor([[-12.0, -19.0]]), 0.1)
    torch.testing.assert_close(rewards, torch.tensor([[0.2, -0.1]]))
    torch.testing.assert_close(losses, torch.tensor([math.log(1 + math.exp(-0.3))]))


@pytest.mark.parametrize("distance", [1e4, -1e4])
def test_the_loss_is_finite_however_far_apart_the_texts_are(distance):
    losses, _ = dpo_loss(torch.tensor([[distance, 0.0]]), torch.zeros(1, 2), 1.0)
    torch.testing.assert_close(losses, torch.tensor([max(0.0, -distance)]))


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize(("tokenizer", "bos"), [(Letters(), []), (TheirLetters(), [BOS])], ids=["plain", "with BOS"])
def test_one_pair_is_the_definition_in_fp64(kind, tokenizer, bos):
    lm, lm_ref = _pair(kind=kind)
    prompt, chosen, rejected = "what is this?", "a book, i think.", "no"
    loss = compute_per_instance_dpo_loss(
        lm=lm,
        lm_ref=lm_ref,
        tokenizer=tokenizer,
        beta=0.5,
        prompt=prompt,
        response_chosen=chosen,
        response_rejected=rejected,
    )
    texts = [[*bos, *Letters().encode(TEMPLATE.format(prompt, text)), END] for text in (chosen, rejected)]
    with torch.no_grad():
        (w, l), (ref_w, ref_l) = ([_sum64(model, ids) for ids in texts] for model in (lm, lm_ref))  # noqa: E741
    expected = -torch.nn.functional.logsigmoid(0.5 * ((w - l) - (ref_w - ref_l)))
    assert loss.shape == () and loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), abs=1e-4)
    loss.backward()
    assert any(parameter.grad.abs().sum() > 0 for parameter in lm.parameters())
    assert all(parameter.grad is None for parameter in lm_ref.parameters())


def test_a_policy_that_is_the_reference_costs_the_logarithm_of_2():
    model = _model()
    loss = compute_per_instance_dpo_loss(model, copy.deepcopy(model), Letters(), 0.1, "a", "b", "cde")
    assert loss.item() == pytest.approx(math.log(2), abs=1e-6)


class Elsewhere(torch.nn.Module):
    """A model on the device "meta", which stands for a second GPU: it notes where its inputs are."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.empty(1, device="meta"))
        self.seen = []

    def forward(self, ids):
        self.seen.append(ids.device.type)
        return SimpleNamespace(logits=self.weight * torch.empty(*ids.shape, Letters.vocab_size, device="meta"))


def test_models_may_stand_on_different_devices():
    """Inputs go to each model's device, and the loss is on the policy's."""
    policy = Elsewhere()
    loss = compute_per_instance_dpo_loss(policy, _model(), Letters(), 0.1, "a", "b", "c")
    assert policy.seen == ["meta"] and loss.device.type == "meta" and loss.requires_grad


def test_sums_over_texts_of_unlike_length_are_those_of_each_alone():
    model = _model()
    rows = [[3, 4, 5, 6, 7], [8, 9], [4, 4, 4]]
    together = sequence_log_probs(model, rows, 0)
    for row, value in zip(rows, together, strict=True):
        torch.testing.assert_close(value, _sum64(model, row).float())
        torch.testing.assert_close(value, sequence_log_probs(model, [row], 5)[0])


def _run(folder, kind="ours", config=CONFIG, train=TRAIN, valid=VALID, dropout=0.1, **options):
    policy, reference = (_model(kind, dropout=dropout) for _ in range(2))
    return policy, train_dpo(policy, reference, Saved(), train, valid, config, seed=0, folder=folder, **options)


@pytest.mark.parametrize("kind", MODELS)
def test_preferences_are_learnt(kind, tmp_path):
    policy, _ = _run(tmp_path, kind, replace(CONFIG, num_epochs=12, keep="last"))
    rows = curve(tmp_path)
    first, last = rows[0], rows[-1]
    assert first["valid_loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert first["valid_margin"] == first["valid_chosen_reward"] == first["valid_implicit_accuracy"] == 0
    assert last["valid_loss"] < 0.3 and last["valid_implicit_accuracy"] == 1 and last["valid_margin"] > 1
    assert last["valid_margin"] == pytest.approx(last["valid_chosen_reward"] - last["valid_rejected_reward"], abs=1e-5)
    names = ("loss", "accuracy", "implicit_accuracy", "margin", "chosen_reward", "rejected_reward")
    assert all(f"train_{name}" in row for row in rows[1:] for name in names)
    assert not policy.training


def test_the_first_row_is_the_mean_over_the_batchs_pairs(tmp_path):
    """Of a policy that is not the reference; 10 pairs in batches of 4 and micro-batches of 3."""
    policy, reference = _pair()
    before = copy.deepcopy(policy)
    config = replace(CONFIG, batch_size=10, beta=0.3, num_epochs=1)
    train_dpo(policy, reference, Saved(), TRAIN, VALID, config, seed=0, folder=tmp_path)
    first = curve(tmp_path)[1]
    pairs = [(each.instruction, each.chosen, each.rejected) for each in TRAIN]
    losses = [compute_per_instance_dpo_loss(before, reference, Letters(), 0.3, *pair).item() for pair in pairs]
    assert first["train_loss"] == pytest.approx(sum(losses) / 10, abs=1e-4)
    texts = [[[*Letters().encode(TEMPLATE.format(p, r)), END] for r in both] for p, *both in pairs]
    with torch.no_grad():
        sums = [[[_sum64(model, ids).item() for ids in pair] for pair in texts] for model in (before, reference)]
    ours, theirs = (torch.tensor(each) for each in sums)
    assert first["train_accuracy"] == pytest.approx((ours[:, 0] > ours[:, 1]).float().mean())
    rewards = 0.3 * (ours - theirs)
    assert first["train_implicit_accuracy"] == pytest.approx((rewards[:, 0] > rewards[:, 1]).float().mean())
    assert first["train_margin"] == pytest.approx((rewards[:, 0] - rewards[:, 1]).mean().item(), abs=1e-3)
    assert first["train_chosen_reward"] == pytest.approx(rewards[:, 0].mean().item(), abs=1e-3)
    assert first["num_tokens"] == sum(len(ids) for pair in texts for ids in pair)


@pytest.mark.parametrize("micro_batch_size", [1, 4])
def test_micro_batches_change_nothing_but_rounding(micro_batch_size, tmp_path):
    config = replace(CONFIG, optimizer="rmsprop", learning_rate=1e-4)
    first, _ = _run(tmp_path / "a", config=config, dropout=0.0)
    second, _ = _run(tmp_path / "b", config=replace(config, micro_batch_size=micro_batch_size), dropout=0.0)
    for ours, theirs in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=2e-4)


def test_the_best_validation_accuracy_is_kept_and_the_reference_never_changes(tmp_path):
    policy, reference = _model(), _model()
    before = weights(reference)
    config = replace(CONFIG, num_epochs=12)
    outcome = train_dpo(policy, reference, Saved(), TRAIN, VALID, config, seed=0, folder=tmp_path)
    accuracies = {row["step"]: row["valid_accuracy"] for row in curve(tmp_path) if "valid_accuracy" in row}
    assert len(accuracies) == 13
    assert outcome.best_step == max(accuracies, key=accuracies.__getitem__)  # the first of equal ones
    assert outcome.best["valid_accuracy"] == max(accuracies.values()) > accuracies[0]
    assert_same_weights(weights(reference), before)


KILLED = """
import os, signal, sys
from pathlib import Path
from tests.posttrain.test_dpo import _run
def kill(row):
    if row["step"] == 8:
        os.kill(os.getpid(), signal.SIGKILL)
_run(Path(sys.argv[1]), sys.argv[2], report=kill)
"""


@pytest.mark.parametrize("kind", MODELS)
def test_a_killed_run_ends_with_the_same_bytes(kind, tmp_path):
    root = Path(__file__).parents[2]
    killed = subprocess.run([sys.executable, "-c", KILLED, tmp_path / "killed", kind], cwd=root, check=False)
    assert killed.returncode == -signal.SIGKILL
    seen = []
    resumed, outcome = _run(tmp_path / "killed", kind, report=lambda row: seen.append(row["step"]))
    assert seen[0] in (4, 7)  # the checkpoint of step 6 may still have been on its way to the disk
    whole, whole_outcome = _run(tmp_path / "whole", kind)
    assert_same_weights(weights(resumed), weights(whole))
    assert curve(tmp_path / "killed") == curve(tmp_path / "whole")
    assert outcome.best_step == whole_outcome.best_step


def test_another_reference_is_another_run(tmp_path):
    _run(tmp_path)
    with pytest.raises(UserError, match="reference was"):
        train_dpo(_model(dropout=0.1), _model(seed=3), Saved(), TRAIN, VALID, CONFIG, seed=0, folder=tmp_path)


def test_the_reference_must_be_another_model_and_long_pairs_are_left_out(tmp_path):
    model = _model()
    with pytest.raises(ValueError, match="are one model"):
        train_dpo(model, model, Saved(), TRAIN, VALID, CONFIG, seed=0, folder=tmp_path)
    long = Preference("a", "b", "c" * 300, "file")
    _, outcome = _run(tmp_path / "a", train=[*TRAIN, long])
    assert outcome.num_left_out == 1 and curve(tmp_path / "a")[-1]["epoch"] == 3
    with pytest.raises(ValueError, match="none of 1 training pairs has at most 257 tokens"):
        _run(tmp_path / "b", train=[long])


def test_the_defaults_are_the_handouts():
    config = DpoConfig()
    assert (config.num_epochs, config.batch_size, config.beta, config.learning_rate) == (1, 64, 0.1, 1e-6)
    assert (config.optimizer, config.examples_at_once, config.max_grad_norm) == ("rmsprop", 1, 1.0)
    assert (config.best_by, config.best_is, config.keep) == ("valid_accuracy", "highest", "best")
