"""Prompts and responses as rows of ids, and which labels are the response's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cs336.tokens.codec import encode_prompts, encode_texts, pad_id


def tokenize_prompt_and_output(
    prompt_strs: Sequence[str], output_strs: Sequence[str], tokenizer: Any
) -> dict[str, Tensor]:
    """Prompts with their outputs, encoded separately, joined, and padded on the right.

    No special token stands between the two; a prompt begins as `encode_prompts` has it.

    Args:
        tokenizer: ours, or one of transformers.

    Returns:
        As `prompt_and_output_batch`.

    Raises:
        ValueError: not as many outputs as prompts, or none.
    """
    if len(prompt_strs) != len(output_strs):
        raise ValueError(f"{len(prompt_strs)} prompts and {len(output_strs)} outputs; give an output for each prompt")
    return prompt_and_output_batch(
        list(encode_prompts(tokenizer, prompt_strs)),
        list(encode_texts(tokenizer, output_strs, special_tokens=False)),
        pad_id(tokenizer),
    )


def prompt_and_output_batch(
    prompt_ids: Sequence[Sequence[int]], output_ids: Sequence[Sequence[int]], padding: int
) -> dict[str, Tensor]:
    """The same of texts that are ids already, such as sampled ones, which encoding their text may not give back.

    Returns:
        `input_ids` and `labels` (int64) and `response_mask` (bool), each (batch, longest - 1), of the joined and
        padded rows: all but the last column, all but the first, and true where the label is a token of the output.

    Raises:
        ValueError: no rows, or rows of different number.
    """
    joined = [[*prompt, *output] for prompt, output in zip(prompt_ids, output_ids, strict=True)]
    longest = max(map(len, joined), default=0)
    if longest == 0:
        raise ValueError("there is no token in these prompts and outputs; give at least one")
    rows = torch.full((len(joined), longest), padding, dtype=torch.int64)
    mask = torch.zeros((len(joined), longest), dtype=torch.bool)
    for row, ids in enumerate(joined):
        rows[row, : len(ids)] = torch.from_numpy(np.array(ids, dtype=np.int64))  # a third of `torch.tensor`'s time
        mask[row, len(prompt_ids[row]) : len(ids)] = True
    return {"input_ids": rows[:, :-1], "labels": rows[:, 1:], "response_mask": mask[:, 1:]}


def first_response_column(prompt_ids: Sequence[Sequence[int]]) -> int:
    """The first column of such a batch in which any label is a token of an output."""
    return max(0, min(map(len, prompt_ids)) - 1)
