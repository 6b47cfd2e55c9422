"""Text and cells so small that a run takes a second on a CPU."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cs336.scaling.cell import Cell
from cs336.scaling.windows import Text
from cs336.tokens.shards import TOKEN_DTYPE

VOCABULARY = 64


def small_cell(*, steps: int = 12, **changes) -> Cell:
    """A cell of so many steps."""
    cell = Cell(
        d_model=16,
        num_layers=2,
        num_heads=2,
        batch_size=4,
        learning_rate=1e-3,
        compute_budget=1.0,
        vocab_size=VOCABULARY,
        context_length=16,
        precision="float32",
    )
    cell = replace(cell, **changes)
    if "compute_budget" in changes:
        return cell
    return replace(cell, compute_budget=float(6 * cell.parameters * cell.tokens_per_step * steps + 1))


@pytest.fixture(scope="session")
def token_folder(tmp_path_factory):
    """Text that can be learnt: each token mostly follows from the one before."""
    folder = tmp_path_factory.mktemp("tokens")
    draw = np.random.default_rng(0)
    for name, count in (("train", 2_001), ("valid", 500)):
        steps = np.where(draw.random(count) < 0.8, 1, draw.integers(0, VOCABULARY, count))
        (np.cumsum(steps) % VOCABULARY).astype(TOKEN_DTYPE).tofile(folder / f"{name}.bin")
    return folder


@pytest.fixture(scope="session")
def text(token_folder):
    return Text.open([token_folder])
