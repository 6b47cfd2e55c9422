"""What post-training asks of a tokenizer, the same of ours and of one of transformers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

_TEXTS_AT_ONCE = 1_024  # that transformers' tokenizers, or ours, encode on all cores


def encode(tokenizer: Any, text: str, *, special_tokens: bool) -> list[int]:
    """Ids of a text.

    Args:
        special_tokens: add those that the tokenizer puts around a text, such as Llama's `<|begin_of_text|>`
            before it; ours adds none in any case.
    """
    if is_huggingface(tokenizer):
        return list(tokenizer.encode(text, add_special_tokens=special_tokens))
    return list(tokenizer.encode(text))


def encode_many(tokenizer: Any, texts: Sequence[str], *, special_tokens: bool) -> Iterator[Sequence[int]]:
    """What `encode` gives for each text, many at once where the tokenizer can."""
    for start in range(0, len(texts), _TEXTS_AT_ONCE):
        some = list(texts[start : start + _TEXTS_AT_ONCE])
        if hasattr(tokenizer, "encode_batch"):
            yield from tokenizer.encode_batch(some)
        elif is_huggingface(tokenizer) and callable(tokenizer):
            yield from tokenizer(some, add_special_tokens=special_tokens)["input_ids"]
        else:
            yield from (encode(tokenizer, text, special_tokens=special_tokens) for text in some)


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
