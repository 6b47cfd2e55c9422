"""How the processes of a run share its training: one alone, or one of the parallel forms behind one interface.

    one    a single process
    ddp    each rank holds all; gradients are averaged in buckets while the backward pass goes on
    zero1  the same, with the optimizer's state split over the ranks
    fsdp   weights, gradients and states split over the ranks, gathered a block at a time
    fsdp2  the same by PyTorch's `fully_shard`

A form is a property of the run on its machine: checkpoints are those that one process would write, so a run may go
on in any form on any number of processes. Every method is called by all ranks at the same point.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from cs336.files import UserError
from cs336.model.transformer import TransformerLM
from cs336.train.checkpoint import copy_on_cpu
from cs336.train.diagnostics import activation_norms, gradient_norms, weight_norms
from cs336.train.loss import Loss, linear_cross_entropy, linear_token_losses
from cs336.train.optimizer import AdamW, Muon, clip_gradients

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    from cs336.train.loop import TrainConfig


class Form:
    """One process; the base of the others.

    Args:
        model: new, on its device; shared over the ranks in place.
        config: of the run.
        compile_model: compile what a training step computes.

    Attributes:
        model: what this rank holds of it, with its own names.
        optimizer: over what this rank holds.
        rank, num_ranks: this process's, and how many there are.
        sequences_at_once: that this process's forward passes take.
        loss_of: (inputs, targets) -> `Loss` of a micro-batch.

    Raises:
        UserError: settings that the form cannot have.
    """

    def __init__(
        self,
        model: TransformerLM,
        config: TrainConfig,
        *,
        compile_model: bool = False,
        rank: int = 0,
        num_ranks: int = 1,
    ) -> None:
        self.model, self.config = model, config
        self.device = model.lm_head.weight.device
        self.rank, self.num_ranks = rank, num_ranks
        self.sequences_at_once = sequences_at_once(config, num_ranks)
        self._share(compile_model)
        self.optimizer = self._make_optimizer()
        self.loss_of: Callable[[Tensor, Tensor], Loss] = self._loss_function(compile_model)

    def sending(self, last: bool) -> AbstractContextManager[None]:
        """Around the backward pass of a micro-batch; `last` for the step's last one."""
        return contextlib.nullcontext()

    def zero_grad(self) -> None:
        """Forget all gradients."""
        self.optimizer.zero_grad(set_to_none=True)

    def finish_gradients(self) -> None:
        """Leave the mean gradient over the ranks; between the last backward pass and the optimizer's step."""

    def clip_gradients(self, max_norm: float) -> Float[Tensor, ""]:
        """Scale gradients so that the whole model's norm is at most `max_norm`; returns the norm before."""
        return clip_gradients(self.model.parameters(), max_norm)

    def token_losses(
        self, inputs: Int[Tensor, "batch seq"], targets: Int[Tensor, "batch seq"]
    ) -> Float[Tensor, "batch seq"]:
        """Nats of each target, in the run's precision or, if it asks for that, in fp32; inside `evaluating`."""
        with contextlib.nullcontext() if self.config.valid_in_float32 else self.autocast():
            return linear_token_losses(self.model.hidden_states(inputs), self.model.lm_head.weight, targets)

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """The model in evaluation mode, without gradients."""
        was_training = self.model.training
        self.model.eval()
        with torch.no_grad(), self.eager():
            yield
        self.model.train(was_training)

    def eager(self) -> AbstractContextManager[Any]:
        """Around calls of the model other than `loss_of`, which alone is compiled."""
        return contextlib.nullcontext()

    def weight_norms(self) -> dict[str, float]:
        """l2 norm of each whole parameter, by its name."""
        return weight_norms(self.model)

    def gradient_norms(self) -> dict[str, float]:
        """The same of the gradients, after `finish_gradients`."""
        return gradient_norms(self.model)

    def activation_norms(self, inputs: Int[Tensor, "batch seq"]) -> dict[str, float]:
        """See `diagnostics.activation_norms`; over the micro-batch that one process would begin with."""
        with self.eager(), self.autocast():
            return activation_norms(self.model, inputs[: self.sequences_at_once])

    def state(self) -> dict[str, Any] | None:
        """Whole states of model and optimizer, a copy in main memory on rank 0; None on the others."""
        return copy_on_cpu({"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()})

    def load_state(self, state: dict[str, Any]) -> None:
        """Take what any form's `state` gave, the same on all ranks."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])

    def whole_model(self) -> TransformerLM | None:
        """The model with all its weights, for rank 0 alone to use; others may get None."""
        return self.model

    def mean(self, value: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """The mean over the ranks."""
        return value

    def gathered(self, values: Tensor) -> Tensor:
        """The values of all ranks, which have equally many."""
        return values

    def agreed(self, value: float) -> float:
        """Rank 0's value, for what must be decided alike everywhere, such as by the clock."""
        return value

    def autocast(self) -> AbstractContextManager[Any]:
        """The run's precision."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16")

    def _share(self, compile_model: bool) -> None:
        """Cut or wrap the model."""

    def _make_optimizer(self) -> torch.optim.Optimizer:
        return make_optimizer(self.model, self.config)

    def _loss_function(self, compile_model: bool) -> Callable[[Tensor, Tensor], Loss]:
        """Model and loss as one function of a batch, compiled as a whole."""

        def loss_of(inputs: Tensor, targets: Tensor) -> Loss:
            with self.autocast():
                return linear_cross_entropy(
                    self.model.hidden_states(inputs), self.model.lm_head.weight, targets, z_loss=self.config.z_loss
                )

        return compiled(loss_of, self.device) if compile_model else loss_of


def sequences_at_once(config: TrainConfig, num_ranks: int) -> int:
    """Sequences of a micro-batch on each of so many processes.

    Raises:
        UserError: a batch that does not divide by the processes, or its slices by the micro-batch.
    """
    if config.batch_size % num_ranks:
        raise UserError(
            f"batch_size {config.batch_size} does not divide by {num_ranks} processes;"
            " start another number of processes, or change batch_size"
        )
    here = config.batch_size // num_ranks
    size = min(config.micro_batch_size or here, here)
    if here % size:
        raise UserError(
            f"micro_batch_size {config.micro_batch_size} does not divide the {here} sequences that each of"
            f" {num_ranks} processes takes; start another number of processes, or change micro_batch_size"
        )
    return size


def make_optimizer(model: TransformerLM, config: TrainConfig) -> torch.optim.Optimizer:
    """The run's optimizer; each group's `rate_ratio` times the schedule is its learning rate."""
    kind, groups, settings = optimizer_parts(model.named_parameters(), config)
    return kind(groups, **settings)


def optimizer_parts(
    named_parameters: Iterable[tuple[str, nn.Parameter]], config: TrainConfig
) -> tuple[type[AdamW], list[dict[str, Any]], dict[str, Any]]:
    """Class, groups and settings of the run's optimizer."""
    named = list(named_parameters)
    hidden = [p for name, p in named if config.optimizer == "muon" and p.ndim == 2 and name.startswith("layers.")]
    taken = {id(parameter) for parameter in hidden}
    matrices = [p for _, p in named if p.ndim >= 2 and id(p) not in taken]
    vectors = [p for _, p in named if p.ndim < 2]  # decay would only shrink the norms' gains
    groups: list[dict[str, Any]] = [
        {"params": matrices, "weight_decay": config.weight_decay, "rate_ratio": 1.0},
        {"params": vectors, "weight_decay": config.weight_decay if config.decay_all else 0.0, "rate_ratio": 1.0},
    ]
    settings: dict[str, Any] = {
        "lr": config.learning_rate,
        "betas": config.betas,
        "eps": config.eps,
        "weight_decay": config.weight_decay,
    }
    if config.optimizer == "adamw":
        return AdamW, groups, settings
    groups.append({"params": hidden, "rate_ratio": config.muon_rate_ratio, "orthogonalize": True})
    return Muon, groups, settings | {"momentum": config.muon_momentum}


def compiled(function: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
    """`torch.compile` for one shape of arguments."""
    # On Apple's GPUs the code that the default backend writes is not to be trusted; this one writes none.
    return torch.compile(function, dynamic=False, backend="aot_eager" if device.type == "mps" else "inductor")
