"""Attention, forward and backward: our FlashAttention-2 in Triton beside PyTorch's, cuDNN's and FlexAttention.

Cases, causal, batch x heads x d_head at a length, in TFLOP/s (a causal forward pass does 2 b h T^2 d operations, the
backward pass 2.5 times as many):
  h16-d64-T16384     the shape of the 2025 leaderboard
  h16-d128-T16384
  b2-h32-d128-T32768
  h1-dD-TT           the handout's table: one head, T from 128 to 65,536, d 16 to 128, bf16 and fp32; with --table
Each as forward and as forward+backward (of o.sum()), timed by CUDA events over many calls.

Contenders: `flash` is PyTorch's FlashAttention-2, `cudnn` cuDNN's attention, both through scaled_dot_product_attention;
`flex` FlexAttention, compiled; `plain` the formula, compiled, where its scores fit. Each row holds the largest error of
the output and of the gradients against fp64, at 1,024 tokens of the same width.

Examples:
  python -m benchmarks attention
  python -m benchmarks attention --table --contenders ours plain
  TRITON_INTERPRET=1 python -m benchmarks attention --device cpu --shapes 1x2x64x256   # a dry run
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.measure import OURS, Case, Contender, Observation, Unavailable, median_seconds, with_peak_memory
from cs336.hardware import pick_device

FLASH, CUDNN, FLEX, PLAIN = "flash", "cudnn", "flex", "plain"
SHAPES = ("1x16x64x16384", "1x16x128x16384", "2x32x128x32768")
TABLE_LENGTHS, TABLE_WIDTHS = [2**power for power in range(7, 17)], (16, 32, 64, 128)
BACKENDS = {FLASH: SDPBackend.FLASH_ATTENTION, CUDNN: SDPBackend.CUDNN_ATTENTION}
MAX_PLAIN_SCORES = 2**31  # elements; beyond them its memory is not what is to be measured
CHECKED_LENGTH = 1_024
# Of gradients, on 1,024 tokens; what is wrong is off by more.
MAX_ERROR = {torch.bfloat16: 0.1, torch.float16: 0.02, torch.float32: 1e-3}
FLOPS = {"forward": 1.0, "forward+backward": 3.5}  # in forward passes

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclasses.dataclass(frozen=True)
class Shape:
    """Of one call: batch, heads, d_head, length."""

    batch: int
    heads: int
    d_head: int
    length: int

    @classmethod
    def parse(cls, text: str) -> Shape:
        """From BATCHxHEADSxD_HEADxLENGTH."""
        sizes = text.split("x")
        if len(sizes) != 4 or not all(size.isdigit() and int(size) for size in sizes):
            raise argparse.ArgumentTypeError(f"{text!r} is not BATCHxHEADSxD_HEADxLENGTH, such as {SHAPES[0]}")
        return cls(*map(int, sizes))

    def name(self) -> str:
        batch = f"b{self.batch}-" if self.batch > 1 else ""
        return f"{batch}h{self.heads}-d{self.d_head}-T{self.length}"

    def forward_flops(self) -> float:
        """Of a causal forward pass: two products, half of each."""
        return 2.0 * self.batch * self.heads * self.length**2 * self.d_head


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --shapes, --table, --dtypes, --contenders and --device."""
    parser.add_argument("--shapes", type=Shape.parse, nargs="+", metavar="BxHxDxT", help=f"default: {' '.join(SHAPES)}")
    parser.add_argument("--table", action="store_true", help="the handout's table instead")
    parser.add_argument("--dtypes", nargs="+", choices=("bfloat16", "float16", "float32"), help="(default: bfloat16)")
    parser.add_argument("--contenders", nargs="+", choices=(OURS, FLASH, CUDNN, FLEX, PLAIN), help="(default: all)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default %(default)s)")


def cases(options: argparse.Namespace) -> Iterator[Case]:
    """Shapes as given, or the handout's table."""
    device = pick_device(options.device)
    table = [Shape(1, 1, width, length) for width in TABLE_WIDTHS for length in TABLE_LENGTHS]
    shapes = table if options.table else options.shapes or [Shape.parse(shape) for shape in SHAPES]
    names = options.contenders or [OURS, FLASH, CUDNN, FLEX, PLAIN]
    default = ("bfloat16", "float32") if options.table else ("bfloat16" if device.type == "cuda" else "float32",)
    for dtype_name in options.dtypes or default:
        for shape, part in itertools.product(shapes, FLOPS):
            ours_first = [OURS, *(name for name in names if name != OURS)]
            yield _case(shape, part, getattr(torch, dtype_name), ours_first, device)


def _case(shape: Shape, part: str, dtype: torch.dtype, names: list[str], device: torch.device) -> Case:
    dtype_name = str(dtype).removeprefix("torch.")
    return Case(
        name="-".join([shape.name(), *([dtype_name] if dtype != torch.bfloat16 else []), part]),
        amount=FLOPS[part] * shape.forward_flops() / 1e12,
        unit="TFLOP/s",
        contenders=[
            Contender(
                name=name,
                prepare=functools.partial(_prepare, name, shape, part, dtype, device),
                packages=("torch", "triton"),
                check=lambda: None,  # held to fp64 before it is timed
            )
            for name in names
        ],
        difference=lambda ours, theirs: None,
        input={
            "batch": shape.batch,
            "heads": shape.heads,
            "d_head": shape.d_head,
            "length": shape.length,
            "causal": True,
        }
        | {"dtype": str(dtype).removeprefix("torch.")},
    )


def attention_of(name: str, length: int, device: torch.device) -> Attention:
    """A contender's causal attention of (batch, heads, length, d_head)."""
    if name == OURS:
        from cs336.kernels.flash_attention import flash_attention

        return functools.partial(flash_attention, causal=True)
    if name == PLAIN:
        return torch.compile(_plain) if device.type == "cuda" else _plain
    if name == FLEX:
        if device.type != "cuda":
            raise Unavailable("FlexAttention's backward pass needs a GPU")
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        mask = create_block_mask(lambda b, h, q, k: q >= k, None, None, length, length, device=str(device))
        return functools.partial(torch.compile(flex_attention, dynamic=False), block_mask=mask)
    if device.type != "cuda":
        raise Unavailable(f"{name} needs a GPU")

    def fused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(BACKENDS[name]):
            return scaled_dot_product_attention(q, k, v, is_causal=True)

    return fused


def _plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = q @ k.mT / q.shape[-1] ** 0.5
    mask = torch.ones(q.shape[-2], q.shape[-2], dtype=torch.bool, device=q.device).tril()
    scores = scores.masked_fill(~mask, float("-inf"))
    return scores.to(torch.promote_types(q.dtype, torch.float32)).softmax(-1).to(v.dtype) @ v


def inputs_of(shape: Shape, length: int, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    generator = torch.Generator(device).manual_seed(0)
    size = (shape.batch, shape.heads, length, shape.d_head)
    return [torch.randn(size, generator=generator, device=device).to(dtype).requires_grad_() for _ in range(3)]


def _prepare(name: str, shape: Shape, part: str, dtype: torch.dtype, device: torch.device) -> Callable[[], Observation]:
    if name == PLAIN and shape.batch * shape.heads * shape.length**2 > MAX_PLAIN_SCORES:
        raise Unavailable("its scores would take too much memory")
    errors = _errors(name, shape, dtype, device)
    if (largest := max(errors["error_against_fp64"].values())) > MAX_ERROR[dtype]:
        raise ValueError(f"its error against fp64 is {largest:.3g}")
    attention = attention_of(name, shape.length, device)
    inputs = inputs_of(shape, shape.length, dtype, device)

    def forward() -> Tensor:
        return attention(*inputs)

    def both() -> None:
        for each in inputs:
            each.grad = None
        forward().sum().backward()

    work: Callable[[], Any] = forward if part == "forward" else both

    def run() -> Observation:
        _, peak = with_peak_memory(work, device=device.type)
        seconds = median_seconds(work, device=device.type)
        return Observation(seconds={"": seconds}, peak_bytes=peak, result=None, details=errors)

    return run


@functools.cache
def _errors(name: str, shape: Shape, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """The largest errors against fp64, of output and gradients, at a length whose scores fit in fp64."""
    length = min(shape.length, CHECKED_LENGTH)
    inputs = inputs_of(shape, length, dtype, device)
    output = attention_of(name, length, device)(*inputs)
    grad = torch.randn(output.shape, generator=torch.Generator(device).manual_seed(1), device=device)
    ours = [output.detach(), *torch.autograd.grad(output, inputs, grad.to(dtype))]
    exact = [each.detach().double().requires_grad_() for each in inputs]
    expected = _plain(*exact)
    theirs = [expected.detach(), *torch.autograd.grad(expected, exact, grad.to(dtype).double())]
    names = ("output", "grad_q", "grad_k", "grad_v")
    return {
        "error_against_fp64": {
            name: (one.double() - other).abs().max().item()
            for name, one, other in zip(names, ours, theirs, strict=True)
        }
    }
