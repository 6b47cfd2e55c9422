"""What a grid will take: tokens, FLOPs and time, by a stated rate of one device, before anything is trained."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cs336.scaling.cell import Cell
from cs336.scaling.grid import Grid
from cs336.scaling.recipe import real_flops


@dataclass(frozen=True, kw_only=True)
class Rate:
    """How fast a device is expected to train; a run's measured rate takes its place once there are runs.

    Attributes:
        flops_per_second: real FLOPs at full speed: 989 TFLOP/s is an H100's or H200's peak in bf16, of which the
            course's figures take 40 %.
        tokens_per_second: the most tokens, whatever the model: the logits of each, 32,000 of 2 bytes, pass through
            memory about six times, at 2.4 TB/s.
        entries_per_second: entries of the residual stream, tokens by width by layers: what norms, dropout, GELU and
            their gradients move of each. Fitted to the grid's measured runs, half of which are within 5 % of the sum.
        seconds_per_shape: to load and record one shape's step.
        seconds_per_run: for new weights and the validation.
    """

    flops_per_second: float = 0.4 * 989e12
    tokens_per_second: float = 6.2e6
    entries_per_second: float = 5.5e9
    seconds_per_shape: float = 3.0
    seconds_per_run: float = 0.4

    def seconds(self, cell: Cell) -> float:
        """What a run takes of the device."""
        entries = cell.tokens * cell.d_model * cell.num_layers
        matrices = real_flops(cell) / self.flops_per_second
        return matrices + cell.tokens / self.tokens_per_second + entries / self.entries_per_second

    def elapsed(self, cells: Sequence[Cell], *, packed: int) -> float:
        """Of all cells together: `packed` processes hide what they do beside the device from each other."""
        device = sum(self.seconds(cell) for cell in cells)
        host = self.seconds_per_shape * len(shapes(cells)) + self.seconds_per_run * len(cells)
        return device + host if packed == 1 else max(device, (device + host) / packed)


def shapes(cells: Iterable[Cell]) -> dict[tuple[int, int, int, int], list[Cell]]:
    """Cells that one recorded step can train, the longest first."""
    found: dict[tuple[int, int, int, int], list[Cell]] = defaultdict(list)
    for cell in cells:
        found[cell.d_model, cell.num_layers, cell.num_heads, cell.batch_size].append(cell)
    return {key: sorted(each, key=lambda cell: -cell.tokens) for key, each in found.items()}


def plan_lines(grid: Grid, rate: Rate = Rate(), *, packed: int = 3, cells: bool = False) -> list[str]:
    """The plan as text.

    Args:
        packed: processes that share the device.
        cells: a line for each cell, not only for each budget.
    """
    every = list(grid.cells().values())
    lines = [f"grid {grid.name}, version {grid.version}: {len(every)} runs of {len(shapes(every))} shapes and batches"]
    if cells:
        lines.append(f"{'cell':<34} {'N':>9} {'steps':>7} {'tokens':>9} {'epochs':>6} {'real':>8} {'x':>5} {'s':>7}")
        for cell in every:
            real = real_flops(cell)
            lines.append(
                f"{cell.name:<34} {_short(cell.parameters):>9} {cell.steps:>7,} {_short(cell.tokens):>9}"
                f" {cell.tokens / grid.unique_tokens:>6.2f} {real:>8.2e} {real / cell.compute_budget:>5.1f}"
                f" {rate.seconds(cell):>7.1f}"
            )
    lines.append(
        f"{'budget':>8} {'runs':>5} {'sizes':>24} {'rates':>5} {'tokens':>8} {'real FLOPs':>10} {'seconds':>8}"
    )
    for budget in sorted({cell.compute_budget for cell in every}):
        here = [cell for cell in every if cell.compute_budget == budget]
        sizes = sorted({cell.parameters for cell in here})
        span = f"{len(sizes)}: {_short(sizes[0])}-{_short(sizes[-1])}"
        lines.append(
            f"{budget:>8.0e} {len(here):>5} {span:>24} {len({cell.learning_rate for cell in here}):>5}"
            f" {_short(sum(cell.tokens for cell in here)):>8} {sum(map(real_flops, here)):>10.2e}"
            f" {sum(map(rate.seconds, here)):>8.0f}"
        )
    tokens, real = sum(cell.tokens for cell in every), sum(map(real_flops, every))
    nominal = sum(cell.compute_budget for cell in every)
    lines.append(
        f"all: {_short(tokens)} tokens, {nominal:.2e} nominal and {real:.2e} real FLOPs ({real / nominal:.1f} times);"
        f" at most {max(cell.tokens for cell in every) / grid.unique_tokens:.2f} epochs"
    )
    lines.append(
        f"expected on one H100, as fast as what was measured: {rate.elapsed(every, packed=1) / 60:.1f} minutes"
        f" one run at a time, {rate.elapsed(every, packed=packed) / 60:.1f} minutes with {packed} packed"
    )
    below = [cell for cell in every if not cell.steps]
    if below:
        lines.append(f"{len(below)} runs have less than one step: their loss is that at initialisation")
    return lines


def _short(number: float) -> str:
    for unit, name in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= unit:
            return f"{number / unit:.3g} {name}"
    return f"{number:.0f}"
