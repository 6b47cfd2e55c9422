"""Train in a child process under `torchrun`, its progress relayed into the event log by Dagster Pipes."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import dagster as dg

from cs336.files import UserError, write_json
from cs336.model.transformer import ModelConfig
from cs336.train.experiments import DIVERGED_FILE
from cs336.train.loop import TrainConfig
from cs336.train.metrics import METRICS_FILE, read_rows
from cs336_assets.asset import Step

FAILURE_FILE = "failure.txt"
RUN_FILE = "run.json"


def train_in_child(
    step: Step,
    model: ModelConfig,
    train: TrainConfig,
    *,
    seed: int,
    token_shards: list[Path],
    tokenizer: Path,
    may_diverge: bool = False,
) -> list[dict[str, Any]]:
    """Run the training worker; returns its metrics, one row a step.

    What belongs to this machine (where its inputs lie, threads, device, number of processes) reaches the
    worker through its environment; `run.json` stays in the artifact and is the same on every machine.

    Args:
        model: with its `vocab_size`.
        may_diverge: a loss that stops being a number is a result: `DIVERGED_FILE` says where it did.

    Raises:
        UserError: the worker failed; the line is its own.
    """
    inputs_below = Path(os.path.commonpath([*token_shards, tokenizer]))
    run = {
        "model": dataclasses.asdict(model),
        "train": dataclasses.asdict(train),
        "seed": seed,
        "token_shards": [str(folder.relative_to(inputs_below)) for folder in token_shards],
        "tokenizer": str(tokenizer.relative_to(inputs_below)),
    }
    write_json(step.folder / RUN_FILE, run)
    failure = step.folder / FAILURE_FILE
    diverged = step.folder / DIVERGED_FILE
    for path in (failure, diverged):  # of an attempt before
        path.unlink(missing_ok=True)
    command = [sys.executable, "-m", "cs336_assets.torchrun", "--standalone"]
    command += ["--nproc-per-node", str(step.num_processes)]
    command += ["-m", "cs336_assets.training_worker", str(step.folder / RUN_FILE)]
    environment = {
        "OMP_WAIT_POLICY": "PASSIVE",  # spinning threads stall each other when cores are shared
        "CS336_TRAIN_PARENT": str(os.getpid()),
        "CS336_TRAIN_FAILURE": str(failure),
        "CS336_TRAIN_INPUTS_BELOW": str(inputs_below),
        "CS336_TRAIN_THREADS": str(max(1, step.num_workers // step.num_processes)),
        "CS336_TRAIN_DEVICE": step.device,
        "CS336_TRAIN_COMPILE": str(int(step.compile_model)),
        "CS336_TRAIN_PARALLEL": step.parallel,
        "CS336_TRAIN_RECOMPUTE": str(step.recompute),
    }
    try:
        if step.context is None:
            subprocess.run(command, check=True, env={**os.environ, **environment})
        else:
            dg.PipesSubprocessClient().run(context=step.context, command=command, env={**os.environ, **environment})
    except (dg.DagsterExecutionInterruptedError, KeyboardInterrupt):
        raise
    except Exception as error:
        if may_diverge and diverged.exists():
            failure.unlink(missing_ok=True)
        elif failure.exists():
            raise UserError(failure.read_text(encoding="utf-8").strip()) from error
        else:
            raise
    return list(read_rows(step.folder / METRICS_FILE))
