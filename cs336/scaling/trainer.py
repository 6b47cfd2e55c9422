"""Trains models of one shape, one after the other, with nothing on the host between two steps.

A step of even the smallest cell works on 65,536 tokens and fills a GPU; what would leave it idle is the host. So a
step (windows, forward, backward, clipping, AdamW) is recorded once for each shape as a CUDA graph and replayed; a new
run of the shape only draws new weights into the same tensors. Nothing is compiled: a compiler would take longer than
most runs. On a CPU the same function is called as it is.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cs336.hardware import recording_stream
from cs336.model.transformer import TransformerLM
from cs336.scaling.cell import Cell
from cs336.scaling.recipe import MAX_VALID_TOKENS, learning_rates, model_config, tail_steps, train_config
from cs336.scaling.windows import Text, WindowOrder, on_device, read_windows
from cs336.tokens.batches import every_token_once
from cs336.train.loop import compute_deterministically
from cs336.train.loss import linear_cross_entropy, linear_token_losses
from cs336.train.optimizer import clip_gradients

STEPS_AT_ONCE = 64  # between two looks at the losses: the GPU waits for the host no more often
_WARM_UP_STEPS = 2  # before a step is recorded: kernels are loaded, cuBLAS takes its workspace
# Activations that one micro-batch may leave for its backward pass, so that several processes share a GPU.
_MAX_ACTIVATION_BYTES = 6 << 30
# Bytes a token and layer leaves, in units of d_model: by the tensors of the block, 16-bit products, 32-bit sums.
_ACTIVATION_BYTES = 64


class OutOfTime(Exception):
    """A run was stopped at its deadline; its state is saved."""


@dataclass
class Outcome:
    """What came of a run.

    Attributes:
        losses: training loss of each step, nats per token, dropout on; of a run without steps, that before the first.
        valid_loss: NaN for a run that diverged.
        seconds: that its steps took.
        diverged: empty, or what became what at which step.
    """

    losses: list[float] = field(default_factory=list)
    valid_loss: float = math.nan
    seconds: float = 0.0
    diverged: str = ""

    def final_loss(self, cell: Cell) -> float:
        """The mean over the tail, or the loss at initialisation."""
        if self.diverged:
            return math.nan
        return math.fsum(self.losses[-max(1, tail_steps(cell)) :]) / max(1, tail_steps(cell))


class Trainer:
    """A model of one shape and batch size, and one step of its training.

    Args:
        cell: any of the cells to be trained; all have its shape, batch size and precision.
        text: what they are trained on.
        record: replay the step as a CUDA graph; GPUs only.
    """

    def __init__(self, cell: Cell, text: Text, device: torch.device, *, record: bool = True) -> None:
        compute_deterministically(device)
        self.device, self._text, self._cell = device, text, cell
        self._tokens = on_device(text.train, device)
        self._config = train_config(cell)
        self.model = self._new_model(cell.seed)
        self._parameters: list[Tensor] = list(self.model.parameters())
        self._m = [torch.zeros_like(parameter) for parameter in self._parameters]
        self._v = [torch.zeros_like(parameter) for parameter in self._parameters]
        self.sequences_at_once = sequences_at_once(cell)
        # What a step reads and writes: where its windows begin; step size and what decay leaves; its loss.
        self._starts = torch.zeros(cell.batch_size, dtype=torch.int64, device=device)
        self._scales = torch.zeros(2, device=device)
        self._loss = torch.zeros((), device=device)
        self._run_step: Callable[[], None] = self._step
        if record and device.type == "cuda":
            self._run_step = self._recorded()

    def run(
        self, cell: Cell, *, checkpoint: Path | None = None, save_seconds: float = 600.0, deadline: float = math.inf
    ) -> Outcome:
        """Train a cell from new weights, or from where `checkpoint` left it.

        Args:
            checkpoint: file for the state of a run that takes long; gone when the run is over.
            save_seconds: between two of its states.
            deadline: as `time.time()` has it; a run that has not ended then is stopped, its state saved.

        Raises:
            OutOfTime: it was stopped.
            ValueError: another shape than the trainer's.
        """
        if (model_config(cell), cell.batch_size, cell.precision) != (
            model_config(self._cell),
            self._cell.batch_size,
            self._cell.precision,
        ):
            raise ValueError(f"{cell.name} has another shape than {self._cell.name}; take a trainer of its own")
        self._begin(cell.seed)
        outcome = Outcome()
        if checkpoint is not None and checkpoint.exists():
            self._load(checkpoint, outcome)
        order = WindowOrder(len(self._text.train), cell.context_length, cell.seed)
        if not cell.steps:
            outcome.losses.append(self._loss_of(order.starts(0, 1, cell.batch_size)[0]))
        saved = time.perf_counter()
        while len(outcome.losses) < cell.steps and not outcome.diverged:
            before = time.perf_counter()
            self._advance(cell, order, outcome)
            now = time.perf_counter()
            outcome.seconds += now - before
            late = time.time() > deadline and len(outcome.losses) < cell.steps
            if checkpoint is not None and (late or now - saved > save_seconds):
                self._save(checkpoint, outcome)
                saved = now
            if late:
                raise OutOfTime
        if not outcome.diverged:
            outcome.valid_loss = self._valid_loss()
        if checkpoint is not None:
            checkpoint.unlink(missing_ok=True)
        return outcome

    def _advance(self, cell: Cell, order: WindowOrder, outcome: Outcome) -> None:
        """Some steps, and a look at their losses."""
        done = len(outcome.losses)
        count = min(STEPS_AT_ONCE, cell.steps - done)
        starts = order.starts(done, count, cell.batch_size).to(self.device)
        rates = learning_rates(cell)[done : done + count]
        scales = torch.tensor([self._scales_of(rate, done + number) for number, rate in enumerate(rates, 1)])
        scales, losses = scales.to(self.device), torch.zeros(count, device=self.device)
        for number in range(count):
            self._starts.copy_(starts[number])
            self._scales.copy_(scales[number])
            self._run_step()
            losses[number].copy_(self._loss)
        for number, loss in enumerate(losses.tolist(), 1):
            outcome.losses.append(loss)
            if not math.isfinite(loss):
                outcome.diverged = f"the loss became {loss} at step {done + number}"
                return

    def _scales_of(self, rate: float, t: int) -> tuple[float, float]:
        """Adam's step size with its bias corrections at step t, from 1, and what decay leaves of a weight."""
        beta1, beta2 = self._config.betas
        return rate * math.sqrt(1 - beta2**t) / (1 - beta1**t), 1 - rate * self._config.weight_decay

    def _step(self) -> None:
        """One step, all on the device."""
        inputs, targets = read_windows(self._tokens, self._starts, self._cell.context_length)
        for parameter in self._parameters:
            parameter.grad = None
        size = self.sequences_at_once
        parts = []
        for some_inputs, some_targets in zip(inputs.split(size), targets.split(size), strict=True):
            loss = self._loss_on(some_inputs, some_targets)
            (loss * (size / len(inputs))).backward()
            parts.append(loss.detach())
        self._loss.copy_(torch.stack(parts).mean())
        clip_gradients(self.model.parameters(), self._config.max_grad_norm)
        self._update([parameter.grad for parameter in self._parameters if parameter.grad is not None])

    @torch.no_grad()
    def _update(self, gradients: list[Tensor]) -> None:
        """`train.optimizer.AdamW`'s arithmetic with what changes from step to step on the device."""
        (beta1, beta2), eps = self._config.betas, self._config.eps
        step_size, kept = self._scales.unbind()
        torch._foreach_lerp_(self._m, gradients, 1 - beta1)
        torch._foreach_mul_(self._v, beta2)
        torch._foreach_addcmul_(self._v, gradients, gradients, 1 - beta2)
        divisors = torch._foreach_sqrt(self._v)
        torch._foreach_add_(divisors, eps)
        updates = torch._foreach_div(self._m, divisors)
        torch._foreach_mul_(updates, step_size)
        torch._foreach_sub_(self._parameters, list(updates))
        torch._foreach_mul_(self._parameters, kept)

    def _loss_on(self, inputs: Tensor, targets: Tensor) -> Tensor:
        with self._autocast():
            hidden = self.model.hidden_states(inputs)
            return linear_cross_entropy(hidden, self.model.lm_head.weight, targets, in_place=hidden.is_cuda).total

    @torch.no_grad()
    def _loss_of(self, starts: Tensor) -> float:
        """Training loss of one batch, without a step."""
        inputs, targets = read_windows(self._tokens, starts.to(self.device), self._cell.context_length)
        size = self.sequences_at_once
        parts = [self._loss_on(*some) for some in zip(inputs.split(size), targets.split(size), strict=True)]
        return torch.stack(parts).mean().item()

    @torch.no_grad()
    def _valid_loss(self) -> float:
        """Mean loss on the held-out text, each token once; no dropout."""
        self.model.eval()
        nats, count = torch.zeros((), dtype=torch.float64), 0
        batches = every_token_once(
            self._text.valid[: MAX_VALID_TOKENS + 1],
            batch_size=min(32, self.sequences_at_once),
            context_length=self._cell.context_length,
            device=self.device,
        )
        for batch in batches:
            with self._autocast():
                hidden = self.model.hidden_states(batch.inputs)
                losses = linear_token_losses(hidden, self.model.lm_head.weight, batch.targets)
            nats += torch.where(batch.counted, losses, 0.0).sum().double().cpu()
            count += int(batch.counted.sum())
        self.model.train()
        return nats.item() / count

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self._config.precision == "bfloat16")

    def _new_model(self, seed: int) -> TransformerLM:
        torch.manual_seed(seed)
        model = TransformerLM(model_config(self._cell), device=self.device).train()
        return model.use_attention_kernel("fused").fuse(dropout=True)

    @torch.no_grad()
    def _begin(self, seed: int) -> None:
        """New weights in the same tensors, and nothing remembered; dropout's draws go on from the weights'."""
        torch._foreach_copy_(self._parameters, list(self._new_model(seed).parameters()))
        torch._foreach_zero_(self._m)
        torch._foreach_zero_(self._v)

    def _recorded(self) -> Callable[[], None]:
        """The step as a CUDA graph; where PyTorch cannot record it, the step as it is, and a line that says so."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(_WARM_UP_STEPS):
                self._step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        for parameter in self._parameters:
            parameter.grad = None  # gradients are to lie in the graph's own memory
        try:
            with torch.cuda.graph(graph, stream=recording_stream(self._parameters[0].device)):
                self._step()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            print(f"{self._cell.name}: not recorded, so slower ({error})", file=sys.stderr, flush=True)
            return self._step
        return graph.replay

    def _save(self, checkpoint: Path, outcome: Outcome) -> None:
        state = {
            "tensors": [self._parameters, self._m, self._v],
            "losses": outcome.losses,
            "seconds": outcome.seconds,
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
        }
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        partial = checkpoint.with_name(f".{checkpoint.name}.partial")
        with partial.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, checkpoint)

    @torch.no_grad()
    def _load(self, checkpoint: Path, outcome: Outcome) -> None:
        state = torch.load(checkpoint, map_location=self.device, weights_only=True)
        for mine, saved in zip((self._parameters, self._m, self._v), state["tensors"], strict=True):
            torch._foreach_copy_(mine, saved)
        outcome.losses, outcome.seconds = state["losses"], state["seconds"]
        torch.set_rng_state(state["rng"].cpu())
        if state["cuda_rng"] is not None:
            torch.cuda.set_rng_state(state["cuda_rng"].cpu(), self.device)


def sequences_at_once(cell: Cell) -> int:
    """Sequences of a micro-batch: the most that divide the batch and leave room for other runs."""
    bytes_each = cell.context_length * cell.num_layers * cell.d_model * _ACTIVATION_BYTES
    fitting = max(1, _MAX_ACTIVATION_BYTES // bytes_each)
    return max(size for size in range(1, cell.batch_size + 1) if cell.batch_size % size == 0 and size <= fitting)
