"""The handout's contest: one training step of an 8B model on two GPUs, one sequence of 32,768 tokens on each.

Work timed: zero_grad, forward, cross-entropy, backward, AdamW. Weights, gradients and AdamW's states are in bf16 and
sharded over the ranks by our FSDP; layers are run again in the backward pass, and logits are never held whole. A second
row keeps fp32 masters: the slices are in fp32, and FSDP gathers, computes and reduces in bf16 as in the ranked row.

Source: CS336 2026, assignment 2, leaderboard: 8.13 B parameters, batch 2, bf16, causal.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from timeit import default_timer
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from cs336.hardware import peak_flops_per_second
from cs336.model.accounting import count_parameters, flops_by_part
from cs336.model.layers import RMSNorm, RotaryPositionalEmbedding
from cs336.model.transformer import ModelConfig, TransformerLM
from cs336.parallel.fsdp import FSDP
from cs336.parallel.process_group import Rank
from cs336.profiling.full_step_memory import memory_plan
from cs336.profiling.parallel_config import FULL_STEP_WITH_MASTERS, FullStepConfig
from cs336.profiling.rank_cells import Rows, Say, over_ranks, peak_and_held, require_gpus, run_cell, start_together
from cs336.profiling.rank_steps import fullest, held_by_kind
from cs336.profiling.tables import markdown_table
from cs336.train.loss import linear_cross_entropy
from cs336.train.optimizer import AdamW

LEARNING_RATE = 1e-4
_ESTIMATE_STEPS = 5  # as `triton.testing.do_bench` takes them
_CACHE_BYTES = 256 * 2**20  # zeroed before each step, as there: more than any GPU's second-level cache


def measure_full_step(config: FullStepConfig, rows: Rows, say: Say) -> dict[str, Any]:
    """Time the step; returns its row.

    Raises:
        UserError: fewer GPUs than ranks.
    """
    require_gpus("the full training step", config.world_size, config.device)

    def run() -> dict[str, Any]:
        return run_cell(
            time_full_step,
            config.world_size,
            config,
            device=config.device,
            timeout_seconds=config.timeout_seconds,
        )

    return rows.measure(config.described(), run, say)


@dataclass
class FullStep:
    """A sharded model, its optimizer, and this rank's sequences."""

    model: TransformerLM
    fsdp: FSDP
    optimizer: AdamW
    inputs: Tensor
    targets: Tensor
    chunk_tokens: int
    fused: bool

    def __call__(self) -> Tensor:
        """One step; returns this rank's loss."""
        self.optimizer.zero_grad(set_to_none=True)
        with self.fsdp.forward_pass():
            hidden = self.model.hidden_states(self.inputs)
            loss = self.fsdp.with_whole_weight(self.model.lm_head, self._loss, hidden)
        loss.backward()
        self.fsdp.finish_gradient_synchronization()
        self.optimizer.step()
        return loss.detach()

    def _loss(self, hidden: Tensor) -> Tensor:
        weight = self.model.lm_head.weight
        chunk = self.chunk_tokens
        return linear_cross_entropy(hidden, weight, self.targets, chunk_tokens=chunk, in_place=self.fused).total


def build(config: FullStepConfig, place: Rank) -> FullStep:
    """The step with random weights and tokens; the same weights on all ranks."""
    model = new_model(config, place.device)
    inputs, targets = (part.chunk(place.world_size)[place.rank] for part in whole_batch(config, place.device))
    fsdp = FSDP(model, getattr(torch, config.dtype) if config.fp32_masters else None, keep_dtype=True)
    optimizer = AdamW(model.parameters(), lr=LEARNING_RATE, fused=config.fused)
    return FullStep(model, fsdp, optimizer, inputs, targets, config.chunk_tokens, config.fused)


def new_model(config: FullStepConfig, device: torch.device) -> TransformerLM:
    """Random weights, the same on all ranks."""
    torch.set_float32_matmul_precision("high")
    torch.manual_seed(0)
    model = TransformerLM(config.model, device=device, dtype=getattr(torch, config.slice_dtype)).train()
    if config.compiled:  # what holds no sharded weight: around those, hooks change what a compiled graph would keep
        for module in model.modules():
            if isinstance(module, RMSNorm | RotaryPositionalEmbedding):
                module.compile(dynamic=False)
    model.use_attention_kernel(config.attention).fuse(config.fused)
    return model.recompute_in_segments(config.layers_per_segment, keep_attention=config.keep_attention)


def whole_batch(config: FullStepConfig, device: torch.device) -> Tensor:
    """Inputs and targets of all ranks."""
    generator = torch.Generator().manual_seed(1)
    shape = (2, config.num_sequences, config.model.context_length)
    return torch.randint(config.model.vocab_size, shape, generator=generator).to(device)


def time_full_step(place: Rank, config: FullStepConfig) -> dict[str, Any]:
    """Build, then time as `do_bench` does; every rank calls it.

    Returns:
        Mean `ms` and its spread, seconds of building and first step, counted bytes and the GPU's peaks by rank, the
        plan's, and losses.
    """
    begin = default_timer()
    step = build(config, place)
    first_loss = step().item()
    start_together(place)
    setup_seconds = default_timer() - begin
    building = peak_and_held(place)
    times = bench(place, step, warmup_ms=config.warmup_ms, rep_ms=config.rep_ms)
    last_loss = step().item()
    memory = peak_and_held(place)
    counted = held_by_kind(step.model.parameters(), step.optimizer)
    return times | {
        "setup_seconds": setup_seconds,
        "memory": memory,
        "memory_while_building": building,
        "counted": over_ranks(counted),
        "plan": memory_plan(
            config.model,
            world_size=config.world_size,
            num_tokens=config.tokens_per_rank,
            num_sequences=config.num_sequences // config.world_size,
            element_bytes=getattr(torch, config.dtype).itemsize,
            slice_bytes=getattr(torch, config.slice_dtype).itemsize,
            layers_per_segment=config.layers_per_segment,
            keep_attention=config.keep_attention,
            chunk_tokens=config.chunk_tokens,
            fused_update=config.fused,
        ),
        "losses": [over_ranks(first_loss), over_ranks(last_loss)],
        "peak_flops_per_second": peak_flops_per_second(place.device, config.dtype),
    }


def bench(place: Rank, step: Callable[[], object], *, warmup_ms: float, rep_ms: float) -> dict[str, Any]:
    """Time a step of several ranks by the rules of `triton.testing.do_bench`.

    Five steps give an estimate; from it follow the numbers of steps in `warmup_ms` and `rep_ms`, rank 0's on all
    ranks; before each timed step the cache is overwritten. A step has taken as long as its slowest rank.

    Returns:
        `ms`, the mean as `do_bench` returns it; `ms_min`, `ms_max`, `num_steps`.
    """
    cache = torch.empty(_CACHE_BYTES if place.device.type == "cuda" else 1, dtype=torch.uint8, device=place.device)

    def timed(count: int) -> list[float]:
        seconds = []
        for _ in range(count):
            cache.zero_()
            start_together(place)
            begin = default_timer()
            step()
            if place.device.type == "cuda":
                torch.cuda.synchronize(place.device)
            seconds.append(1e3 * (default_timer() - begin))
        return seconds

    estimate = [statistics.mean(timed(_ESTIMATE_STEPS))]
    dist.broadcast_object_list(estimate, src=0, device=place.device)
    num_warmup, num_steps = (max(1, int(budget / estimate[0])) for budget in (warmup_ms, rep_ms))
    timed(num_warmup)
    slowest = [max(each) for each in zip(*over_ranks(timed(num_steps)), strict=True)]
    return {
        "ms": statistics.mean(slowest),
        "ms_min": min(slowest),
        "ms_max": max(slowest),
        "num_warmup": num_warmup + _ESTIMATE_STEPS,
        "num_steps": num_steps,
    }


# ---- what the figures say

_COLUMNS = {
    "row": "row",
    "model": "model",
    "ranks": "ranks",
    "tokens": "tokens a step",
    "dtype": "dtype",
    "segment": "layers a segment",
    "attention": "attention",
    "rest": "norms, rotation, gate, loss, AdamW",
    "ms": "ms a step, mean",
    "spread": "least to most",
    "used": "of peak",
    "peak_gib": "peak, GiB",
    "planned_gib": "planned, GiB",
    "setup_seconds": "set-up and first step, s",
    "state": "",
}


def step_flops(model: ModelConfig, num_tokens: int) -> float:
    """FLOPs of a step over whole contexts: three forward passes of products, causal attention counted by half."""
    parts = flops_by_part(model, model.context_length)
    causal = sum(parts.values()) - parts["scores"] / 2
    return 3 * causal * num_tokens / model.context_length


def row_name(cell: dict[str, Any]) -> str:
    """Which of the leaderboard's rows a cell is: "ranked", if it is what the rules say, "fp32 masters", or "other"."""
    if cell["work"] == FULL_STEP_WITH_MASTERS:
        return "fp32 masters"
    rules = FullStepConfig()
    as_ruled = all(cell[name] == getattr(rules, name) for name in ("world_size", "num_sequences", "dtype"))
    return "ranked" if as_ruled and ModelConfig(**cell["model"]) == rules.model else "other"


def table_of(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A line for each row that is no check."""
    table = []
    for row in rows:
        cell = row["cell"]
        if "check" in cell:
            continue
        model = ModelConfig(**cell["model"])
        num_tokens = cell["num_sequences"] * model.context_length
        line = {"row": row_name(cell), "tokens": num_tokens} | described(row)
        if "ms" in row:
            line |= {"ms": row["ms"], "spread": f"{row['ms_min']:,.0f} to {row['ms_max']:,.0f}"}
            line |= {"setup_seconds": row["setup_seconds"], "planned_gib": row["plan"]["peak"] / 2**30}
            if row["peak_flops_per_second"]:
                flops = step_flops(model, num_tokens) / (row["ms"] / 1e3)
                line["used"] = f"{flops / (row['peak_flops_per_second'] * cell['world_size']):.1%}"
            if row["memory"]:
                line["peak_gib"] = max(row["memory"]["peak"]) / 2**30
        table.append(line)
    return table


def described(row: dict[str, Any]) -> dict[str, Any]:
    """What was measured or compared, or why not."""
    cell = row["cell"]
    model = ModelConfig(**cell["model"])
    return {
        "model": f"{count_parameters(model).total / 1e9:.3g} B, {model.num_layers} layers",
        "ranks": cell["world_size"],
        "dtype": cell["dtype"],
        "segment": cell["layers_per_segment"],
        "attention": cell["attention"] + (", kept" if cell["keep_attention"] else ""),
        "rest": ", ".join(name for name in ("fused", "compiled") if cell[name]) or "eager",
        "state": row.get("state") or row.get("failure"),
    }


def page(rows: Sequence[dict[str, Any]]) -> str:
    """The table, and each row's memory plan beside what was counted and measured; nothing of checks."""
    table = table_of(rows)
    parts = [markdown_table(table, _COLUMNS)] if table else []
    for row in rows:
        if "plan" not in row:
            continue
        plan = row["plan"]
        counted = fullest(row["counted"])
        lines = [
            {"what": name, "planned": value / 2**30, "counted": counted[name] / 2**30 if name in counted else None}
            for name, value in plan.items()
        ]
        title = f"GiB of a rank, {row_name(row['cell'])}"
        parts.append(markdown_table(lines, {"what": title, "planned": "planned", "counted": "counted"}))
        if row["memory"]:
            peak = max(row["memory"]["peak"])
            parts.append(
                f"The measured peak, {peak / 2**30:.3g} GiB, is {peak / plan['peak'] - 1:+.1%} of the plan's; it is the"
                " figure of PyTorch's allocator, without NCCL's buffers and the CUDA context."
            )
    return "\n\n".join(parts)
