"""Going on where a run stopped, and only where it is the same run."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from cs336.files import UserError
from cs336.train.checkpoint import checkpoint_paths, read_checkpoint, restore_rng
from cs336.train.forms import Form
from cs336.train.metrics import METRICS_FILE, drop_rows_after
from cs336.train.samples import SAMPLES_FILE

CHECKPOINTS_FOLDER = "checkpoints"

_MARKED_TOKENS = 65_536  # of the beginning and of the end: all of an array may be more than one likes to read


def mark_of(tokens: Any) -> str:
    """What tells one array of tokens from another: its length, and the bytes of its beginning and end."""
    ends = np.concatenate([np.asarray(tokens[:_MARKED_TOKENS]), np.asarray(tokens[-_MARKED_TOKENS:])])
    return f"{len(tokens)} tokens {hashlib.sha256(ends.astype(np.uint32).tobytes()).hexdigest()[:16]}"


def resume(form: Form, folder: Path, identity: dict[str, Any]) -> tuple[int, float, bool]:
    """Put a run back to where its last checkpoint was made: model, optimizer, random streams, metrics.

    Rows past the checkpoint are dropped: their steps will be made again. Of several ranks the first alone writes.

    Args:
        folder: of the run; may hold no checkpoint yet.
        identity: what makes it the same run: configurations, seed, marks of the data.

    Returns:
        Steps already done, the seconds they took, and whether they were all.

    Raises:
        UserError: the checkpoint cannot be read, or is of a run with another identity.
    """
    checkpoints = folder / CHECKPOINTS_FOLDER
    checkpoints.mkdir(parents=True, exist_ok=True)
    partials = [*folder.glob(".*.partial"), *checkpoints.glob(".*.partial")]  # of a write that was killed
    for partial in partials if form.rank == 0 else ():
        partial.unlink()
    done, finished = 0, False
    if paths := checkpoint_paths(checkpoints):
        state = read_checkpoint(paths[-1], mapped=form.num_ranks > 1)
        check_identity(paths[-1], state, identity)
        form.load_state(state)
        restore_rng(state["rng"], form.device)
        done, finished = state["iteration"], state["finished"]
    if form.rank:
        return done, 0.0, finished
    rows = drop_rows_after(folder / METRICS_FILE, done)
    if (folder / SAMPLES_FILE).exists():
        drop_rows_after(folder / SAMPLES_FILE, done)
    return done, rows[-1]["seconds"] if rows else 0.0, finished


def check_identity(path: Path, state: dict[str, Any], identity: dict[str, Any]) -> None:
    """A checkpoint of other settings would go on as a run that is neither.

    Raises:
        UserError: `state`, read from `path`, is of a run with another identity; the line names what differs.
    """
    here, there = _flat(identity), _flat({part: state.get(part) for part in identity})
    changed = [
        f"{name} was {there.get(name)!r}, is {here.get(name)!r}"
        for name in sorted(here.keys() | there.keys())
        if here.get(name) != there.get(name)
    ]
    if changed:
        raise UserError(f"{path}: of a run with other settings ({'; '.join(changed)}); take another folder")


def _flat(parts: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for part, value in parts.items():
        flat |= value if isinstance(value, dict) else {part: value}
    return flat
