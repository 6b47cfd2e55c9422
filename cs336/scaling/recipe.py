"""The scaling model and recipe of 2025, in the project's own configurations.

Pre-norm decoder; learned absolute positions added to the token embedding; LayerNorm without bias; causal attention
without biases; linear, GELU, linear with biases, 4 d_model wide; final LayerNorm; untied head without bias. Dropout
of 0.1 on the attention weights, on what each sublayer adds, and after the embedding sum; in evaluation there is none.
AdamW with weight decay 0.01 on every parameter, gradients clipped at 1.0, a cosine without warm-up.

Source: CS336, assignment 3 (2025). It leaves open, and here is chosen: Adam's betas (0.9, 0.95); that the first step
has the given learning rate and the last one exactly a tenth of it; and how weights are drawn (`model/layers.py`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json

from cs336.model.accounting import forward_flops, training_flops
from cs336.model.transformer import ModelConfig
from cs336.scaling.cell import Cell
from cs336.train.loop import TrainConfig
from cs336.train.schedule import lr_cosine

DROPOUT = 0.1
WEIGHT_DECAY = 0.01
MAX_GRAD_NORM = 1.0
FINAL_RATE = 0.1  # of the first
TAIL_FRACTION = 0.05  # of the steps, the last ones: their mean training loss is a run's final loss
MAX_VALID_TOKENS = 2**18  # of the held-out text, as the service of 2026 takes
_ORDER = "windows, shuffled in each epoch"  # what `WindowOrder` does


def model_config(cell: Cell) -> ModelConfig:
    """The model of a cell."""
    return ModelConfig(
        context_length=cell.context_length,
        d_model=cell.d_model,
        num_layers=cell.num_layers,
        num_heads=cell.num_heads,
        vocab_size=cell.vocab_size,
        norm="pre",
        norm_kind="layer",
        positions="learned",
        feed_forward="gelu",  # 4 d_model wide
        ffn_bias=True,
        dropout=DROPOUT,
    )


def train_config(cell: Cell) -> TrainConfig:
    """The training of a cell; a budget below one step has one here, which is not taken."""
    return TrainConfig(
        batch_size=cell.batch_size,
        num_steps=max(1, cell.steps),
        learning_rate=cell.learning_rate,
        min_learning_rate=FINAL_RATE * cell.learning_rate,
        warmup_steps=0,
        weight_decay=WEIGHT_DECAY,
        decay_all=True,
        max_grad_norm=MAX_GRAD_NORM,
        precision=cell.precision,
    )


def learning_rates(cell: Cell) -> list[float]:
    """The rate of each step: from the given one down to a tenth over exactly the run's steps."""
    lowest = FINAL_RATE * cell.learning_rate
    return [lr_cosine(step, cell.learning_rate, lowest, 0, cell.steps - 1) for step in range(cell.steps)]


def tail_steps(cell: Cell) -> int:
    """Steps at the end whose mean training loss is the final loss; 0 of a run without steps."""
    return min(cell.steps, max(1, round(TAIL_FRACTION * cell.steps)))


def real_flops(cell: Cell) -> int:
    """FLOPs of all matrix products of the run: the blocks, and what the nominal figure leaves out.

    A run without steps costs one forward pass over a batch.
    """
    config = model_config(cell)
    if not cell.steps:
        return cell.batch_size * forward_flops(config)
    return training_flops(config, cell.tokens)


def config_hash(cell: Cell, data: str) -> str:
    """What tells one run's losses from another's, but for code and hardware.

    Args:
        data: checksum of the tokens.
    """
    settings = {
        "model": dataclasses.asdict(model_config(cell)),
        "train": dataclasses.asdict(train_config(cell)),
        "steps": cell.steps,
        "budget": cell.compute_budget,
        "seed": cell.seed,
        "tail": tail_steps(cell),
        "order": _ORDER,
        "data": data,
    }
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
