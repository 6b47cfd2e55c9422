"""The text of a contest: opened by the service, to know how much there is, and by each worker."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from cs336.files import UserError
from cs336.service.job_config import NUM_VALID_TOKENS
from cs336.tokens.shards import SPLITS, TokenArray, concatenate


class JobData(NamedTuple):
    """The text that all jobs are trained and validated on: bare uint16 ids, `<|endoftext|>` after each document.

    Attributes:
        train: read from its beginning, in its order, no token twice.
        valid: of which the first 2^18 tokens are predicted.
    """

    train: np.ndarray | TokenArray
    valid: np.ndarray | TokenArray


def open_data(folder: Path) -> JobData:
    """The text of a folder with `train.bin` and `valid.bin`, or of all its folders that have them, in order of name.

    Raises:
        UserError: there is none, a file is damaged, or the held-out text too short for a validation.
    """
    folders = (
        [folder] if (folder / "train.bin").exists() else sorted(path.parent for path in folder.glob("*/train.bin"))
    )
    if not folders:
        raise UserError(f"{folder}: holds no train.bin; name a folder of token arrays, such as the asset token_shards")
    train, valid = (concatenate(folders, split) for split in SPLITS)
    if len(valid) <= NUM_VALID_TOKENS:
        raise UserError(
            f"{folder}: {len(valid):,} held-out tokens, but a validation takes {NUM_VALID_TOKENS:,} and the one after;"
            " hold out more text"
        )
    return JobData(train, valid)
