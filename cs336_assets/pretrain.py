"""The base model: our Transformer, trained on the token shards."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

from cs336.files import read_jsonl
from cs336.model.transformer import ModelConfig, TransformerLM, load_model
from cs336.tokenizer.bpe import Tokenizer
from cs336.train.loop import TrainConfig
from cs336.train.metrics import METRICS_FILE
from cs336.train.worker import run_training
from cs336_assets import plots
from cs336_assets.asset import Metadata, Step, asset, check
from cs336_assets.launch import train_in_child


@asset(group="pretrain", kinds={"pytorch"}, owner="team:models", resumable=True, pool="gpu", runs=(run_training,))
def base_model(
    step: Step,
    token_shards: list[Path],
    validation_tokens: Path,
    tokenizer: Path,
    model: ModelConfig,
    train: TrainConfig,
    seed: int,
) -> Metadata:
    """A Transformer language model trained from scratch on this preset's text.

    AdamW with warm-up and cosine decay, in a child process under `torchrun`; it checkpoints as it
    goes, and an interrupted training continues from its last checkpoint to the same weights.
    """
    shape = dataclasses.replace(model, vocab_size=Tokenizer.load(tokenizer).vocab_size)
    shards = [*token_shards, validation_tokens]
    rows = train_in_child(step, shape, train, seed=seed, token_shards=shards, tokenizer=tokenizer)
    last = rows[-1]
    plots.training_curve(rows, step.folder / "curve.png")
    trained: TransformerLM = load_model(step.folder)
    return {
        "num_parameters": sum(parameter.numel() for parameter in trained.parameters()),
        "num_tokens": last["num_tokens"],
        "train_loss": last["train_loss"],
        "valid_loss": last["valid_loss"],
        "training_seconds": last["seconds"],
        "tokens_per_second": last["tokens_per_second"],
        "peak_bytes": last["peak_bytes"],
        "curve": {"image": "curve.png"},
    }


@check(asset="base_model", blocking=True)
def every_loss_is_finite(base_model: Path) -> tuple[bool, Metadata]:
    """No step had an infinite or undefined loss or gradient."""
    rows = list(read_jsonl(base_model / METRICS_FILE))
    bad = [row["step"] for row in rows if not math.isfinite(row["train_loss"] + row["grad_norm"])]
    return not bad and bool(rows), {"num_steps": len(rows), "bad_steps": bad[:20]}


@check(asset="base_model")
def training_was_quick(base_model: Path, max_training_seconds: float) -> tuple[bool, Metadata]:
    """Training took at most the time its preset allows."""
    seconds = list(read_jsonl(base_model / METRICS_FILE))[-1]["seconds"]
    return seconds <= max_training_seconds, {"training_seconds": seconds, "allowed_seconds": max_training_seconds}
