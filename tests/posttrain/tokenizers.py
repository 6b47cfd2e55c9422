"""Tokenizers of letters for tests: with our interface, and with that of transformers."""

from __future__ import annotations

END, BOS = 0, 1
_LETTERS = " abcdefghijklmnopqrstuvwxyz0123456789.,:?#'\nABCDEFGHIJKLMNOPQRSTUVWXYZ<>/="


class Letters:
    """Ours: a letter is an id; the end of text is 0."""

    end_of_text_id = END
    vocab_size = len(_LETTERS) + 2

    def encode(self, text: str) -> list[int]:
        return [2 + _LETTERS.index(letter) for letter in text]

    def decode(self, ids) -> str:
        return "".join(_LETTERS[number - 2] for number in ids if number >= 2)


class TheirLetters(Letters):
    """As transformers': puts a special token before each text unless told not to."""

    eos_token_id = END
    pad_token_id = None
    end_of_text_id = None

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [BOS] * add_special_tokens + super().encode(text)

    def decode(self, ids, skip_special_tokens: bool = False) -> str:
        assert skip_special_tokens
        return super().decode(ids)
