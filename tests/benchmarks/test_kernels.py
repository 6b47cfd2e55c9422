"""The benchmark of fused kernels: what stands beside ours is what its name says."""

import functools
import sys

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from benchmarks import attention_tiles, counters
from benchmarks.__main__ import main
from benchmarks.kernels import KERNELS


@pytest.mark.parametrize("name", KERNELS)
def test_what_is_timed_as_compiled_is_compiled_once_and_for_all(name, monkeypatch):
    torch._dynamo.reset()
    counter = CompileCounter()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=counter))
    work = KERNELS[name](torch.device("cpu"), 512).works["compiled"]()
    for _ in range(2):  # optimizers make their states in the first
        work()
    assert counter.frame_count
    with torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(10):
            work()


def test_without_a_gpu_one_line_says_so_and_nothing_is_measured(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for arguments in (["attention"], ["attention", "--table"], ["kernels"]):
        assert main([*arguments, "--results", str(tmp_path)]) == 1
        assert "are for a GPU, and there is none; a dry run: TRITON_INTERPRET=1" in capsys.readouterr().err
    assert attention_tiles.main(["--out", str(tmp_path / "tiles.json")]) == 1
    assert "this machine has none" in capsys.readouterr().err
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(sys, "argv", ["counters", "--results", str(tmp_path)])
    assert counters.main() == 1
    assert "ncu is not installed" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
