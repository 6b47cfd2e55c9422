"""What Dagster loads: one attribute per preset.

`dagster dev` reads `workspace.yaml`, which lists `tiny` and `course`; `-m cs336_assets.definitions`
takes `defs`, the preset named by `CS336_PRESET` (tiny by default).
"""

from __future__ import annotations

import os

import dagster as dg

from cs336.files import UserError
from cs336.processes import uncollected


def _build(preset: str) -> dg.Definitions:
    with uncollected():
        from cs336_assets.graph import build_definitions

        return build_definitions(preset)


defs = _build(os.environ.get("CS336_PRESET", "tiny"))


def __getattr__(name: str) -> dg.Definitions:
    """`workspace.yaml` names presets as attributes; each is built when asked for."""
    if name.startswith("__"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return _build(name)
    except UserError as error:
        raise AttributeError(f"module {__name__!r}: {error}") from None
