"""A training step of a preset's model, beside transformers' Llama with PyTorch's AdamW: forward, backward, update.

The same weights, tokens, precision and `torch.compile`; the peer uses PyTorch's fused attention, cross-entropy,
gradient clipping and AdamW. Losses of the first step must agree before anything is timed. Contenders:
  ours          as the training loop runs it with CS336_COMPILE=1
  not compiled  as it runs without
  transformers  LlamaForCausalLM, compiled

On a GPU the run ends with a table of where a step's time goes, by kind of kernel; it is written as a row, too.

With --size it is the handout's harness instead: a shape by name or by numbers, random weights and tokens, forward,
forward+backward or a whole step, without peers. With --study it makes the handout's tables. Both add rows, too.

Examples:
  python -m benchmarks train_step --preset course
  python -m benchmarks train_step --preset tiny --batch-size 4 --device cpu --no-compile
  python -m benchmarks train_step --size small xl --mode forward step --precision bfloat16
  python -m benchmarks train_step --size 256x1024x4x4 --context 64 --steps 3 --device cpu
  python -m benchmarks train_step --study all --minutes 9      # the same line again goes on where it stopped
  python -m benchmarks train_step --study all --preset tiny --device cpu      # a dry run, in seconds
  nsys profile -t cuda,nvtx -o small python -m benchmarks train_step --size small --mode step --nvtx
  nsys stats -r cuda_gpu_kern_sum --filter-nvtx forward small.nsys-rep        # without the warm-up

The data assignment's step on one GPU or several, with hours for all of its steps: python -m benchmarks.course_step
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from benchmarks import studies
from benchmarks.measure import OURS, Case, Contender, hardware
from benchmarks.peers import transformers_twin
from benchmarks.studies import DEFAULT_PRESET
from cs336.files import UserError, append_jsonl
from cs336.hardware import peak_flops_per_second, pick_device
from cs336.model.accounting import training_flops
from cs336.model.transformer import ModelConfig
from cs336.preset_lookup import find_preset
from cs336.profiling.kernel_times import KINDS, kind_of
from cs336.revision import describe_commit
from cs336.train.loop import TrainConfig, training_step

PACKAGES = ("torch", "triton", "transformers")
NUM_TIMED_STEPS = 10  # of one run: a step alone would be timed with the start of the next
NUM_PROFILED_STEPS = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --preset, --vocab-size, --batch-size, --device, --no-compile, and those of the harness."""
    parser.add_argument("--preset", help=f"whose model and training (default {DEFAULT_PRESET})")
    parser.add_argument("--vocab-size", type=int, help="default: what the preset's tokenizer aims for")
    parser.add_argument("--batch-size", type=int, help="sequences (default: the preset's)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default %(default)s)")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out, for a quick look")
    studies.add_arguments(parser)


def instead_of_cases(options: argparse.Namespace) -> int | None:
    """With --size or --study the handout's harness runs, without peers; returns its exit status."""
    return studies.run(options)


def cases(options: argparse.Namespace) -> Iterator[Case]:
    """One case: the preset's step."""
    device = pick_device(options.device)
    preset = find_preset(options.preset or DEFAULT_PRESET)
    model = dataclasses.replace(preset.model, vocab_size=options.vocab_size or preset.bpe.vocab_size)
    train = preset.train
    if options.batch_size:  # in one piece where the preset's pieces do not fit it
        fits = train.micro_batch_size and options.batch_size % train.micro_batch_size == 0
        micro_batch_size = train.micro_batch_size if fits else 0
        train = dataclasses.replace(train, batch_size=options.batch_size, micro_batch_size=micro_batch_size)
    if train.optimizer != "adamw":
        raise UserError(f"preset {preset.name} trains with {train.optimizer}; the peer has AdamW only")
    torch.set_float32_matmul_precision("high")
    generator = torch.Generator().manual_seed(0)
    shape = (train.batch_size, model.context_length + 1)
    tokens = torch.randint(model.vocab_size, shape, generator=generator)
    compiled = not options.no_compile
    contenders = [
        Contender(name=OURS, prepare=lambda: _ours(model, train, tokens, device, compiled), packages=PACKAGES),
        Contender(
            name="transformers",
            prepare=lambda: _transformers(model, train, tokens, device, compiled),
            packages=PACKAGES,
        ),
    ]
    if compiled:
        prepare = lambda: _ours(model, train, tokens, device, False)  # noqa: E731
        contenders.insert(1, Contender(name="not compiled", prepare=prepare, packages=PACKAGES))
    yield Case(
        name=preset.name,
        amount=NUM_TIMED_STEPS * train.batch_size * model.context_length,
        unit="tokens/s",
        contenders=contenders,
        difference=_different_loss,
        input={
            "model": dataclasses.asdict(model),
            "batch_size": train.batch_size,
            "precision": train.precision,
            "compiled": compiled,
            "bytes": tokens.nbytes,
            "sha256": hashlib.sha256(tokens.numpy().tobytes()).hexdigest(),
        },
        device=device.type,
    )
    if device.type == "cuda" and compiled:
        _show_where_the_time_goes(options, preset.name, model, train, tokens, device)


def _ours(
    model: ModelConfig, train: TrainConfig, tokens: Tensor, device: torch.device, compiled: bool
) -> Callable[[], float]:
    torch.manual_seed(0)
    _, step = training_step(model, train, device, compile_model=compiled)
    return _repeated(step, tokens, device)


def _transformers(
    model: ModelConfig, train: TrainConfig, tokens: Tensor, device: torch.device, compiled: bool
) -> Callable[[], float]:
    torch.manual_seed(0)
    ours, _ = training_step(model, train, device, compile_model=False)
    theirs = transformers_twin(ours).train()
    del ours
    optimizer = torch.optim.AdamW(
        theirs.parameters(),
        lr=train.learning_rate,
        betas=train.betas,
        eps=train.eps,
        weight_decay=train.weight_decay,
        fused=device.type == "cuda",
    )

    def loss_of(inputs: Tensor, targets: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=train.precision == "bfloat16"):
            logits = theirs(input_ids=inputs, use_cache=False).logits
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())

    if compiled:
        loss_of = torch.compile(loss_of, dynamic=False)

    def step(inputs: Tensor, targets: Tensor) -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(inputs, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), train.max_grad_norm)
        optimizer.step()
        return loss.detach()

    return _repeated(step, tokens, device)


def _repeated(step: Callable[[Tensor, Tensor], Tensor], tokens: Tensor, device: torch.device) -> Callable[[], float]:
    """Some steps on the same batch; returns the loss of the first."""
    inputs, targets = tokens[:, :-1].contiguous().to(device), tokens[:, 1:].contiguous().to(device)

    def run() -> float:
        losses = [step(inputs, targets) for _ in range(NUM_TIMED_STEPS)]
        return float(losses[0])

    return run


def _different_loss(ours: float, theirs: float) -> str | None:
    # Steps are taken in bf16, whose products differ in the third digit; a wrong shape or mask differs in the first.
    return None if abs(ours - theirs) < 0.01 * abs(ours) else f"first loss {theirs:.4f}, ours {ours:.4f}"


def _show_where_the_time_goes(
    options: argparse.Namespace,
    name: str,
    model: ModelConfig,
    train: TrainConfig,
    tokens: Tensor,
    device: torch.device,
) -> None:
    """Profile our step; print its milliseconds by kind of kernel, and add them to the results as a row."""
    from torch.profiler import ProfilerActivity, profile

    torch.manual_seed(0)
    _, step = training_step(model, train, device, compile_model=True)
    run = _repeated(step, tokens, device)
    run()
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as profiler:
        for _ in range(NUM_PROFILED_STEPS):
            step(tokens[:, :-1].contiguous().to(device), tokens[:, 1:].contiguous().to(device))
        torch.cuda.synchronize()
    times = dict.fromkeys([*KINDS, "other"], 0.0)
    for event in profiler.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            times[kind_of(event.name)] += event.device_time / 1e3 / NUM_PROFILED_STEPS
    total = sum(times.values())
    num_tokens = train.batch_size * model.context_length
    busy_flops = training_flops(model, num_tokens) / (total / 1e3)
    peak = peak_flops_per_second(device, train.precision)
    print(f"\nwhere {total:.2f} ms of kernels go in one step of {num_tokens:,} tokens:")
    for kind, milliseconds in sorted(times.items(), key=lambda item: -item[1]):
        print(f"  {kind:<38} {milliseconds:7.2f} ms  {milliseconds / total:6.1%}")
    print(
        f"  {busy_flops / 1e12:.0f} TFLOP/s" + (f", {busy_flops / peak:.1%} of the data sheet's peak" if peak else "")
    )
    row = {
        "subject": "train_step",
        "case": f"{name}-kernels",
        "contender": OURS,
        "milliseconds": {kind: round(milliseconds, 3) for kind, milliseconds in times.items()},
        "flops_per_second": busy_flops,
        "mfu": busy_flops / peak if peak else None,
        "hardware": hardware(),
        "commit": describe_commit(),
    }
    append_jsonl(options.results / "train_step.jsonl", row)
