"""Everything a run needs to go on exactly where it stopped, written while the run goes on."""

from __future__ import annotations

import os
import pickle
import threading
from collections.abc import Collection
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor, nn

from cs336.files import UserError, replacing

# A checkpoint goes to the disk in pieces of this size, each one synced: written as fast as memory takes
# it, gigabytes would lie in the page cache and whoever else syncs a file would wait behind them.
_PIECE_BYTES = 32 << 20


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
    _write(_state(model, optimizer, iteration, extras), out)


def load_checkpoint(src: Path | str | IO[bytes], model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Restore what `save_checkpoint` wrote; returns the number of steps done.

    Raises:
        UserError: the file is missing or not a checkpoint.
    """
    return restore(read_checkpoint(src), model, optimizer)


def read_checkpoint(src: Path | str | IO[bytes], *, mapped: bool = False) -> dict[str, Any]:
    """All that `save_checkpoint` wrote, extras too, on the CPU.

    Args:
        mapped: leave tensors in the file until they are read, so that each of several processes holds its part only.

    Raises:
        UserError: the file is missing or not a checkpoint.
    """
    try:
        return torch.load(src, map_location="cpu", weights_only=True, mmap=mapped)
    except FileNotFoundError:
        raise UserError(f"{src}: not found; is the run's folder right?") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise UserError(f"{src}: not a readable checkpoint; delete it to go on from the one before it") from error


def restore(state: dict[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Put what `read_checkpoint` read into a model and its optimizer; returns the number of steps done."""
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return state["iteration"]


def copy_on_cpu(value: Any, copies: dict[Any, Tensor] | None = None) -> Any:
    """A copy of all tensors within; those that share their memory (tied weights) go on sharing it."""
    copies = {} if copies is None else copies
    if isinstance(value, Tensor):
        place = (value.device, value.data_ptr(), value.dtype, value.shape, value.stride())
        if place not in copies:
            copies[place] = value.detach().to("cpu", copy=True)
        return copies[place]
    if isinstance(value, dict):
        return {key: copy_on_cpu(item, copies) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(copy_on_cpu(item, copies) for item in value)
    return value


def rng_state(device: torch.device) -> dict[str, Tensor]:
    """Where PyTorch's random streams stand: the CPU's, and the GPU's where the run uses one."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore_rng(state: dict[str, Tensor], device: torch.device) -> None:
    """Set PyTorch's random streams as `rng_state` found them."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def checkpoint_path(folder: Path, iteration: int) -> Path:
    """The file that `CheckpointWriter` writes after `iteration` steps."""
    return folder / f"step-{iteration:09d}.pt"


def checkpoint_paths(folder: Path) -> list[Path]:
    """All whole checkpoints in a folder, the oldest first."""
    return sorted(folder.glob("step-*.pt"))


class CheckpointWriter:
    """Writes checkpoints in a thread, from a copy in main memory, so that training goes on meanwhile.

    Each appears whole or not at all; once it has, all but the last `keep` are deleted. One write runs
    at a time: a run that is faster than its disk waits for it.

        with CheckpointWriter(folder, keep=2) as writer:
            for step in ...:
                writer.raise_failure()
                ...
                writer.save(model, optimizer, step)

    Leaving the block waits for the last write and raises its failure; after another error, it only waits.

    Args:
        keep: how many, at least 1.
    """

    def __init__(self, folder: Path, *, keep: int) -> None:
        if keep < 1:
            raise ValueError(f"keep at least 1 checkpoint, got {keep}")
        self._folder = folder
        self._keep = keep
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None

    def save(self, model: nn.Module, optimizer: torch.optim.Optimizer, iteration: int, **extras: Any) -> None:
        """Copy the state now and write it in the background; see `save_checkpoint`.

        Raises:
            Exception: what went wrong in the write before.
        """
        self.wait()
        self.write(copy_on_cpu(_state(model, optimizer, iteration, extras)), iteration)

    def write(self, state: dict[str, Any], iteration: int, *, protected: Collection[int] = ()) -> None:
        """Write a state in the background that nobody changes any more; see `save_checkpoint`.

        Args:
            state: with "model", "optimizer", "iteration" and extras.
            protected: iterations whose checkpoints stay beside the last ones, such as the best one's.

        Raises:
            Exception: what went wrong in the write before.
        """
        self.wait()
        self._thread = threading.Thread(target=self._run, args=(state, iteration, protected), name="checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Wait until nothing is being written.

        Raises:
            Exception: what went wrong.
        """
        self.settle()
        self.raise_failure()

    def settle(self) -> None:
        """Wait until nothing is being written, well or not."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def raise_failure(self) -> None:
        """Raise what went wrong in the background, if anything has; never waits."""
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    def _run(self, state: dict[str, Any], iteration: int, protected: Collection[int]) -> None:
        try:
            _write(state, checkpoint_path(self._folder, iteration))
            stay = {checkpoint_path(self._folder, each) for each in protected}
            for old in checkpoint_paths(self._folder)[: -self._keep]:
                if old not in stay:
                    old.unlink()
        except BaseException as error:
            self._failure = error

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.settle()
        if kind is None:
            self.raise_failure()


def _state(
    model: nn.Module, optimizer: torch.optim.Optimizer, iteration: int, extras: dict[str, Any]
) -> dict[str, Any]:
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "iteration": iteration, **extras}


def _write(state: dict[str, Any], out: Path | str | IO[bytes]) -> None:
    if isinstance(out, str | Path):
        with replacing(Path(out)) as file:
            paced: Any = _Paced(file)
            torch.save(state, paced)
    else:
        torch.save(state, out)


class _Paced:
    """A binary file that syncs what it has written every few MB."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._unsynced = 0

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        for start in range(0, len(view), _PIECE_BYTES):
            piece = view[start : start + _PIECE_BYTES]
            self._file.write(piece)
            self._unsynced += len(piece)
            if self._unsynced >= _PIECE_BYTES:
                self._file.flush()
                os.fsync(self._file.fileno())
                self._unsynced = 0
        return len(view)

    def flush(self) -> None:
        self._file.flush()
