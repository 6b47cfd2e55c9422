"""Devices by name: a GPU with a number becomes the current one, and one that is not there is one line."""

import pytest
import torch

from cs336.files import UserError
from cs336.hardware import pick_device


def test_a_gpu_named_by_number_becomes_the_current_one(monkeypatch):
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert pick_device("cuda:1") == torch.device("cuda", 1) == chosen.pop()
    assert pick_device().type == "cuda" and pick_device("cpu").type == "cpu" and not chosen
    with pytest.raises(UserError, match=r"^device cuda:2: this machine has 2, from cuda:0 on$"):
        pick_device("cuda:2")


def test_a_device_that_is_none_is_one_line(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="no usable GPU"):
        pick_device("cuda:0")
    with pytest.raises(UserError, match="'gpu' is none"):
        pick_device("gpu")
