"""Everything a run needs to go on exactly where it stopped."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import IO, Any

import torch
from torch import nn

from cs336.files import UserError, replacing


def save_checkpoint(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    iteration: int,
    out: Path | str | IO[bytes],
    **extras: Any,
) -> None:
    """Write model state, optimizer state and iteration; a path appears whole or not at all.

    Args:
        iteration: steps done.
        out: a path or a binary file.
        extras: whatever else belongs to the run, such as its configuration.
    """
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "iteration": iteration, **extras}
    if isinstance(out, str | Path):
        with replacing(Path(out)) as file:
            torch.save(state, file)
    else:
        torch.save(state, out)


def load_checkpoint(src: Path | str | IO[bytes], model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Restore what `save_checkpoint` wrote; returns the number of steps done.

    Raises:
        UserError: the file is missing or not a checkpoint.
    """
    try:
        state = torch.load(src, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{src}: not found; is the run's folder right?") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise UserError(f"{src}: not a readable checkpoint; delete it to start the run again") from error
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return state["iteration"]
