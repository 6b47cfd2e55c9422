"""What data parallelism costs a training step: ways of sending gradients, beside a step that sends none.

Communication's share is measured in two ways. `exposed` is the step's time less that of the same step, on the same
ranks at the same time, that sends nothing: what communication costs. `after backward` is the time from the end of the
backward pass to the last averaged gradient, between events: what is left to wait for.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cs336.parallel.collectives import broadcast
from cs336.parallel.cost_model import best_bucket_bytes, bucketed_overhead_seconds
from cs336.parallel.ddp import DDP, DDPBucketed, average_gradients
from cs336.parallel.process_group import Rank
from cs336.profiling import timelines
from cs336.profiling.collective_times import Line, fit_line, time_all_reduces
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
    measured_sizes,
    new_model,
    random_batch,
    tensor_bytes,
    training_step,
)
from cs336.profiling.spread import how_timed, overlap, ratio_text, spread_of, spread_text
from cs336.profiling.tables import markdown_table
from cs336.train.optimizer import AdamW

ALONE = "nothing sent"
NAIVE, FLAT, OVERLAPPED = "naive", "flat", "overlapped"
PEER = "PyTorch's DDP"
PROFILED = (NAIVE, OVERLAPPED)
FIT = "all-reduce"
TRACES = "traces"


def _nothing() -> None:
    return None


@dataclass(frozen=True)
class Wrapped:
    """A module as one form trains it.

    Attributes:
        call: what is called with the inputs.
        finish: brings the gradients over the ranks, after backward.
        num_messages: all-reduces of a step; None where PyTorch does not say.
    """

    call: nn.Module
    finish: Callable[[], object] = field(default=_nothing)
    num_messages: int | None = 0


def forms(config: ParallelConfig) -> list[str]:
    """Names of the forms, the step that sends nothing first."""
    return [ALONE, NAIVE, FLAT, OVERLAPPED, *map(bucketed, config.bucket_sizes_mb), PEER]


def bucketed(size_mb: float) -> str:
    """The name of the form with buckets of so many MB."""
    return f"buckets of {size_mb:g} MB"


def wrap(form: str, model: nn.Module, place: Rank) -> Wrapped:
    """The model under a form; rank 0's values on all ranks.

    Raises:
        ValueError: there is no such form.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if form == ALONE:
        return Wrapped(model)
    if form in (NAIVE, FLAT):
        broadcast([*model.parameters(), *model.buffers()])
        flat = form == FLAT
        return Wrapped(
            model, lambda: average_gradients(model.parameters(), flat=flat), num_messages=1 if flat else len(trainable)
        )
    if form == OVERLAPPED:
        each = DDP(model)
        return Wrapped(each, each.finish_gradient_synchronization, each.num_buckets)
    if form == PEER:
        # The rotary angles are buffers, alike everywhere; views spare a second copy of all gradients.
        ids = [place.device] if place.device.type == "cuda" else None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # newer PyTorch has another name for `broadcast_buffers`
            peer = DistributedDataParallel(model, device_ids=ids, broadcast_buffers=False, gradient_as_bucket_view=True)
        return Wrapped(peer, num_messages=None)
    words = form.split()
    if len(words) != 4 or form != bucketed(float(words[2])):
        raise ValueError(f"there is no form {form!r} of data parallelism")
    in_buckets = DDPBucketed(model, float(words[2]))
    return Wrapped(in_buckets, in_buckets.finish_gradient_synchronization, in_buckets.num_buckets)


def measure_ddp(config: ParallelConfig, rows: Rows, traces: Path, say: Say) -> list[dict[str, Any]]:
    """Time every form, profile two, and fit this machine's all-reduce; where the size does not fit, a smaller one too.

    Args:
        traces: folder for the profiled steps.

    Raises:
        UserError: fewer GPUs than ranks.
    """
    require_gpus("the study of data parallelism", config.world_size, config.device)

    run = fresh_ranks(config)

    def measure(setting: StepSetting) -> list[dict[str, Any]]:
        ranks = {"processes": config.world_size, "device": config.device}
        cells = {form: {"form": form} | ranks | setting.described() for form in forms(config)}
        contenders = [(cell, run(time_form, form, setting)) for form, cell in cells.items()]
        found = by_turns(config, contenders, rows, say)
        for form in PROFILED:
            path = traces / f"ddp-{setting.name}-{form}.json.gz"
            cell = {"profiled": form} | ranks | setting.described()
            found.append(rows.measure(cell, run(profile_form, form, setting, path), say))
        return found

    fit = {"form": FIT, "processes": config.world_size, "device": config.device, "bytes": config.all_reduce_bytes}
    fit |= {"steps": (config.num_warmup, config.num_calls)}
    fit_run = run(time_all_reduces, config.all_reduce_bytes, config.num_warmup, config.num_calls)
    return [rows.measure(_as_json(fit), fit_run, say), *measured_sizes(config, measure)]


def _as_json(cell: dict[str, Any]) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in cell.items()}


def time_form(place: Rank, form: str, setting: StepSetting) -> dict[str, Any]:
    """Train a new model under one form and time its steps; every rank calls it.

    Returns:
        What `time_steps` does, the last loss, peak memory, and the messages and bytes of a step.

    Raises:
        RuntimeError: the ranks ended with different weights.
    """
    model = new_model(setting, place.device)
    wrapped = wrap(form, model, place)
    step = _step(wrapped, model, setting, place)
    losses: list[Tensor] = []

    def timed(watch: Stopwatch) -> None:
        losses[:] = [step(watch)]

    times = time_steps(place, timed, num_warmup=setting.num_warmup, num_steps=setting.num_steps)
    memory = peak_and_held(place)
    if form != ALONE and not weights_agree(list(model.parameters())):
        raise RuntimeError(f"{form}: the ranks ended with different weights")
    everyones = over_ranks(losses[0].item())
    return times | {
        "memory": memory,
        "last_loss": sum(everyones) / len(everyones),
        "num_messages": wrapped.num_messages,
        "gradient_bytes": tensor_bytes(parameter for parameter in model.parameters() if parameter.requires_grad),
    }


def profile_form(place: Rank, form: str, setting: StepSetting, path: Path) -> dict[str, Any]:
    """Profile one step, after those of the warm-up; rank 0 writes its small trace."""
    model = new_model(setting, place.device)
    step = _step(wrap(form, model, place), model, setting, place)
    for _ in range(max(1, setting.num_warmup)):
        step(Stopwatch(place.device))
    over_ranks(None)
    timelines.record(lambda: step(Stopwatch(place.device)), path if place.rank == 0 else None, place.device)
    over_ranks(None)
    if place.rank:
        return {}
    timeline = timelines.read_timeline(path)
    return {
        "trace": path.name,
        "communication_ms": timeline.communication_ms,
        "hidden_share": timeline.hidden_share,
    }


def _step(wrapped: Wrapped, model: nn.Module, setting: StepSetting, place: Rank) -> Callable[[Stopwatch], Tensor]:
    optimizer = AdamW(model.parameters(), lr=1e-5)
    return training_step(wrapped.call, optimizer, random_batch(setting, place), setting.precision, wrapped.finish)


# ---- what the figures say


def compared(rows: Sequence[dict[str, Any]], size: str) -> list[dict[str, Any]]:
    """The forms of one size with what each adds to the step that sends nothing; those that did not fit too."""
    own = [row for row in rows if row["cell"].get("size") == size and "form" in row["cell"]]
    alone = next((row["ms"] for row in own if row["cell"]["form"] == ALONE and "ms" in row), None)
    table = []
    for row in own:
        line = {"form": row["cell"]["form"], "state": row.get("state") or row.get("failure")}
        if "ms" in row:
            line |= {key: row[key] for key in ("ms", "num_messages", "last_loss")} | {"spread": spread_text(row)}
            line["after_backward_ms"] = row["parts_ms"]["synchronization"]
            line["gib"] = max(row["memory"]["peak"]) / 2**30 if row["memory"] else None
            if alone is not None:
                line["exposed_ms"] = row["ms"] - alone
                line["share"] = f"{max(0.0, row['ms'] - alone) / row['ms']:.1%}"
        table.append(line)
    return table


def machine_line(rows: Sequence[dict[str, Any]]) -> Line | None:
    """Latency and bandwidth of this machine's all-reduce, measured with the study."""
    row = next((row for row in rows if row["cell"].get("form") == FIT), {})
    points = [
        (int(size), row[size]["ms"] / 1e3) for size in map(str, row.get("cell", {}).get("bytes", ())) if size in row
    ]
    line = fit_line(points) if len(points) > 1 else None
    return line if line and math.isfinite(line.bytes_per_second) else None  # no bandwidth: the times were noise


def bucket_model(rows: Sequence[dict[str, Any]], size: str) -> tuple[list[dict[str, Any]], float]:
    """For each bucketed form of a size its overhead as modelled and as measured; and the best bucket, in bytes.

    The overhead model is `cost_model.bucketed_overhead_seconds`, its w and o are those of `machine_line`.
    """
    line = machine_line(rows)
    if line is None:
        return [], 0.0
    measured = {row["form"]: row for row in compared(rows, size)}
    table, num_bytes = [], 0
    for row in rows:
        form = row["cell"].get("form", "")
        if row["cell"].get("size") != size or not form.startswith("buckets") or "ms" not in row:
            continue
        num_bytes = row["gradient_bytes"]
        modelled = bucketed_overhead_seconds(
            num_bytes, row["num_messages"], line.bytes_per_second, line.latency_seconds
        )
        table.append(
            {
                "form": form,
                "num_messages": row["num_messages"],
                "modelled_ms": 1e3 * modelled,
                "measured_ms": measured[form].get("exposed_ms"),
            }
        )
    return table, best_bucket_bytes(num_bytes, line.bytes_per_second, line.latency_seconds)


_FORMS = {
    "form": "gradients",
    "ms": "ms a step",
    "spread": "spread",
    "exposed_ms": "exposed, ms",
    "share": "share communicating",
    "after_backward_ms": "after backward, ms",
    "num_messages": "messages",
    "gib": "peak, GiB",
    "last_loss": "last loss",
    "state": "",
}
_BUCKETS = {"form": "form", "num_messages": "messages", "modelled_ms": "modelled, ms", "measured_ms": "measured, ms"}


def sizes_of(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The sizes that rows speak of, in their order."""
    return list(dict.fromkeys(row["cell"]["size"] for row in rows if "size" in row["cell"]))


def page(rows: Sequence[dict[str, Any]]) -> str:
    """Tables of all sizes, and what their figures say."""
    parts = []
    for size in sizes_of(rows):
        cell = next(row["cell"] for row in rows if row["cell"].get("size") == size)
        parts.append(
            f"**{size}**, {cell['processes']} ranks of {cell['batch_size']} x {cell['context_length']} tokens,"
            f" {cell['precision']}, AdamW in fp32. {how_timed(_timed_forms(rows, size).values())} *Exposed* is a step's"
            " time less that of the step that sends nothing; *after backward* runs from the end of the backward pass to"
            " the last averaged gradient."
        )
        parts += [markdown_table(compared(rows, size), _FORMS), _comment(rows, size)]
        parts += [_profiles(rows, size), bucket_page(rows, size)]
    return "\n\n".join(part for part in parts if part)


def _timed_forms(rows: Sequence[dict[str, Any]], size: str) -> dict[str, dict[str, Any]]:
    """Rows of one size's forms that have a time, by form."""
    return {
        row["cell"]["form"]: row
        for row in rows
        if row["cell"].get("size") == size and "form" in row["cell"] and "ms" in row
    }


def _comment(rows: Sequence[dict[str, Any]], size: str) -> str:
    timed = _timed_forms(rows, size)
    alone = timed.pop(ALONE, None)
    if alone is None or not timed:
        return ""
    best, worst = (pick(timed.values(), key=lambda row: row["ms"]) for pick in (min, max))
    share = max(0.0, best["ms"] - alone["ms"]) / best["ms"]
    said = [
        f"Fastest: {best['cell']['form']}, {best['ms']:,.4g} ms, {share:.1%} of it communicating; slowest:"
        f" {worst['cell']['form']}."
    ]
    level = [form for form, row in timed.items() if row is not best and overlap(row, best)]
    if level:
        said.append(f"Spreads overlap with the fastest's, so that the order may be chance: {', '.join(level)}.")
    if {NAIVE, OVERLAPPED} <= timed.keys():
        said.append(_hidden(alone, timed[NAIVE], timed[OVERLAPPED]))
    ours = [row for form, row in timed.items() if form != PEER]
    if PEER in timed and ours:
        ratio = ratio_text(min(ours, key=lambda row: row["ms"]), timed[PEER])
        said.append(f"The best of ours takes {ratio} times as long as {PEER}.")
    return " ".join(said)


def _hidden(alone: dict[str, Any], naive: dict[str, Any], overlapped: dict[str, Any]) -> str:
    """What sending during the backward pass gains on sending after it."""
    if spread_of(naive)[0] <= spread_of(alone)[1]:
        return "What naive sending adds is less than the steps vary: nothing can be said of hiding it."
    adds, left = naive["ms"] - alone["ms"], overlapped["ms"] - alone["ms"]
    unsure = ", though the spreads of the two overlap" if overlap(naive, overlapped) else ""
    if left > adds:
        return f"Sending during the backward pass costs {left / adds:.3g} times what naive sending adds{unsure}."
    return f"Sending during the backward pass hides {1 - max(0.0, left) / adds:.0%} of what naive sending adds{unsure}."


def _profiles(rows: Sequence[dict[str, Any]], size: str) -> str:
    said = [
        f"{row['cell']['profiled']}: {row['communication_ms']:,.4g} ms of communication,"
        f" {row['hidden_share']:.0%} of it while computing"
        for row in rows
        if row["cell"].get("size") == size and "communication_ms" in row
    ]
    return f"In one profiled step (waiting for the other rank included), {'; '.join(said)}." if said else ""


def bucket_page(rows: Sequence[dict[str, Any]], size: str) -> str:
    """The model of the overhead against what was measured."""
    table, best = bucket_model(rows, size)
    line = machine_line(rows)
    if not table or line is None:
        return ""
    return "\n\n".join(
        [
            "**Buckets.** With s bytes of gradients in n buckets, an all-reduce of w ="
            f" {line.bytes_per_second / 1e9:,.3g} GB/s and o = {1e6 * line.latency_seconds:,.0f} µs a call, both"
            " measured here, a step grows by s/(n·w) + n·o if making a bucket takes as long as sending it. The best"
            f" bucket is √(s·w·o) = {best / 1e6:,.3g} MB.",
            markdown_table(table, _BUCKETS),
            "The model leaves out what the backward pass and the transfers take from each other (memory bandwidth,"
            " multiprocessors), the copies into and out of buckets, and that the first bucket waits for its last"
            " gradient.",
        ]
    )


def draw_timelines(rows: Sequence[dict[str, Any]], traces: Path, size: str, path: Path) -> bool:
    """The profiled steps of one size, one above the other; False where there are none."""
    found = {
        f"{row['cell']['profiled']}, {row['cell']['precision']}": timelines.read_timeline(traces / row["trace"])
        for row in rows
        if row["cell"].get("size") == size and row.get("trace") and (traces / row["trace"]).exists()
    }
    if found:
        timelines.draw(found, path)
    return bool(found)
