"""Attention, forward and backward: our FlashAttention-2 in Triton beside PyTorch's, cuDNN's and FlexAttention.

Cases, causal, batch x heads x d_head at a length, in TFLOP/s (a causal forward pass does 2 b h T^2 d operations, the
backward pass 2.5 times as many):
  h16-d64-T16384     the shape of the 2025 leaderboard
  h16-d128-T16384
  b2-h32-d128-T32768
  h1-dD-TT           the handout's table: one head, T from 128 to 65,536, d 16 to 128, bf16 and fp32; with --table
Each as forward and as forward+backward (of o.sum()), in the table as backward alone too, timed by CUDA events over many
calls.

Contenders: `flash` is PyTorch's FlashAttention-2, `cudnn` cuDNN's attention, both through scaled_dot_product_attention;
`flex` FlexAttention, compiled; `plain` the formula, compiled, where its scores fit. Each row holds the errors of the
output and of the gradients against fp64, at 1,024 tokens of the same width: the largest, and the root of the mean
square, since in 16 bits the largest is the last rounding's of a large value, whoever made it.

With --table the latencies of all rows of the file, and of those packed away in attention.jsonl.gz, also become
attention_table.md and .tex, ours beside `plain`. It takes long; --table 64 measures one width alone.

Examples:
  python -m benchmarks attention
  python -m benchmarks attention --table --contenders ours plain --repeats 1
  python -m benchmarks attention --table 16 32 --dtypes bfloat16 --contenders ours plain --repeats 1
  TRITON_INTERPRET=1 python -m benchmarks attention --device cpu --shapes 1x2x64x256   # a dry run
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.measure import OURS, Case, Contender, Observation, Unavailable, median_seconds, with_peak_memory
from cs336.files import UserError, read_jsonl
from cs336.hardware import pick_device
from cs336.profiling.pages import Page, Table
from cs336.profiling.tables import OUT_OF_MEMORY

FLASH, CUDNN, FLEX, PLAIN = "flash", "cudnn", "flex", "plain"
SHAPES = ("1x16x64x16384", "1x16x128x16384", "2x32x128x32768")
TABLE_LENGTHS, TABLE_WIDTHS = [2**power for power in range(7, 17)], (16, 32, 64, 128)
BACKENDS = {FLASH: SDPBackend.FLASH_ATTENTION, CUDNN: SDPBackend.CUDNN_ATTENTION}
PACKED_ROWS = "attention.jsonl.gz"  # hundreds of rows of 1 KB that differ by some bytes
MAX_CPU_SCORES = 2**24  # of a dry run in Triton's interpreter
MAX_PLAIN_SCORES = 2**32  # elements, of the table's longest; more are not tried
TOO_LARGE = "its scores would take too much memory"
CHECKED_LENGTH = 1_024
# Of gradients, on 1,024 tokens; what is wrong is off by more.
MAX_ERROR = {torch.bfloat16: 0.1, torch.float16: 0.02, torch.float32: 1e-3}
FORWARD, BACKWARD, BOTH = "forward", "backward", "forward+backward"
FLOPS = {FORWARD: 1.0, BACKWARD: 2.5, BOTH: 3.5}  # in forward passes
TABLE_COLUMNS = {"dtype": "type", "d_head": "d", "length": "T"} | {
    f"{name} {part}": f"{part}, {name}, ms" for part in FLOPS for name in (OURS, PLAIN)
}

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
    parser.add_argument(
        "--table",
        type=int,
        nargs="*",
        choices=TABLE_WIDTHS,
        metavar="D",
        help="the handout's table instead, or the part of it of these widths",
    )
    parser.add_argument("--dtypes", nargs="+", choices=("bfloat16", "float16", "float32"), help="(default: bfloat16)")
    parser.add_argument("--contenders", nargs="+", choices=(OURS, FLASH, CUDNN, FLEX, PLAIN), help="(default: all)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default %(default)s)")


def cases(options: argparse.Namespace) -> Iterator[Case]:
    """Shapes as given, or the handout's table.

    Raises:
        UserError: shapes for a GPU, and there is none.
    """
    device = pick_device(options.device)
    is_table = options.table is not None
    table = [Shape(1, 1, width, length) for width in options.table or TABLE_WIDTHS for length in TABLE_LENGTHS]
    shapes = options.shapes or (table if is_table else [Shape.parse(shape) for shape in SHAPES])
    if device.type != "cuda" and max(each.batch * each.heads * each.length**2 for each in shapes) > MAX_CPU_SCORES:
        raise UserError(
            "these shapes are for a GPU, and there is none; a dry run: TRITON_INTERPRET=1 python -m benchmarks"
            " attention --device cpu --shapes 1x2x64x256"
        )
    names = options.contenders or [OURS, FLASH, CUDNN, FLEX, PLAIN]
    default = ("bfloat16", "float32") if is_table else ("bfloat16" if device.type == "cuda" else "float32",)
    for dtype_name in options.dtypes or default:
        for shape, part in itertools.product(shapes, FLOPS if is_table else (FORWARD, BOTH)):
            ours_first = [OURS, *(name for name in names if name != OURS)]
            torch._dynamo.reset()  # it compiles a function for eight shapes, and leaves the next ones uncompiled
            yield _case(shape, part, getattr(torch, dtype_name), ours_first, device)


def finish(rows: list[dict[str, Any]], options: argparse.Namespace) -> None:
    """The handout's table, of the rows of all runs so far."""
    if options.table is None:
        return
    files = (options.results / name for name in (PACKED_ROWS, "attention.jsonl"))
    page = table_page(row for file in files if file.exists() for row in read_jsonl(file))
    for suffix, text in ((".md", page.markdown()), (".tex", page.latex() + "\n")):
        (options.results / f"attention_table{suffix}").write_text(text, encoding="utf-8")


def table_page(rows: Iterable[dict[str, Any]]) -> Page:
    """Latencies of one head by type, width and length; of a cell measured more than once the last, GPUs apart."""
    by_gpu: dict[str, dict[tuple[str, int, int], dict[str, Any]]] = {}
    for row in rows:
        shape = row["input"]
        if (shape["batch"], shape["heads"]) != (1, 1) or row["contender"] not in (OURS, PLAIN):
            continue
        key = shape["dtype"], shape["d_head"], shape["length"]
        gpu = ", ".join(sorted(set(row["hardware"]["gpus"]))) or row["hardware"]["cpu"]  # one of the machine's
        line = by_gpu.setdefault(gpu, {}).setdefault(key, {name: shape[name] for name in ("dtype", "d_head", "length")})
        part = next(part for part in (BOTH, BACKWARD, FORWARD) if row["case"].endswith(f"-{part}"))
        line[f"{row['contender']} {part}"] = 1e3 * row["seconds"] if "seconds" in row else _failure_in_words(row)
    titles = {gpu: f"Causal attention, batch 1, one head, {gpu}" for gpu in by_gpu}
    return Page(
        tables=[
            Table([lines[key] for key in sorted(lines)], TABLE_COLUMNS, titles[gpu]) for gpu, lines in by_gpu.items()
        ]
    )


def _failure_in_words(row: dict[str, Any]) -> str:
    if row["failure"].startswith("OutOfMemoryError"):
        return OUT_OF_MEMORY
    return "not tried" if TOO_LARGE in row["failure"] else "failed"


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
        raise Unavailable(TOO_LARGE)
    # A graph that is gone through again and again must keep its buffers, also where it is compiled.
    with torch._functorch.config.patch(donated_buffer=part != BACKWARD):
        return _prepared(name, shape, part, dtype, device)


def _prepared(
    name: str, shape: Shape, part: str, dtype: torch.dtype, device: torch.device
) -> Callable[[], Observation]:
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

    work: Callable[[], Any] = forward if part == FORWARD else both
    if part == BACKWARD:
        output = forward()
        grad = torch.ones_like(output)
        work = lambda: torch.autograd.grad(output, inputs, grad, retain_graph=True)  # noqa: E731

    def run() -> Observation:
        _, peak = with_peak_memory(work, device=device.type)
        seconds = median_seconds(work, device=device.type)
        return Observation(seconds={"": seconds}, peak_bytes=peak, result=None, details=errors)

    return run


@functools.cache
def _errors(name: str, shape: Shape, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """The errors against fp64, of output and gradients, at a length whose scores fit in fp64."""
    length = min(shape.length, CHECKED_LENGTH)
    inputs = inputs_of(shape, length, dtype, device)
    output = attention_of(name, length, device)(*inputs)
    grad = torch.randn(output.shape, generator=torch.Generator(device).manual_seed(1), device=device)
    ours = [output.detach(), *torch.autograd.grad(output, inputs, grad.to(dtype))]
    exact = [each.detach().double().requires_grad_() for each in inputs]
    expected = _plain(*exact)
    theirs = [expected.detach(), *torch.autograd.grad(expected, exact, grad.to(dtype).double())]
    names = ("output", "grad_q", "grad_k", "grad_v")
    off = {name: one.double() - other for name, one, other in zip(names, ours, theirs, strict=True)}
    return {
        "error_against_fp64": {name: each.abs().max().item() for name, each in off.items()},
        "rms_error_against_fp64": {name: each.square().mean().sqrt().item() for name, each in off.items()},
    }
