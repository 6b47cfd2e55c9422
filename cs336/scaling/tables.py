"""Rows and sessions in words, for a terminal."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from cs336.scaling.cell import Cell
from cs336.scaling.runs import Run


def table_lines(runs: Iterable[Run]) -> list[str]:
    """Of each budget and batch size how many runs there are, and the best one."""
    lines = [f"{'budget':>8} {'batch':>5} {'runs':>5} {'best N':>12} {'loss':>7} {'rate':>8} {'shape':>12}  notes"]
    groups: dict[tuple[float, int], list[Run]] = defaultdict(list)
    for run in runs:
        groups[run.compute_budget, run.batch_size].append(run)
    for (budget, batch_size), every in sorted(groups.items()):
        sound = [run for run in every if run.finished]
        notes = [f"{len(every) - len(sound)} without a loss"] if len(every) > len(sound) else []
        line = f"{budget:>8.0e} {batch_size:>5} {len(every):>5}"
        if sound:
            best = min(sound, key=lambda run: run.final_loss)
            sizes = {run.parameters for run in sound if run.steps}
            if best.parameters in (min(sizes), max(sizes)):
                notes.append("no minimum between the sizes")
            shape = f"{best.d_model}x{best.num_layers}x{best.num_heads}"
            line += f" {best.parameters:>12,} {best.final_loss:>7.4f} {best.learning_rate:>8.1e} {shape:>12}"
        lines.append(f"{line}  {', '.join(notes)}".rstrip())
    return lines


def run_line(cell: Cell, run: Run) -> str:
    """One run that ended."""
    if not run.finished:
        return f"{cell.name}: {run.outcome}"
    used = f", {run.utilisation:.1%} of the peak" if run.utilisation is not None else ""
    speed = run.tokens / run.wall_seconds if run.wall_seconds else 0.0
    return (
        f"{cell.name}: loss {run.final_loss:.4f}, held out {run.valid_loss:.4f}, {run.steps:,} steps in"
        f" {run.wall_seconds:.1f} s, {speed:,.0f} tokens/s{used}"
    )


def at_once(session: Mapping[str, Any]) -> int:
    """Runs that a session trained at a time; older ones had one device and do not say so."""
    return session["packed"] * session.get("num_devices", 1)


def session_line(session: Mapping[str, Any]) -> str:
    """What one call of the runner came to."""
    used = f", {session['utilisation']:.1%} of the peak" if session["utilisation"] is not None else ""
    return (
        f"{session['num_runs']} runs in {session['elapsed_seconds']:.0f} s, {at_once(session)} at a time:"
        f" {session['tokens']:,} tokens, {session['real_flops']:.2e} real FLOPs{used}"
    )
