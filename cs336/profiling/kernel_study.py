"""The profiler's study: cells by size and context, and the handout's five questions answered from their rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from cs336.profiling.cells import FAILURE, Cell, Row
from cs336.profiling.config import ProfilingConfig
from cs336.profiling.kernel_times import MATMUL, answer_questions, kind_of, short_name
from cs336.profiling.pages import Page, Table
from cs336.profiling.step_times import STEP, StepConfig
from cs336.profiling.tables import OUT_OF_MEMORY, span


def profile_contexts(config: ProfilingConfig, size: str) -> list[int]:
    """Contexts at which a size is profiled: the grid's, and for the long ones its last doubled on and on."""
    contexts = list(config.profile_contexts)
    while size in config.long_sizes and 2 * contexts[-1] <= config.longest_context:
        contexts.append(2 * contexts[-1])
    return contexts


def profile_cells(config: ProfilingConfig, sizes: Sequence[str], device: torch.device, folder: Path) -> list[Cell]:
    """One cell for each size and context; contexts rise, and none is tried after one that did not fit."""
    cells = []
    for size in sizes:
        for context in profile_contexts(config, size):
            step = StepConfig(
                size=size,
                context_length=context,
                batch_size=config.batch_size,
                warmup=config.warmup_steps,
                steps=config.measured_steps,
            )
            cells.append(
                Cell(
                    name=f"profile, {size}, T={context}",
                    settings={"kind": "profile"} | dataclasses.asdict(step),
                    measure=partial(answer_questions, step, device, folder / "traces"),
                    hopeless=partial(_smaller_did_not_fit, size),
                )
            )
    return cells


def _smaller_did_not_fit(size: str, rows: Sequence[Row]) -> bool:
    return any(row["settings"].get("size") == size and row.get(FAILURE) == OUT_OF_MEMORY for row in rows)


def profile_page(config: ProfilingConfig, sizes: Sequence[str], rows: Sequence[Row]) -> Page:
    """The answers to questions 1 to 5, a table each."""
    chosen = [row for row in rows if row["settings"]["kind"] == "profile" and row["settings"]["size"] in sizes]
    lines = [_line(row) for row in chosen if row.get("tried", True)]
    longest = {
        size: max(row["settings"]["context_length"] for row in _sound(chosen) if row["settings"]["size"] == size)
        for size in config.long_sizes
        if any(row["settings"]["size"] == size for row in _sound(chosen))
    }
    said = "; ".join(f"{size}: {context:,}" for size, context in longest.items())
    where = {"size": "size", "context": "context"}
    return Page(
        text="\n\n".join(
            [
                "fp32, batch of the handout. Times are of kernels on the device; of a CPU, where operators stand for"
                " kernels, of operators without those that they call."
                + (f" The longest contexts whose forward pass was profiled: {said}." if said else ""),
                _comment(_sound(chosen)),
            ]
        ),
        tables=[
            Table(
                lines,
                where
                | {"kernel_ms": "kernels, ms", "timer_ms": "timer, ms", "kernels_over_timer": "kernels / timer"}
                | {"num_kernel_calls": "kernel calls"},
                "1. Forward pass: the profiler's kernels against the timer",
            ),
            Table(
                lines,
                where
                | {"top": "most time in the forward pass", "top_kernel_calls": "calls", "top_share": "share"}
                | {"training_top": "most time in forward and backward", "training_top_calls": "calls there"}
                | {"top_kernel_stays": "the same"},
                "2. The kernel with most cumulative time",
            ),
            Table(
                lines, where | {"others": "kernel (share, calls)"}, "3. Largest kernels but matrix products, forward"
            ),
            Table(
                lines,
                where
                | {"forward_matmul": "inference", "passes_matmul": "forward and backward"}
                | {"training_matmul": "whole step", "training_mode": "training was run as"},
                "4. Share of matrix products",
            ),
            Table(
                lines,
                where
                | {"softmax_ms": "softmax, ms", "matmul_ms": "two products, ms", "around_ms": "mask, scale, casts, ms"}
                | {"softmax_over_matmul_time": "softmax / products: time", "flop_ratio": "the same: FLOPs"},
                "5. Inside attention",
            ),
        ],
    )


def _sound(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if FAILURE not in row]


def _line(row: Row) -> Row:
    line: Row = {"size": row["settings"]["size"], "context": row["settings"]["context_length"]}
    if FAILURE in row:
        return line | dict.fromkeys(("kernel_ms", "top", "others", "forward_matmul", "softmax_ms"), row[FAILURE])
    line |= {
        "kernel_ms": 1e3 * row["kernel_seconds"],
        "timer_ms": 1e3 * row["timer_seconds"],
        "kernels_over_timer": row["kernels_over_timer"],
        "num_kernel_calls": row["num_kernel_calls"],
        "top": short_name(row["top_kernel"]),
        "top_kernel_calls": row["top_kernel_calls"],
        "top_share": f"{row['top_kernel_share']:.1%}",
        "others": "; ".join(
            f"{each['kernel']} ({each['share']:.1%}, {each['calls']})" for each in row["other_kernels"]
        ),
        "forward_matmul": f"{row['forward_matmul_share']:.1%}",
        "training_mode": row["training_mode"] or OUT_OF_MEMORY,
        "softmax_ms": 1e3 * row["softmax_seconds"],
        "matmul_ms": 1e3 * row["attention_matmul_seconds"],
        "around_ms": 1e3 * row["mask_scale_cast_seconds"],
        "softmax_over_matmul_time": row["softmax_over_matmul_time"],
        "flop_ratio": row["softmax_over_matmul_flops"],
    }
    if row["training_mode"]:
        line |= {
            "training_top": short_name(row["training_top_kernel"]),
            "training_top_calls": row["training_top_calls"],
            "top_kernel_stays": row["top_kernel_stays"],
            "passes_matmul": f"{row['passes_matmul_share']:.1%}",
            "training_matmul": f"{row['training_matmul_share']:.1%}" if row["training_mode"] == STEP else OUT_OF_MEMORY,
        }
    else:
        line |= dict.fromkeys(("training_top", "passes_matmul", "training_matmul"), OUT_OF_MEMORY)
    return line


def _comment(rows: Sequence[Row]) -> str:
    """What the tables say in words."""
    if not rows:
        return "Nothing could be profiled."
    low, high = _range([row["kernels_over_timer"] for row in rows])
    products = sum(kind_of(row["top_kernel"]) == MATMUL for row in rows)
    trained = [row for row in rows if row["training_mode"]]
    stays = sum(row["top_kernel_stays"] for row in trained)
    said = [
        f"1. Kernels fill {low} to {high} of the timer's seconds; what is missing is the device waiting for launches.",
        f"2. In {products} of {len(rows)} cells the kernel with most time is a matrix product; with the backward pass"
        f" the same one stays on top in {stays} of {len(trained)}.",
    ]
    shares = [1 - row["forward_matmul_share"] for row in rows]
    said.append(
        "3. Everything that is no matrix product takes {} to {} of the forward pass: it does few FLOPs, and reads and"
        " writes whole tensors for each.".format(*_range(shares))
    )
    steps = [row for row in trained if row["training_mode"] == STEP]
    drops = [row["forward_matmul_share"] - row["training_matmul_share"] for row in steps]
    if drops:
        direction = "less" if min(drops) > 0 else "more" if max(drops) < 0 else "less in some cells and more in others"
        said.append(
            f"4. Of a training step matrix products take {direction} than of inference: the optimizer and the backward"
            " passes of elementwise operations have none, the backward passes of products have two each."
        )
    times = [row["softmax_over_matmul_time"] for row in rows if row["softmax_over_matmul_time"]]
    if times:
        flops = [row["softmax_over_matmul_flops"] for row in rows]
        slower = min(times) > max(flops)
        said.append(
            f"5. Softmax takes {span(times, '.2f')} times as long as attention's two products, and"
            f" {span(flops, '.3f')} times their FLOPs"
            + (": it is bound by memory, they by arithmetic." if slower else ".")
        )
    return "\n".join(said)


def _range(values: Sequence[float]) -> tuple[str, str]:
    return f"{min(values):.0%}", f"{max(values):.0%}"
