"""The training worker as a child of the graph: the library's worker, talking to Dagster Pipes."""

from __future__ import annotations

import contextlib
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from dagster_pipes import PipesContext, open_dagster_pipes

from cs336.files import UserError, read_json
from cs336.processes import die_with_parent
from cs336.progress import bar, silent
from cs336.train.experiments import DIVERGED_FILE
from cs336.train.loop import NotFinite
from cs336.train.worker import is_first_rank, leave, run_training

REPORT_EVERY_SECONDS = 5.0


def main(run_file: Path) -> int:
    """Train, and report a line of metrics every few seconds."""
    die_with_parent()
    run = read_json(run_file) | {
        "folder": str(run_file.parent),
        "num_threads": int(os.environ["CS336_TRAIN_THREADS"]),
        "device": os.environ["CS336_TRAIN_DEVICE"],
        "compile": os.environ["CS336_TRAIN_COMPILE"] == "1",
    }
    below = Path(os.environ["CS336_TRAIN_INPUTS_BELOW"])
    run["token_shards"] = [str(below / folder) for folder in run["token_shards"]]
    run["tokenizer"] = str(below / run["tokenizer"])
    first = is_first_rank()  # of several the first alone talks to Dagster
    with open_dagster_pipes() if first else contextlib.nullcontext() as pipes:
        try:
            run_training(
                run,
                name=run_file.name,
                parallel=os.environ["CS336_TRAIN_PARALLEL"],
                recompute=int(os.environ["CS336_TRAIN_RECOMPUTE"]),
                report=_reporter(pipes, run["train"]["num_steps"], run["train"]["max_seconds"]) if pipes else _unseen,
                progress=bar if first and sys.stderr.isatty() else silent,
            )
        except KeyboardInterrupt:
            return 130  # whoever pressed Ctrl-C knows
        except Exception as error:
            if isinstance(error, NotFinite):
                (run_file.parent / DIVERGED_FILE).write_text(error.event, encoding="utf-8")
            if pipes and not isinstance(error, UserError):
                pipes.log.error(traceback.format_exc())  # into the run's log; the terminal gets one line
            said = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            Path(os.environ["CS336_TRAIN_FAILURE"]).write_text(f"{said}\n", encoding="utf-8")
            return 1
    return 0


def _unseen(row: dict[str, Any]) -> None:
    pass


def _reporter(pipes: PipesContext, num_steps: int, max_seconds: float) -> Any:
    last = time.monotonic()

    def report(row: dict[str, Any]) -> None:
        nonlocal last
        if "valid_loss" not in row and time.monotonic() - last < REPORT_EVERY_SECONDS:
            return
        last = time.monotonic()
        left = row["seconds"] / row["step"] * (num_steps - row["step"])
        if max_seconds:
            left = min(left, max(0.0, max_seconds - row["seconds"]))
        valid = f", valid loss {row['valid_loss']:.3f}" if "valid_loss" in row else ""
        pipes.log.info(
            f"step {row['step']:,} of {num_steps:,}: loss {row['train_loss']:.3f}{valid},"
            f" {row['tokens_per_second']:,} tokens/s, {left:,.0f} s left"
        )

    return report


if __name__ == "__main__":
    leave(lambda: main(Path(sys.argv[1])))
