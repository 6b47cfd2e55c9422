"""All-reduce of 1 MB to 1 GB on 2, 4 and 6 processes: time, bus bandwidth, latency.

  python -m benchmarks collectives                 NCCL, on those numbers of processes that there are GPUs for
  python -m benchmarks collectives --processes 8   another number
  python -m benchmarks collectives --device cpu    Gloo
  python -m benchmarks collectives --device cpu --tiny --results FOLDER    a dry run

Rows are appended to results/collectives.jsonl, a median of --repeats calls each; sizes that have a row of this machine
are not measured again (--again does). The page and the plot speak of all rows of the file that this machine has, of
both backends.
"""

from __future__ import annotations

import argparse

from benchmarks.rank_studies import TINY_BYTES, add_common_arguments, finish, open_rows, say
from cs336.profiling import collective_times
from cs336.profiling.parallel_config import ParallelConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the study."""
    add_common_arguments(parser)
    parser.set_defaults(repeats=ParallelConfig().num_calls)
    parser.add_argument("--processes", type=_at_least_two, nargs="+", help="(default: 2 4 6)")
    parser.add_argument("--bytes", type=int, nargs="+", help="of a tensor (default: 1, 10, 100 MB, 1 GB)")
    parser.add_argument("--tiny", action="store_true", help="two processes and small tensors, for a dry run")


def _at_least_two(text: str) -> int:
    number = int(text)
    if number < 2:
        raise argparse.ArgumentTypeError(f"{number} is too few; an all-reduce is between two processes or more")
    return number


def instead_of_cases(options: argparse.Namespace) -> int:
    """Measure, then write page and plot."""
    handout = ParallelConfig()
    config = ParallelConfig(
        device=options.device,
        process_counts=tuple(options.processes or ((2,) if options.tiny else handout.process_counts)),
        all_reduce_bytes=tuple(options.bytes or (TINY_BYTES if options.tiny else handout.all_reduce_bytes)),
        num_warmup=options.warmup,
        num_steps=options.repeats,
        num_rounds=1,
        timeout_seconds=options.timeout,
    )
    rows = open_rows("collectives", options)
    measured = collective_times.measure_all_reduces(config, rows, say)
    known = rows.latest()
    return finish(
        "collectives",
        options,
        measured,
        collective_times.page(known),
        {"collectives.png": lambda path: collective_times.draw(known, path)},
    )
