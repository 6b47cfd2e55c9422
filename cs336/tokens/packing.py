"""Instructions with their responses as fixed rows of tokens, cut from one stream without padding."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Dataset

from cs336.files import UserError, read_jsonl
from cs336.tokens.chat import alpaca_text
from cs336.tokens.codec import encode_texts, end_of_text_id

if TYPE_CHECKING:
    from torch import Tensor


class PackedInstructions(Dataset):
    """Rows of `seq_length` tokens of all instructions in the Alpaca form, end to end.

    Each document is the filled template with the special tokens that the tokenizer puts around a text, and the
    end-of-text token directly after the response. Row i holds the tokens from `i * seq_length` on, its labels those
    from one later on; what is left at the end is dropped. Prompts are not masked.

    Args:
        tokenizer: ours, or one of transformers.
        dataset_path: JSON Lines, gzipped or not, of `prompt` and `response`.
        seq_length: tokens in a row.
        shuffle: put the documents in another order before they are joined.
        seed: of that order.

    Attributes:
        tokens: the stream.

    Raises:
        ValueError: `seq_length` below 1.
        UserError: the file is missing, or a record of it lacks one of the two texts.
    """

    def __init__(
        self, tokenizer: Any, dataset_path: str | Path, seq_length: int, shuffle: bool, *, seed: int = 0
    ) -> None:
        if seq_length < 1:
            raise ValueError(f"seq_length must be at least 1, got {seq_length}")
        self.seq_length = seq_length
        texts = [alpaca_text(prompt, response) for prompt, response in _instructions(Path(dataset_path))]
        if shuffle:
            texts = [texts[place] for place in shuffled(len(texts), seed=seed, epoch=0)]
        end = np.array([end_of_text_id(tokenizer)], np.int32)
        parts = [np.empty(0, np.int32)]
        for ids in encode_texts(tokenizer, texts, special_tokens=True):
            parts += [np.asarray(ids, np.int32), end]
        self.tokens = np.concatenate(parts)

    def __len__(self) -> int:
        return max(0, len(self.tokens) - 1) // self.seq_length

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """`input_ids` and `labels`, int64, each (seq_length,).

        Raises:
            IndexError: there is no such row.
        """
        start = range(len(self))[index] * self.seq_length
        row = torch.from_numpy(self.tokens[start : start + self.seq_length + 1].astype(np.int64))
        return {"input_ids": row[:-1], "labels": row[1:]}


class PackedBatches:
    """One epoch of a data set in batches, the last of which may be short; each pass is an epoch.

    Args:
        dataset: of dictionaries of tensors that can be stacked.
        batch_size: rows in a batch.
        shuffle: take the rows in another order in each pass.
        seed: of these orders.

    Raises:
        ValueError: `batch_size` below 1.
    """

    def __init__(self, dataset: Any, batch_size: int, shuffle: bool, *, seed: int = 0) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self._dataset, self._batch_size, self._shuffle, self._seed = dataset, batch_size, shuffle, seed
        self._num_passes = 0

    def __len__(self) -> int:
        return -(-len(self._dataset) // self._batch_size)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """Stacked rows: each entry (batch, ...)."""
        epoch = self._num_passes
        self._num_passes += 1
        count = len(self._dataset)
        order = shuffled(count, seed=self._seed, epoch=epoch) if self._shuffle else list(range(count))
        for start in range(0, count, self._batch_size):
            yield stacked([self._dataset[place] for place in order[start : start + self._batch_size]])


def stacked(rows: list[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Rows of one shape as a batch."""
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def shuffled(count: int, *, seed: int, epoch: int) -> list[int]:
    """The numbers 0 ... count - 1 in an order that depends on seed and epoch alone."""
    # SeedSequence mixes the two numbers well, so that near epochs and near seeds share nothing.
    mixed = np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0]
    generator = torch.Generator().manual_seed(int(mixed >> np.uint64(1)))
    return torch.randperm(count, generator=generator).tolist()


def _instructions(path: Path) -> Iterator[tuple[str, str]]:
    for number, row in enumerate(read_jsonl(path), 1):
        match row:
            case {"prompt": str(prompt), "response": str(response)}:
                yield prompt, response
            case _:
                raise UserError(f"{path}: record {number} has no texts `prompt` and `response`")
