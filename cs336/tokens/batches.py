"""Batches of (inputs, targets) from a long array of token ids: drawn at random, or each token once."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from cs336.hardware import to_device
from cs336.tokens.index import IndexedDocument, read_index
from cs336.tokens.shards import open_tokens

if TYPE_CHECKING:
    from jaxtyping import Bool, Int
    from torch import Tensor

    from cs336.tokens.shards import TokenArray

_NUM_PREFETCHED = 2  # batches made ahead: one is on its way while another is being read


def get_batch(
    x: np.ndarray | TokenArray,
    batch_size: int,
    context_length: int,
    device: str | torch.device,
    *,
    generator: torch.Generator | None = None,
) -> tuple[Int[Tensor, "batch seq"], Int[Tensor, "batch seq"]]:
    """Stretches of the text, and for each of their tokens the one that follows.

    Args:
        x: token ids; only the stretches drawn are read, so it may be memory-mapped.
        context_length: tokens in each stretch, m; starts are uniform over 0 ... n - m - 1.
        generator: of the starts, on the CPU; None takes PyTorch's global one.

    Returns:
        Inputs `x[i : i + m]` and targets `x[i + 1 : i + m + 1]`, int64, on `device`.

    Raises:
        ValueError: there are not more than `context_length` tokens.
        RuntimeError: PyTorch does not know the device, or the machine lacks it.
    """
    device = torch.device(device)
    starts = _starts(len(x), batch_size, context_length, generator)
    return _inputs_and_targets(_read(x, starts.tolist(), context_length, device))


class Batches:
    """The batches of a training run: batch t depends on the seed and t alone.

    So a run that stops and resumes at any step sees the data that an unbroken run sees, and there is
    no position to save. Where the tokens are kept changes the speed and nothing else.
    """

    def __init__(
        self,
        tokens: np.ndarray | TokenArray,
        *,
        batch_size: int,
        context_length: int,
        seed: int,
        device: str | torch.device,
        keep_on_device: bool = False,
        prefetch: bool = False,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        """Args are those of `get_batch`, and:

        seed: 0 or more; fixes the places drawn at every step.
        share: (r, n) gives the r-th of n equal slices of each batch; n divides `batch_size`.
        keep_on_device: copy all tokens to the device, two bytes each, and cut the batches there.
        prefetch: a thread makes the next batches meanwhile (`in_order` only).
        """
        self._tokens = tokens
        self._batch_size = batch_size
        self._context_length = context_length
        self._seed = seed
        self._device = torch.device(device)
        self._prefetch = prefetch and not keep_on_device
        self._share = share
        self._resident: Tensor | None = None
        if keep_on_device:
            # PyTorch does little with uint16; int16 holds the same bits, and the mask in `at` reads them back.
            bits = np.ascontiguousarray(tokens[0 : len(tokens)], dtype=np.uint16).view(np.int16)
            self._resident = torch.tensor(bits, device=self._device)

    def starts(self, step: int) -> Int[Tensor, " batch"]:
        """Where in the tokens the stretches of step `step` begin, those of the whole batch."""
        # SeedSequence mixes the two numbers well, so near steps and near seeds share nothing.
        mixed = np.random.SeedSequence([self._seed, step]).generate_state(1, np.uint64)[0]
        generator = torch.Generator().manual_seed(int(mixed >> np.uint64(1)))
        return _starts(len(self._tokens), self._batch_size, self._context_length, generator)

    def at(self, step: int) -> tuple[Int[Tensor, "batch seq"], Int[Tensor, "batch seq"]]:
        """Inputs and targets of step `step` (0 or more); see `get_batch`."""
        place, num_shares = self._share
        starts = self.starts(step).view(num_shares, -1)[place]
        if self._resident is None:
            stretches = _read(self._tokens, starts.tolist(), self._context_length, self._device)
        else:
            places = torch.arange(self._context_length + 1, device=self._device)
            first = to_device(starts, self._device)
            stretches = self._resident[first.unsqueeze(-1) + places].to(torch.int64) & 0xFFFF
        return _inputs_and_targets(stretches)

    def in_order(
        self, steps: Iterable[int]
    ) -> Generator[tuple[Int[Tensor, "batch seq"], Int[Tensor, "batch seq"]], None, None]:
        """`at` of each step.

        Raises:
            Exception: what reading a batch raised, at the step that asks for it.
        """
        if not self._prefetch:
            yield from map(self.at, steps)
            return
        waiting: deque[Future[Any]] = deque()
        with ThreadPoolExecutor(1, thread_name_prefix="batches") as thread:
            try:
                for step in steps:
                    waiting.append(thread.submit(self.at, step))
                    if len(waiting) > _NUM_PREFETCHED:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                thread.shutdown(cancel_futures=True)


class EveryToken(NamedTuple):
    """A rectangular batch of held-out text.

    Attributes:
        inputs, targets: as of `get_batch`.
        counted: True for targets that no other window of the pass counts.
    """

    inputs: Int[Tensor, "batch seq"]
    targets: Int[Tensor, "batch seq"]
    counted: Bool[Tensor, "batch seq"]


def every_token_once(
    tokens: np.ndarray | TokenArray,
    *,
    batch_size: int,
    context_length: int,
    device: str | torch.device,
    max_batches: int | None = None,
    share: tuple[int, int] = (0, 1),
) -> Iterator[EveryToken]:
    """All of a text in its order, each token but the first predicted exactly once.

    Windows lie side by side; the last one is pulled back to end with the text, and the last batch is
    filled up with windows that count nothing, so all batches have one shape.

    Args:
        max_batches: where the text has more, only this many, of windows spread evenly over it: always
            the same ones.
        share: (r, n) gives batches r, r + n, ...; to all r equally many, the missing ones counting nothing.

    Raises:
        ValueError: fewer than two tokens.
    """
    num_targets = len(tokens) - 1
    if num_targets < 1:
        raise ValueError(f"{len(tokens)} tokens leave nothing to predict; hold out more text")
    length = min(context_length, num_targets)
    firsts = list(range(0, num_targets, length))  # of the targets that a window counts
    if max_batches is not None and len(firsts) > max_batches * batch_size:
        chosen = max_batches * batch_size
        firsts = [firsts[number * len(firsts) // chosen] for number in range(chosen)]
    places = torch.arange(length)
    place, num_shares = share
    for group in range(0, len(firsts), num_shares * batch_size):
        begin = group + place * batch_size
        some = firsts[begin : begin + batch_size]
        starts = [min(first, num_targets - length) for first in some]
        skipped = [first - start for first, start in zip(some, starts, strict=True)]
        counted = places >= torch.tensor(skipped, dtype=torch.int64)[:, None]
        num_missing = batch_size - len(some)
        counted = torch.cat((counted, torch.zeros(num_missing, length, dtype=torch.bool)))
        stretches = _read(tokens, starts + [0] * num_missing, length, torch.device(device))
        yield EveryToken(*_inputs_and_targets(stretches), counted.to(device))


def documents_at(
    folders: Iterable[Path], split: str, starts: Sequence[int], num_tokens: int
) -> Iterator[IndexedDocument]:
    """The documents that some stretches of a split's tokens touch, in the order they are stored, each once.

    Args:
        folders: shards in the order in which `concatenate` joined them.
        starts: places in the joined tokens.
        num_tokens: length of each stretch.

    Raises:
        UserError: a shard's ids or index are missing or damaged.
    """
    before = 0
    for folder in folders:
        end = before + len(open_tokens(folder / f"{split}.bin"))
        last_row = -1
        for start in sorted(starts):
            first, stop = max(start, before), min(start + num_tokens, end)
            if first >= stop:
                continue
            for document in read_index(folder, split, start=first - before, stop=stop - before):
                if document.row > last_row:
                    yield document
                    last_row = document.row
        before = end


def _starts(num_tokens: int, batch_size: int, context_length: int, generator: torch.Generator | None) -> Tensor:
    num_starts = num_tokens - context_length
    if num_starts <= 0:
        raise ValueError(
            f"{num_tokens} tokens are too few for a context of {context_length} and a target;"
            " give more text or a shorter context"
        )
    return torch.randint(num_starts, (batch_size,), generator=generator)


def _read(
    tokens: np.ndarray | TokenArray, starts: Sequence[int], context_length: int, device: torch.device
) -> Int[Tensor, "batch seq_and_target"]:
    stretches = np.stack([tokens[i : i + context_length + 1] for i in starts]).astype(np.int64)
    return to_device(torch.from_numpy(stretches), device)


def _inputs_and_targets(stretches: Tensor) -> tuple[Tensor, Tensor]:
    return stretches[:, :-1].contiguous(), stretches[:, 1:].contiguous()
