"""This machine's choices: workers, device, compilation. They never change an artifact."""

from __future__ import annotations

import os

import dagster as dg

from cs336.processes import wanted_workers


class Runtime(dg.ConfigurableResource):
    """How to run, apart from what to make.

    Attributes:
        num_workers: processes of a step; 0 takes every core (`CS336_WORKERS`).
        device: "auto", "cpu", "cuda" or "cuda:N" (`CS336_DEVICE`).
        runs_at_once: experiment runs of a step that train side by side (`CS336_RUNS_AT_ONCE`): small models leave most
            of a GPU idle. Each has its share of the workers; what fills the memory runs alone, and what stops by the
            clock sees fewer tokens than it would alone.
        compile_model: use `torch.compile` in training (`CS336_COMPILE=1`).
        num_processes: of a training run, on a GPU each where there are as many (`CS336_PROCESSES`).
        parallel: how they share it: "ddp", "zero1", "fsdp" or "fsdp2" (`CS336_PARALLEL`).
        recompute: layers in each segment that training runs again to save memory; 0 keeps all (`CS336_RECOMPUTE`).
        executor: "multiprocess" runs steps here, "ray" as jobs of a Ray cluster (`CS336_EXECUTOR`).
        partitions_per_run: shards that one run of a backfill takes (`CS336_PARTITIONS_PER_RUN`), so that runs spread
            over a cluster; 0 is all in one run.
        terminal: all in one process, as `cs336 run` has it: a line for each artifact, progress bars where a person
            looks on, and no places in Dagster's pools.
    """

    num_workers: int = 0
    device: str = "auto"
    runs_at_once: int = 1
    compile_model: bool = False
    num_processes: int = 1
    parallel: str = "ddp"
    recompute: int = 0
    executor: str = "multiprocess"
    partitions_per_run: int = 0
    terminal: bool = False

    @classmethod
    def from_environment(cls, *, terminal: bool = False) -> Runtime:
        """Read the environment variables named above."""
        return cls(
            num_workers=wanted_workers(),
            device=os.environ.get("CS336_DEVICE", "auto"),
            runs_at_once=int(os.environ.get("CS336_RUNS_AT_ONCE", "1")),
            compile_model=os.environ.get("CS336_COMPILE") == "1",
            num_processes=int(os.environ.get("CS336_PROCESSES", "1")),
            parallel=os.environ.get("CS336_PARALLEL", "ddp"),
            recompute=int(os.environ.get("CS336_RECOMPUTE", "0")),
            executor=os.environ.get("CS336_EXECUTOR", "multiprocess"),
            partitions_per_run=int(os.environ.get("CS336_PARTITIONS_PER_RUN", "0")),
            terminal=terminal,
        )
