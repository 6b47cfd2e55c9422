"""Whether the contest's step is the plain model's: both trained side by side, and the largest differences as a row."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from cs336.parallel.fsdp import FSDP, gather_full_params
from cs336.parallel.process_group import Rank
from cs336.profiling.full_step import LEARNING_RATE, build, described, new_model, whole_batch
from cs336.profiling.parallel_config import FULL_STEP_WITH_MASTERS, FullStepConfig
from cs336.profiling.rank_cells import Rows, Say, over_ranks, require_gpus, run_cell
from cs336.profiling.tables import markdown_table
from cs336.train.optimizer import AdamW

NUM_STEPS = 3


def measure_check(config: FullStepConfig, rows: Rows, say: Say) -> dict[str, Any]:
    """Compare the step with the plain model's, see `compare_with_plain`; returns its row, whose cell says `check`.

    It is made anew also where a row is there: what it says is the code's, not the machine's alone.

    Raises:
        UserError: fewer GPUs than ranks.
    """
    require_gpus("the comparison", config.world_size, config.device)
    cell = {key: value for key, value in config.described().items() if key not in ("warmup_ms", "rep_ms")}
    found = run_cell(
        compare_with_plain,
        config.world_size,
        config,
        NUM_STEPS,
        device=config.device,
        timeout_seconds=config.timeout_seconds,
    )
    row = rows.add(cell | {"check": NUM_STEPS}, {"differences": found} if "output" in found else found)
    say(f"check beside the plain model: {row.get('failure') or row.get('state') or 'measured'}")
    return row


def compare_with_plain(place: Rank, config: FullStepConfig, num_steps: int = NUM_STEPS) -> dict[str, float]:
    """Largest differences from the plain model that one process trains on the whole batch; every rank calls it.

    With fp32 masters the plain model's matrices are copies of its masters in `dtype`, made anew after each update.

    Returns:
        `output`, `loss` and `weights`, each the largest over steps and ranks; `gradients`, the largest distance of all
        gradients in parts of their length; and the largest weight, `scale`.
    """
    step = build(config, place)
    plain = new_model(replace(config, attention="fused", fused=False, compiled=False), place.device)
    masters = {name: parameter.detach().clone() for name, parameter in plain.named_parameters()}
    for parameter in plain.parameters():
        if parameter.ndim == 2:  # norms stay in the masters' dtype, as no layer of FSDP's holds them
            parameter.data = parameter.data.to(getattr(torch, config.dtype))
    optimizer = AdamW(masters.values(), lr=LEARNING_RATE)
    inputs, targets = whole_batch(config, place.device)
    found: dict[str, list[float]] = {"output": [], "loss": [], "weights": [], "gradients": []}

    def note(name: str, ours: Tensor, theirs: Tensor) -> None:
        found[name].append((ours.float() - theirs.float()).abs().max().item())

    for _ in range(num_steps):
        with torch.no_grad():
            note("output", step.fsdp(step.inputs), plain(inputs).chunk(place.world_size)[place.rank])
        loss = step()
        dist.all_reduce(loss)
        plain.zero_grad(set_to_none=True)
        theirs = torch.nn.functional.cross_entropy(plain(inputs).flatten(0, 1).float(), targets.flatten())
        theirs.backward()
        for name, parameter in plain.named_parameters():
            assert parameter.grad is not None
            masters[name].grad = parameter.grad.to(masters[name].dtype)
        optimizer.step()
        with torch.no_grad():
            for name, parameter in plain.named_parameters():
                parameter.copy_(masters[name])
        note("loss", loss / place.world_size, theirs.detach())
        full = gather_full_params(step.fsdp)
        for name, master in masters.items():
            note("weights", full[name], master)
        found["gradients"].append(_gradients_apart(step.fsdp, masters))
    scale = max(master.abs().max().item() for master in masters.values())
    everyones = over_ranks(found)
    # Of tensors, whose largest is NaN where one is; Python's may be any other.
    largest = {name: torch.tensor([each[name] for each in everyones]).max().item() for name in found}
    return largest | {"scale": scale}


def _gradients_apart(fsdp: FSDP, masters: dict[str, Tensor]) -> float:
    """Distance of the ranks' mean gradients from those of the masters, in parts of the latter's length."""
    cuts = fsdp.cuts()
    apart, length = 0.0, 0.0
    for name, parameter in fsdp.named_shards():
        ours, theirs = parameter.grad, masters[name].grad
        assert ours is not None and theirs is not None
        whole = cuts[parameter].gathered(ours) if parameter in cuts else ours
        apart += (whole.float() - theirs.float()).square().sum().item()
        length += theirs.float().square().sum().item()
    return math.sqrt(apart / length)


# ---- what the figures say

_COLUMNS = {
    "model": "model",
    "ranks": "ranks",
    "context_length": "context",
    "dtype": "dtype",
    "slices": "slices",
    "segment": "layers a segment",
    "attention": "attention",
    "rest": "norms, rotation, gate, loss, AdamW",
    "check": "steps",
    "output": "output",
    "loss": "loss",
    "weights": "weights",
    "gradients": "gradients, in parts of their length",
    "scale": "largest weight",
    "state": "",
}


def table_of(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A line for each row that is a check."""
    return [
        described(row)
        | {"context_length": row["cell"]["model"]["context_length"], "check": row["cell"]["check"]}
        | {"slices": "float32" if row["cell"]["work"] == FULL_STEP_WITH_MASTERS else row["cell"]["dtype"]}
        | row.get("differences", {})
        for row in rows
        if "check" in row["cell"]
    ]


def page(rows: Sequence[dict[str, Any]]) -> str:
    """The table of the rows that are checks; empty where none is."""
    table = table_of(rows)
    if not table:
        return ""
    about = (
        "**Checks**: the sharded and the plain model trained side by side; largest differences over steps and ranks."
    )
    return f"{about}\n\n{markdown_table(table, _COLUMNS)}"
