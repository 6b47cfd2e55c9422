"""Plots as small PNG files."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NUM_COLORS = 96  # at 64, neighbors of a palette of 18 lines look alike


def save(figure: Figure, path: Path) -> None:
    """Write a plot as a PNG of few colors: to the eye the same, in about a quarter of the bytes.

    The same data gives the same bytes.
    """
    from PIL import Image  # as matplotlib: what does not draw needs neither

    drawn = io.BytesIO()
    figure.savefig(drawn, format="png")
    colors = Image.open(drawn).convert("RGB")
    # Maximum coverage gives a thin line its color, however much of the page is white.
    few = colors.quantize(NUM_COLORS, method=Image.Quantize.MAXCOVERAGE, kmeans=3, dither=Image.Dither.NONE)
    path.parent.mkdir(parents=True, exist_ok=True)
    few.save(path, format="png", optimize=True)
