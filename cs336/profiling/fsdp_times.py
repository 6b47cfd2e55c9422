"""What sharding parameters saves in memory and costs in time, and whether gathers finish before they are needed.

Ours with and without prefetch, in fp32 and in bf16, beside whole parameters (`DDP`) and PyTorch's `fully_shard`: as
runs have it by `--parallel fsdp2`, and called directly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cs336 import pictures
from cs336.model.transformer import ModelConfig, TransformerLM
from cs336.parallel.accounting import fsdp_messages, held_bytes, weights_of, whole_weights_bytes
from cs336.parallel.ddp import DDP
from cs336.parallel.fsdp import FSDP
from cs336.parallel.fsdp2 import FullyShard
from cs336.parallel.process_group import Rank
from cs336.profiling import timelines
from cs336.profiling.ddp_times import sizes_of
from cs336.profiling.gathers import watch_gathers
from cs336.profiling.parallel_config import ParallelConfig, StepSetting
from cs336.profiling.rank_cells import (
    Rows,
    Say,
    Stopwatch,
    over_ranks,
    peak_and_held,
    require_gpus,
    time_steps,
)
from cs336.profiling.rank_steps import (
    by_turns,
    fresh_ranks,
    fullest,
    held_by_kind,
    measured_sizes,
    new_model,
    random_batch,
    training_step,
)
from cs336.profiling.spread import how_timed, ratio_text, spread_text
from cs336.profiling.tables import markdown_table
from cs336.train.optimizer import AdamW

WHOLE, AHEAD, IN_TURN = "whole (DDP)", "ours, prefetch", "ours, no prefetch"
BACKEND, PEER = "--parallel fsdp2", "PyTorch's fully_shard"
FORMS = (WHOLE, AHEAD, IN_TURN, BACKEND, PEER)
PRECISIONS = ("float32", "bfloat16")
_LEARNING_RATE = 1e-5


def _nothing() -> None:
    return None


def measure_fsdp(config: ParallelConfig, rows: Rows, traces: Path, say: Say) -> list[dict[str, Any]]:
    """Time every form in both precisions, and profile a step of ours; where a cell does not fit, a smaller size too.

    Raises:
        UserError: fewer GPUs than ranks.
    """
    require_gpus("the study of sharded parameters", config.world_size, config.device)

    run = fresh_ranks(config)

    def measure(setting: StepSetting) -> list[dict[str, Any]]:
        found = []
        ranks = {"processes": config.world_size, "device": config.device}
        for precision in PRECISIONS:
            chosen = replace(setting, precision=precision)
            cells = {form: {"form": form} | ranks | chosen.described() for form in FORMS}
            contenders = [(cell, run(time_form, form, chosen)) for form, cell in cells.items()]
            found += by_turns(config, contenders, rows, say)
            for form in (AHEAD, IN_TURN):
                name = form.removeprefix("ours, ").replace(" ", "-")
                path = traces / f"fsdp-{setting.name}-{precision}-{name}.json.gz"
                cell = {"profiled": form} | ranks | chosen.described()
                found.append(rows.measure(cell, run(profile_form, form, chosen, path), say))
        return found

    return measured_sizes(config, measure)


@dataclass
class Wrapped:
    """A model as one form trains it.

    Attributes:
        call: what is called with the inputs.
        optimizer: over what this rank holds.
        finish: brings the gradients over the ranks.
        zero_grad: in place of the optimizer's.
        autocast: the precision for `training_step`: FSDP casts weights itself.
        fsdp: ours.
    """

    call: nn.Module
    optimizer: torch.optim.Optimizer
    finish: Callable[[], object] = field(default=_nothing)
    zero_grad: Callable[[], object] | None = None
    autocast: str = "float32"
    fsdp: FSDP | None = None


def wrap(form: str, model: TransformerLM, precision: str, place: Rank) -> Wrapped:
    """The model under a form, its products in a precision.

    Raises:
        ValueError: there is no such form.
    """
    low = torch.bfloat16 if precision == "bfloat16" else None
    if form == WHOLE:
        ddp = DDP(model)
        return Wrapped(ddp, _adamw(model.parameters()), ddp.finish_gradient_synchronization, autocast=precision)
    if form in (AHEAD, IN_TURN):
        fsdp = FSDP(model, low, prefetch=form == AHEAD)
        return Wrapped(fsdp, _adamw(fsdp.parameters()), fsdp.finish_gradient_synchronization, fsdp=fsdp)
    if form == BACKEND:
        backend = FullyShard(model, model.layers, compute_dtype=low)
        return Wrapped(
            model, _adamw(backend.parameters()), backend.finish_gradient_synchronization, zero_grad=backend.zero_grad
        )
    if form == PEER:
        _fully_shard(model, low, place)
        # Ours does not know distributed tensors; PyTorch's does the same arithmetic.
        return Wrapped(model, torch.optim.AdamW(model.parameters(), lr=_LEARNING_RATE))
    raise ValueError(f"there is no form {form!r} of sharded training")


def _adamw(parameters: Iterable[nn.Parameter]) -> AdamW:
    return AdamW(parameters, lr=_LEARNING_RATE)


def _fully_shard(model: TransformerLM, low: torch.dtype | None, place: Rank) -> None:
    """By PyTorch's own call, a unit for each block, gradients travelling in the dtype that ours travel in."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(place.device.type, (place.world_size,))
    policy = MixedPrecisionPolicy(param_dtype=low, reduce_dtype=low)
    for layer in model.layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)


def time_form(place: Rank, form: str, setting: StepSetting) -> dict[str, Any]:
    """Train a new model under one form, time its steps, and see when its gathers finish; every rank calls it.

    Returns:
        What `time_steps` does; `memory` by stage, `counted` bytes by kind; and of ours `gathers`, see `watch_gathers`.
    """
    model = new_model(setting, place.device)
    wrapped = wrap(form, model, setting.precision, place)
    peak_and_held(place)  # building is not the study's subject; what follows counts from here
    step = _step(wrapped, setting, place)
    times = time_steps(place, step, num_warmup=setting.num_warmup, num_steps=setting.num_steps)
    memory = peak_and_held(place)
    counted = over_ranks(held_by_kind(model.parameters(), wrapped.optimizer))
    gathers = watch_gathers(wrapped.fsdp, lambda: step(Stopwatch(place.device))) if wrapped.fsdp else None
    return times | {"memory": memory, "counted": counted, "gathers": over_ranks(gathers)}


def profile_form(place: Rank, form: str, setting: StepSetting, path: Path) -> dict[str, Any]:
    """Profile one step of ours, after those of the warm-up; rank 0 writes its small trace."""
    model = new_model(setting, place.device)
    step = _step(wrap(form, model, setting.precision, place), setting, place)
    for _ in range(max(2, setting.num_warmup)):  # the first one learns the order of the layers
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


def _step(wrapped: Wrapped, setting: StepSetting, place: Rank) -> Callable[[Stopwatch], Tensor]:
    return training_step(
        wrapped.call,
        wrapped.optimizer,
        random_batch(setting, place),
        wrapped.autocast,
        wrapped.finish,
        zero_grad=wrapped.zero_grad,
    )


# ---- what the figures say

_COLUMNS = {
    "form": "parameters",
    "precision": "products",
    "ms": "ms a step",
    "spread": "spread",
    "peak_gib": "peak, GiB",
    "parameters": "weights",
    "gradients": "gradients",
    "states": "states",
    "in_time": "units gathered in time, forward",
    "worst_ms": "longest wait, ms",
    "state": "",
}
_GIB = 2**30


def table_of(rows: Sequence[dict[str, Any]], size: str) -> list[dict[str, Any]]:
    """A line for each form and precision; bytes of the fullest rank, in GiB, gathers of rank 0."""
    table = []
    for row in rows:
        cell = row["cell"]
        if cell.get("size") != size or "form" not in cell:
            continue
        line = {"form": cell["form"], "precision": cell["precision"], "state": row.get("state") or row.get("failure")}
        if "ms" in row:
            line |= {"ms": row["ms"], "spread": spread_text(row)}
            line |= {kind: value / _GIB for kind, value in fullest(row["counted"]).items()}
            if row["memory"]:
                line["peak_gib"] = max(row["memory"]["peak"]) / _GIB
            slacks = [each["slack_ms"] for each in row["gathers"][0] or () if each["forward"]]
            if slacks:
                line["in_time"] = f"{sum(slack >= 0 for slack in slacks)} of {len(slacks)}"
                line["worst_ms"] = max(0.0, -min(slacks))
        table.append(line)
    return table


def page(rows: Sequence[dict[str, Any]]) -> str:
    """Tables of all sizes: time, memory, gathers, and the saving expected and measured."""
    parts = []
    for size in sizes_of(rows):
        timed = [row for row in rows if row["cell"].get("size") == size and "ms" in row]
        cell = next(row["cell"] for row in rows if row["cell"].get("size") == size)
        parts += [
            f"**{size}**, {cell['processes']} ranks of {cell['batch_size']} x {cell['context_length']} tokens, AdamW in"
            f" fp32{', products of float32 in TF32' if cell['device'] == 'cuda' else ''}; of the fullest rank, peaks of"
            f" whole steps. {how_timed(timed)} {_backends(timed)}".rstrip(),
            markdown_table(table_of(rows, size), _COLUMNS),
            _savings(rows, size),
            _messages(rows, size),
            _gathers(rows, size),
            _ratios(rows, size),
        ]
    return "\n\n".join(part for part in parts if part)


def expected_saving(cell: dict[str, Any], compute_bytes: int) -> dict[str, float]:
    """Bytes that a rank holds with whole and with sharded parameters by the closed forms, and their differences.

    Returns:
        `saved` while a forward pass has units gathered; `saved_in_update`, where none is, and AdamW over lists makes
        the roots of the second moments: `roots_whole` and `roots_sharded`, as many bytes as there are gradients.
    """
    weights = weights_of(TransformerLM(ModelConfig(**cell["model"]), device="meta"))
    whole = held_bytes("ddp", weights, cell["processes"])
    sharded = held_bytes("fsdp", weights, cell["processes"])
    gathered = whole_weights_bytes(weights, cell["processes"], compute_bytes=compute_bytes)
    return {
        "whole": whole.total,
        "sharded": sharded.total,
        "gathered": gathered,
        "saved": whole.total - sharded.total - gathered,
        "roots_whole": whole.gradients,
        "roots_sharded": sharded.gradients,
        "saved_in_update": whole.total + whole.gradients - sharded.total - sharded.gradients,
    }


def _savings(rows: Sequence[dict[str, Any]], size: str) -> str:
    said = []
    for precision, compute_bytes in zip(PRECISIONS, (4, 2), strict=True):
        found = {
            row["cell"]["form"]: row
            for row in rows
            if row["cell"].get("size") == size and row["cell"]["precision"] == precision and "ms" in row
        }
        if AHEAD not in found:
            continue
        expected = expected_saving(found[AHEAD]["cell"], compute_bytes)
        line = (
            f"{precision}: weights, gradients and states take {expected['whole'] / _GIB:.3g} GiB whole and"
            f" {expected['sharded'] / _GIB:.3g} GiB sharded, and the two largest units, gathered,"
            f" {expected['gathered'] / _GIB:.2g}: expected saving {expected['saved'] / _GIB:.3g} GiB. The update, when"
            f" none is gathered, makes the roots of the second moments, {expected['roots_whole'] / _GIB:.3g} GiB and"
            f" {expected['roots_sharded'] / _GIB:.3g}: expected there {expected['saved_in_update'] / _GIB:.3g}"
        )
        if WHOLE in found and found[WHOLE]["memory"] and found[AHEAD]["memory"]:
            peaks = [max(found[form]["memory"]["peak"]) / _GIB for form in (WHOLE, AHEAD)]
            line += f"; measured, of the peaks, {peaks[0] - peaks[1]:.3g} ({peaks[0]:.3g} to {peaks[1]:.3g})"
        said.append(f"{line}.")
    return " ".join(said)


def _messages(rows: Sequence[dict[str, Any]], size: str) -> str:
    """How many messages a step of ours has sent, beside the closed form."""
    row = next((row for row in rows if row["cell"].get("size") == size and any(row.get("gathers") or ())), None)
    if row is None:
        return ""
    weights = weights_of(TransformerLM(ModelConfig(**row["cell"]["model"]), device="meta"))
    expected = fsdp_messages(weights)
    sharded = [weight for weight in weights if weight.gathered_for]
    num_sharded, num_units = len(sharded), len({weight.unit for weight in sharded})
    return (
        f"**Messages.** Ours sends {num_sharded} sharded weights in {num_units} units: those of a block in one message,"
        f" embedding and head by themselves. A step gathered {len(row['gathers'][0])} times; by the closed form,"
        f" without recomputation, it gathers {expected['all_gather']} times, reduce-scatters"
        f" {expected['reduce_scatter']} times, and sums the gradients of all that stays whole in"
        f" {expected['all_reduce']}."
    )


def _gathers(rows: Sequence[dict[str, Any]], size: str) -> str:
    said = []
    for row in rows:
        cell = row["cell"]
        if cell.get("size") != size or not any(row.get("gathers") or ()):
            continue
        ahead = [each for each in row["gathers"][0] if each["forward"]]
        late = sorted((each for each in ahead if each["slack_ms"] < 0), key=lambda each: each["slack_ms"])
        waited = -sum(each["slack_ms"] for each in late)
        line = (
            f"{cell['form']}, {cell['precision']}: the weights of {len(ahead) - len(late)} of {len(ahead)} units were"
            " there in time"
        )
        if late:
            line += f"; the others kept the forward waiting {waited:,.3g} ms in all, longest {late[0]['name']}"
        said.append(line)
    return f"**Does a unit's gather finish before its forward needs the weights?** {'. '.join(said)}." if said else ""


def _backends(timed: Sequence[dict[str, Any]]) -> str:
    """What the two forms over PyTorch's FSDP2 are, where both were measured."""
    if not {BACKEND, PEER} <= {row["cell"]["form"] for row in timed}:
        return ""
    return (
        f"`{BACKEND}` is what runs have: `fully_shard` by blocks behind the switch of ours, with our AdamW on plain"
        f" slices. {PEER} is the same called directly, with PyTorch's AdamW on its distributed tensors."
    )


def _ratios(rows: Sequence[dict[str, Any]], size: str) -> str:
    """Time and peak memory of ours, as it comes, over those of each other form."""
    said = []
    for precision in PRECISIONS:
        of_form = {
            row["cell"]["form"]: row
            for row in rows
            if row["cell"].get("size") == size and row["cell"]["precision"] == precision and "ms" in row
        }
        ours = of_form.pop(AHEAD, None)
        if ours is None or not of_form:
            continue
        times = ", ".join(f"{ratio_text(ours, row)} of {form}" for form, row in of_form.items())
        line = f"{precision}: ours with prefetch takes, of the time, {times}"
        if ours["memory"]:
            peaks = {form: max(row["memory"]["peak"]) for form, row in of_form.items()}
            own = max(ours["memory"]["peak"])
            line += f"; of the peak memory, {', '.join(f'{own / peak:.3g} of {form}' for form, peak in peaks.items())}"
        said.append(f"{line}.")
    return " ".join(said)


def gather_lines(rows: Sequence[dict[str, Any]], size: str) -> dict[str, list[dict[str, Any]]]:
    """The gathers of rank 0 for each form of ours and precision, in the order in which they began."""
    return {
        f"{row['cell']['form'].removeprefix('ours, ')}, {row['cell']['precision']}": row["gathers"][0]
        for row in rows
        if row["cell"].get("size") == size and any(row.get("gathers") or ())
    }


def draw_gathers(rows: Sequence[dict[str, Any]], size: str, path: Path) -> bool:
    """The slack of each unit's forward gather, in the order in which they began; False where there are none."""
    from matplotlib.ticker import MaxNLocator

    lines = gather_lines(rows, size)
    figure = pictures.new_figure(8.0, 3.4)
    axes = figure.add_subplot()
    for name, gathers in lines.items():
        axes.plot([each["slack_ms"] for each in gathers if each["forward"]], ".-", ms=3, lw=0.8, label=name)
    axes.axhline(0, color="grey", lw=0.8)
    axes.set(xlabel="unit, in the order of the forward pass", ylabel="gathered before it was needed, ms")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    pictures.tidy(axes)
    if lines:
        axes.legend(frameon=False, fontsize=8)
        pictures.save(figure, path)
    return bool(lines)
