"""The handout's two questions on mixed precision, computed and answered: accumulation, and what autocast casts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cs336.profiling.cells import FAILURE, Cell, Row
from cs336.profiling.config import ProfilingConfig
from cs336.profiling.pages import Page, Table

ADDEND, COUNT = 0.01, 1_000


# ---- (a) sums


def accumulate() -> dict[str, float]:
    """0.01 added a thousand times, with accumulator and addend in fp32 or fp16; exactly it is 10."""

    def total(accumulator: torch.dtype, addend: torch.dtype, *, upcast: bool = False) -> float:
        found = torch.tensor(0, dtype=accumulator)
        for _ in range(COUNT):
            each = torch.tensor(ADDEND, dtype=addend)
            found += each.to(accumulator) if upcast else each
        return found.item()

    half, single = torch.float16, torch.float32
    return {
        "fp32 + fp32": total(single, single),
        "fp16 + fp16": total(half, half),
        "fp32 + fp16": total(single, half),
        "fp32 + (fp16 upcast first)": total(single, half, upcast=True),
    }


def accumulation_answer(sums: dict[str, float]) -> str:
    """What the four sums say."""
    rounded = torch.tensor(ADDEND, dtype=torch.float16).item()
    spacing = torch.finfo(torch.float16).eps * 8  # of fp16 numbers from 8 up
    return (
        f"**(a)** Exactly the sum is {ADDEND * COUNT:g}. fp32 misses it by {abs(sums['fp32 + fp32'] - 10):.2g}, the"
        f" rounding of a thousand sums. In fp16 alone it is off by {abs(sums['fp16 + fp16'] - 10):.2g}: from 8 up its"
        f" numbers lie {spacing:g} apart, from 4 up half as far, so the addend is rounded to one or three such steps,"
        f" always alike. With an fp32 accumulator only the addend's own rounding is left (0.01 is {rounded:.8f} in"
        f" fp16, times {COUNT:,}): off by {abs(sums['fp32 + fp16'] - 10):.2g}. Casting the addend first changes"
        " nothing, as the sum does that cast anyway. So sums are kept in fp32, and what goes into them may be fp16."
    )


# ---- (b) autocast

# What the handout's rules give; bf16 autocast has the same places.
EXPECTED_DTYPES = {
    "parameters": "float32",
    "fc1 output": "float16",
    "layer norm output": "float32",
    "logits": "float16",
    "loss": "float32",
    "gradients": "float32",
}


class ToyModel(nn.Module):
    """The handout's: `fc1`, ReLU, LayerNorm, `fc2`."""

    def __init__(self, in_features: int = 20, out_features: int = 5) -> None:
        super().__init__()
        self.fc1 = nn.Linear(in_features, 10, bias=False)
        self.ln = nn.LayerNorm(10)
        self.fc2 = nn.Linear(10, out_features, bias=False)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.ln(self.relu(self.fc1(x))))


def autocast_dtypes(device: torch.device, dtype: torch.dtype = torch.float16) -> dict[str, str]:
    """The types that the toy model's tensors have under autocast, as the run shows them."""
    torch.manual_seed(0)
    model = ToyModel().to(device)
    seen: dict[str, torch.dtype] = {}

    def note(name: str) -> Any:
        return lambda module, inputs, output: seen.update({name: output.dtype})

    for module, name in ((model.fc1, "fc1 output"), (model.ln, "layer norm output"), (model.fc2, "logits")):
        module.register_forward_hook(note(name))
    targets = torch.randint(5, (8,), device=device)
    with torch.autocast(device.type, dtype):
        loss = nn.functional.cross_entropy(model(torch.randn(8, 20, device=device)), targets)
        parameters = {parameter.dtype for parameter in model.parameters()}
    loss.backward()
    gradients = {parameter.grad.dtype for parameter in model.parameters() if parameter.grad is not None}
    assert len(parameters) == len(gradients) == 1
    seen |= {"parameters": parameters.pop(), "loss": loss.dtype, "gradients": gradients.pop()}
    return {name: str(seen[name]).removeprefix("torch.") for name in EXPECTED_DTYPES}


def layer_norm_answer() -> str:
    """Which part of LayerNorm is sensitive, and whether bf16 still needs care; shown by numbers."""
    x = torch.full((1_024,), 300.0)
    x[::2] = 310.0
    variance = x.var(unbiased=False).item()

    def naive(dtype: torch.dtype) -> float:
        """Mean of squares less square of the mean, each kept in `dtype`."""
        low = x.to(dtype)
        return (low.square().mean(dtype=torch.float32).to(dtype) - low.mean(dtype=torch.float32).to(dtype) ** 2).item()

    return (
        "**Where LayerNorm is sensitive**: in its statistics. Squares leave fp16's range beyond 256² = 65,536, and mean"
        " and variance are sums over the features in which small differences are lost. Of 1,024 values 300 and 310"
        f" (variance {variance:g}) the mean of squares less the squared mean is {naive(torch.float16):g} in fp16, and"
        f" {naive(torch.bfloat16):g} in bf16. With bf16 nothing overflows, so autocast need not fear infinities; but it"
        " has 8 bits of mantissa, 3 fewer than fp16, and sums of squares lose more. So statistics stay in fp32 there"
        " too, and autocast keeps `layer_norm` in fp32 for both on a GPU."
    )


# ---- as a study


def precision_cells(config: ProfilingConfig, sizes: Sequence[str], device: torch.device, folder: Path) -> list[Cell]:
    """The sums, and the toy model under fp16 and bf16 autocast."""
    autocast = [
        Cell(f"autocast, {name}", {"kind": "autocast", "dtype": name}, partial(autocast_dtypes, device, dtype))
        for name, dtype in (("float16", torch.float16), ("bfloat16", torch.bfloat16))
    ]
    return [Cell("sums", {"kind": "sums"}, accumulate), *autocast]


def precision_page(config: ProfilingConfig, sizes: Sequence[str], rows: Sequence[Row]) -> Page:
    """The answers beside what was measured."""
    sums = [row for row in rows if row["settings"]["kind"] == "sums" and FAILURE not in row]
    casts = [row for row in rows if row["settings"]["kind"] == "autocast"]
    lines = [
        {"device": row["device"], "autocast": row["settings"]["dtype"]}
        | ({"parameters": row[FAILURE]} if FAILURE in row else {name: row[name] for name in EXPECTED_DTYPES})
        for row in casts
    ]
    derived = {"device": "a GPU, by autocast's rules", "autocast": "float16"} | EXPECTED_DTYPES
    names = ("fp32 + fp32", "fp16 + fp16", "fp32 + fp16", "fp32 + (fp16 upcast first)")
    return Page(
        text="\n\n".join([*(accumulation_answer(row) for row in sums), _autocast_answer(casts), layer_norm_answer()]),
        tables=[
            Table(
                [{name: f"{row[name]:.6f}" for name in names} for row in sums],
                {name: name for name in names},
                "(a) Sums",
            ),
            Table(
                [*lines, derived],
                {"device": "device", "autocast": "autocast"} | {name: name for name in EXPECTED_DTYPES},
                "(b) Types under autocast",
            ),
        ],
    )


def dtypes_as_derived(rows: Sequence[Row]) -> bool | None:
    """Whether a GPU's fp16 autocast gave the types that its rules say; None where there was no GPU."""
    measured = [
        row
        for row in rows
        if row["settings"] == {"kind": "autocast", "dtype": "float16"} and row["device"] != "cpu" and FAILURE not in row
    ]
    return all(row[name] == dtype for row in measured for name, dtype in EXPECTED_DTYPES.items()) if measured else None


def _autocast_answer(rows: Sequence[Row]) -> str:
    agrees = dtypes_as_derived(rows)
    beside = {True: "as measured below", False: "but measured otherwise, see below", None: "here no GPU measured it"}
    return (
        "**(b)** Autocast casts at operators, not in place: parameters stay fp32, and so do their gradients. Matrix"
        " products run in fp16, so `fc1` and the logits are fp16; LayerNorm and the loss are on the list of operators"
        f" that a GPU runs in fp32 ({beside[agrees]})."
    )
