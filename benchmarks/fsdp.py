"""Sharded parameters on two GPUs: with and without prefetch, fp32 and bf16, beside whole ones and PyTorch's FSDP2.

  NCCL_NVLS_ENABLE=0 python -m benchmarks fsdp                  the handout's xl
  python -m benchmarks fsdp --device cpu --tiny --repeats 3     a dry run over Gloo

ms a step, peak memory against what the closed forms expect, and for each unit (a block's weights) whether its gather
had finished when its forward came to need it. FSDP2 stands there as `--parallel fsdp2` and called directly. Rows are
appended to results/fsdp.jsonl as cells finish; a second run goes on where the first stopped.
"""

from __future__ import annotations

import argparse

from benchmarks.rank_studies import TRACES, add_step_arguments, finish, open_rows, say, step_config
from cs336.profiling import ddp_times, fsdp_times

add_arguments = add_step_arguments


def instead_of_cases(options: argparse.Namespace) -> int:
    """Measure, then write page and pictures."""
    traces = options.results / TRACES
    rows = fsdp_times.measure_fsdp(step_config(options), open_rows("fsdp", options), traces, say)
    pictures = {}
    for size in ddp_times.sizes_of(rows):
        pictures[f"fsdp_timeline_{size}.png"] = lambda path, size=size: ddp_times.draw_timelines(
            rows, traces, size, path
        )
        pictures[f"fsdp_gathers_{size}.png"] = lambda path, size=size: fsdp_times.draw_gathers(rows, size, path)
    return finish("fsdp", options, rows, fsdp_times.page(rows), pictures)
