"""The contest's training: its optimizers by hand and against PyTorch's, its token order, its clock."""

import math

import numpy as np
import pytest
import torch

from cs336.files import UserError
from cs336.service import job_data, training
from cs336.service.job_config import NUM_VALID_TOKENS, AdamWConfig, Schedule
from cs336.service.job_data import JobData, open_data
from cs336.service.optimizers import PlainSGD, RootedAdamW, learning_rate
from cs336.service.training import Diverged, train_job
from tests.service.job_examples import VOCAB_SIZE, architecture, config, write_text


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> JobData:
    return open_data(write_text(tmp_path_factory.mktemp("text")))


@pytest.fixture(autouse=True)
def short_validation(request, monkeypatch):
    """16 sequences instead of 512, but where the number is what is tested."""
    if "validation" not in request.node.name:
        for module in (training, job_data):
            monkeypatch.setattr(module, "NUM_VALID_TOKENS", 16 * 512)


def test_a_model_learns_and_an_equal_run_gives_equal_losses(data):
    first = train_job(config(), data, device="cpu")
    assert len(first.val_losses) == 4 and not first.timed_out
    assert first.val_losses[-1] < first.val_losses[0] < math.log(VOCAB_SIZE) + 1
    assert train_job(config(), data, device="cpu").val_losses == first.val_losses
    assert train_job(config(model_seed=1), data, device="cpu").val_losses != first.val_losses


@pytest.mark.parametrize(
    "changes",
    [
        {"architecture": architecture(tie_word_embeddings=True, attention_bias=True)},
        {"architecture": architecture(dtype="bfloat16")},
        {"optimizer": {"type": "sgd", "schedule": {"peak_value": 1.0}, "grad_clip_norm": None}},
    ],
)
def test_every_option_trains(data, changes):
    losses = train_job(config(**changes), data, device="cpu").val_losses
    assert len(losses) == 4 and losses[-1] < losses[0]


def test_bfloat16_keeps_masters_moments_and_losses_in_float32(data):
    low = config(architecture=architecture(dtype="bfloat16"))
    run = training._Run(low, data, torch.device("cpu"))
    run.train_chunk(0)
    assert {parameter.dtype for parameter in run.model.parameters()} == {torch.float32}
    moments = [value for state in run.optimizer.state.values() for value in state.values()]
    assert moments and {moment.dtype for moment in moments} == {torch.float32}
    loss = run.validate()
    assert loss != float(torch.tensor(loss, dtype=torch.bfloat16))
    # ... and the products are low: the same weights give another loss in float32.
    run.config = config()
    assert 0 < abs(run.validate() - loss) < 0.02


def test_the_model_is_the_contests():
    made = training.model_config(config(architecture=architecture(attention_bias=True, rope_theta=500.0)).architecture)
    assert (made.norm, made.norm_kind, made.qk_norm, made.feed_forward) == ("pre", "rms", True, "swiglu")
    assert (made.positions, made.rope_layout, made.rope_theta) == ("rope", "half", 500.0)
    assert (made.dropout, made.tied, made.qkv_bias, made.output_bias, made.ffn_bias) == (0.0, False, True, True, False)
    assert (made.context_length, made.d_model, made.d_ff, made.vocab_size) == (512, 16, 32, VOCAB_SIZE)


def test_each_token_is_seen_once_in_the_order_of_the_file(monkeypatch):
    """Whatever the micro-batch: sequence k of the run is tokens 512 k ... 512 k + 511, its targets one further."""
    monkeypatch.setitem(training.SEQUENCES_AT_ONCE, "cpu", 3)  # does not divide the batch of 4
    ramp = np.arange(16 * 512 + 1) % 40_000
    data = JobData(ramp.astype("<u2"), np.zeros(NUM_VALID_TOKENS + 1, "<u2"))
    run = training._Run(
        config(train_batch_size=4, n_evals=2, architecture=architecture(vocab_size=40_000)), data, torch.device("cpu")
    )
    seen = []
    monkeypatch.setattr(run, "_backward", lambda inputs, targets, share: seen.append((inputs, targets, share)))
    monkeypatch.setattr(run.optimizer, "step", lambda: None)
    run.train_chunk(0)
    run.train_chunk(1)
    inputs, targets = (torch.cat([each[i] for each in seen]) for i in (0, 1))
    assert inputs.flatten().tolist() == ramp[:-1].tolist() and targets.flatten().tolist() == ramp[1:].tolist()
    assert [share for *_, share in seen] == [0.75, 0.25] * 4


def test_the_micro_batch_changes_no_loss(data, monkeypatch):
    whole = train_job(config(), data, device="cpu").val_losses
    monkeypatch.setitem(training.SEQUENCES_AT_ONCE, "cpu", 1)
    parts = train_job(config(), data, device="cpu").val_losses
    assert parts == pytest.approx(whole, abs=1e-5)


def test_validation_predicts_each_of_the_tokens_once(data):
    run = training._Run(config(), data, torch.device("cpu"))
    text = torch.from_numpy(np.asarray(data.valid[: NUM_VALID_TOKENS + 1]).astype(np.int64))
    with torch.no_grad():
        logits = run.model(text[:-1].view(512, 512))
        expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), text[1:]).item()
    assert run.validate() == pytest.approx(expected, abs=1e-5)
    run.config = config(val_batch_size=64)
    assert run.validate() == pytest.approx(expected, abs=1e-5)


class Clock:
    """Goes on by so many seconds at each look."""

    def __init__(self, step: float):
        self.now, self.step = 0.0, step

    def __call__(self) -> float:
        self.now += self.step
        return self.now


def test_a_deadline_ends_a_run_between_chunks_and_keeps_its_losses(data):
    told = []
    outcome = train_job(
        config(max_runtime_seconds=25), data, device="cpu", on_loss=lambda *news: told.append(news), clock=Clock(10)
    )
    # Looks: start 10; before chunks 1, 2, 3: 20, 30, 40. At the last 30 s are over, and the next look is the end's.
    assert outcome.timed_out and len(outcome.val_losses) == 3 and outcome.used_seconds == 40
    assert told == list(enumerate(outcome.val_losses))


def test_the_deadline_is_tested_once_more_at_the_end(data):
    late = train_job(config(n_evals=1, max_runtime_seconds=9), data, device="cpu", clock=Clock(10))
    assert late.timed_out and len(late.val_losses) == 1
    assert not train_job(config(n_evals=1, max_runtime_seconds=10), data, device="cpu", clock=Clock(10)).timed_out


def test_the_clock_starts_after_the_model_is_made_and_warm(data, monkeypatch):
    order = []
    monkeypatch.setattr(training._Run, "warm_up", lambda run: order.append("warm"))
    monkeypatch.setattr(training._Run, "train_chunk", lambda run, chunk: order.append(chunk))
    monkeypatch.setattr(training._Run, "validate", lambda run: 1.0)
    clock = Clock(1)
    train_job(
        config(n_evals=2),
        data,
        device="cpu",
        on_start=lambda: order.append("start"),
        clock=lambda: order.append("clock") or clock(),
    )
    assert order == ["warm", "start", "clock", 0, "clock", 1, "clock"]


def test_warming_up_changes_no_loss(data, monkeypatch):
    warm = train_job(config(), data, device="cpu").val_losses
    monkeypatch.setattr(training._Run, "warm_up", lambda run: None)
    assert train_job(config(), data, device="cpu").val_losses == warm


def test_what_cannot_be_trained_says_why(data, tmp_path):
    with pytest.raises(UserError, match="none is taken twice"):
        train_job(config(total_train_tokens=2 * 512 * 20), data, device="cpu")
    with pytest.raises(UserError, match="vocab_size is 16, but the text has id"):
        train_job(config(architecture=architecture(vocab_size=16)), data, device="cpu")
    with pytest.raises(Diverged, match="chunk"):
        wild = {"type": "sgd", "schedule": {"peak_value": 1e30, "warmup_frac": 0.0}, "grad_clip_norm": None}
        train_job(config(optimizer=wild), data, device="cpu")
    with pytest.raises(UserError, match="holds no train"):
        open_data(tmp_path)
    write_text(tmp_path)
    (tmp_path / "valid.bin").write_bytes(bytes(2 * 16 * 512))  # one token short
    with pytest.raises(UserError, match="hold out more"):
        open_data(tmp_path)


def test_several_shards_are_one_text(tmp_path, data):
    for number, part in enumerate((slice(0, 7_000), slice(7_000, 20_000))):
        folder = tmp_path / f"{number:03}"
        folder.mkdir()
        np.asarray(data.train[part]).tofile(folder / "train.bin")
        np.asarray(data.valid[:] if number else data.valid[:0]).tofile(folder / "valid.bin")
    parts = open_data(tmp_path)
    assert train_job(config(), parts, device="cpu").val_losses == train_job(config(), data, device="cpu").val_losses


# ---- optimizers and schedule


def test_adamw_by_hand():
    """First step: m / (1 - beta1) = g, v / (1 - beta2) = g²; then w (1 - lr wd) - lr g / (sqrt(g² + root) + eps)."""
    weight = torch.nn.Parameter(torch.tensor([2.0]))
    optimizer = RootedAdamW([weight], AdamWConfig(type="adamw", weight_decay=0.1, eps=0.5, eps_root=7.0))
    optimizer.param_groups[0]["lr"] = 0.1
    weight.grad = torch.tensor([3.0])
    optimizer.step()
    assert weight.item() == pytest.approx(2 * (1 - 0.1 * 0.1) - 0.1 * 3 / (4 + 0.5))


def test_without_the_second_epsilon_it_is_pytorchs():
    generator = torch.Generator().manual_seed(0)
    ours, theirs = (torch.nn.Parameter(torch.arange(6.0).view(2, 3)) for _ in range(2))
    a = RootedAdamW([ours], AdamWConfig(type="adamw", eps_root=0.0, weight_decay=0.2, beta1=0.8, beta2=0.9, eps=1e-3))
    b = torch.optim.AdamW([theirs], lr=0.05, betas=(0.8, 0.9), eps=1e-3, weight_decay=0.2)
    a.param_groups[0]["lr"] = 0.05
    for _ in range(5):
        ours.grad = torch.randn(2, 3, generator=generator)
        theirs.grad = ours.grad.clone()
        a.step()
        b.step()
    torch.testing.assert_close(ours, theirs)


def test_sgd_steps_by_the_rate_alone():
    weight = torch.nn.Parameter(torch.tensor([1.0]))
    optimizer = PlainSGD([weight], lr=0.5)
    for expected in (-1.0, -3.0):
        weight.grad = torch.tensor([4.0])
        optimizer.step()
        assert weight.item() == expected


def test_the_schedule_at_its_corners():
    schedule = Schedule(peak_value=1.0, final_lr_frac=0.1, warmup_frac=0.2, init_value=0.5)
    rates = [learning_rate(schedule, step, 10) for step in range(11)]
    assert rates[:3] == [0.5, 0.75, 1.0]
    assert rates[6] == pytest.approx(0.55) and rates[10] == pytest.approx(0.1)  # half-way, and where it would end
    assert rates[2:] == sorted(rates[2:], reverse=True)
    no_warm_up = Schedule(peak_value=1.0, warmup_frac=0.0)
    assert learning_rate(no_warm_up, 0, 10) == 1.0
    only_warm_up = Schedule(peak_value=1.0, warmup_frac=1.0)
    assert learning_rate(only_warm_up, 9, 10) == pytest.approx(0.9)
