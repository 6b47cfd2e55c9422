"""Training on several devices (CS336, assignment 2): the forms' correctness, then what each costs and saves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cs336.files import UserError, read_json, read_jsonl, replacing, write_json
from cs336.parallel.process_group import run_ranks
from cs336.profiling import (
    accounting_answers,
    collective_times,
    ddp_times,
    fsdp_times,
    optimizer_memory,
)
from cs336.profiling.full_step import measure_full_step
from cs336.profiling.full_step import page as full_step_page
from cs336.profiling.parallel_config import FullStepConfig, ParallelConfig
from cs336.profiling.parallel_correctness import TOLERANCE, compare_forms
from cs336.profiling.rank_cells import Rows, Say, require_gpus
from cs336.profiling.spread import pooled
from cs336.revision import describe_commit
from cs336.store import describe_machine
from cs336_assets.asset import Metadata, Step, asset, check
from cs336_assets.crawl import table

DIFFERENCES_FILE = "differences.json"
ROWS_FILE = "rows.jsonl"
LIMITS_FILE = "limits.json"
TRACES = "traces"

_study = asset(group="parallel", kinds={"pytorch"}, owner="team:systems", resumable=True, pool="gpu", runs=(run_ranks,))


@_study
def parallel_correctness(step: Step, parallel: ParallelConfig) -> Metadata:
    """Every form of parallel training beside one process: the largest difference of any weight, after four AdamW steps.

    Data parallelism naive, flat, overlapped and in buckets, the sharded optimizer, FSDP, and FSDP2 behind the same
    switch, on as many ranks as the studies have, over NCCL or Gloo. All studies of this group stand below it: a wrong
    form is not timed.
    """
    require_gpus("the comparison of parallel forms", parallel.world_size, parallel.device)
    found = compare_forms(parallel.world_size, parallel.device, parallel.timeout_seconds)
    if "failure" in found or "state" in found:
        raise UserError(f"parallel_correctness: {found.get('failure') or found['state']}")
    write_json(step.folder / DIFFERENCES_FILE, found)
    return {
        "backend": "NCCL" if parallel.device == "cuda" else "Gloo",
        "ranks": parallel.world_size,
        "differences": table(["form", "largest difference"], [[form, f"{value:.1e}"] for form, value in found.items()]),
    }


@check(asset="parallel_correctness", blocking=True)
def parallel_forms_equal_one_process(parallel_correctness: Path) -> tuple[bool, Metadata]:
    """No weight of any form differs by more than 1e-5 from those that one process trains on whole batches."""
    found = read_json(parallel_correctness / DIFFERENCES_FILE)
    wrong = [form for form, value in found.items() if not value <= TOLERANCE]
    return bool(found) and not wrong, {"wrong": wrong, "largest": max(found.values(), default=None)}


@_study
def all_reduce_times(step: Step, parallel_correctness: Path, parallel: ParallelConfig) -> Metadata:
    """All-reduce of 1 MB to 1 GB in fp32 on 2, 4 and 6 processes: time, bus bandwidth, and the line through them.

    Between GPUs over NCCL, where the preset says so, on those numbers of processes that there are GPUs for.
    """
    return _all_reduces(step, parallel)


@asset(group="parallel", kinds={"pytorch"}, owner="team:systems", resumable=True, runs=(run_ranks,))
def gloo_all_reduce_times(step: Step, parallel_correctness: Path, parallel: ParallelConfig) -> Metadata:
    """The same between processes of one CPU over Gloo, as the handout of 2025 asks."""
    return _all_reduces(step, replace(parallel, device="cpu"))


def _all_reduces(step: Step, parallel: ParallelConfig) -> Metadata:
    rows = collective_times.measure_all_reduces(parallel, _rows(step), _say(step))
    page = _page(step, rows, collective_times.page(rows))
    collective_times.draw(rows, step.folder / "times.png")
    lines = collective_times.lines_of(rows)
    return {
        "times": page,
        "plot": {"image": "times.png"},
        **{f"latency_us_{key[0]}_{key[1]}": round(1e6 * line.latency_seconds, 1) for key, line in lines.items()},
    }


@_study
def data_parallel_times(step: Step, parallel_correctness: Path, parallel: ParallelConfig) -> Metadata:
    """A training step under naive, flat, overlapped and bucketed data parallelism, and one that sends nothing.

    The pictures are two profiled steps, computation above communication: after the backward pass, and during it.
    """
    traces = step.folder / TRACES
    rows = ddp_times.measure_ddp(parallel, _rows(step), traces, _say(step))
    return {"times": _page(step, rows, ddp_times.page(rows)), **_timelines(step, rows)}


@asset(group="parallel", kinds={"markdown"}, owner="team:systems")
def bucket_overhead(step: Step, data_parallel_times: Path) -> Metadata:
    """What a bucketed step adds, by the model of two parameters (bandwidth and cost of a call) and as measured."""
    rows = pooled(read_jsonl(data_parallel_times / ROWS_FILE))
    pages = [f"**{size}**\n\n{ddp_times.bucket_page(rows, size)}" for size in ddp_times.sizes_of(rows)]
    pages.insert(0, _devices(rows))
    line = ddp_times.machine_line(rows)
    _write(step, "\n\n".join(pages))
    best = {size: ddp_times.bucket_model(rows, size)[1] / 1e6 for size in ddp_times.sizes_of(rows)}
    return {
        "buckets": {"markdown": "\n\n".join(pages)},
        **{f"best_bucket_mb_{size}": round(value, 2) for size, value in best.items()},
        "bandwidth_gb_per_second": round(line.bytes_per_second / 1e9, 2) if line else "not measured",
        "call_us": round(1e6 * line.latency_seconds, 1) if line else "not measured",
    }


@_study
def optimizer_state_memory(step: Step, parallel_correctness: Path, parallel: ParallelConfig) -> Metadata:
    """Memory after initialization, before and after the update, and time, with optimizer states whole and sharded.

    Split into parameters, gradients and states, beside the closed forms; PyTorch's ZeroRedundancyOptimizer as a peer,
    and the comparison with ZeRO's first stage.
    """
    rows = optimizer_memory.measure_optimizers(parallel, _rows(step), _say(step))
    return {"memory": _page(step, rows, optimizer_memory.page(rows))}


@check(asset="optimizer_state_memory")
def held_bytes_are_those_of_the_closed_form(optimizer_state_memory: Path) -> tuple[bool, Metadata]:
    """After the update each of our optimizers holds what `held_bytes` says, to a thousandth."""
    rows = [row for row in read_jsonl(optimizer_state_memory / ROWS_FILE) if "stages" in row]
    off = {}
    for row in rows:
        if row["cell"]["optimizer"] in optimizer_memory.FORM_OF:
            counted = max(sum(kinds.values()) for kinds in row["stages"]["after the update"]["counted"])
            expected = optimizer_memory.expected_bytes(row["cell"])["total"]
            off[f"{row['cell']['size']}, {row['cell']['optimizer']}"] = counted / expected - 1
    return bool(off) and all(abs(value) <= 1e-3 for value in off.values()), {"relative_difference": off}


@_study
def fsdp_study(step: Step, parallel_correctness: Path, parallel: ParallelConfig) -> Metadata:
    """A step with parameters whole and sharded: ours with and without prefetch, PyTorch's FSDP2; in fp32 and bf16.

    FSDP2 as `--parallel fsdp2` has it, and called directly. Time, peak memory beside the saving that the closed forms
    expect, and whether the gather of each unit (a block's weights, the embedding, the head) had finished when its
    forward came to need it.
    """
    traces = step.folder / TRACES
    rows = fsdp_times.measure_fsdp(parallel, _rows(step), traces, _say(step))
    shown = {"times": _page(step, rows, fsdp_times.page(rows)), **_timelines(step, rows)}
    for size in ddp_times.sizes_of(rows):
        name = f"gathers_{size}.png"
        if fsdp_times.draw_gathers(rows, size, step.folder / name):
            shown[f"gathers_{size}"] = {"image": name}
    return shown


@asset(group="parallel", kinds={"markdown"}, owner="team:systems")
def parallel_accounting(step: Step) -> Metadata:
    """When communication hides behind computation: every accounting question, its formula, reason and an example.

    Data parallelism, FSDP, tensor parallelism and their grids of 2026, and XXL of 2025, from the same functions that
    the tests check.
    """
    page = accounting_answers.page()
    _write(step, page)
    found = [
        {
            "name": limit.name,
            "devices": limit.devices,
            "below": limit.cost(int(limit.devices)).compute_bound,
            "above": limit.cost(int(limit.devices) + 1).compute_bound,
        }
        for limit in accounting_answers.limits()
    ]
    write_json(step.folder / LIMITS_FILE, found)
    answers = [*accounting_answers.accounting_answers(), *accounting_answers.xxl_answers()]
    return {"num_answers": len(answers), "answers": {"markdown": page}}


@check(asset="parallel_accounting")
def limits_are_where_communication_overtakes(parallel_accounting: Path) -> tuple[bool, Metadata]:
    """Each limit is tight: the cost at that many devices is compute-bound, and with one more it is not."""
    found = read_json(parallel_accounting / LIMITS_FILE)
    wrong = [limit["name"] for limit in found if not limit["below"] or limit["above"]]
    return len(found) == 5 and not wrong, {"wrong": wrong}


@_study
def full_training_step(step: Step, parallel_correctness: Path, full_step: FullStepConfig) -> Metadata:
    """The contest of 2026: zero_grad, forward, loss, backward and AdamW of an 8B model on two GPUs, in ms."""
    row = measure_full_step(full_step, _rows(step), _say(step))
    return {
        "step": _page(step, [row], full_step_page([row])),
        "ms": round(row["ms"], 1) if "ms" in row else row["state"],
    }


# ---- rows and pages


def _rows(step: Step) -> Rows:
    """The rows of this artifact; an attempt that was interrupted goes on with those that it has."""
    return Rows(step.folder / ROWS_FILE, {"hardware": describe_machine(), "commit": describe_commit()})


def _say(step: Step) -> Say:
    def say(line: str) -> None:
        if step.context is not None:
            step.context.log.info(line)

    return say


def _page(step: Step, rows: list[dict[str, Any]], page: str) -> dict[str, str]:
    """Write the page, once every cell has a result.

    Raises:
        UserError: a cell failed; the others keep their rows, and the next run measures only what failed.
    """
    failed = [row["failure"] for row in rows if "failure" in row]
    if failed:
        raise UserError(f"{step.folder / ROWS_FILE}: {len(failed)} of {len(rows)} cells failed; the first: {failed[0]}")
    page = f"{_devices(rows)}\n\n{page}"
    _write(step, page)
    return {"markdown": page}


def _devices(rows: Sequence[dict[str, Any]]) -> str:
    """Where the rows were measured; what ran on a CPU names it, whatever GPUs there were."""
    found = []
    for row in rows:
        machine, gpus = row["hardware"], Counter(row["hardware"].get("gpu", ()))
        if "cpu" in row["cell"].values() or "gloo" in row["cell"].values() or not gpus:
            found.append(f"{machine['cores']} cores of {machine['cpu']}")
        else:
            found.append(", ".join(f"{count} x {name}" for name, count in gpus.items()))
    return f"Measured on {'; '.join(dict.fromkeys(found))}."


def _write(step: Step, page: str) -> None:
    with replacing(step.folder / "page.md", "w") as file:
        file.write(page + "\n")


def _timelines(step: Step, rows: list[dict[str, Any]]) -> Metadata:
    """Pictures of the profiled steps, by size."""
    draw: Callable[..., bool] = ddp_times.draw_timelines
    found = {}
    for size in ddp_times.sizes_of(rows):
        name = f"timeline_{size}.png"
        if draw(rows, step.folder / TRACES, size, step.folder / name):
            found[f"timeline_{size}"] = {"image": name}
    return found
