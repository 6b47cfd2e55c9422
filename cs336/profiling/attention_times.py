"""Single-head attention as the formula has it: time and memory over width and length, until memory ends."""

from __future__ import annotations

import math
import timeit
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cs336.model.attention import causal_mask, scaled_dot_product_attention
from cs336.profiling.cells import FAILURE, Cell, Row, is_out_of_memory
from cs336.profiling.config import ProfilingConfig
from cs336.profiling.pages import Page, Table
from cs336.profiling.saved_tensors import saved_tensors
from cs336.profiling.step_times import WARMUP_STEPS
from cs336.profiling.tables import OUT_OF_MEMORY

BYTES_FP32 = 4
# Matrices of batch x T x T numbers that the reference keeps for its backward pass: the masked scores (for the gradient
# of their maximum), their exponentials, and the weights. Never more are there at once in the forward pass.
SCORE_MATRICES = 3


def attention_cells(config: ProfilingConfig, sizes: Sequence[str], device: torch.device, folder: Path) -> list[Cell]:
    """Widths x lengths, eager and compiled; lengths rise, and none is tried after one that did not fit."""
    cells = []
    for compiled in (False, True):
        for width in config.attention_widths:
            for length in attention_lengths(config):
                settings = {
                    "kind": "attention",
                    "batch_size": config.attention_batch_size,
                    "d": width,
                    "length": length,
                    "compiled": compiled,
                    "steps": config.attention_steps,
                }
                cells.append(
                    Cell(
                        name=f"attention, d={width}, T={length}, {'compiled' if compiled else 'eager'}",
                        settings=settings,
                        measure=partial(measure_attention, settings, device),
                        hopeless=partial(_shorter_did_not_fit, settings),
                    )
                )
    return cells


def attention_lengths(config: ProfilingConfig) -> list[int]:
    """The grid's, then the last one doubled on and on."""
    lengths = list(config.attention_lengths)
    while 2 * lengths[-1] <= config.longest_attention:
        lengths.append(2 * lengths[-1])
    return lengths


def _shorter_did_not_fit(settings: Row, rows: Sequence[Row]) -> bool:
    same = ("kind", "d", "compiled")
    return any(
        row.get(FAILURE) == OUT_OF_MEMORY and all(row["settings"].get(name) == settings[name] for name in same)
        for row in rows
    )


def measure_attention(settings: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Forward passes, then backward passes, of causal attention without a head axis, in fp32.

    Returns:
        `forward_seconds` and `backward_seconds`, means; on a GPU `saved_bytes`, in use just before the backward pass
        beyond inputs, mask and output, and `peak_bytes`; else None. If only the backward pass does not fit, what is
        known of the forward pass and `backward_failure`.

    Raises:
        torch.OutOfMemoryError: not even a forward pass fits.
    """
    torch.set_float32_matmul_precision("highest")
    torch.manual_seed(0)
    shape = (settings["batch_size"], settings["length"], settings["d"])
    inputs = [torch.randn(shape, device=device, requires_grad=True) for _ in range(3)]
    grad = torch.randn(shape, device=device)
    mask = causal_mask(settings["length"], settings["length"], device=device)
    attention: Callable[..., Tensor] = scaled_dot_product_attention
    if settings["compiled"]:
        attention = torch.compile(attention, dynamic=False)

    def forward() -> Tensor:
        return attention(*inputs, mask)

    forward_seconds = _mean_seconds(lambda ready: forward(), settings["steps"], device)
    figures: dict[str, Any] = {"forward_seconds": forward_seconds, "saved_bytes": None, "peak_bytes": None}
    held = _allocated(device)  # with what the library of products takes for itself the first time
    output = forward()
    before_backward = _allocated(device)
    if held is not None and before_backward is not None:
        figures["saved_bytes"] = before_backward - held - output.untyped_storage().nbytes()
    del output
    try:  # each on a graph of its own: compiled code gives its buffers away in the first backward pass
        figures["backward_seconds"] = _mean_seconds(
            lambda output: torch.autograd.grad(output, inputs, grad), settings["steps"], device, prepare=forward
        )
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        figures["backward_failure"] = OUT_OF_MEMORY
    if device.type == "cuda":
        figures["peak_bytes"] = torch.cuda.max_memory_allocated(device)
    return figures


def _allocated(device: torch.device) -> int | None:
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    return torch.cuda.memory_allocated(device)


def _mean_seconds(
    run: Callable[[Any], Any], steps: int, device: torch.device, *, prepare: Callable[[], Any] = lambda: None
) -> float:
    """Mean over steps after a warm-up, with the device waited for after each; what prepares a step is not timed."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    def once() -> float:
        ready = prepare()
        wait()
        start = timeit.default_timer()
        run(ready)
        wait()
        return timeit.default_timer() - start

    for _ in range(min(WARMUP_STEPS, steps)):
        once()
    return math.fsum(once() for _ in range(steps)) / steps


# ---- memory in closed form


def saved_attention_bytes(batch_size: int, length: int, d: int) -> int:
    """What the reference keeps for its backward pass beyond its inputs, in fp32, and the inverted mask.

    Three matrices of batch x T x T, a maximum and a sum for each row, and the scaled queries.
    """
    rows = batch_size * length
    return BYTES_FP32 * (SCORE_MATRICES * rows * length + 2 * rows + rows * d) + length**2


def measured_saved_bytes(batch_size: int, length: int, d: int) -> int:
    """The same, read off the graph; nothing is computed, so any length will do."""
    q, k, v = (torch.empty(batch_size, length, d, device="meta", requires_grad=True) for _ in range(3))
    mask = causal_mask(length, length, device="meta")
    kept = saved_tensors(lambda: scaled_dot_product_attention(q, k, v, mask), excluded=(q, k, v))
    return sum(each.num_bytes for each in kept)


# ---- the page


def attention_page(config: ProfilingConfig, sizes: Sequence[str], rows: Sequence[Row]) -> Page:
    """Latency and memory over width and length, and the accounting of the smallest case that did not fit."""
    chosen = [row for row in rows if row["settings"]["kind"] == "attention"]
    lines = [_line(row) for row in chosen if row.get("tried", True)]
    return Page(
        text="\n\n".join([_accounting(chosen), _growth(chosen), _remedy()]),
        tables=[
            Table(
                lines,
                {"compiled": "compiled", "d": "d", "length": "T", "forward": "forward, ms", "backward": "backward, ms"}
                | {"saved": "saved for backward, MiB", "closed_form": "closed form, eager, MiB", "peak": "peak, MiB"},
                f"Causal attention, one head, batch {config.attention_batch_size}, fp32; means of"
                f" {config.attention_steps} passes",
            )
        ],
    )


def _line(row: Row) -> Row:
    settings = row["settings"]
    line = {name: settings[name] for name in ("compiled", "d", "length")}
    saved = saved_attention_bytes(settings["batch_size"], settings["length"], settings["d"])
    line["closed_form"] = saved / 2**20
    if FAILURE in row:
        return line | {"forward": row[FAILURE], "backward": row[FAILURE]}
    backward = row.get("backward_failure") or 1e3 * row["backward_seconds"]
    return line | {
        "forward": 1e3 * row["forward_seconds"],
        "backward": backward,
        "saved": row["saved_bytes"] and row["saved_bytes"] / 2**20,
        "peak": row["peak_bytes"] and row["peak_bytes"] / 2**20,
    }


def _accounting(rows: Sequence[Row]) -> str:
    failed = [
        row["settings"]
        for row in rows
        if not row["settings"]["compiled"] and OUT_OF_MEMORY in (row.get(FAILURE), row.get("backward_failure"))
    ]
    if not failed:
        return "Every length that was tried fitted."
    smallest = min(failed, key=lambda settings: (settings["length"], settings["d"]))
    batch, length, d = smallest["batch_size"], smallest["length"], smallest["d"]
    matrix = BYTES_FP32 * batch * length**2
    small = BYTES_FP32 * batch * length * d
    return (
        f"**The smallest eager case that did not fit**: d = {d}, T = {length:,}. Inputs, output and their gradients are"
        f" {8 * small / 2**20:,.0f} MiB in all, and do not matter. One matrix of scores is {batch} x {length:,}² x"
        f" {BYTES_FP32} B = {matrix / 2**30:.2f} GiB. The forward pass makes {SCORE_MATRICES} of them and keeps all"
        f" ({SCORE_MATRICES * matrix / 2**30:.1f} GiB) for the backward pass: the masked scores, their exponentials and"
        " the weights. The backward pass makes the gradients of weights and scores beside them, one more matrix or two."
    )


def _growth(rows: Sequence[Row]) -> str:
    eager = [row for row in rows if not row["settings"]["compiled"] and row.get("saved_bytes")]
    by_width: dict[int, list[Row]] = {}
    for row in eager:
        by_width.setdefault(row["settings"]["d"], []).append(row)
    said = []
    for width, found in by_width.items():
        first, last = found[0], found[-1]
        if len(found) > 1:
            factor = last["saved_bytes"] / first["saved_bytes"]
            times = last["settings"]["length"] / first["settings"]["length"]
            said.append(f"d = {width}: {factor:,.0f} times as much at {times:,.0f} times the length")
    return "**Memory saved for the backward pass** grows as T², with the three matrices of scores" + (
        f" ({'; '.join(said)})." if said else "."
    )


def _remedy() -> str:
    return (
        "**To be rid of it**: never hold the matrix. FlashAttention-2 goes over tiles of keys with a running maximum"
        " and sum, keeps one number a row (the logsumexp) and makes the weights again in the backward pass: memory"
        " grows as T."
    )
