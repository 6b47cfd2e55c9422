"""What the subjects on several processes share: their options, the file of rows, the page and its pictures."""

from __future__ import annotations

import argparse
import datetime
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.measure import at_least_one, hardware
from cs336.model.sizes import SIZES
from cs336.model.transformer import ModelConfig
from cs336.profiling.cells import read_rows
from cs336.profiling.parallel_config import ParallelConfig
from cs336.profiling.rank_cells import Rows
from cs336.revision import describe_commit
from cs336.store import versions_of

TRACES = "traces"
TINY = ModelConfig(context_length=16, d_model=32, num_layers=2, num_heads=2, d_ff=64, vocab_size=101)
TINY_BYTES = (100_000, 1_000_000, 10_000_000)  # whose all-reduce a dry run times


def add_step_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the studies that train a model."""
    handout = ParallelConfig()
    parser.add_argument("--size", choices=list(SIZES), default=handout.size, help="whose step (default %(default)s)")
    parser.add_argument(
        "--smaller-size",
        choices=["", *SIZES],
        default=handout.smaller_size,
        help="measured too where a cell of --size does not fit; '' for none (default %(default)s)",
    )
    parser.add_argument("--context-length", type=int, default=0, help="tokens (default: the handout's 512)")
    parser.add_argument("--batch-size", type=int, default=handout.batch_size, help="sequences of a rank (default 2)")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default=handout.precision)
    parser.add_argument("--recompute", type=int, default=0, metavar="LAYERS", help="layers of a segment; 0 keeps all")
    parser.add_argument("--processes", type=int, default=handout.world_size, help="ranks (default %(default)s)")
    parser.add_argument(
        "--rounds",
        type=at_least_one,
        help="jobs of each contender, by turns with the others, each with its --warmup and --repeats steps (default"
        f" {handout.num_rounds}; --tiny: 1)",
    )
    parser.add_argument("--tiny", action="store_true", help="a model of two small layers, for a dry run")
    add_common_arguments(parser)


def add_common_arguments(
    parser: argparse.ArgumentParser, *, warmup: float = ParallelConfig().num_warmup, timed_by: str = "steps"
) -> None:
    """Options of all studies on several processes; the warm-up is counted in steps, or in ms."""
    parser.set_defaults(repeats=ParallelConfig().num_steps)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="NCCL or Gloo (default %(default)s)")
    parser.add_argument(
        "--warmup", type=int, default=warmup, help=f"{timed_by} before those timed (default %(default)s)"
    )
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds of one cell (default %(default)s)")
    parser.add_argument("--again", action="store_true", help="measure also what has a row already")


def step_config(options: argparse.Namespace) -> ParallelConfig:
    """The study that the options describe."""
    return ParallelConfig(
        device=options.device,
        size=options.size,
        smaller_size="" if options.tiny else options.smaller_size,
        model=TINY if options.tiny else None,
        context_length=options.context_length or (TINY.context_length if options.tiny else 0),
        batch_size=options.batch_size,
        precision=options.precision,
        layers_per_segment=options.recompute,
        world_size=options.processes,
        all_reduce_bytes=TINY_BYTES if options.tiny else ParallelConfig().all_reduce_bytes,
        num_warmup=options.warmup,
        num_steps=options.repeats,
        num_rounds=(1 if options.tiny else ParallelConfig().num_rounds) if options.rounds is None else options.rounds,
        timeout_seconds=options.timeout,
    )


def open_rows(subject: str, options: argparse.Namespace) -> Rows:
    """The subject's file of results; what it holds of this machine is not measured again."""
    facts = {
        "subject": subject,
        "hardware": hardware(),
        "nccl": {name: value for name, value in os.environ.items() if name.startswith("NCCL_")},
        "versions": versions_of(("torch", "triton")),
        "commit": describe_commit(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    return Rows(options.results / f"{subject}.jsonl", facts, again=options.again)


def latest_by_machine(path: Path) -> dict[str, list[dict[str, Any]]]:
    """The latest row of each cell in a file of results, also of other machines than this; by CPU and GPUs."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in read_rows(path):
        gpus = Counter(row["hardware"]["gpus"])
        name = ", ".join([*(f"{count} x {gpu}" for gpu, count in gpus.items()), row["hardware"]["cpu"]])
        if name not in found:
            found[name] = Rows(path, row).latest()
    return found


def finish(
    subject: str,
    options: argparse.Namespace,
    rows: list[dict[str, Any]],
    page: str,
    pictures: dict[str, Callable[[Path], object]],
) -> int:
    """Write and print the page, draw the pictures; returns the exit status: 1 if a cell failed.

    Args:
        pictures: file name -> what draws it; without matplotlib they are left out, and a second run draws them.
    """
    options.results.mkdir(parents=True, exist_ok=True)
    (options.results / f"{subject}.md").write_text(page + "\n", encoding="utf-8")
    print(f"\n{page}\n", flush=True)
    try:
        for name, draw in pictures.items():
            draw(options.results / name)
    except ImportError as error:
        print(f"no pictures: {error}; the same command where matplotlib is draws them from the rows")
    return int(any("failure" in row for row in rows))


def say(line: str) -> None:
    """Progress, at once."""
    print(line, flush=True)
