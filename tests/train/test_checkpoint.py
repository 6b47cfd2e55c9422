"""Checkpoints restore all they were given, appear whole, and are written while training goes on."""

import io
import threading

import pytest
import torch
from torch import nn

from cs336.files import UserError
from cs336.train import checkpoint
from cs336.train.checkpoint import CheckpointWriter, checkpoint_path, checkpoint_paths, load_checkpoint, save_checkpoint
from cs336.train.optimizer import AdamW


def _trained(num_steps=3):
    torch.manual_seed(num_steps)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    optimizer = AdamW(model.parameters(), lr=0.1)
    for _ in range(num_steps):
        optimizer.zero_grad()
        model(torch.randn(5, 4)).square().mean().backward()
        optimizer.step()
    return model, optimizer


@pytest.mark.parametrize("kind", ["path", "text", "file"])
def test_everything_is_restored(tmp_path, kind):
    model, optimizer = _trained()
    place = {"path": tmp_path / "a.pt", "text": str(tmp_path / "a.pt"), "file": io.BytesIO()}[kind]
    save_checkpoint(model, optimizer, 17, place)
    if kind == "file":
        place.seek(0)
    other, other_optimizer = _trained(1)
    assert load_checkpoint(place, other, other_optimizer) == 17
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(ours, theirs)
        assert torch.equal(optimizer.state[ours]["m"], other_optimizer.state[theirs]["m"])
        assert torch.equal(optimizer.state[ours]["v"], other_optimizer.state[theirs]["v"])
        assert optimizer.state[ours]["t"] == other_optimizer.state[theirs]["t"] == 3


def test_what_is_no_checkpoint_is_named(tmp_path):
    model, optimizer = _trained()
    with pytest.raises(UserError, match=r"gone\.pt: not found"):
        load_checkpoint(tmp_path / "gone.pt", model, optimizer)
    save_checkpoint(model, optimizer, 1, tmp_path / "half.pt")
    whole = (tmp_path / "half.pt").read_bytes()
    (tmp_path / "half.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"half\.pt: not a readable checkpoint"):
        load_checkpoint(tmp_path / "half.pt", model, optimizer)


def test_the_last_ones_stay(tmp_path):
    model, optimizer = _trained()
    with CheckpointWriter(tmp_path, keep=2) as writer:
        for step in (5, 10, 15, 1000):
            writer.save(model, optimizer, step)
    assert checkpoint_paths(tmp_path) == [checkpoint_path(tmp_path, 15), checkpoint_path(tmp_path, 1000)]
    assert sorted(tmp_path.iterdir()) == checkpoint_paths(tmp_path)  # and nothing else
    assert load_checkpoint(checkpoint_paths(tmp_path)[-1], *_trained(1)) == 1000


def test_protected_ones_stay_beside_the_last_until_they_no_longer_are(tmp_path):
    state = {"model": {}, "optimizer": {}, "iteration": 0}
    with CheckpointWriter(tmp_path, keep=1) as writer:
        for step, protected in ((5, ()), (10, (5,)), (15, (5,)), (20, (15,))):
            writer.write(state, step, protected=protected)
            writer.wait()
            stay = sorted({*protected, step})
            assert checkpoint_paths(tmp_path) == [checkpoint_path(tmp_path, each) for each in stay]


def test_it_holds_the_state_of_when_it_was_asked_for(tmp_path, monkeypatch):
    model, optimizer = _trained()
    before = model[0].weight.detach().clone()
    go, write = threading.Event(), checkpoint._write

    def slow(state, out):
        assert go.wait(10)
        write(state, out)

    monkeypatch.setattr(checkpoint, "_write", slow)
    with CheckpointWriter(tmp_path, keep=1) as writer:
        writer.save(model, optimizer, 3)  # returns although nothing is written yet
        with torch.no_grad():
            model[0].weight.zero_()
        assert checkpoint_paths(tmp_path) == []
        go.set()
    other, other_optimizer = _trained(1)
    load_checkpoint(checkpoint_path(tmp_path, 3), other, other_optimizer)
    assert torch.equal(other[0].weight, before)


def test_tied_weights_are_stored_once(tmp_path):
    model = nn.Sequential(nn.Linear(64, 64, bias=False), nn.Linear(64, 64, bias=False))
    with CheckpointWriter(tmp_path, keep=2) as writer:
        writer.save(model, AdamW(model.parameters()), 1)
        model[1].weight = model[0].weight
        writer.save(model, AdamW(model.parameters()), 2)
    untied, tied = (path.stat().st_size for path in checkpoint_paths(tmp_path))
    assert untied - tied >= 64 * 64 * 4


def test_a_failed_write_is_raised_by_the_next_call_and_keeps_the_one_before(tmp_path, small_disk):
    disk = small_disk("200k")
    model, optimizer = _trained()
    big = nn.Linear(300, 300)  # 360 kB
    writer = CheckpointWriter(disk, keep=1)
    writer.save(model, optimizer, 1)
    writer.wait()
    writer.save(big, AdamW(big.parameters()), 2)
    writer.settle()
    with pytest.raises(UserError, match="the disk is full"):
        writer.raise_failure()
    writer.raise_failure()  # said once
    assert [path.name for path in disk.iterdir()] == [checkpoint_path(disk, 1).name]


def test_an_error_in_the_block_is_not_hidden_by_one_of_the_writer(tmp_path):
    (tmp_path / "file").write_text("")
    model, optimizer = _trained()
    with pytest.raises(KeyError), CheckpointWriter(tmp_path / "file", keep=1) as writer:
        writer.save(model, optimizer, 1)
        raise KeyError
    with pytest.raises(OSError), CheckpointWriter(tmp_path / "file", keep=1) as writer:
        writer.save(model, optimizer, 1)
