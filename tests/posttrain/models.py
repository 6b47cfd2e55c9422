"""Small models, ours and transformers', and examples that they can learn."""

from __future__ import annotations

import json

import torch

from cs336.generate.continuous import Engine
from cs336.model.transformer import ModelConfig, TransformerLM
from cs336.train.metrics import METRICS_FILE, WALL_CLOCK
from tests.posttrain.tokenizers import Letters

CONTEXT = 40
EXAMPLES = [
    (f"next {a} ", f"{b}{b}{c}") for a, b, c in zip("abcdefghijkl", "bcdefghijklm", "cdefghijklmn", strict=True)
]


def our_model(seed=0, *, context_length=CONTEXT, dropout=0.0):
    torch.manual_seed(seed)
    shape = {"d_model": 32, "num_layers": 1, "num_heads": 2, "vocab_size": Letters.vocab_size}
    return TransformerLM(ModelConfig(context_length=context_length, dropout=dropout, **shape))


def their_model(seed=0, *, context_length=CONTEXT, dropout=0.0):
    import transformers  # seconds; only where a test asks for one

    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=Letters.vocab_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=context_length,
        attention_dropout=dropout,
        bos_token_id=1,
        eos_token_id=0,
    )
    return transformers.LlamaForCausalLM(config)


MODELS = {"ours": our_model, "transformers": their_model}


def calls_of(monkeypatch):
    """Our engine's calls from now on: the parameters of each, and its samples."""
    asked, answered, generate = [], [], Engine.generate

    def noted(self, prompts, params, **options):
        asked.append(params)
        generations = generate(self, prompts, params, **options)
        answered.append([sample for generation in generations for sample in generation.samples])
        return generations

    monkeypatch.setattr(Engine, "generate", noted)
    return asked, answered


def curve(folder):
    """All rows of a run, but for what the clock says."""
    rows = [json.loads(line) for line in (folder / METRICS_FILE).read_text().splitlines()]
    clocks = {name for row in rows for name in row if name in WALL_CLOCK or name.endswith("_seconds")}
    return [{name: value for name, value in row.items() if name not in clocks} for row in rows]


def weights(model):
    return {name: weight.clone() for name, weight in model.state_dict().items()}


def assert_same_weights(first, second):
    assert first.keys() == second.keys()
    for name, weight in first.items():
        assert torch.equal(weight, second[name]), name


class Saved(Letters):
    """A tokenizer that can write itself."""

    def save(self, folder):
        (folder / "letters.txt").write_text("letters")
