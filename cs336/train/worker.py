"""One training process: `torchrun -m cs336.train.worker run.json`.

`run.json` describes the whole run; the process needs nothing else of this project's data side, so
it also runs on machines that have PyTorch and little more.

    {"model": {...}, "train": {...}, "seed": 0, "folder": "out",
     "token_shards": ["folder of a shard", ...],
     "device": "auto", "compile": false, "num_threads": 2}
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from cs336.files import UserError, read_json
from cs336.model.transformer import ModelConfig, TransformerLM
from cs336.progress import Progress, bar
from cs336.tokens.shards import concatenate
from cs336.train.loop import Report, TrainConfig, train


def main(arguments: list[str] | None = None) -> int:
    """Train what the file describes, with a progress bar."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run.json")
    try:
        run_training(read_json(parser.parse_args(arguments).run), progress=bar)
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def run_training(run: dict[str, Any], *, report: Report = lambda row: None, progress: Progress) -> TransformerLM:
    """Train from a run description.

    Args:
        run: see the module's description; unknown settings are errors.
        report: called with every row of metrics.

    Raises:
        UserError: a setting that is missing or does not exist, or more than one process.
    """
    needed, known = {"model", "train", "seed", "folder", "token_shards"}, {"device", "compile", "num_threads"}
    if needed - run.keys() or run.keys() - needed - known:
        wrong = sorted((needed - run.keys()) or (run.keys() - needed - known))
        raise UserError(f"run.json: {'lacks' if needed - run.keys() else 'has an unknown'} {', '.join(wrong)}")
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size > 1:
        raise UserError(f"torchrun started {world_size} processes; training uses one so far: --nproc-per-node 1")
    torch.set_num_threads(run.get("num_threads") or torch.get_num_threads())
    torch.set_float32_matmul_precision("high")  # TF32 on GPUs; the CPU stays at fp32
    folders = [Path(folder) for folder in run["token_shards"]]
    return train(
        _config(ModelConfig, run["model"]),
        _config(TrainConfig, run["train"]),
        train_tokens=concatenate(folders, "train"),
        valid_tokens=concatenate(folders, "valid"),
        seed=run["seed"],
        folder=Path(run["folder"]),
        device=run.get("device", "auto"),
        compile_model=run.get("compile", False),
        report=report,
        progress=progress,
    )


def _config(kind: type, values: dict[str, Any]) -> Any:
    unknown = values.keys() - {field.name for field in fields(kind)}
    if unknown:
        raise UserError(f"run.json: {kind.__name__} has no setting {', '.join(sorted(unknown))}")
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


if __name__ == "__main__":
    sys.exit(main())
