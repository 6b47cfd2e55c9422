"""What sharding the optimizer's states saves in memory and costs in time: the study of the handout's section 3."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from cs336.model.transformer import ModelConfig, TransformerLM
from cs336.parallel.accounting import held_bytes, step_traffic, weights_of
from cs336.parallel.ddp import DDP
from cs336.parallel.optimizer_shard import ShardedOptimizer
from cs336.parallel.process_group import Rank
from cs336.profiling.ddp_times import sizes_of
from cs336.profiling.parallel_config import ParallelConfig, StepSetting
from cs336.profiling.rank_cells import (
    Rows,
    Say,
    Stopwatch,
    over_ranks,
    peak_and_held,
    require_gpus,
    time_steps,
    weights_agree,
)
from cs336.profiling.rank_steps import (
    by_turns,
    fresh_ranks,
    fullest,
    held_by_kind,
    measured_sizes,
    new_model,
    random_batch,
    training_step,
)
from cs336.profiling.spread import how_timed, ratio_text, spread_text
from cs336.profiling.tables import markdown_table
from cs336.train.optimizer import AdamW

WHOLE, SHARDED, PEER = "whole", "sharded", "PyTorch's ZeroRedundancyOptimizer"
OPTIMIZERS = (WHOLE, SHARDED, PEER)
FORM_OF = {WHOLE: "ddp", SHARDED: "zero1"}  # in the accounting
KINDS = ("parameters", "gradients", "states")


def measure_optimizers(config: ParallelConfig, rows: Rows, say: Say) -> list[dict[str, Any]]:
    """Memory and time with states whole, sharded by ours and by PyTorch's; where that does not fit, a smaller size too.

    Raises:
        UserError: fewer GPUs than ranks.
    """
    require_gpus("the study of optimizer states", config.world_size, config.device)
    run = fresh_ranks(config)

    def measure(setting: StepSetting) -> list[dict[str, Any]]:
        ranks = {"processes": config.world_size, "device": config.device}
        cells = {name: {"optimizer": name} | ranks | setting.described() for name in OPTIMIZERS}
        contenders = [(cell, run(measure_optimizer, name, setting)) for name, cell in cells.items()]
        return by_turns(config, contenders, rows, say)

    return measured_sizes(config, measure)


def measure_optimizer(place: Rank, name: str, setting: StepSetting) -> dict[str, Any]:
    """Memory around the first step and time of later ones; every rank calls it.

    Returns:
        `stages`: after initialization, before and after the optimizer's step, what each rank holds by kind (counted
        from its tensors) and the GPU's figures (None on a CPU): bytes held, and the peak since the stage before. And
        what `time_steps` returns.

    Raises:
        RuntimeError: the ranks ended with different weights.
    """
    model = new_model(setting, place.device)
    wrapped = DDP(model)
    optimizer = make_optimizer(name, model)
    stages: dict[str, Any] = {}

    def note(stage: str) -> None:
        inner = getattr(optimizer, "optim", optimizer)  # PyTorch's keeps its states in an optimizer of its own
        counted = over_ranks(held_by_kind(model.parameters(), inner))
        stages[stage] = {"counted": counted, "gpu": peak_and_held(place)}

    note("initialization")
    batch = random_batch(setting, place)
    first = training_step(
        wrapped,
        optimizer,
        batch,
        setting.precision,
        wrapped.finish_gradient_synchronization,
        before_update=lambda: note("before the update"),
    )
    first(Stopwatch(place.device))
    note("after the update")
    step = training_step(wrapped, optimizer, batch, setting.precision, wrapped.finish_gradient_synchronization)
    times = time_steps(place, step, num_warmup=setting.num_warmup, num_steps=setting.num_steps)
    if not weights_agree(list(model.parameters())):
        raise RuntimeError(f"{name}: the ranks ended with different weights")
    return times | {"stages": stages}


def make_optimizer(name: str, model: TransformerLM) -> torch.optim.Optimizer:
    """AdamW with its states whole, or sharded by ours or PyTorch's."""
    if name == WHOLE:
        return AdamW(model.parameters(), lr=1e-5)
    if name == SHARDED:
        return ShardedOptimizer(model.parameters(), AdamW, lr=1e-5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # its package still scripts other optimizers
        from torch.distributed.optim import ZeroRedundancyOptimizer
    return ZeroRedundancyOptimizer(model.parameters(), optimizer_class=AdamW, lr=1e-5)


# ---- what the figures say

_COLUMNS = {
    "optimizer": "states",
    "stage": "when",
    "gpu_peak": "peak, GiB",
    "gpu_held": "held, GiB",
    "parameters": "parameters",
    "gradients": "gradients",
    "states": "states",
    "all": "all three",
    "expected": "closed form",
    "state": "",
}
_TIMES = {
    "optimizer": "states",
    "ms": "ms a step",
    "spread": "spread",
    "update_ms": "of it the update, ms",
    "slower": "against whole",
}
_GIB = 2**30


def memory_table(rows: Sequence[dict[str, Any]], size: str) -> list[dict[str, Any]]:
    """A line for each optimizer and stage, of the fullest rank, in GiB; the closed form beside the last stage."""
    table = []
    for row in rows:
        cell = row["cell"]
        if cell.get("size") != size:
            continue
        if "stages" not in row:
            table.append({"optimizer": cell["optimizer"], "state": row.get("state") or row.get("failure")})
            continue
        for stage, found in row["stages"].items():
            held = fullest(found["counted"])
            line = {"optimizer": cell["optimizer"], "stage": stage}
            line |= {kind: held[kind] / _GIB for kind in KINDS} | {"all": sum(held.values()) / _GIB}
            if found["gpu"]:
                line |= {f"gpu_{key}": max(found["gpu"][key]) / _GIB for key in ("peak", "held")}
            if stage == "after the update" and cell["optimizer"] in FORM_OF:
                line["expected"] = expected_bytes(cell)["total"] / _GIB
            table.append(line)
    return table


def expected_bytes(cell: dict[str, Any]) -> dict[str, int]:
    """What the fullest rank holds by the closed forms of `accounting.held_bytes`."""
    weights = weights_of(TransformerLM(ModelConfig(**cell["model"]), device="meta"))
    held = held_bytes(FORM_OF[cell["optimizer"]], weights, cell["processes"])
    return asdict(held) | {"total": held.total}


def time_table(rows: Sequence[dict[str, Any]], size: str) -> list[dict[str, Any]]:
    """ms a step of each optimizer, and its ratio to whole states."""
    timed = _timed(rows, size)
    whole = next((row for row in timed if row["cell"]["optimizer"] == WHOLE), None)
    return [
        {
            "optimizer": row["cell"]["optimizer"],
            "ms": row["ms"],
            "spread": spread_text(row),
            "update_ms": row["parts_ms"]["optimizer"],
            "slower": ratio_text(row, whole) if whole and row is not whole else None,
        }
        for row in timed
    ]


def _timed(rows: Sequence[dict[str, Any]], size: str) -> list[dict[str, Any]]:
    return [row for row in rows if row["cell"].get("size") == size and "ms" in row]


def page(rows: Sequence[dict[str, Any]]) -> str:
    """Tables of all sizes, and the comparison with ZeRO's first stage."""
    parts = []
    for size in sizes_of(rows):
        cell = next(row["cell"] for row in rows if row["cell"].get("size") == size)
        parts += [
            f"**{size}**, {cell['processes']} ranks of {cell['batch_size']} x {cell['context_length']} tokens,"
            f" {cell['precision']}, AdamW in fp32; of the fullest rank. Peaks count from the line above.",
            markdown_table(memory_table(rows, size), _COLUMNS),
            _memory_comment(rows, size),
            how_timed(_timed(rows, size)),
            markdown_table(time_table(rows, size), _TIMES),
            zero_comparison(cell),
        ]
    return "\n\n".join(part for part in parts if part)


def _memory_comment(rows: Sequence[dict[str, Any]], size: str) -> str:
    after = {row["optimizer"]: row for row in memory_table(rows, size) if row.get("stage") == "after the update"}
    if not {WHOLE, SHARDED} <= after.keys():
        return ""
    saved = after[WHOLE]["all"] - after[SHARDED]["all"]
    said = (
        f"Sharding saves {saved:.3g} GiB a rank, of the states alone ({after[WHOLE]['states']:.3g} to"
        f" {after[SHARDED]['states']:.3g} GiB); the closed forms expect"
        f" {after[WHOLE]['expected'] - after[SHARDED]['expected']:.3g}."
    )
    if "gpu_peak" in after[WHOLE]:
        said += (
            f" The peak of the update falls from {after[WHOLE]['gpu_peak']:.3g} to {after[SHARDED]['gpu_peak']:.3g}"
            " GiB: what an update needs for itself, the roots of the second moments, is there for a round at a time."
        )
    return said


def zero_comparison(cell: dict[str, Any]) -> str:
    """How ours differs from ZeRO's first stage in memory and in bytes sent, computed for this model."""
    weights = weights_of(TransformerLM(ModelConfig(**cell["model"]), device="meta"))
    count = cell["processes"]
    held = held_bytes("zero1", weights, count)
    sent = step_traffic("zero1", weights, count).sent_bytes(count)
    plain = step_traffic("ddp", weights, count).sent_bytes(count)
    once = (count - 1) / count * held.gradients  # a reduce-scatter of all gradients, or a gather of all weights
    return (
        f"**Beside ZeRO's first stage.** Memory: the same. Each rank keeps all {held.parameters / _GIB:.3g} GiB of"
        f" weights, all gradients, and 1/{count} of the states, {held.states / _GIB:.3g} GiB; ours gives whole"
        " parameters to ranks, so a share may be uneven, where ZeRO cuts one flat array into equal parts."
        " Communication: ZeRO reduce-scatters gradients to their owners and gathers updated weights,"
        f" {2 * once / _GIB:.3g} GiB sent by each rank, as much as plain data parallelism ({plain / _GIB:.3g}). Ours"
        f" averages gradients on all ranks first and then broadcasts weights: {sent / _GIB:.3g} GiB,"
        f" {sent / (2 * once):.2f} times as much. In return it works with any form of data parallelism and clips by a"
        " norm that every rank knows."
    )
