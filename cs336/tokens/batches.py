"""Batches of (inputs, targets) from a long array of token ids, at places drawn at random."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from jaxtyping import Int
    from torch import Tensor

    from cs336.tokens.shards import TokenArray


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
    num_starts = len(x) - context_length
    if num_starts <= 0:
        raise ValueError(
            f"{len(x)} tokens are too few for a context of {context_length} and a target;"
            " give more text or a shorter context"
        )
    starts = torch.randint(num_starts, (batch_size,), generator=generator).tolist()
    stretches = torch.from_numpy(np.stack([x[i : i + context_length + 1] for i in starts]).astype(np.int64))
    if device.type == "cuda":  # pinned memory lets the copy run beside the computation
        stretches = stretches.pin_memory()
    stretches = stretches.to(device, non_blocking=True)
    return stretches[:, :-1].contiguous(), stretches[:, 1:].contiguous()


class Batches:
    """The batches of a training run: batch t depends on the seed and t alone.

    So a run that stops and resumes at any step sees the data that an unbroken run sees, and there is
    no position to save.
    """

    def __init__(
        self,
        tokens: np.ndarray | TokenArray,
        *,
        batch_size: int,
        context_length: int,
        seed: int,
        device: str | torch.device,
    ) -> None:
        """Args are those of `get_batch`; `seed` (0 or more) fixes the places drawn at every step."""
        self._tokens = tokens
        self._batch_size = batch_size
        self._context_length = context_length
        self._seed = seed
        self._device = device

    def at(self, step: int) -> tuple[Int[Tensor, "batch seq"], Int[Tensor, "batch seq"]]:
        """Inputs and targets of step `step` (0 or more); see `get_batch`."""
        # SeedSequence mixes the two numbers well, so near steps and near seeds share nothing.
        mixed = np.random.SeedSequence([self._seed, step]).generate_state(1, np.uint64)[0]
        generator = torch.Generator().manual_seed(int(mixed >> np.uint64(1)))
        return get_batch(self._tokens, self._batch_size, self._context_length, self._device, generator=generator)
