"""Small tokenizers and models that tests of generation share."""

import pytest
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


def save_qwen2_of_letters(folder):
    """Write a Qwen2 of random weights, as transformers does, with a tokenizer of letters; returns that."""
    transformers, tokenizers = pytest.importorskip("transformers"), pytest.importorskip("tokenizers")
    torch.manual_seed(0)
    config = transformers.Qwen2Config(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=256,
        bos_token_id=None,
        eos_token_id=0,
    )
    transformers.Qwen2ForCausalLM(config).float().save_pretrained(folder)
    vocab = {"<end>": 0, **{chr(59 + i): i for i in range(1, 64)}}
    inner = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, []))
    inner.decoder = tokenizers.decoders.Fuse()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<end>")
    tokenizer.save_pretrained(folder)
    return tokenizer
