"""Optimizer states whole and sharded on two GPUs: memory around the update by kind, ms a step; beside PyTorch's.

  NCCL_NVLS_ENABLE=0 python -m benchmarks optimizer_shard                  the handout's xl
  python -m benchmarks optimizer_shard --device cpu --tiny --repeats 3     a dry run over Gloo

Rows are appended to results/optimizer_shard.jsonl as cells finish; a second run goes on where the first stopped.
"""

from __future__ import annotations

import argparse

from benchmarks.rank_studies import add_step_arguments, finish, open_rows, say, step_config
from cs336.profiling import optimizer_memory

add_arguments = add_step_arguments


def instead_of_cases(options: argparse.Namespace) -> int:
    """Measure, then write the page."""
    rows = optimizer_memory.measure_optimizers(step_config(options), open_rows("optimizer_shard", options), say)
    return finish("optimizer_shard", options, rows, optimizer_memory.page(rows), {})
