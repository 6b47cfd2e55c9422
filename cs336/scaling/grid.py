"""The grid as a file says it: groups of budgets, shapes, batch sizes, learning rates and seeds, and what must hold.

    name = "h100"
    version = 1
    unique_tokens = 33_882_715        # of the training text
    max_epochs = 4.0                  # on any token
    max_steps = 40_000
    expected_optimum = [2.77, 0.42]   # N = 2.77 C^0.42, where profiles are expected to have their minimum

    [[groups]]
    budgets = [1e15]
    shapes = ["192x3x3", "256x4x4"]   # d_model x layers x heads
    batch_sizes = [128]
    learning_rates = [1e-3]

All runs of one budget, batch size, seed and learning rate, or rate over the width (`rates_per_width`), are a profile.
The grid's first rule is its main one: with it, and the first seed, every profile needs at least five sizes, some on
either side of the expected minimum.
"""

from __future__ import annotations

import dataclasses
import math
import tomllib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from cs336.files import UserError
from cs336.scaling.cell import Cell, parse_shape
from cs336.scaling.rates import Rates

PROJECT = Path(__file__).resolve().parent.parent.parent
GRIDS = Path(__file__).parent / "grids"
MIN_SIZES = 5  # of a profile: a parabola has three coefficients
ASPECT_RATIOS = (32, 128)  # d_model over layers, of shapes that are no probes
HEAD_SIZES = (32, 128)


@dataclass(frozen=True, kw_only=True)
class ScalingConfig:
    """Which grid a preset trains.

    Attributes:
        grid: its name or the path of its file; see `find_grid`.
    """

    grid: str


@dataclass(frozen=True, kw_only=True)
class PredictionConfig:
    """What a preset predicts from its grid.

    Attributes:
        max_budget: largest budget that laws are fitted to, nominal FLOPs.
        check: the grid, of one budget, that the prediction is for and is checked by; as `ScalingConfig.grid`.
        min_budget: smallest budget that laws are fitted to; see `predict`.
        rate_per_width: of the check's learning rates; see `predict`.
    """

    max_budget: float
    check: str
    min_budget: float = 0.0
    rate_per_width: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Group:
    """The product of some lists.

    Attributes:
        shapes: such as "512x8x8": width, layers, heads.
        learning_rates: of all shapes; 1e-3 where there are no `rates_per_width` either.
        rates_per_width: 2 gives each shape the learning rate 2 / d_model, to three digits.
        probe: off the ladder on purpose: shapes may have any aspect ratio and head size, and form no profile.
        one_sided: why a profile has no sizes on one side of its minimum, or few; "" where it must have them.
    """

    budgets: tuple[float, ...]
    shapes: tuple[str, ...]
    batch_sizes: tuple[int, ...] = (128,)
    learning_rates: tuple[float, ...] = ()
    rates_per_width: tuple[float, ...] = ()
    seeds: tuple[int, ...] = (0,)
    probe: bool = False
    one_sided: str = ""

    @property
    def rates(self) -> tuple[Rates, ...]:
        """Of learning rates, the rules in the order of the file."""
        constant = self.learning_rates or (() if self.rates_per_width else (1e-3,))
        return *(Rates(constant=rate) for rate in constant), *(Rates(per_width=rate) for rate in self.rates_per_width)


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A grid.

    Attributes:
        version: raised with every change; the cells' own hashes decide what is trained again.
        unique_tokens: of the training text; fewer do for cells that do not need them.
        max_epochs: how often a cell may read the text.
        max_steps: of a cell.
        expected_optimum: coefficient and exponent of the size at which a profile is expected to have its minimum.
    """

    name: str
    version: int
    groups: tuple[Group, ...]
    unique_tokens: int
    max_epochs: float = 1.0
    max_steps: int = 200_000
    expected_optimum: tuple[float, float] = (2.77, 0.42)
    vocab_size: int = 32_000
    context_length: int = 512
    precision: str = "bfloat16"

    def optimum(self, compute_budget: float) -> float:
        """Parameters at which a profile is expected to have its minimum."""
        coefficient, exponent = self.expected_optimum
        return coefficient * compute_budget**exponent

    def cells(self) -> dict[str, Cell]:
        """All cells by their names, each once, in the order of the file.

        Raises:
            ValueError: a cell that cannot be; the line names it.
        """
        return {cell.name: cell for _, cell in self.cells_by_group()}

    def cells_by_group(self) -> Iterator[tuple[Group, Cell]]:
        """Cells with the group that asks for them."""
        for group in self.groups:
            for budget, shape, batch_size, rates, seed in product(
                group.budgets, group.shapes, group.batch_sizes, group.rates, group.seeds
            ):
                d_model, num_layers, num_heads = parse_shape(shape)
                yield (
                    group,
                    Cell(
                        d_model=d_model,
                        num_layers=num_layers,
                        num_heads=num_heads,
                        batch_size=batch_size,
                        learning_rate=rates.at(d_model),
                        compute_budget=budget,
                        seed=seed,
                        vocab_size=self.vocab_size,
                        context_length=self.context_length,
                        precision=self.precision,
                    ),
                )


def find_grid(name: str | Path) -> Grid:
    """A grid of ours by its name, or of a file by its path, from here or else from beside the packages.

    Raises:
        UserError: there is none, or it has a mistake.
    """
    path = Path(name)
    if path.suffix != ".toml":
        path = GRIDS / f"{name}.toml"
    elif (
        not path.exists()
    ):  # a preset's: `presets.toml` lies there, and runs on a cluster start in folders of their own
        path = PROJECT / path
    if not path.exists():
        known = ", ".join(sorted(each.stem for each in GRIDS.glob("*.toml")))
        raise UserError(f"{name}: no such grid; there are {known}, or give the path of a .toml file")
    return read_grid(path)


def shapes_at(grid: Grid, budget: float) -> list[tuple[int, int, int]]:
    """(d_model, layers, heads) that a grid trains at a budget, in the order of their text; empty if it trains none."""
    shapes = {shape for group in grid.groups if budget in group.budgets for shape in group.shapes}
    return [parse_shape(shape) for shape in sorted(shapes)]


def only_budget(grid: Grid) -> float:
    """The budget of a grid that checks a prediction.

    Raises:
        UserError: it has several.
    """
    budgets = {budget for group in grid.groups for budget in group.budgets}
    if len(budgets) > 1:
        raise UserError(f"grid {grid.name}: has {len(budgets)} budgets; one that checks a prediction has one")
    return budgets.pop()


def read_grid(path: Path) -> Grid:
    """A grid from its file; what it asks for is judged by `problems`.

    Raises:
        UserError: not TOML, or a setting that there is not, that lacks, or of another kind.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid TOML ({error})") from None
    groups = values.pop("groups", [])
    if not isinstance(groups, list) or not groups:
        raise UserError(f"{path}: has no [[groups]]; at least one says what is trained")
    read = tuple(_read(Group, each, f"{path}: group {number}") for number, each in enumerate(groups, 1))
    grid = _read(Grid, values | {"groups": list(read)}, str(path))
    try:
        grid.cells()
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    return grid


def problems(grid: Grid) -> list[str]:
    """What is wrong with a grid, one line each; nothing of one that can be trained and fitted."""
    found = [*_cell_problems(grid), *_profile_problems(grid)]
    return list(dict.fromkeys(found))


def _cell_problems(grid: Grid) -> Iterator[str]:
    for group, cell in grid.cells_by_group():
        shape = f"{cell.d_model}x{cell.num_layers}x{cell.num_heads}"
        for what, value, (lowest, highest) in (
            ("aspect ratio", cell.d_model / cell.num_layers, ASPECT_RATIOS),
            ("head size", cell.d_model / cell.num_heads, HEAD_SIZES),
        ):
            if not group.probe and not lowest <= value <= highest:
                yield f"{shape}: {what} {value:g} is not within {lowest} and {highest}; mark its group as a probe"
        epochs = cell.tokens / grid.unique_tokens
        if epochs > grid.max_epochs:
            yield f"{cell.name}: reads the text {epochs:.2f} times, more than {grid.max_epochs:g}; take a larger size"
        if cell.steps > grid.max_steps:
            yield f"{cell.name}: {cell.steps:,} steps, more than {grid.max_steps:,}; take a larger size or batch"


def _profile_problems(grid: Grid) -> Iterator[str]:
    for (budget, batch_size), cells in profiles(grid).items():
        label = f"profile {budget:.0e} at batch {batch_size}"
        sizes = sorted({cell.parameters for cell in cells})
        optimum = grid.optimum(budget)
        if len(sizes) < MIN_SIZES:
            yield f"{label}: {len(sizes)} sizes, needs {MIN_SIZES}; add shapes, or say why in one_sided"
        elif sizes[0] >= optimum:
            yield f"{label}: no size below the expected minimum at {optimum:.3g}; add smaller shapes"
        elif sizes[-1] <= optimum:
            yield f"{label}: no size above the expected minimum at {optimum:.3g}; add larger shapes"


def profiles(grid: Grid) -> Mapping[tuple[float, int], list[Cell]]:
    """Cells at the main learning rates and seed by budget and batch size; no probes, no one-sided profiles."""
    rates, seed = grid.groups[0].rates[0], grid.groups[0].seeds[0]
    found: dict[tuple[float, int], list[Cell]] = defaultdict(list)
    excused = set()
    for group, cell in grid.cells_by_group():
        key = (cell.compute_budget, cell.batch_size)
        if group.one_sided:
            excused.add(key)
        if not group.probe and (cell.learning_rate, cell.seed) == (rates.at(cell.d_model), seed):
            found[key].append(cell)
    return {key: cells for key, cells in sorted(found.items()) if key not in excused}


_KINDS: dict[str, type | tuple[type, ...]] = {
    "budgets": (int, float),
    "shapes": str,
    "batch_sizes": int,
    "learning_rates": (int, float),
    "rates_per_width": (int, float),
    "seeds": int,
    "expected_optimum": (int, float),
    "groups": Group,
}
_SCALARS: dict[str, type | tuple[type, ...]] = {"str": str, "int": int, "float": (int, float), "bool": bool}


def _read(kind: type[Any], values: Any, where: str) -> Any:
    """A dataclass of a table; every mistake is one line."""
    if not isinstance(values, dict):
        raise UserError(f"{where}: is a table, got {values!r}")
    fields = kind.__dataclass_fields__
    unknown = sorted(values.keys() - fields.keys())
    if unknown:
        raise UserError(f"{where}: has no setting {unknown[0]!r}; there are {', '.join(fields)}")
    lacking = [name for name, field in fields.items() if name not in values and not _has_default(field)]
    if lacking:
        raise UserError(f"{where}: lacks {', '.join(lacking)}")
    return kind(**{name: _value(name, value, fields[name].type, where) for name, value in values.items()})


def _has_default(field: Any) -> bool:
    return field.default is not dataclasses.MISSING


def _value(name: str, value: Any, annotation: str, where: str) -> Any:
    if name in _KINDS:
        inner = _KINDS[name]
        if not isinstance(value, list) or not value or not all(_is(each, inner) for each in value):
            raise UserError(f"{where}: {name} is a list of {_named(inner)}, got {value!r}")
        if name == "expected_optimum" and len(value) != 2:
            raise UserError(f"{where}: expected_optimum is a coefficient and an exponent, got {value!r}")
        return tuple(float(each) if inner == (int, float) else each for each in value)
    inner = _SCALARS[annotation]
    if not _is(value, inner):
        raise UserError(f"{where}: {name} is {_named(inner)}, got {value!r}")
    return float(value) if annotation == "float" else value


def _is(value: Any, kind: type | tuple[type, ...]) -> bool:
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, kind) and not (isinstance(value, float) and not math.isfinite(value))


def _named(kind: type | tuple[type, ...]) -> str:
    names = {str: "text", int: "a whole number", bool: "true or false", (int, float): "a number", Group: "groups"}
    return names[kind]
