"""Text that the model writes while it is trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from cs336.model.transformer import TransformerLM

if TYPE_CHECKING:
    from cs336.generate.engine import TextCodec
    from cs336.train.loop import TrainConfig

SAMPLES_FILE = "samples.jsonl"


def write_samples(path: Path, model: TransformerLM, tokenizer: TextCodec, config: TrainConfig, step: int) -> None:
    """Let the model continue the prompts; training goes on as if it had not (the random streams are its own)."""
    from cs336.generate.engine import generate

    model.eval()
    completions = generate(
        model,
        tokenizer,
        config.sample_prompts,
        max_new_tokens=min(config.sample_tokens, model.config.context_length - 1),
        temperature=config.sample_temperature,
        seed=step,
    )
    model.train()
    with path.open("a", encoding="utf-8") as file:
        for prompt, completion in zip(config.sample_prompts, completions, strict=True):
            row = {"step": step, "prompt": prompt, "text": completion.text}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
