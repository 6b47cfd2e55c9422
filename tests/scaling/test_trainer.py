"""A run against the project's own optimizer, schedule and loss, step by step; and stopped and gone on with."""

import math
import time

import pytest
import torch

from cs336.hardware import pick_device
from cs336.model.transformer import TransformerLM
from cs336.scaling.cell import Cell
from cs336.scaling.recipe import learning_rates, model_config
from cs336.scaling.trainer import OutOfTime, Trainer, sequences_at_once
from cs336.scaling.windows import WindowOrder, on_device, read_windows
from cs336.train.loss import cross_entropy
from cs336.train.optimizer import AdamW, clip_gradients
from tests.scaling.conftest import small_cell

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_losses_are_those_of_a_plain_loop_over_the_projects_parts(text, monkeypatch):
    monkeypatch.setattr("cs336.scaling.recipe.MAX_GRAD_NORM", 0.2)  # so small a model's gradients stay below 1
    cell = small_cell(steps=30, learning_rate=2e-2)
    torch.manual_seed(cell.seed)
    model = TransformerLM(model_config(cell)).train().use_attention_kernel("fused").fuse(dropout=True)
    optimizer = AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0.01)
    order, tokens = WindowOrder(len(text.train), cell.context_length, cell.seed), on_device(text.train, CPU)
    losses = []
    for step, rate in enumerate(learning_rates(cell)):
        inputs, targets = read_windows(tokens, order.starts(step, 1, cell.batch_size)[0], cell.context_length)
        optimizer.zero_grad()
        loss = cross_entropy(model(inputs), targets)
        loss.backward()
        clip_gradients(model.parameters(), 0.2)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        losses.append(loss.item())
    outcome = Trainer(cell, text, CPU).run(cell)
    assert outcome.losses == pytest.approx(losses, rel=2e-4)
    assert outcome.final_loss(cell) == pytest.approx(sum(losses[-2:]) / 2, rel=2e-4)
    model.eval()
    valid = torch.tensor(text.valid[0 : len(text.valid)].astype("int64"))
    nats, counted = 0.0, 0
    for start in range(0, len(valid) - 1, cell.context_length):
        window = valid[start : start + cell.context_length + 1]
        if len(window) == cell.context_length + 1:
            nats += cross_entropy(model(window[None, :-1]), window[None, 1:]).item() * cell.context_length
            counted += cell.context_length
    assert outcome.valid_loss == pytest.approx(nats / counted, rel=0.01)  # all but the text's last few tokens


def test_a_trainers_second_run_is_that_of_a_new_trainer(text):
    first, second = small_cell(steps=70), small_cell(steps=20, learning_rate=5e-3, seed=3)
    trainer = Trainer(first, text, CPU)
    trainer.run(first)
    again, fresh = trainer.run(second), Trainer(second, text, CPU).run(second)
    assert again.losses == fresh.losses and again.valid_loss == fresh.valid_loss


def test_micro_batches_have_the_gradients_of_the_whole_batch(text, monkeypatch):
    cell = small_cell(steps=3)
    monkeypatch.setattr("cs336.scaling.recipe.DROPOUT", 0.0)  # its draws depend on the cut
    whole = Trainer(cell, text, CPU)
    parts = Trainer(cell, text, CPU)
    parts.sequences_at_once = 1
    assert whole.run(cell).losses == pytest.approx(parts.run(cell).losses, rel=1e-6)


def test_a_budget_below_one_step_gives_the_loss_at_initialisation(text):
    cell = small_cell(compute_budget=1.0)
    outcome = Trainer(cell, text, CPU).run(cell)
    assert cell.steps == 0 and len(outcome.losses) == 1
    assert outcome.final_loss(cell) == pytest.approx(math.log(cell.vocab_size), abs=0.6)
    assert outcome.valid_loss == pytest.approx(outcome.losses[0], abs=0.3)


def test_a_run_learns(text):
    cell = small_cell(steps=200, learning_rate=1e-2)
    outcome = Trainer(cell, text, CPU).run(cell)
    assert outcome.final_loss(cell) < 2.2 < 4 < outcome.losses[0]


def test_a_loss_that_is_no_number_ends_the_run_and_is_named(text):
    cell = small_cell(steps=200, learning_rate=1e30)
    outcome = Trainer(cell, text, CPU).run(cell)
    assert "the loss became nan at step" in outcome.diverged and len(outcome.losses) < 100
    assert math.isnan(outcome.final_loss(cell)) and math.isnan(outcome.valid_loss)


def test_a_run_that_is_stopped_goes_on_to_the_same_losses(text, tmp_path):
    cell = small_cell(steps=150)
    trainer, checkpoint = Trainer(cell, text, CPU), tmp_path / "states" / "run.pt"
    unbroken = trainer.run(cell, checkpoint=checkpoint)
    assert not checkpoint.exists()
    with pytest.raises(OutOfTime):
        trainer.run(cell, checkpoint=checkpoint, deadline=time.time() - 1)
    saved = torch.load(checkpoint, weights_only=True)
    assert 0 < len(saved["losses"]) < 150
    resumed = Trainer(cell, text, CPU).run(cell, checkpoint=checkpoint)
    assert resumed.losses == unbroken.losses and resumed.valid_loss == unbroken.valid_loss
    assert not checkpoint.exists() and not list(checkpoint.parent.iterdir())


def test_a_trainer_refuses_a_cell_of_another_shape(text):
    trainer = Trainer(small_cell(), text, CPU)
    with pytest.raises(ValueError, match="another shape"):
        trainer.run(small_cell(num_heads=4))


def test_a_micro_batch_divides_the_batch_and_leaves_room():
    large = Cell(d_model=1_024, num_layers=24, num_heads=16, batch_size=256, learning_rate=1e-3, compute_budget=1e18)
    assert sequences_at_once(small_cell()) == 4
    assert 256 % sequences_at_once(large) == 0 and 1 <= sequences_at_once(large) < 32


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_recorded_step_is_the_step_itself(text, precision):
    """Dropout draws included: a replay takes up the seed and goes on from one step to the next."""
    device = torch.device("cuda")
    cell = small_cell(steps=80, d_model=64, precision=precision)
    recorded, eager = Trainer(cell, text, device), Trainer(cell, text, device, record=False)
    assert recorded._run_step != recorded._step, "PyTorch recorded it"
    replayed = recorded.run(cell)
    assert replayed.losses == recorded.run(cell).losses, "the same seed, the same draws"
    assert replayed.losses == pytest.approx(eager.run(cell).losses, rel=2e-2)
    assert len(set(replayed.losses)) > 70


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_a_second_gpu_trains_as_the_first(text):
    cell = small_cell(steps=40, d_model=64, precision="bfloat16")
    losses = []
    try:
        for name in ("cuda:0", "cuda:1"):
            losses.append(Trainer(cell, text, pick_device(name)).run(cell).losses)
    finally:
        torch.cuda.set_device(0)
    assert losses[0] == losses[1] and losses[0][-1] < losses[0][0]
