"""What the function of an asset or a check is given besides its inputs and settings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cs336.progress import Progress, silent


@dataclass
class Step:
    """What an asset function is given besides its inputs and settings.

    Attributes:
        folder: to be filled; becomes the artifact.
        preset: name of the preset.
        part: the crawl shard or the cell, for assets made in parts.
        num_workers to recompute: of this machine, see `Runtime`; they never change an artifact.
        progress: wraps long loops.
        context: Dagster's, where the asset runs under it.
    """

    folder: Path
    preset: str = "tiny"
    part: str | None = None
    num_workers: int = 1
    device: str = "auto"
    compile_model: bool = False
    num_processes: int = 1
    parallel: str = "ddp"
    recompute: int = 0
    progress: Progress = silent
    context: Any = None
