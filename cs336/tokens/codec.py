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


def encode_prompts(tokenizer: Any, texts: Sequence[str]) -> Iterator[list[int]]:
    """Ids of texts that something is to follow.

    What the tokenizer puts before a text, such as Llama's `<|begin_of_text|>`, stands there once, whether the text has
    it or not; what it puts after one is left out.
    """
    bos = bos_ids(tokenizer)
    for ids in encode_texts(tokenizer, texts, special_tokens=False):
        yield ids if ids[: len(bos)] == bos else [*bos, *ids]


def bos_ids(tokenizer: Any) -> list[int]:
    """What a tokenizer puts before each text; nothing for ours, or Qwen2's."""
    if hasattr(tokenizer, "bos_ids"):  # a codec's
        return tokenizer.bos_ids
    if not is_huggingface(tokenizer):
        return []
    plain, whole = (next(encode_texts(tokenizer, ["a"], special_tokens=special)) for special in (False, True))
    # Not by `bos_token`: many have one that they do not put there.
    return next((whole[:start] for start in range(len(whole)) if whole[start:][: len(plain)] == plain), [])


def crop_prompt(tokenizer: Any, ids: list[int], room: int) -> list[int]:
    """The end of a prompt that is longer than `room` (1 or more); what its tokenizer puts before texts stays there."""
    bos = bos_ids(tokenizer)
    if len(ids) <= room:
        return ids
    kept = ids[-room:]
    return [*bos, *kept[len(bos) :]] if len(bos) < room and ids[: len(bos)] == bos else kept


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
