"""What post-training asks of a tokenizer, the same of ours and of one of transformers."""

from __future__ import annotations

from typing import Any


def encode(tokenizer: Any, text: str, *, special_tokens: bool) -> list[int]:
    """Ids of a text.

    Args:
        special_tokens: add those that the tokenizer puts around a text, such as Llama's `<|begin_of_text|>`
            before it; ours adds none in any case.
    """
    if is_huggingface(tokenizer):
        return list(tokenizer.encode(text, add_special_tokens=special_tokens))
    return list(tokenizer.encode(text))


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
