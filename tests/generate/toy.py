"""Small tokenizers and models that tests of generation share."""

import torch

from cs336.model.transformer import ModelConfig, TransformerLM


class Characters:
    """A tokenizer of letters: a = 1, b = 2, ...; 0 ends a text."""

    end_of_text_id = 0

    def encode(self, text):
        return [ord(character) - 96 for character in text]

    def decode(self, ids):
        return "".join(chr(96 + i) for i in ids)


class Pieces:
    """A byte-level tokenizer with many tokens of two bytes; 0 ends a text."""

    end_of_text_id = 0
    vocab = (b"", *(bytes([byte]) for byte in range(256)), *(bytes([a, b]) for a in b"abcdefg" for b in b"abcdefg"))

    def encode(self, text):
        return [byte + 1 for byte in text.encode()]

    def decode(self, ids):
        return b"".join(self.vocab[i] for i in ids).decode(errors="replace")


def letters_model(**settings):
    """For `Characters`."""
    torch.manual_seed(3)
    shape = {"context_length": 32, "d_model": 32, "num_layers": 2, "num_heads": 4, "vocab_size": 27}
    return TransformerLM(ModelConfig(**shape | settings)).eval()


def pieces_model():
    """For `Pieces`; writes mostly letters, and some halves of characters."""
    torch.manual_seed(4)
    config = ModelConfig(context_length=48, d_model=32, num_layers=2, num_heads=4, vocab_size=len(Pieces.vocab))
    model = TransformerLM(config).eval()
    letters = [i for i, token in enumerate(Pieces.vocab) if token.isalpha() and token.islower()]
    with torch.no_grad():
        model.lm_head.weight[[i for i in range(len(Pieces.vocab)) if i not in letters]] *= 0.3
    return model
