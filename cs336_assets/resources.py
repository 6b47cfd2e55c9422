"""This machine's choices: workers, device, compilation. They never change an artifact."""

from __future__ import annotations

import os

import dagster as dg


class Runtime(dg.ConfigurableResource):
    """How to run, apart from what to make.

    Attributes:
        num_workers: processes of a step; 0 takes every core (`CS336_WORKERS`).
        device: "auto", "cpu", "cuda" or "cuda:N" (`CS336_DEVICE`).
        compile_model: use `torch.compile` in training (`CS336_COMPILE=1`).
        terminal: print a line for each artifact, and draw progress bars where a person looks on.
    """

    num_workers: int = 0
    device: str = "auto"
    compile_model: bool = False
    terminal: bool = False

    @classmethod
    def from_environment(cls, *, terminal: bool = False) -> Runtime:
        """Read the environment variables named above."""
        return cls(
            num_workers=int(os.environ.get("CS336_WORKERS", "0")),
            device=os.environ.get("CS336_DEVICE", "auto"),
            compile_model=os.environ.get("CS336_COMPILE") == "1",
            terminal=terminal,
        )
