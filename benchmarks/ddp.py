"""Data parallelism on two GPUs: naive, flat, overlapped, bucketed, PyTorch's; ms a step and the share communicating.

  NCCL_NVLS_ENABLE=0 python -m benchmarks ddp                   the handout's xl
  python -m benchmarks ddp --device cpu --tiny --repeats 3      a dry run over Gloo

Also two profiled steps, drawn with computation and communication as rows, and the model of bucketed overhead against
what was measured. Rows are appended to results/ddp.jsonl as cells finish; a second run goes on where the first stopped.
"""

from __future__ import annotations

import argparse
import dataclasses

from benchmarks.rank_studies import TRACES, add_step_arguments, finish, open_rows, say, step_config
from cs336.profiling import ddp_times


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the study."""
    add_step_arguments(parser)
    parser.add_argument("--all-reduce-bytes", type=int, nargs="+", help="sizes that w and o are fitted to")


def instead_of_cases(options: argparse.Namespace) -> int:
    """Measure, then write page and pictures."""
    config = step_config(options)
    if options.all_reduce_bytes:
        config = dataclasses.replace(config, all_reduce_bytes=tuple(options.all_reduce_bytes))
    traces = options.results / TRACES
    rows = ddp_times.measure_ddp(config, open_rows("ddp", options), traces, say)
    pictures = {
        f"ddp_timeline_{size}.png": lambda path, size=size: ddp_times.draw_timelines(rows, traces, size, path)
        for size in ddp_times.sizes_of(rows)
    }
    return finish("ddp", options, rows, ddp_times.page(rows), pictures)
