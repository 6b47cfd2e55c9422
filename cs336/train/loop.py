"""The training loop: a pure function of its run description, resumable at any step."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from cs336.files import UserError, write_jsonl
from cs336.hardware import peak_bytes, pick_device
from cs336.model.transformer import ModelConfig, TransformerLM, save_model
from cs336.progress import Progress, silent
from cs336.tokens.batches import Batches
from cs336.train.checkpoint import load_checkpoint, save_checkpoint
from cs336.train.loss import cross_entropy
from cs336.train.optimizer import AdamW, clip_gradients
from cs336.train.schedule import lr_cosine

METRICS_FILE = "metrics.jsonl"
CHECKPOINT_FILE = "checkpoint.pt"
Report = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class TrainConfig:
    """How a model is trained; tokens seen = batch_size * context_length * num_steps.

    Attributes:
        batch_size: sequences a step.
        learning_rate: the highest, reached after the warm-up.
        min_learning_rate: at the last step.
        warmup_steps: linear warm-up from 0.
        betas, eps, weight_decay: of AdamW; decay acts on matrices only.
        max_grad_norm: global l2 norm above which gradients are scaled down.
        precision: "float32", or "bfloat16" for matrix products under autocast.
        valid_interval: steps between two validation losses.
        valid_batches: batches in each of those.
        checkpoint_interval: steps between two checkpoints.
    """

    batch_size: int
    num_steps: int
    learning_rate: float
    min_learning_rate: float
    warmup_steps: int
    betas: tuple[float, float] = (0.9, 0.95)  # usual for language models: spec 1, section 3
    eps: float = 1e-8
    weight_decay: float = 0.1
    max_grad_norm: float = 1.0
    precision: str = "float32"
    valid_interval: int = 100
    valid_batches: int = 8
    checkpoint_interval: int = 200

    def __post_init__(self) -> None:
        if self.precision not in ("float32", "bfloat16"):
            raise ValueError(f'precision is "float32" or "bfloat16", got {self.precision!r}')
        if self.num_steps < 1 or self.batch_size < 1:
            raise ValueError(f"need at least one step and one sequence, got {self.num_steps} and {self.batch_size}")


def train(
    model_config: ModelConfig,
    config: TrainConfig,
    *,
    train_tokens: Any,
    valid_tokens: Any,
    seed: int,
    folder: Path,
    device: str = "auto",
    compile_model: bool = False,
    report: Report = lambda row: None,
    progress: Progress = silent,
) -> TransformerLM:
    """Train a model; `folder` gets `metrics.jsonl`, `checkpoint.pt`, `config.json`, `model.safetensors`.

    The batch of a step is a function of seed and step alone, so a run that was stopped and goes on
    from its checkpoint ends with the weights of one that was not.

    Args:
        train_tokens, valid_tokens: one-dimensional arrays of token ids.
        folder: may hold the checkpoint of an interrupted run with the same settings.
        device: "auto" takes a GPU where there is one.
        report: called with every row of metrics.

    Raises:
        UserError: too few tokens, or the loss is not finite.
    """
    torch_device = pick_device(device)
    if torch_device.type == "cpu":
        # Else several threads add up the embedding's gradient in any order, and equal runs drift apart.
        torch.use_deterministic_algorithms(True)
    torch.manual_seed(seed)
    model = TransformerLM(model_config).to(torch_device)
    optimizer = AdamW(_decay_groups(model, config.weight_decay), config.learning_rate, config.betas, config.eps)
    forward = torch.compile(model) if compile_model else model
    batches, valid_batches = (
        Batches(
            tokens,
            batch_size=config.batch_size,
            context_length=model_config.context_length,
            seed=s,
            device=torch_device,
        )
        for tokens, s in ((train_tokens, seed), (valid_tokens, seed + 1))
    )
    start, seconds_before = _resume(model, optimizer, folder)
    metrics = folder / METRICS_FILE
    clock = _Clock(done=start, seconds_before=seconds_before)
    with metrics.open("a", encoding="utf-8") as log:
        for step in progress(range(start, config.num_steps), unit="steps", label="train"):
            learning_rate = lr_cosine(
                step + 1, config.learning_rate, config.min_learning_rate, config.warmup_steps, config.num_steps
            )
            for group in optimizer.param_groups:
                group["lr"] = learning_rate
            inputs, targets = batches.at(step)
            with _autocast(torch_device, config.precision):
                loss = cross_entropy(forward(inputs).float(), targets)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            grad_norm = clip_gradients(model.parameters(), config.max_grad_norm)
            optimizer.step()

            done = step + 1
            row: dict[str, Any] = {
                "step": done,
                "num_tokens": done * config.batch_size * model_config.context_length,
                "train_loss": loss.item(),
                "learning_rate": learning_rate,
                "grad_norm": grad_norm.item(),
            }
            if not math.isfinite(row["train_loss"]):
                raise UserError(f"{metrics}: the loss became {row['train_loss']} at step {done}; lower learning_rate")
            if done % config.valid_interval == 0 or done == config.num_steps:
                row["valid_loss"] = _valid_loss(forward, valid_batches, config)
            row |= clock.lap(done, config.batch_size * model_config.context_length)
            log.write(json.dumps(row) + "\n")
            report(row)
            if done % config.checkpoint_interval == 0 or done == config.num_steps:
                log.flush()
                save_checkpoint(model, optimizer, done, folder / CHECKPOINT_FILE, train=asdict(config), seed=seed)
    save_model(model, folder)
    return model.eval()


def _decay_groups(model: TransformerLM, weight_decay: float) -> list[dict[str, Any]]:
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]  # decay would only shrink the norms' gains
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]


def _resume(model: TransformerLM, optimizer: AdamW, folder: Path) -> tuple[int, float]:
    """Steps already done and the seconds they took; metrics past the checkpoint will be made again."""
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint, metrics = folder / CHECKPOINT_FILE, folder / METRICS_FILE
    done = load_checkpoint(checkpoint, model, optimizer) if checkpoint.exists() else 0
    rows = [row for row in _whole_rows(metrics) if row["step"] <= done]
    write_jsonl(metrics, rows)
    return done, rows[-1]["seconds"] if rows else 0.0


def _whole_rows(metrics: Path) -> Iterator[dict[str, Any]]:
    if metrics.exists():
        for line in metrics.read_text(encoding="utf-8").splitlines(keepends=True):
            if line.endswith("\n"):  # a killed run may leave half a line
                yield json.loads(line)


@torch.inference_mode()
def _valid_loss(forward: Any, batches: Batches, config: TrainConfig) -> float:
    """Mean loss over the same batches at each call, in full precision."""
    losses = []
    for number in range(config.valid_batches):
        inputs, targets = batches.at(number)
        losses.append(cross_entropy(forward(inputs).float(), targets).item())
    return sum(losses) / len(losses)


def _autocast(device: torch.device, precision: str) -> Any:
    return torch.autocast(device.type, torch.bfloat16) if precision == "bfloat16" else nullcontext()


class _Clock:
    """Wall-clock columns of the metrics: they vary from run to run and decide nothing."""

    def __init__(self, done: int, seconds_before: float):
        self.start = time.monotonic()
        self.first = done
        self.seconds_before = seconds_before

    def lap(self, done: int, tokens_per_step: int) -> dict[str, float]:
        seconds = time.monotonic() - self.start
        return {
            "seconds": round(self.seconds_before + seconds, 3),
            "tokens_per_second": round((done - self.first) * tokens_per_step / max(seconds, 1e-9)),
            "peak_bytes": peak_bytes(),
        }
