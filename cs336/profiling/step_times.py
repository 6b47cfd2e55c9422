"""How long a forward pass, a forward and backward pass, or a whole training step takes, and the memory it needs.

Random weights, random tokens, one device. The protocol is the handout's: some steps that do not count, then some that
do, by `timeit.default_timer`, with the device's queue waited for after every step.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import statistics
import subprocess
import sys
import timeit
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cs336.hardware import peak_flops_per_second, pick_device
from cs336.model.accounting import count_parameters, forward_flops
from cs336.model.attention import KERNELS
from cs336.model.sizes import BATCH_SIZE, CONTEXT_LENGTH, SIZES, find_size
from cs336.model.transformer import ModelConfig, TransformerLM
from cs336.profiling.ranges import (
    BACKWARD,
    FORWARD,
    OPTIMIZER,
    WARMUP,
    Mark,
    attention_ranges,
    named_range,
    no_range,
)
from cs336.train.loss import cross_entropy
from cs336.train.optimizer import AdamW

FORWARD_ONLY, BOTH, STEP = "forward", "forward+backward", "step"
MODES = (FORWARD_ONLY, BOTH, STEP)
PRECISIONS = ("float32", "tf32", "bfloat16")
WARMUP_STEPS, MEASURED_STEPS = 5, 10  # the handout's


@dataclass(frozen=True, kw_only=True)
class StepConfig:
    """One cell: what is run, and how often.

    Attributes:
        size: a name of `SIZES`, or D_MODELxD_FFxLAYERSxHEADS.
        vocab_size: 0 for the size's own.
        mode: "forward" (no gradients, as for inference), "forward+backward", or "step": with AdamW, too.
        warmup: steps before those that count.
        steps: those that count.
        precision: "float32"; "tf32", whose matrix products read 10 bits of the mantissa; or "bfloat16" autocast.
        compile: the whole model by `torch.compile`; block by block where `layers_per_segment` is set.
        attention: which kernel of `cs336.model.attention` computes it.
        layers_per_segment: activation checkpointing; 0 keeps everything.

    Raises:
        ValueError: a setting out of range, or no such size.
    """

    size: str
    context_length: int = CONTEXT_LENGTH
    batch_size: int = BATCH_SIZE
    vocab_size: int = 0
    mode: str = BOTH
    warmup: int = WARMUP_STEPS
    steps: int = MEASURED_STEPS
    precision: str = "float32"
    compile: bool = False
    attention: str = "reference"
    layers_per_segment: int = 0

    def __post_init__(self) -> None:
        parse_size(self.size, context_length=self.context_length)
        for name, choices in (("mode", MODES), ("precision", PRECISIONS), ("attention", tuple(KERNELS))):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is one of {', '.join(choices)}, got {getattr(self, name)!r}")
        for name, least in (("batch_size", 1), ("steps", 1), ("warmup", 0), ("layers_per_segment", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {least} or more, got {getattr(self, name)}")

    @property
    def model(self) -> ModelConfig:
        """The shape that `size` names, at this context."""
        shape = parse_size(self.size, context_length=self.context_length)
        return dataclasses.replace(shape, vocab_size=self.vocab_size or shape.vocab_size)

    def name(self) -> str:
        """In a few words: what differs from the handout's defaults."""
        parts = [self.size, f"T={self.context_length}", self.mode, self.precision]
        parts += [f"batch {self.batch_size}"] if self.batch_size != BATCH_SIZE else []
        parts += ["compiled"] if self.compile else []
        parts += [self.attention] if self.attention != "reference" else []
        parts += [f"segments of {self.layers_per_segment}"] if self.layers_per_segment else []
        parts += [f"warm-up {self.warmup}"] if self.warmup != WARMUP_STEPS else []
        return ", ".join(parts)


def parse_size(text: str, *, context_length: int = CONTEXT_LENGTH) -> ModelConfig:
    """A shape of the handout by its name, or one of your own as D_MODELxD_FFxLAYERSxHEADS.

    Raises:
        ValueError: neither.
    """
    numbers = text.split("x")
    if text in SIZES or len(numbers) != 4 or not all(number.isdigit() for number in numbers):
        try:
            return find_size(text, context_length=context_length)
        except ValueError as error:
            raise ValueError(f"{error}; or give D_MODELxD_FFxLAYERSxHEADS, such as 768x3072x12x12") from None
    d_model, d_ff, num_layers, num_heads = map(int, numbers)
    return ModelConfig(
        context_length=context_length,
        d_model=d_model,
        d_ff=d_ff,
        num_layers=num_layers,
        num_heads=num_heads,
        vocab_size=SIZES["small"].vocab_size,
    )


class Workload:
    """A model with its batch and optimizer, ready to take steps of one cell.

    Args:
        mark: makes the ranges around forward, backward and optimizer.
    """

    def __init__(self, config: StepConfig, device: torch.device, *, mark: Mark = no_range) -> None:
        torch.manual_seed(0)
        torch.set_float32_matmul_precision("high" if config.precision == "tf32" else "highest")
        self.config, self.device, self._mark = config, device, mark
        shape = config.model
        self.model = TransformerLM(shape, device=device).use_attention_kernel(config.attention)
        self.model.recompute_in_segments(config.layers_per_segment).train(config.mode != FORWARD_ONLY)
        generator = torch.Generator().manual_seed(0)
        size = (config.batch_size, config.context_length + 1)
        tokens = torch.randint(shape.vocab_size, size, generator=generator).to(device)
        self.inputs, self.targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
        self.optimizer = AdamW(self.model.parameters()) if config.mode == STEP else None
        self._forward: Callable[[Tensor], Tensor] = self.model
        if config.compile and config.layers_per_segment:  # a segment runs again what was compiled once
            for layer in self.model.layers:
                layer.compile(dynamic=False)
        elif config.compile:
            self._forward = torch.compile(self.model, dynamic=False)

    def step(self) -> None:
        """One step of the cell's mode; on a GPU it is queued, not waited for."""
        autocast = (
            torch.autocast(self.device.type, torch.bfloat16)
            if self.config.precision == "bfloat16"
            else contextlib.nullcontext()
        )
        if self.config.mode == FORWARD_ONLY:
            with torch.no_grad(), autocast, self._mark(FORWARD):
                self._forward(self.inputs)
            return
        self.model.zero_grad(set_to_none=True)
        with autocast, self._mark(FORWARD):
            loss = cross_entropy(self._forward(self.inputs).float(), self.targets)
        with self._mark(BACKWARD):
            loss.backward()
        if self.optimizer is not None:
            with self._mark(OPTIMIZER):
                self.optimizer.step()

    def synchronize(self) -> None:
        """Wait for everything that was queued."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def measure_step(config: StepConfig, device: torch.device, *, ranges: bool = False) -> dict[str, Any]:
    """Run one cell.

    Args:
        ranges: mark warm-up, passes, optimizer and the parts of the reference attention for a profiler.

    Returns:
        `mean_seconds` and `std_seconds` (of the sample; 0 of a single step) of the steps that counted, `seconds` of
        each, `warmup_seconds` of each before them, `peak_bytes` on a GPU (else None), `tokens_per_second`,
        `flops_per_second` by the closed form (a backward pass is two forward passes; what is run again by activation
        checkpointing is not counted), and `mfu` where the device's peak is known.

    Raises:
        torch.OutOfMemoryError: it does not fit.
    """
    workload = Workload(config, device, mark=named_range if ranges else no_range)
    inside = attention_ranges() if ranges and not config.compile else contextlib.nullcontext()
    with inside:
        with (named_range if ranges else no_range)(WARMUP):
            before = [_seconds_of_step(workload) for _ in range(config.warmup)]
        seconds = [_seconds_of_step(workload) for _ in range(config.steps)]
    mean = statistics.fmean(seconds)
    return {
        "mean_seconds": mean,
        "std_seconds": statistics.stdev(seconds) if len(seconds) > 1 else 0.0,
        "seconds": seconds,
        "warmup_seconds": before,
        "peak_bytes": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
        "num_parameters": count_parameters(config.model).total,
        **_rates(config, mean, device),
    }


def _seconds_of_step(workload: Workload) -> float:
    start = timeit.default_timer()
    workload.step()
    workload.synchronize()
    return timeit.default_timer() - start


def _rates(config: StepConfig, mean_seconds: float, device: torch.device) -> dict[str, Any]:
    passes = 1 if config.mode == FORWARD_ONLY else 3
    flops = passes * forward_flops(config.model) * config.batch_size / mean_seconds
    # Without TF32 the matrix units stand still, and their peak says nothing.
    known = "bfloat16" if config.precision == "bfloat16" else "float32" if config.precision == "tf32" else None
    peak = peak_flops_per_second(device, known) if known else None
    return {
        "tokens_per_second": config.batch_size * config.context_length / mean_seconds,
        "flops_per_second": flops,
        "mfu": flops / peak if peak else None,
    }


def measure_in_fresh_process(config: StepConfig, device: torch.device) -> dict[str, Any]:
    """The same in a process of its own, in which nothing is warm: no kernel loaded, no library started.

    Raises:
        RuntimeError: it failed; the message is the last line of its standard error.
    """
    done = subprocess.run(
        [sys.executable, "-m", "cs336.profiling.step_times"],
        input=json.dumps({"config": dataclasses.asdict(config), "device": str(device)}),
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise RuntimeError(next((line for line in lines if "OutOfMemory" in line), lines[-1]))
    return json.loads(done.stdout.strip().splitlines()[-1])


if __name__ == "__main__":
    job = json.load(sys.stdin)
    print(json.dumps(measure_step(StepConfig(**job["config"]), pick_device(job["device"]))))
