"""What post-training asks of a tokenizer, the same of ours and of one of transformers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

_TEXTS_AT_ONCE = 1_024  # handed to a tokenizer: enough for one that encodes on all cores


def encode_texts(tokenizer: Any, texts: Sequence[str], *, special_tokens: bool) -> Iterator[list[int]]:
    """Ids of each text.

    Args:
        special_tokens: add those that the tokenizer puts around a text, such as Llama's `<|begin_of_text|>`
            before it; ours adds none in any case.
    """
    for start in range(0, len(texts), _TEXTS_AT_ONCE):
        some = list(texts[start : start + _TEXTS_AT_ONCE])
        if is_huggingface(tokenizer):
            if callable(tokenizer):
                yield from tokenizer(some, add_special_tokens=special_tokens)["input_ids"]
            else:
                yield from (list(tokenizer.encode(text, add_special_tokens=special_tokens)) for text in some)
        elif hasattr(tokenizer, "encode_batch"):
            yield from (ids.tolist() for ids in tokenizer.encode_batch(some))
        else:
            yield from (list(tokenizer.encode(text)) for text in some)


def end_of_text_id(tokenizer: Any) -> int:
    """The id that ends a text.

    Raises:
        ValueError: the tokenizer has none.
    """
    if not is_huggingface(tokenizer):
        return tokenizer.end_of_text_id
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no end-of-text token; set its eos_token")
    return tokenizer.eos_token_id


def pad_id(tokenizer: Any) -> int:
    """The id that fills up rows of a batch: the tokenizer's own, else the one that ends a text."""
    own = getattr(tokenizer, "pad_token_id", None)
    return end_of_text_id(tokenizer) if own is None else own


def is_huggingface(tokenizer: Any) -> bool:
    """Whether a tokenizer has the interface of transformers'."""
    return hasattr(tokenizer, "eos_token_id")
