"""What each run of a grid was for, and what all of them cost, told from their rows alone."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cs336.scaling.grid import MIN_SIZES
from cs336.scaling.plots import short_budget
from cs336.scaling.profiles import on_ladder
from cs336.scaling.rates import Rates
from cs336.scaling.runs import Run, finished_runs
from cs336.scaling.tables import at_once

PROFILES, BATCHES, RATES, SEEDS, SHAPES, START, CHECK = (
    "profiles",
    "batch sizes",
    "learning rates",
    "seeds",
    "shapes",
    "initialisation",
    "check",
)
REASONS = {  # in the order of the report
    PROFILES: "sizes at one budget, all else equal: where the lowest loss lies is what laws are fitted to",
    BATCHES: "the same sizes with another batch: is the main one the better one at each budget?",
    RATES: "other learning rates, where runs are cheap: is the main one right, and does its best move with size?",
    SEEDS: "the same run again: what of a difference is chance",
    SHAPES: "aspect ratios and head sizes off the ladder: may size stand for a shape?",
    START: "budgets below one step: the loss that training starts from",
    CHECK: "trained at the budget that the prediction is for: what it is checked by",
}


@dataclass(frozen=True)
class Main:
    """What most runs have in common: the recipe that the others vary."""

    batch_size: int
    learning_rate: float
    seed: int
    rate_per_width: float = 0.0  # of profiles whose rates go as one over the width; 0 if there are none

    def has_rate(self, run: Run) -> bool:
        """Whether a run's learning rate is one that profiles were trained with."""
        constant, by_width = Rates.of(run)
        return constant.constant == self.learning_rate or by_width.per_width == self.rate_per_width


def main_recipe(runs: Iterable[Run]) -> Main:
    """The batch size, learning rate and seed of most runs, and the rate over the width that five widths share.

    Raises:
        ValueError: there are no runs.
    """
    runs = list(runs)
    if not runs:
        raise ValueError("no runs have no recipe; give some")

    def most(value: Callable[[Run], Any]) -> Any:
        return Counter(map(value, runs)).most_common(1)[0][0]

    widths: dict[float, set[int]] = defaultdict(set)
    for run in runs:
        widths[Rates.of(run)[1].per_width].add(run.d_model)
    per_width = max(widths, key=lambda each: (len(widths[each]), -each))
    return Main(
        batch_size=most(lambda run: run.batch_size),
        learning_rate=most(lambda run: run.learning_rate),
        seed=most(lambda run: run.seed),
        rate_per_width=per_width if len(widths[per_width]) >= MIN_SIZES else 0.0,
    )


def phase_of(run: Run, main: Main, prediction: Mapping[str, Any] | None = None) -> str:
    """What a run was for: one of `REASONS`. A run that differs in several ways counts by the last that applies there.

    Args:
        prediction: as `predict` makes it; runs at its target are its check.
    """
    # No fitted run has this budget: a prediction is for a larger one. Whether it came first, `predict.check` judges.
    if prediction is not None and run.compute_budget == prediction["target_budget"]:
        return CHECK
    if run.finished and not run.steps:
        return START
    if not on_ladder(run):
        return SHAPES
    if run.seed != main.seed:
        return SEEDS
    if not main.has_rate(run):
        return RATES
    return PROFILES if run.batch_size == main.batch_size else BATCHES


def ledger(runs: Sequence[Run], prediction: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
    """What each phase cost, in the order of `REASONS`, and all of them together in the last row.

    Returns:
        Rows of `phase`, `runs`, `without_a_loss`, `budgets`, `nominal_flops`, `real_flops`, `tokens`, `device_seconds`
        and `share` (of the real FLOPs). Device seconds are a run's seconds over the runs that shared the device.
    """
    main = main_recipe(runs)
    phases: dict[str, list[Run]] = {phase: [] for phase in REASONS}
    for run in runs:
        phases[phase_of(run, main, prediction)].append(run)
    total = sum(run.real_flops for run in runs)
    return [_cost(name, some, total) for name, some in [*phases.items(), ("all", list(runs))] if some]


def budget_ledger(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """The same by budget, ascending; `phase` is the budget."""
    total = sum(run.real_flops for run in runs)
    budgets = sorted({run.compute_budget for run in runs})
    return [_cost(short_budget(budget), [r for r in runs if r.compute_budget == budget], total) for budget in budgets]


def packing(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """How much of its peak a device did while it trained, by how many runs shared it and on what device.

    Returns:
        Rows of `hardware`, `packed`, `runs`, `real_flops`, `tokens_per_second`, `of_a_run` (the median utilisation of
        a single run) and `of_the_device`, which is the real FLOPs of all over the device's peak and seconds; the last
        two are None where the peak is not known. Start-up and validation are not in it: a session's figure has them.
    """
    groups: dict[tuple[str, int], list[Run]] = {}
    for run in finished_runs(runs):
        if run.steps and run.wall_seconds:
            groups.setdefault((run.hardware, run.packed), []).append(run)
    found = []
    for (hardware, packed), some in sorted(groups.items()):
        seconds = sum(map(_device_seconds, some))
        known = [run for run in some if run.utilisation]
        peaks = [run.real_flops / run.wall_seconds / run.utilisation for run in known if run.utilisation]
        could = sum(peak * _device_seconds(run) for peak, run in zip(peaks, known, strict=True))
        found.append(
            {
                "hardware": hardware,
                "packed": packed,
                "runs": len(some),
                "real_flops": sum(run.real_flops for run in some),
                "tokens_per_second": sum(run.tokens for run in some) / seconds,
                "of_a_run": sorted(run.utilisation or 0.0 for run in known)[len(known) // 2] if known else None,
                "of_the_device": sum(run.real_flops for run in known) / could if known else None,
            }
        )
    return found


def sessions_of_the_same_runs(sessions: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """Calls of the runner on the same runs and device in several ways, such as packed and not: what packing is worth.

    Args:
        sessions: lines of `.sessions.jsonl`; the same runs are as many, with as many tokens and real FLOPs.
    """
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for each in sessions:
        groups.setdefault(
            tuple(each.get(name) for name in ("hardware", "num_runs", "tokens", "real_flops")), []
        ).append(each)
    return [some for some in groups.values() if len({(at_once(each), each["recorded"]) for each in some}) > 1]


def _device_seconds(run: Run) -> float:
    return run.wall_seconds / max(1, run.packed)


def _cost(phase: str, runs: Sequence[Run], total: float) -> dict[str, Any]:
    real = sum(run.real_flops for run in runs)
    return {
        "phase": phase,
        "runs": len(runs),
        "without_a_loss": sum(not run.finished for run in runs),
        "budgets": sorted({run.compute_budget for run in runs}),
        "nominal_flops": sum(run.compute_budget for run in runs if run.steps),
        "real_flops": real,
        "tokens": sum(run.tokens for run in runs),
        "device_seconds": sum(map(_device_seconds, runs)),
        "share": real / total if total else 0.0,
    }
