"""Plots as small PNG files."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NUM_COLORS = 96  # at 64, neighbors of a palette of 18 lines look alike


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches."""
    from matplotlib.figure import Figure  # here, so that what does not draw never imports matplotlib; and no pyplot

    return Figure(figsize=(width, height), dpi=110, layout="constrained")


def tidy(axes: Axes) -> None:
    """A light grid, and no frame at the top and at the right."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)


def shade(place: int, count: int) -> tuple[float, float, float, float]:
    """Color of one of several curves, from blue to red."""
    from matplotlib import colormaps

    return colormaps["turbo"](0.05 + 0.9 * place / max(1, count - 1))


def save(figure: Figure, path: Path) -> None:
    """Write a plot as a PNG of few colors: to the eye the same, in about a quarter of the bytes.

    The same data gives the same bytes.
    """
    from PIL import Image  # as above

    drawn = io.BytesIO()
    figure.savefig(drawn, format="png")
    colors = Image.open(drawn).convert("RGB")
    # Maximum coverage gives a thin line its color, however much of the page is white.
    few = colors.quantize(NUM_COLORS, method=Image.Quantize.MAXCOVERAGE, kmeans=3, dither=Image.Dither.NONE)
    path.parent.mkdir(parents=True, exist_ok=True)
    few.save(path, format="png", optimize=True)
