"""The grid's text: windows of one context each, in an order that the seed alone fixes, whatever the batch size."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from cs336.files import UserError
from cs336.scaling.cell import Cell
from cs336.tokens.shards import TokenArray, concatenate

if TYPE_CHECKING:
    from jaxtyping import Int
    from torch import Tensor

_HASHED_TOKENS = 1 << 24  # at a time
_ROUNDING = 1.001


@dataclass(frozen=True)
class Text:
    """Training and held-out tokens.

    Attributes:
        checksum: of both, all their bytes.
    """

    train: TokenArray
    valid: TokenArray
    checksum: str

    @classmethod
    def open(cls, folders: Iterable[Path]) -> Text:
        """Join the `train.bin` and `valid.bin` of some folders, in the order given.

        Raises:
            UserError: a file is missing or damaged, or holds no more than a token.
        """
        folders = list(folders)
        train, valid = concatenate(folders, "train"), concatenate(folders, "valid")
        for name, tokens in (("training", train), ("held-out", valid)):
            if len(tokens) < 2:
                raise UserError(f"{', '.join(map(str, folders))}: {len(tokens)} {name} tokens; give more text")
        return cls(train, valid, _checksum((train, valid)))

    def check(self, cells: Iterable[Cell], *, max_epochs: float) -> None:
        """Whether the text is long enough for some cells, and of their vocabulary.

        Args:
            max_epochs: that a cell may read it.

        Raises:
            UserError: it is not.
        """
        cells = list(cells)
        for cell in cells:
            windows = (len(self.train) - 1) // cell.context_length
            epochs = cell.tokens / max(1, windows * cell.context_length)
            # The grid counts tokens, and windows leave the last few of a text out.
            if not windows or epochs > max_epochs * _ROUNDING:
                raise UserError(
                    f"{cell.name} would read the {len(self.train):,} training tokens {epochs:.2f} times, more than the"
                    f" grid's {max_epochs:g}; give more text, or leave the cell out"
                )
        largest = max(
            int(tokens[start : start + _HASHED_TOKENS].max())
            for tokens in (self.train, self.valid)
            for start in range(0, len(tokens), _HASHED_TOKENS)
        )
        for vocab_size in {cell.vocab_size for cell in cells}:
            if largest >= vocab_size:
                raise UserError(f"token {largest:,} is beyond the grid's vocabulary of {vocab_size:,}; encode it again")


class WindowOrder:
    """Where the training windows begin: every window once in each epoch, in an order drawn for that epoch.

    Windows lie side by side; each has one token more than the context, the last target. What remains at the end of
    the text is left out. Runs of any batch size read the same windows in the same order.

    Raises:
        ValueError: fewer tokens than one window needs.
    """

    def __init__(self, num_tokens: int, context_length: int, seed: int) -> None:
        self.num_windows = (num_tokens - 1) // context_length
        if self.num_windows < 1:
            raise ValueError(f"{num_tokens} tokens do not fill a window of {context_length} and a target")
        self._context_length, self._seed = context_length, seed
        self._epochs: dict[int, Tensor] = {}

    def starts(self, first_step: int, num_steps: int, batch_size: int) -> Int[Tensor, "steps batch"]:
        """First token of each window of some steps."""
        places = torch.arange(first_step * batch_size, (first_step + num_steps) * batch_size)
        epochs, within = places // self.num_windows, places % self.num_windows
        windows = torch.empty_like(places)
        for epoch in epochs.unique().tolist():
            here = epochs == epoch
            windows[here] = self._epoch(epoch)[within[here]]
        return (windows * self._context_length).view(num_steps, batch_size)

    def epochs(self, num_sequences: int) -> float:
        """How often so many windows read the text."""
        return num_sequences / self.num_windows

    def _epoch(self, epoch: int) -> Tensor:
        if epoch not in self._epochs:
            mixed = np.random.SeedSequence([self._seed, epoch]).generate_state(1, np.uint64)[0]
            generator = torch.Generator().manual_seed(int(mixed >> np.uint64(1)))
            self._epochs = {epoch: torch.randperm(self.num_windows, generator=generator)}  # the last one alone is kept
        return self._epochs[epoch]


def on_device(tokens: Any, device: torch.device) -> Int[Tensor, " tokens"]:
    """All tokens, two bytes each: uint16's bits as int16, with which PyTorch can do more."""
    bits = np.ascontiguousarray(tokens[0 : len(tokens)], dtype=np.uint16).view(np.int16)
    return torch.tensor(bits, device=device)


def read_windows(
    resident: Int[Tensor, " tokens"], starts: Int[Tensor, " batch"], context_length: int
) -> tuple[Int[Tensor, "batch seq"], Int[Tensor, "batch seq"]]:
    """Inputs and targets of the windows that begin there."""
    places = torch.arange(context_length + 1, device=resident.device)
    windows = resident[starts.unsqueeze(-1) + places].to(torch.int64) & 0xFFFF
    return windows[:, :-1].contiguous(), windows[:, 1:].contiguous()


def _checksum(arrays: Iterable[TokenArray]) -> str:
    total = hashlib.sha256()
    for tokens in arrays:
        for start in range(0, len(tokens), _HASHED_TOKENS):
            total.update(np.ascontiguousarray(tokens[start : start + _HASHED_TOKENS]).tobytes())
        total.update(b"|")
    return total.hexdigest()[:16]
