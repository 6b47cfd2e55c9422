"""The benchmark of fused kernels: what stands beside ours is what its name says."""

import functools

import pytest
import torch
from torch._dynamo.testing import CompileCounter

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
