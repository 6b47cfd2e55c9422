"""The data assignment's fixed training step on one GPU or several: tokens/s, MFU, memory, hours for all its steps.

  python -m benchmarks.course_step                                      one GPU adds up the gradients of two halves
  torchrun --standalone --nproc-per-node 2 -m benchmarks.course_step    two GPUs, as the course trains
  torchrun --standalone --nproc-per-node 2 -m benchmarks.course_step --preset tiny --vocab-size 300 \\
      --batch-size 2 --steps 2 --device cpu --no-compile                a quick look without a GPU

128 sequences of 512 tokens a process and 256 a step in all, bf16 autocast, TF32 elsewhere, gradients clipped, random
windows with a seed of their own for each process. Contenders:
  ours            the training loop's step: loss without whole logits, deterministic kernels, our AdamW
  our attention   the same with our FlashAttention-2 kernels instead of PyTorch's
  fused AdamW     the same with PyTorch's fused AdamW, which the course's setting names
  free order      the same, and kernels may add up in any order, as the course's script lets them
  plain           logits of all tokens at once and PyTorch's cross-entropy, clipping and fused AdamW

Several processes average their gradients by PyTorch's DistributedDataParallel, a stand-in for wrappers of our own.
First losses must agree, and all processes must end with the same weights, before a figure counts.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import gc
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks.measure import hardware
from cs336.files import UserError, append_jsonl
from cs336.hardware import peak_bytes, peak_flops_per_second, pick_device
from cs336.model.accounting import count_parameters, training_flops
from cs336.model.transformer import ModelConfig, TransformerLM
from cs336.preset_lookup import find_preset
from cs336.revision import describe_commit
from cs336.store import versions_of
from cs336.tokens.batches import Batches
from cs336.train.forms import Form, make_optimizer
from cs336.train.loop import TrainConfig, evaluate, training_step
from cs336.train.loss import linear_cross_entropy
from cs336.train.optimizer import clip_gradients

CONTENDERS = ("ours", "our attention", "fused AdamW", "free order", "plain")
RESULTS = Path(__file__).parent / "results"
NUM_TOKENS = 20_000_000  # of made-up text, drawn from as the course draws from its file
NUM_EVALUATIONS, EVALUATION_BATCHES = 51, 1_000  # the course's: every 2,000 steps and at the end, of 128 windows each
_SAME_LOSS = 0.01  # of itself: bf16 products differ in the third digit

Step = Callable[[Tensor, Tensor], Tensor]


class _LossOf(nn.Module):
    """Model and loss as one module, to be compiled as a whole and wrapped."""

    def __init__(self, model: TransformerLM, precision: str, whole_logits: bool) -> None:
        super().__init__()
        self.model, self._precision, self._whole_logits = model, precision, whole_logits

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=self._precision == "bfloat16"):
            hidden = self.model.hidden_states(inputs)
            if not self._whole_logits:
                return linear_cross_entropy(hidden, self.model.lm_head.weight, targets).total
            logits = self.model.lm_head(hidden)
        return nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


def main(arguments: list[str] | None = None) -> int:
    """Measure the contenders one after the other; the first process prints and writes rows."""
    options = _options(arguments)
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    device = pick_device(options.device)
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    if world_size > 1:
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        return _measure_all(options, device, rank, world_size)
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    finally:
        if world_size > 1:
            distributed.destroy_process_group()


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.course_step",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--preset", default="data_course", help="whose model and training (default %(default)s)")
    parser.add_argument("--vocab-size", type=int, help="default: what the preset's tokenizer aims for")
    parser.add_argument("--batch-size", type=int, default=128, help="sequences a process at once (default %(default)s)")
    parser.add_argument("--steps", type=int, default=20, help="of one timed run (default %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="timed runs of each contender (default %(default)s)")
    parser.add_argument("--only", choices=CONTENDERS, action="append", help="this contender; may be given again")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default %(default)s)")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out, for a quick look")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER", help="rows go to train_step.jsonl")
    return parser.parse_args(arguments)


def _measure_all(options: argparse.Namespace, device: torch.device, rank: int, world_size: int) -> int:
    preset = find_preset(options.preset)
    model = dataclasses.replace(preset.model, vocab_size=options.vocab_size or preset.bpe.vocab_size)
    parts, rest = divmod(preset.train.batch_size, options.batch_size * world_size)
    if rest or not parts:
        raise UserError(
            f"{world_size} processes of {options.batch_size} sequences do not divide the batch of"
            f" {preset.train.batch_size}; choose another --batch-size"
        )
    train = dataclasses.replace(  # of one process
        preset.train, batch_size=parts * options.batch_size, micro_batch_size=options.batch_size
    )
    torch.set_float32_matmul_precision("high")
    if rank == 0:
        _say_setting(preset.name, model, train, world_size)
    first_loss = None
    failed = False
    for name in options.only or CONTENDERS:
        try:
            row = _measure(name, model, train, options, device, rank, world_size)
            first_loss = first_loss or row["first_loss"]
            if abs(row["first_loss"] - first_loss) > _SAME_LOSS * first_loss:
                raise ValueError(
                    f"its first loss is {row['first_loss']:.4f}, that of the first contender {first_loss:.4f}"
                )
        except Exception as error:  # any failure of one is a message beside the figures of the others
            if world_size > 1:  # the other processes wait for this one: only the end of all is clear
                raise
            failed = failed or name == "ours"
            row = {"failure": f"{type(error).__name__}: {error}".splitlines()[0]}
        _release(device)
        if rank == 0:
            _report(name, row, preset.name, model, train, options, device, world_size)
    return int(failed)


def _measure(
    name: str,
    model: ModelConfig,
    train: TrainConfig,
    options: argparse.Namespace,
    device: torch.device,
    rank: int,
    world_size: int,
) -> dict[str, Any]:
    trained, step = _prepared(name, model, train, device, world_size, compiled=not options.no_compile)
    data = np.random.default_rng(0).integers(
        model.vocab_size, size=NUM_TOKENS // 20 if device.type == "cpu" else NUM_TOKENS
    )
    batches = Batches(
        data.astype("<u2"),
        batch_size=train.batch_size,
        context_length=model.context_length,
        seed=rank,
        device=device,
        keep_on_device=device.type == "cuda",
    )
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    first_loss = _mean(step(*batches.at(0)).float(), world_size)
    done = 1
    for _ in range(2):  # a first step allocates the optimizer's state, a second one may compile again
        step(*batches.at(done))
        done += 1
    seconds = []
    for _ in range(options.repeats):
        _wait(device, world_size)
        start = time.perf_counter()
        for _ in range(options.steps):
            step(*batches.at(done))
            done += 1
        _wait(device, world_size)
        seconds.append(time.perf_counter() - start)
    _check_same_weights(trained, world_size)
    num_tokens = options.steps * train.batch_size * world_size * model.context_length
    rates = [num_tokens / each for each in seconds]
    peak = torch.tensor(float(peak_bytes()), dtype=torch.float64, device=device)
    if world_size > 1:
        distributed.all_reduce(peak, distributed.ReduceOp.MAX)
    return {
        "figure": statistics.median(rates),
        "unit": "tokens/s",
        "spread": [min(rates), max(rates)],
        "repeats": options.repeats,
        "milliseconds_a_step": 1e3 * statistics.median(seconds) / options.steps,
        "peak_bytes": int(peak.item()),
        "first_loss": first_loss,
        "seconds_an_evaluation_batch": _evaluation_seconds(trained, data, train),
    }


def _prepared(
    name: str, model: ModelConfig, train: TrainConfig, device: torch.device, world_size: int, *, compiled: bool
) -> tuple[TransformerLM, Step]:
    """A model, the same on every process, and the contender's step on it."""
    torch.manual_seed(0)
    if name == "ours" and world_size == 1:
        return training_step(model, train, device, compile_model=compiled)
    trained, _ = training_step(model, train, device)  # for the model, and the loop's choice of kernels
    if name == "our attention":
        trained.use_attention_kernel("flash")
    torch.use_deterministic_algorithms(name in ("ours", "our attention", "fused AdamW"))
    loss_of: nn.Module = _LossOf(trained, train.precision, whole_logits=name == "plain")
    if compiled:
        loss_of = torch.compile(loss_of, dynamic=False)  # type: ignore[assignment]
    if world_size > 1:  # around what is compiled: as one graph the backward pass ends with all gradients at once
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # newer PyTorch has another name for `broadcast_buffers`
            loss_of = DistributedDataParallel(
                loss_of,
                device_ids=[device] if device.type == "cuda" else None,
                broadcast_buffers=False,  # the rotary angles, alike everywhere
                gradient_as_bucket_view=True,
            )
    optimizer = make_optimizer(trained, train)
    if name not in ("ours", "our attention"):
        optimizer = torch.optim.AdamW(  # type: ignore[assignment]
            [{key: group[key] for key in ("params", "weight_decay")} for group in optimizer.param_groups],
            lr=train.learning_rate,
            betas=train.betas,
            eps=train.eps,
            fused=True,
        )
    clip = torch.nn.utils.clip_grad_norm_ if name == "plain" else clip_gradients

    def step(inputs: Tensor, targets: Tensor) -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        pieces = list(zip(inputs.split(train.micro_batch_size), targets.split(train.micro_batch_size), strict=True))
        losses = []
        for number, piece in enumerate(pieces, 1):
            is_last = number == len(pieces) or not isinstance(loss_of, DistributedDataParallel)
            with contextlib.nullcontext() if is_last else loss_of.no_sync():  # type: ignore[union-attr,operator]
                loss = loss_of(*piece)
                (loss / len(pieces)).backward()
            losses.append(loss.detach())
        clip(trained.parameters(), train.max_grad_norm)
        optimizer.step()
        return torch.stack(losses).mean()

    return trained, step


def _evaluation_seconds(model: TransformerLM, data: np.ndarray, train: TrainConfig, num_batches: int = 4) -> float:
    """Of one batch of windows outside autocast, as the course evaluates, on this process alone."""
    plain = dataclasses.replace(train, batch_size=train.micro_batch_size, precision="float32")
    form = Form(model, plain)
    evaluate(form, data, max_batches=1)
    start = time.perf_counter()
    evaluate(form, data, max_batches=num_batches)
    return (time.perf_counter() - start) / num_batches


def _check_same_weights(model: TransformerLM, world_size: int) -> None:
    """Raises ValueError where the processes' weights have drifted apart."""
    if world_size == 1:
        return
    with torch.no_grad():
        sums = torch.stack([parameter.double().sum() for parameter in model.parameters()])
    low, high = sums.clone(), sums.clone()
    distributed.all_reduce(low, distributed.ReduceOp.MIN)
    distributed.all_reduce(high, distributed.ReduceOp.MAX)
    if not torch.equal(low, high):
        raise ValueError("the processes ended with different weights: their gradients were not averaged")


def _mean(value: Tensor, world_size: int) -> float:
    if world_size > 1:
        distributed.all_reduce(value)
    return float(value) / world_size


def _wait(device: torch.device, world_size: int) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    if world_size > 1:
        distributed.barrier()


def _release(device: torch.device) -> None:
    torch._dynamo.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _say_setting(preset: str, model: ModelConfig, train: TrainConfig, world_size: int) -> None:
    parameters = count_parameters(model)
    sequences = train.batch_size * world_size
    print(
        f"{preset}: {parameters.total / 1e6:.1f} M parameters, {parameters.without_embeddings / 1e6:.2f} M in blocks;"
        f" {sequences} sequences of {model.context_length} a step, {sequences * model.context_length:,} tokens:"
        f" {world_size} processes with {train.batch_size // train.micro_batch_size} parts of {train.micro_batch_size};"
        f" {train.precision}, betas {train.betas}, eps {train.eps:g}, decay {train.weight_decay}, clip"
        f" {train.max_grad_norm}",
        flush=True,
    )


def _report(
    name: str,
    measured: dict[str, Any],
    preset: str,
    model: ModelConfig,
    train: TrainConfig,
    options: argparse.Namespace,
    device: torch.device,
    world_size: int,
) -> None:
    """Print a contender's figures and add them to the results as a row."""
    row = {"subject": "train_step", "case": f"{preset}-{world_size}x{device.type}", "contender": name} | measured
    if "figure" in row:
        rate, steps = row["figure"], train.num_steps
        tokens_a_step = train.batch_size * world_size * model.context_length
        peak = peak_flops_per_second(device, train.precision)
        flops = training_flops(model, model.context_length) / model.context_length * rate
        row["mfu"] = flops / (peak * world_size) if peak else None
        row["hours"] = steps * tokens_a_step / rate / 3_600
        row["evaluation_hours"] = NUM_EVALUATIONS * EVALUATION_BATCHES * row["seconds_an_evaluation_batch"] / 3_600
        used = f"{row['mfu']:.1%}" if row["mfu"] else "unknown"
        print(
            f"  {name:<12} {rate:>12,.0f} tokens/s  {row['milliseconds_a_step']:8.1f} ms a step  MFU {used}"
            f"  peak {row['peak_bytes'] / 1e9:.1f} GB  {row['hours']:.2f} h for {steps:,} steps"
            f"  + {row['evaluation_hours']:.2f} h for the course's evaluations",
            flush=True,
        )
    else:
        print(f"  {name:<12} {row['failure']}", flush=True)
    row |= {
        "input": {
            "model": dataclasses.asdict(model),
            "batch_size": train.batch_size * world_size,
            "micro_batch_size": train.micro_batch_size,
            "processes": world_size,
            "precision": train.precision,
            "compiled": not options.no_compile,
            "gradients": "averaged by PyTorch's DistributedDataParallel" if world_size > 1 else "of one process",
        },
        "versions": versions_of(("torch", "triton")),
        "hardware": hardware(),
        "commit": describe_commit(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    append_jsonl(options.results / "train_step.jsonl", row)


if __name__ == "__main__":
    sys.exit(main())
