"""All studies on one device, by name: the cells that each measures, and the page that its rows become."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from cs336.profiling import step_studies
from cs336.profiling.attention_errors import error_cells, error_page
from cs336.profiling.attention_times import attention_cells, attention_page
from cs336.profiling.cells import Cell, Row
from cs336.profiling.config import ProfilingConfig
from cs336.profiling.kernel_study import profile_cells, profile_page
from cs336.profiling.memory_study import checkpoint_cells, checkpoint_page, memory_cells, memory_page
from cs336.profiling.pages import Page
from cs336.profiling.precision import precision_cells, precision_page


class Study(NamedTuple):
    """One study.

    Attributes:
        about: what it asks, in one line.
        cells: (grids, sizes of those, device, folder for files such as traces) -> what is measured, in order.
        page: (grids, sizes, rows) -> what they say.
    """

    about: str
    cells: Callable[[ProfilingConfig, Sequence[str], torch.device, Path], list[Cell]]
    page: Callable[[ProfilingConfig, Sequence[str], Sequence[Row]], Page]


def _step_cells(
    name: str, config: ProfilingConfig, sizes: Sequence[str], device: torch.device, folder: Path
) -> list[Cell]:
    return [cell for size in sizes for cell in step_studies.study_cells(name, config, size, device)]


def _step_study(name: str, about: str) -> Study:
    return Study(about, partial(_step_cells, name), partial(step_studies.step_page, name))


STUDIES: dict[str, Study] = {  # what takes long comes last
    "errors": Study("attention's errors against fp64", error_cells, error_page),
    "answers": Study("sums and autocast", precision_cells, precision_page),
    "baseline": _step_study("baseline", "forward, forward and backward, whole step, of every size"),
    "precision": _step_study("precision", "fp32, TF32 and bf16 autocast"),
    "kernels": _step_study("kernels", "the whole model with each attention kernel"),
    "attention": Study("the formula by width and length", attention_cells, attention_page),
    "checkpointing": Study("what is kept for a backward pass", checkpoint_cells, checkpoint_page),
    "memory": Study("a step's memory over time", memory_cells, memory_page),
    "profile": Study("the handout's five questions, kernel by kernel", profile_cells, profile_page),
    "warmup": _step_study("warmup", "what the first steps cost, each count in a fresh process"),
    "compile": _step_study("compile", "torch.compile on the whole model beside eager"),
}
