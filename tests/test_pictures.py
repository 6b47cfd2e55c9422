"""Plots as PNG files: few colors, which stay what they were, and the same bytes from the same data."""

from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from PIL import Image

from cs336 import pictures


def _figure(num_lines: int) -> Figure:
    figure = Figure(figsize=(4.0, 3.0), dpi=110)
    axes = figure.add_subplot()
    for place in range(num_lines):
        axes.plot(np.arange(20), place + np.sin(np.arange(20)), lw=1.1, color=colormaps["turbo"](place / num_lines))
    return figure


def test_a_plot_looks_the_same_in_a_third_of_the_bytes(tmp_path: Path):
    plain, small = tmp_path / "plain.png", tmp_path / "folder" / "small.png"
    _figure(18).savefig(plain)
    pictures.save(_figure(18), small)
    assert small.stat().st_size < plain.stat().st_size / 3
    before, after = (np.asarray(Image.open(path).convert("RGB")).astype(int) for path in (plain, small))
    assert before.shape == after.shape
    assert np.sqrt(np.mean((before - after) ** 2)) < 3 and np.abs(before - after).max() < 50  # of 255
    assert (after[0, 0] == 255).all()  # the page stays white


def test_the_same_data_gives_the_same_bytes(tmp_path: Path):
    for name in ("one.png", "two.png"):
        pictures.save(_figure(3), tmp_path / name)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    assert b"Software" not in (tmp_path / "one.png").read_bytes()  # which would name matplotlib's version
