"""Where the time of a step goes, kernel by kernel, from one profiled step: the handout's five questions.

PyTorch's profiler is what is at hand everywhere. On a GPU a kernel belongs to the ranges in which it was launched; on a
CPU, where nothing is launched, the operators stand for kernels with the time that they spend themselves.
"""

from __future__ import annotations

import dataclasses
import gzip
import json
import re
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile

from cs336.model.transformer import ModelConfig
from cs336.profiling.cells import is_out_of_memory, release_memory
from cs336.profiling.ranges import (
    BACKWARD,
    FINAL_MATMUL,
    FORWARD,
    OPTIMIZER,
    RANGES,
    SCORES,
    SOFTMAX,
    attention_ranges,
    named_range,
)
from cs336.profiling.step_times import BOTH, FORWARD_ONLY, STEP, StepConfig, Workload, measure_step

# Kinds of kernels by what their names contain, the first that fits.
KINDS = {
    "attention": ("sdpa", "flash", "fmha"),
    "matrix products": (
        *("nvjet", "gemm", "gemv", "cutlass", "xmma", "splitK", "triton_tem", "triton_mm"),
        *("aten::mm", "aten::bmm", "aten::addmm"),
    ),
    "compiled elementwise, norms, softmax": ("triton_",),
    "optimizer and clipping": ("multi_tensor", "foreach", "lerp", "norm_kernel"),
    "gathers, sorts": ("index", "sort", "scatter", "gather", "Radix"),
    "copies": ("Memcpy", "Memset", "copy"),
    "elementwise": ("elementwise",),
    "reductions": ("reduce",),
}
MATMUL = "matrix products"
SOFTMAX_FLOPS = 5  # an element: maximum, difference, exponential, sum, quotient
_KEPT_CATEGORIES = {"kernel", "gpu_memcpy", "gpu_memset", "gpu_user_annotation", "user_annotation"}
_GPU_CATEGORIES = {"kernel", "gpu_memcpy", "gpu_memset"}
_LAUNCH_CATEGORIES = {"cuda_runtime", "cuda_driver"}
_FUNCTOR = re.compile(r"(\w+?(?:Functor\w*|_functor|_kernel_cuda|_kernel_impl|Ops))\b")


def kind_of(kernel: str) -> str:
    """Kind of a kernel, from its name."""
    return next((kind for kind, parts in KINDS.items() if any(part in kernel for part in parts)), "other")


class KernelCall(NamedTuple):
    """One run of a kernel, and the ranges it belongs to."""

    name: str
    seconds: float
    ranges: frozenset[str]


# ---- from a trace to kernels


def profile_step(config: StepConfig, device: torch.device, trace_path: Path | None = None) -> list[KernelCall]:
    """Profile one step after the warm-up.

    Args:
        trace_path: where a small trace is written, gzipped: kernels and ranges, for ui.perfetto.dev.

    Raises:
        torch.OutOfMemoryError: it does not fit.
    """
    workload = Workload(config, device, mark=named_range)
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
    with attention_ranges():
        for _ in range(config.warmup):
            workload.step()
        workload.synchronize()
        with profile(activities=activities) as profiler:
            workload.step()
            workload.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        trace = json.loads(path.read_text(errors="replace"))
    calls = kernel_calls(trace["traceEvents"], on_gpu=device.type == "cuda")
    if trace_path is not None:
        small = trace | {"traceEvents": [event for event in trace["traceEvents"] if _is_kept(event, device.type)]}
        trace_path.parent.mkdir(parents=True, exist_ok=True)
        trace_path.write_bytes(gzip.compress(json.dumps(small).encode()))
    return calls


def _is_kept(event: dict[str, Any], device: str) -> bool:
    return event.get("ph") == "M" or event.get("cat") in _KEPT_CATEGORIES | ({"cpu_op"} if device == "cpu" else set())


def kernel_calls(events: Iterable[dict[str, Any]], *, on_gpu: bool) -> list[KernelCall]:
    """Kernels of a Chrome trace in the order of their launch, each with the ranges around its launch.

    A backward pass launches from threads of its own while the main one waits in its range, so a range holds what is
    launched in its time, by whichever thread.
    """
    complete = [event for event in events if event.get("ph") == "X"]
    ranges = [
        (event["ts"], event["ts"] + event["dur"], event["name"])
        for event in complete
        if event.get("cat") == "user_annotation" and event["name"] in RANGES
    ]
    if on_gpu:
        launched = {
            event["args"]["correlation"]: event["ts"]
            for event in complete
            if event.get("cat") in _LAUNCH_CATEGORIES and "correlation" in event.get("args", {})
        }
        timed = [
            (launched.get(event["args"].get("correlation"), event["ts"]), event["name"], event["dur"])
            for event in complete
            if event.get("cat") in _GPU_CATEGORIES
        ]
    else:
        timed = _self_times([event for event in complete if event.get("cat") == "cpu_op"])
    return [
        KernelCall(name, microseconds / 1e6, frozenset(of for start, end, of in ranges if start <= launch <= end))
        for launch, name, microseconds in sorted(timed)
        if microseconds > 0
    ]


def _self_times(operators: Sequence[dict[str, Any]]) -> list[tuple[float, str, float]]:
    """Start, name and microseconds of each operator without those that it calls."""
    found: list[list[Any]] = []
    threads: dict[Any, list[tuple[float, int]]] = defaultdict(list)  # of each, the operators that are open
    for event in sorted(operators, key=lambda event: (event["ts"], -event["dur"])):
        open_ones = threads[event["tid"]]
        while open_ones and open_ones[-1][0] <= event["ts"]:
            open_ones.pop()
        if open_ones:
            found[open_ones[-1][1]][2] -= event["dur"]
        open_ones.append((event["ts"] + event["dur"], len(found)))
        found.append([event["ts"], event["name"], event["dur"]])
    return [(start, name, microseconds) for start, name, microseconds in found]


def short_name(kernel: str) -> str:
    """A kernel's name to be read: without templates and types, with what an elementwise one computes."""
    functors = [name for name in _FUNCTOR.findall(kernel.partition("<")[2]) if "gpu_kernel_impl" not in name]
    base = re.sub(r"^void\s+", "", kernel).partition("<")[0].partition("(")[0].rpartition("::")[2]
    return (f"{base} ({functors[-1]})" if functors else base)[:80]


# ---- the five questions


def answer_questions(config: StepConfig, device: torch.device, folder: Path | None = None) -> dict[str, Any]:
    """Profile inference and training of one shape, and answer the handout's questions 1 to 5.

    Args:
        config: its mode is not read.
        folder: for the traces.

    Returns:
        The figures; what did not fit of the training step is missing, and `training_mode` says how far it was run:
        "step", "forward+backward" or None.

    Raises:
        torch.OutOfMemoryError: not even the forward pass fits.
    """
    forward_config = dataclasses.replace(config, mode=FORWARD_ONLY)
    timer = measure_step(forward_config, device)
    release_memory(device)
    forward = profile_step(forward_config, device, _trace_path(folder, forward_config))
    training_mode, training = _profile_training(config, device, folder)
    row = _forward_answers(config, timer["mean_seconds"], forward)
    row["training_mode"] = training_mode
    if training:
        passes = [call for call in training if call.ranges & {FORWARD, BACKWARD}]
        top, _, _ = _top(passes)
        row |= {
            "training_top_kernel": top,
            "top_kernel_stays": top == row["top_kernel"],
            "training_top_calls": sum(1 for call in passes if call.name == top),
            "training_matmul_share": matmul_share(training),
            "passes_matmul_share": matmul_share(passes),
            "training_seconds_by_range": {
                name: _seconds(call for call in training if name in call.ranges)
                for name in (FORWARD, BACKWARD, OPTIMIZER)
            },
        }
    return row


def _trace_path(folder: Path | None, config: StepConfig) -> Path | None:
    name = f"{config.size}-T{config.context_length}-{config.mode.replace('+', '-and-')}"
    return folder / f"{name}.json.gz" if folder else None


def _profile_training(
    config: StepConfig, device: torch.device, folder: Path | None
) -> tuple[str | None, list[KernelCall]]:
    """The whole step, or if it does not fit the passes without the optimizer, or nothing."""
    for mode in (STEP, BOTH):
        release_memory(device)
        chosen = dataclasses.replace(config, mode=mode)
        try:
            return mode, profile_step(chosen, device, _trace_path(folder, chosen))
        except Exception as error:
            if not is_out_of_memory(error):
                raise
    return None, []


def _forward_answers(config: StepConfig, timer_seconds: float, calls: Sequence[KernelCall]) -> dict[str, Any]:
    forward = [call for call in calls if FORWARD in call.ranges]
    total = _seconds(forward)
    top, top_seconds, top_calls = _top(forward)
    softmax = [call for call in forward if SOFTMAX in call.ranges]
    products = [call for call in forward if call.ranges & {SCORES, FINAL_MATMUL} and kind_of(call.name) == MATMUL]
    around = [call for call in forward if call.ranges & {SCORES, FINAL_MATMUL} and kind_of(call.name) != MATMUL]
    matmul_seconds = _seconds(products)
    return {
        "kernel_seconds": total,
        "timer_seconds": timer_seconds,
        "kernels_over_timer": total / timer_seconds,
        "num_kernel_calls": len(forward),
        "top_kernel": top,
        "top_kernel_share": top_seconds / total,
        "top_kernel_calls": top_calls,
        "other_kernels": _largest_others(forward, total),
        "seconds_by_kind": _by(forward, lambda call: kind_of(call.name)),
        "forward_matmul_share": matmul_share(forward),
        "softmax_seconds": _seconds(softmax),
        "attention_matmul_seconds": matmul_seconds,
        "mask_scale_cast_seconds": _seconds(around),
        "softmax_over_matmul_time": _seconds(softmax) / matmul_seconds if matmul_seconds else None,
        "softmax_over_matmul_flops": softmax_flop_ratio(config.model),
    }


def softmax_flop_ratio(model: ModelConfig) -> float:
    """FLOPs of attention's softmax over those of its two products: `5 / (4 d_k)`, whatever the length."""
    return SOFTMAX_FLOPS / (4 * model.features_per_head)


def matmul_share(calls: Sequence[KernelCall]) -> float:
    """Share of the kernels' time in matrix products."""
    return _seconds(call for call in calls if kind_of(call.name) == MATMUL) / _seconds(calls)


def _largest_others(calls: Sequence[KernelCall], total: float, count: int = 3) -> list[dict[str, Any]]:
    """The kernels that are no matrix products and take most of the time."""
    others = [call for call in calls if kind_of(call.name) != MATMUL]
    largest = sorted(_by(others, lambda call: short_name(call.name)).items(), key=lambda item: -item[1])[:count]
    return [
        {
            "kernel": name,
            "share": seconds / total,
            "calls": sum(1 for call in others if short_name(call.name) == name),
        }
        for name, seconds in largest
    ]


def _top(calls: Sequence[KernelCall]) -> tuple[str, float, int]:
    """Name, seconds and calls of the kernel with most cumulative time."""
    name, seconds = max(_by(calls, lambda call: call.name).items(), key=lambda item: item[1])
    return name, seconds, sum(1 for call in calls if call.name == name)


def _by(calls: Iterable[KernelCall], key: Callable[[KernelCall], str]) -> dict[str, float]:
    seconds: dict[str, float] = defaultdict(float)
    for call in calls:
        seconds[key(call)] += call.seconds
    return dict(seconds)


def _seconds(calls: Iterable[KernelCall]) -> float:
    return sum(call.seconds for call in calls)
