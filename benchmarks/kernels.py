"""Our fused Triton kernels beside what torch.compile makes of the plain code, and the plain code itself.

Cases, forward and backward together unless said otherwise; the figure is the memory that must move at least, by time:
  rms_norm       32,768 rows of 4,096, bf16
  swiglu         32,768 rows of 11,008, bf16
  rope           32,768 positions of 32 heads of 128, bf16
  adamw          400 million fp32 parameters in 100 tensors, one step
  cross_entropy  8,192 tokens, d_model 4,096, 151,936 entries, bf16: hidden states and head to loss and gradients, in
                 tokens a second, with its peak of memory
Contenders: `compiled` is the plain code under torch.compile, `eager` the plain code; of adamw also `torch`, PyTorch's
fused AdamW, and `compiled` is PyTorch's AdamW over lists: ours counts its steps in Python, so that each step would be
compiled anew, and after eight none any more. Results must agree before anything is timed.

Examples:
  python -m benchmarks kernels
  TRITON_INTERPRET=1 python -m benchmarks kernels --device cpu --scale 64   # a dry run: sizes divided by 64
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.measure import OURS, Case, Contender, Observation, median_seconds, with_peak_memory
from cs336.files import UserError
from cs336.hardware import pick_device
from cs336.model.layers import RMSNorm, RotaryPositionalEmbedding, silu
from cs336.train.loss import linear_cross_entropy
from cs336.train.optimizer import AdamW

MIN_CPU_SCALE = 16
COMPILED, EAGER, TORCH = "compiled", "eager", "torch"
TOLERANCE = 0.02  # of the largest value: bf16 rounds in other places

Work = Callable[[], list[Tensor]]


class Kernel(NamedTuple):
    """One kernel's work: how much it is in `unit`, what prepares it for each contender, and its shape."""

    amount: float
    works: dict[str, Callable[[], Work]]
    shape: dict[str, Any]
    unit: str = "GB/s"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --device, --scale and --cases."""
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default %(default)s)")
    parser.add_argument("--scale", type=int, default=1, metavar="N", help="divide the sizes, for a dry run")
    parser.add_argument("--cases", nargs="+", choices=KERNELS, help="(default: all)")


def cases(options: argparse.Namespace) -> Iterator[Case]:
    """One case a kernel.

    Raises:
        UserError: sizes for a GPU, and there is none.
    """
    device = pick_device(options.device)
    if device.type != "cuda" and options.scale < MIN_CPU_SCALE:
        raise UserError(
            "these sizes are for a GPU, and there is none; a dry run: TRITON_INTERPRET=1 python -m benchmarks"
            " kernels --device cpu --scale 64"
        )
    for name in options.cases or KERNELS:
        yield _case(name, KERNELS[name](device, options.scale), device)


def _rms_norm(device: torch.device, scale: int) -> Kernel:
    rows, width = 32_768 // scale, max(64, 4_096 // scale)
    x, grad = (_random(rows, width, device=device, seed=seed) for seed in range(2))
    layer = RMSNorm(width, device=device)

    def ours(x: Tensor) -> Tensor:
        from cs336.kernels.rms_norm import rms_norm

        return rms_norm(x, layer.weight)

    works = _both_ways(ours, layer, [x], [layer.weight], grad)
    return Kernel(5 * x.numel() * 2 / 1e9, works, {"rows": rows, "width": width})


def _swiglu(device: torch.device, scale: int) -> Kernel:
    rows, width = 32_768 // scale, max(64, 11_008 // scale)
    gate, up, grad = (_random(rows, width, device=device, seed=seed) for seed in range(3))

    def ours(gate: Tensor, up: Tensor) -> Tensor:
        from cs336.kernels.swiglu import swiglu

        return swiglu(gate, up)

    works = _both_ways(ours, lambda gate, up: silu(gate) * up, [gate, up], [], grad)
    return Kernel(8 * gate.numel() * 2 / 1e9, works, {"rows": rows, "width": width})


def _rope(device: torch.device, scale: int) -> Kernel:
    seq, heads, d = 32_768 // scale, 32, 128
    x, grad = (_random(1, seq, heads, d, device=device, seed=seed).transpose(1, 2) for seed in range(2))
    rope = RotaryPositionalEmbedding(10_000.0, d, seq, device=device)
    positions = torch.arange(seq, device=device)

    def ours(x: Tensor) -> Tensor:
        from cs336.kernels.rope import rotate

        return rotate(x, rope.cos, rope.sin, interleaved=True)

    works = _both_ways(ours, lambda x: rope(x, positions), [x], [], grad)
    return Kernel(4 * x.numel() * 2 / 1e9, works, {"seq": seq, "heads": heads, "d_head": d})


def _both_ways(
    ours: Callable[..., Tensor],
    plain: Callable[..., Tensor],
    inputs: list[Tensor],
    parameters: list[Tensor],
    grad: Tensor,
) -> dict[str, Callable[[], Work]]:
    """For each contender what prepares a forward and backward pass; each returns the output and all gradients."""

    def prepared(function: Callable[..., Tensor]) -> Work:
        leaves = [each.detach().requires_grad_() for each in inputs]

        def work() -> list[Tensor]:
            output = function(*leaves)
            return [output.detach(), *torch.autograd.grad(output, [*leaves, *parameters], grad)]

        return work

    return {
        OURS: lambda: prepared(ours),
        COMPILED: lambda: prepared(torch.compile(plain, dynamic=False)),
        EAGER: lambda: prepared(plain),
    }


def _adamw(device: torch.device, scale: int) -> Kernel:
    size = 4_000_000 // scale
    settings: dict[str, Any] = {"lr": 1e-3, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}

    def parameters() -> list[torch.nn.Parameter]:
        made = [torch.nn.Parameter(torch.randn(size, device=device)) for _ in range(100)]
        for parameter in made:
            parameter.grad = torch.randn_like(parameter)
        return made

    def ours() -> Work:
        from cs336.kernels.adamw import adamw_step

        torch.manual_seed(0)
        updated = parameters()
        m, v = ([torch.zeros_like(each) for each in updated] for _ in range(2))
        values, gradients = [each.data for each in updated], [each.grad for each in updated if each.grad is not None]

        def work() -> list[Tensor]:
            adamw_step(values, gradients, m, v, t=1, **settings)
            return values

        return work

    def stepped(make: Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer], compiled: bool) -> Work:
        torch.manual_seed(0)
        updated = parameters()
        optimizer = make(updated)
        step = torch.compile(optimizer.step) if compiled else optimizer.step

        def work() -> list[Tensor]:
            step()
            return [each.detach() for each in updated]

        return work

    def fused(updated: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(updated, fused=True, **settings)

    def over_lists(updated: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(updated, foreach=True, **settings)

    def plain(updated: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
        return AdamW(updated, **settings)

    works = {
        OURS: ours,
        COMPILED: lambda: stepped(over_lists, True),
        EAGER: lambda: stepped(plain, False),
        TORCH: lambda: stepped(fused, False),
    }
    return Kernel(7 * 4 * 100 * size / 1e9, works, {"parameters": 100 * size, "tensors": 100})


def _cross_entropy(device: torch.device, scale: int) -> Kernel:
    tokens, width, vocab = 8_192 // scale, max(64, 4_096 // scale), 151_936 // scale
    hidden, head = (_random(n, width, device=device, seed=seed) for seed, n in enumerate((tokens, vocab)))
    targets = torch.randint(vocab, (tokens,), device=device)

    def prepared(function: Callable[[Tensor, Tensor], Tensor]) -> Work:
        leaves = [hidden.detach().requires_grad_(), (head * width**-0.5).detach().requires_grad_()]

        def work() -> list[Tensor]:
            loss = function(*leaves)
            return [loss.detach(), *torch.autograd.grad(loss, leaves)]

        return work

    def chunked(hidden: Tensor, head: Tensor, in_place: bool = False) -> Tensor:
        return linear_cross_entropy(hidden, head, targets, in_place=in_place).total

    def whole(hidden: Tensor, head: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy((hidden @ head.T).float(), targets)

    works = {
        OURS: lambda: prepared(functools.partial(chunked, in_place=True)),
        "chunks, compiled": lambda: prepared(torch.compile(chunked, dynamic=False)),
        COMPILED: lambda: prepared(torch.compile(whole, dynamic=False)),
        EAGER: lambda: prepared(whole),
    }
    return Kernel(tokens, works, {"tokens": tokens, "d_model": width, "vocab": vocab}, unit="tokens/s")


def _random(*shape: int, device: torch.device, seed: int) -> Tensor:
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float16  # the interpreter is wrong in bf16
    return torch.randn(shape, generator=torch.Generator(device).manual_seed(seed), device=device).to(dtype)


def _case(name: str, kernel: Kernel, device: torch.device) -> Case:
    def prepared(make: Callable[[], Work]) -> Callable[[], Observation]:
        work = make()
        compared = False

        def run() -> Observation:
            nonlocal compared
            result, peak = with_peak_memory(work, device=device.type)
            # Once, and of what later runs do not change: after so many steps of AdamW no two are at the same one.
            kept = None if compared else [each.clone() for each in result]
            compared = True
            seconds = median_seconds(work, device=device.type, warmup_ms=50, rep_ms=300)
            return Observation(seconds={"": seconds}, peak_bytes=peak, result=kept)

        return run

    return Case(
        name=name,
        amount=kernel.amount,
        unit=kernel.unit,
        contenders=[
            Contender(name=each, prepare=functools.partial(prepared, make), packages=("torch", "triton"))
            for each, make in kernel.works.items()
        ],
        difference=_difference,
        input=kernel.shape,
    )


def _difference(ours: Observation | list[Tensor], theirs: Observation | list[Tensor]) -> str | None:
    one, other = (each.result if isinstance(each, Observation) else each for each in (ours, theirs))
    for place, (a, b) in enumerate(zip(one, other, strict=True)):
        off = (a.float() - b.float()).abs().max().item()
        if not off <= TOLERANCE * max(b.float().abs().max().item(), 1e-3):
            return f"result {place} is off by {off:.3g}"
    return None


KERNELS: dict[str, Callable[[torch.device, int], Kernel]] = {
    "rms_norm": _rms_norm,
    "swiglu": _swiglu,
    "rope": _rope,
    "adamw": _adamw,
    "cross_entropy": _cross_entropy,
}
