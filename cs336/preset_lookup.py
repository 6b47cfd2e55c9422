"""Presets by name: the built-in ones, and your own.

Yours go into `presets.toml` (or the file named by `CS336_PRESETS`):

    [mine]
    base = "tiny"
    seed = 1
    source = {kind = "warc", paths = ["crawl/*.warc.gz"]}
    train = {num_steps = 200}
"""

from __future__ import annotations

import os
import re
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

from cs336.files import UserError
from cs336.preset_values import changed
from cs336.presets import PRESETS, Preset

_SEEDED = re.compile(r"(\w+?)_seed_(\d+)")


def presets_file() -> Path:
    """`CS336_PRESETS`, else `presets.toml` beside the packages."""
    return Path(os.environ.get("CS336_PRESETS") or Path(__file__).resolve().parent.parent / "presets.toml")


def preset_names() -> list[str]:
    """Built-in presets, then those of the user's file."""
    return [*PRESETS, *(name for name in _user_presets() if name not in PRESETS)]


def find_preset(name: str) -> Preset:
    """A preset by its name; NAME_seed_2 is the preset NAME with the seed 2.

    Raises:
        UserError: there is none, or the file that describes it has a mistake.
    """
    described = _user_presets()  # of which none may have the name of a built-in one, also where that is asked for
    if name in PRESETS:
        return PRESETS[name]
    if name not in described and (seeded := _SEEDED.fullmatch(name)):
        return replace(find_preset(seeded[1]), name=name, seed=int(seeded[2]))
    if name not in described:
        raise UserError(
            f"no preset {name!r}; there are {', '.join(preset_names())} (your own go into {presets_file()})"
        )
    if not re.fullmatch(r"[A-Za-z0-9_]+", name):
        raise UserError(f"{presets_file()}: [{name}] names assets and folders; use letters, digits and _ only")
    values = dict(described[name])
    if "name" in values:
        raise UserError(f"{presets_file()}: [{name}] is the preset's name; take `name` out")
    base = values.pop("base", None)
    if base is None:
        raise UserError(f'{presets_file()}: [{name}] needs base = "tiny" (or another preset) to start from')
    chain = [name]
    while base not in PRESETS and base in described and base not in chain:
        chain.append(base)
        base = described[base].get("base")
    if base in chain:
        raise UserError(f"{presets_file()}: [{name}] is based on itself")
    try:
        return changed(replace(find_preset(described[name]["base"]), name=name), values)
    except (TypeError, ValueError) as error:
        raise UserError(f"{presets_file()}: [{name}] {error}") from None


def _user_presets() -> dict[str, dict[str, Any]]:
    path = presets_file()
    if not path.exists():
        return {}
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path}: not valid TOML ({error})") from None
    stray = [name for name, values in tables.items() if not isinstance(values, dict)]
    if stray:
        raise UserError(f"{path}: {stray[0]!r} stands outside any preset; put it below a [name]")
    taken = sorted(tables.keys() & PRESETS.keys())
    if taken:
        raise UserError(f"{path}: [{taken[0]}] is built in; give yours another name")
    return tables
