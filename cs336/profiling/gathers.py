"""Whether each of FSDP's gathers finishes before its weights are needed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from timeit import default_timer
from typing import Any

import torch

from cs336.parallel.fsdp import FSDP
from cs336.parallel.fsdp_units import Unit
from cs336.profiling.rank_cells import synchronize

_ALREADY = 1e-5  # seconds that waiting for nothing takes on a CPU


def watch_gathers(fsdp: FSDP, step: Callable[[], object]) -> list[dict[str, Any]]:
    """Run a step and say of each gather how much too late, or in time, it finished.

    On a GPU a stream of its own waits for each gather and records an event, and the computation's stream records one
    when it comes to need the weights. On a CPU only the wait itself can be seen.

    Returns:
        For each gather its unit's `name`, `forward` or not, and `slack_ms`: positive where it had finished before
        it was needed (0 on a CPU), else minus what was waited.
    """
    device = next(fsdp.parameters()).device
    on_gpu = device.type == "cuda"
    side = torch.cuda.Stream(device) if on_gpu else None
    seen: list[_Gather] = []
    open_gathers: dict[Unit, _Gather] = {}

    def watched(unit: Unit) -> tuple[Callable[[], None], Callable[[], None]]:
        start_gather, wait = unit.start_gather, unit.wait

        def start() -> None:
            before = unit.is_whole
            start_gather()
            if before:
                return
            gather = _Gather(unit.name, forward=fsdp._in_forward)
            if side is not None:
                with torch.cuda.stream(side):
                    for work in unit.pending.works:
                        work.wait()
                    gather.finished = torch.cuda.Event(enable_timing=True)
                    gather.finished.record()
            seen.append(gather)
            open_gathers[unit] = gather

        def wait_for_it() -> None:
            gather = open_gathers.pop(unit, None)
            if gather is not None and on_gpu:
                gather.needed = torch.cuda.Event(enable_timing=True)
                gather.needed.record()
            begin = default_timer()
            wait()
            if gather is not None:
                gather.waited = default_timer() - begin

        return start, wait_for_it

    for unit in fsdp.units:
        unit.start_gather, unit.wait = watched(unit)  # type: ignore[method-assign]
    try:
        step()
        synchronize(device)
    finally:
        for unit in fsdp.units:
            del unit.__dict__["start_gather"], unit.__dict__["wait"]
    return [{"name": gather.name, "forward": gather.forward, "slack_ms": _slack_ms(gather, on_gpu)} for gather in seen]


@dataclass
class _Gather:
    """Events of one gather: when it had finished, and when its unit came to need it."""

    name: str
    forward: bool
    finished: Any = None
    needed: Any = None
    waited: float = field(default=0.0)


def _slack_ms(gather: _Gather, on_gpu: bool) -> float:
    if on_gpu:
        if gather.finished is None or gather.needed is None:
            return 0.0
        return gather.finished.elapsed_time(gather.needed)
    return -1e3 * gather.waited if gather.waited > _ALREADY else 0.0
