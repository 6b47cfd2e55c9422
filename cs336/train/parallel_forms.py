"""The forms of several processes: `forms.py` says what each is."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from cs336.files import UserError
from cs336.model.transformer import TransformerLM
from cs336.parallel import fsdp_state
from cs336.parallel.collectives import start_all_gather, start_all_reduce
from cs336.parallel.ddp import DDPBucketed
from cs336.parallel.fsdp import FSDP
from cs336.parallel.fsdp2 import FullyShard
from cs336.parallel.optimizer_shard import ShardedOptimizer
from cs336.train.checkpoint import copy_on_cpu
from cs336.train.forms import Form, compiled, optimizer_parts
from cs336.train.loss import Loss, linear_cross_entropy, linear_token_losses

if TYPE_CHECKING:
    from cs336.parallel.process_group import Rank
    from cs336.train.loop import TrainConfig

# PyTorch's default, too. By the handout's model, DDP adds bucket / w + (s / bucket) o seconds to a step that sends s
# bytes at w bytes/s, o seconds a call. With w = 100 GB/s and o = 30 us assumed, the best bucket is 17 MB for `course`
# (s = 91 MB) and 158 MB for `2b` (8.3 GB), where 25 MB lose 7 ms of a step of seconds; and they take no memory.
BUCKET_MB = 25.0


class _Several(Form):
    """What the forms of several processes have in common."""

    _compiles = False

    def __init__(self, model: TransformerLM, config: TrainConfig, place: Rank, *, compile_model: bool) -> None:
        self._store, self._numbers = place.store, itertools.count()
        super().__init__(model, config, compile_model=compile_model, rank=place.rank, num_ranks=place.world_size)

    def eager(self) -> AbstractContextManager[Any]:
        return torch.compiler.set_stance("force_eager") if self._compiles else contextlib.nullcontext()

    def activation_norms(self, inputs: Tensor) -> dict[str, float]:
        norms = super().activation_norms(inputs)
        here = self.config.batch_size // self.num_ranks
        watched = self.config.micro_batch_size or self.config.batch_size  # the sequences that one process would watch
        share = min(max(watched - self.rank * here, 0), here) * self.num_ranks / watched
        squares = self.mean(torch.tensor(list(norms.values()), device=self.device).square() * share)
        return dict(zip(norms, squares.sqrt().tolist(), strict=True))

    def load_state(self, state: dict[str, Any]) -> None:
        super().load_state(state)
        self._own_states()

    def mean(self, value: Tensor) -> Tensor:
        value = value.clone()
        start_all_reduce(value).wait()
        return value / self.num_ranks

    def gathered(self, values: Tensor) -> Tensor:
        full = values.new_empty(self.num_ranks * len(values))
        start_all_gather(full, values.contiguous()).wait()
        return full

    def agreed(self, value: float) -> float:
        # Not by a collective: a GPU would have to finish all that it was given before the answer is read.
        key = f"agreed {next(self._numbers)}"
        if self.rank == 0:
            self._store.set(key, repr(value))
            return value
        return float(self._store.get(key))

    def _own_states(self) -> None:
        """What was loaded may still be a mapped file."""
        for values in self.optimizer.state.values():
            values.update({name: value.clone() for name, value in values.items() if isinstance(value, Tensor)})

    def _compile_blocks(self, compile_model: bool) -> None:
        """Block by block: one graph for all would end its backward pass with every gradient at once."""
        self._compiles = compile_model
        for layer in self.model.layers if compile_model else ():
            layer.forward = compiled(layer.forward, self.device)


class DataParallel(_Several):
    """Every rank holds the whole model."""

    def sending(self, last: bool) -> AbstractContextManager[None]:
        return contextlib.nullcontext() if last else self._ddp.no_sync()

    def finish_gradients(self) -> None:
        self._ddp.finish_gradient_synchronization()

    def state(self) -> dict[str, Any] | None:
        return super().state() if self.rank == 0 else None

    def _share(self, compile_model: bool) -> None:
        self._ddp = DDPBucketed(self.model, BUCKET_MB)
        self._compile_blocks(compile_model)

    def _loss_function(self, compile_model: bool) -> Callable[[Tensor, Tensor], Loss]:
        cross_entropy = partial(linear_cross_entropy, z_loss=self.config.z_loss)
        head = compiled(cross_entropy, self.device) if compile_model else cross_entropy

        def loss_of(inputs: Tensor, targets: Tensor) -> Loss:
            with self.autocast():
                return head(self.model.hidden_states(inputs), self.model.lm_head.weight, targets)

        return loss_of


class ShardedStates(DataParallel):
    """Every rank holds weights and gradients, and its part of the optimizer's state."""

    optimizer: ShardedOptimizer

    def state(self) -> dict[str, Any] | None:
        optimizer = self.optimizer.full_state_dict()
        if optimizer is None:
            return None
        return {"model": copy_on_cpu(dict(self.model.state_dict())), "optimizer": optimizer}

    def _make_optimizer(self) -> torch.optim.Optimizer:
        kind, groups, settings = optimizer_parts(self.model.named_parameters(), self.config)
        return ShardedOptimizer(groups, kind, **settings)


class _Sharded(_Several):
    """Weights, gradients and states are cut over the ranks."""

    sharded: FSDP | FullyShard

    def finish_gradients(self) -> None:
        self.sharded.finish_gradient_synchronization()

    def clip_gradients(self, max_norm: float) -> Tensor:
        return fsdp_state.clip_gradients(self.sharded, max_norm)

    def weight_norms(self) -> dict[str, float]:
        return self._norms({name: (shard, shard) for name, shard in self._distinct().items()})

    def gradient_norms(self) -> dict[str, float]:
        shards = self._distinct().items()
        return self._norms({name: (shard, shard.grad) for name, shard in shards if shard.grad is not None})

    def state(self) -> dict[str, Any] | None:
        model = fsdp_state.full_params_on_first_rank(self.sharded)
        optimizer = fsdp_state.full_optimizer_state(self.sharded, self.optimizer)
        return None if model is None else {"model": model, "optimizer": optimizer}

    def load_state(self, state: dict[str, Any]) -> None:
        fsdp_state.load_full_params(self.sharded, state["model"])
        fsdp_state.load_full_optimizer_state(self.sharded, self.optimizer, state["optimizer"])
        self._own_states()

    def whole_model(self) -> TransformerLM | None:
        """In main memory, on rank 0."""
        weights = fsdp_state.full_params_on_first_rank(self.sharded)
        if weights is None:
            return None
        model = TransformerLM.without_weights(self.model.config)
        model.load_state_dict(weights)
        return model.eval()

    def autocast(self) -> AbstractContextManager[Any]:
        return contextlib.nullcontext()  # `compute_dtype` casts; autocast would keep a copy of every whole weight

    @property
    def _compute_dtype(self) -> torch.dtype | None:
        if self.config.precision == "float32":
            return None
        if self.config.valid_in_float32:
            raise UserError("valid_in_float32 needs whole weights in fp32, which this form cuts; take --parallel zero1")
        return torch.bfloat16

    def _distinct(self) -> dict[str, nn.Parameter]:
        """The shards, tied ones under their first name."""
        names: dict[nn.Parameter, str] = {}
        for name, shard in self.sharded.named_shards():
            names.setdefault(shard, name)
        return {name: shard for shard, name in names.items()}

    def _norms(self, tensors: dict[str, tuple[nn.Parameter, Tensor]]) -> dict[str, float]:
        return dict(zip(tensors, fsdp_state.full_norms(self.sharded, dict(tensors.values())).tolist(), strict=True))

    def _make_optimizer(self) -> torch.optim.Optimizer:
        if self.config.optimizer == "muon":
            raise UserError('optimizer "muon" needs whole matrices, which this form cuts; take --parallel zero1')
        kind, groups, settings = optimizer_parts(self._distinct().items(), self.config)
        return kind(groups, **settings)


class LayerSharded(_Sharded):
    """Our FSDP."""

    sharded: FSDP

    def token_losses(self, inputs: Tensor, targets: Tensor) -> Tensor:
        return self._with_head(linear_token_losses, inputs, targets)

    def activation_norms(self, inputs: Tensor) -> dict[str, float]:
        with self.sharded.forward_pass():
            return super().activation_norms(inputs)

    def _share(self, compile_model: bool) -> None:
        if compile_model:
            raise UserError(
                "--parallel fsdp does not compile: its weights come and go inside the blocks; take fsdp2,"
                " or leave compile out"
            )
        self.sharded = FSDP(self.model, self._compute_dtype)

    def _loss_function(self, compile_model: bool) -> Callable[[Tensor, Tensor], Loss]:
        return partial(self._with_head, partial(linear_cross_entropy, z_loss=self.config.z_loss))

    def _with_head(self, function: Callable[..., Any], inputs: Tensor, targets: Tensor) -> Any:
        head = self.model.lm_head
        with self.sharded.forward_pass():
            hidden = self.model.hidden_states(inputs)
            return self.sharded.with_whole_weight(head, lambda hidden: function(hidden, head.weight, targets), hidden)


class BlockSharded(_Sharded):
    """PyTorch's `fully_shard`."""

    sharded: FullyShard

    def zero_grad(self) -> None:
        self.sharded.zero_grad()

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        with super().evaluating():
            yield
        self.sharded.free()

    def activation_norms(self, inputs: Tensor) -> dict[str, float]:
        norms = super().activation_norms(inputs)
        self.sharded.free()
        return norms

    def _share(self, compile_model: bool) -> None:
        self._compile_blocks(compile_model)
        self.sharded = FullyShard(
            self.model, self.model.layers, forward_methods=["hidden_states"], compute_dtype=self._compute_dtype
        )

    def _loss_function(self, compile_model: bool) -> Callable[[Tensor, Tensor], Loss]:
        cross_entropy = partial(linear_cross_entropy, z_loss=self.config.z_loss)
        head = compiled(cross_entropy, self.device) if compile_model else cross_entropy

        def loss_of(inputs: Tensor, targets: Tensor) -> Loss:
            hidden = self.model.hidden_states(inputs)  # leaves the head's weight whole
            return head(hidden, self.model.lm_head.weight, targets)

        return loss_of


FORMS: dict[str, type[_Several]] = {
    "ddp": DataParallel,
    "zero1": ShardedStates,
    "fsdp": LayerSharded,
    "fsdp2": BlockSharded,
}


def make_form(name: str, model: TransformerLM, config: TrainConfig, place: Rank | None, *, compile_model: bool) -> Form:
    """The form of that name for a job of several processes; one process is always alone.

    Raises:
        UserError: there is no such form, or the run's settings do not go with it.
    """
    if name not in FORMS:
        raise UserError(f"--parallel is one of {', '.join(FORMS)}, got {name!r}")
    if place is None or place.world_size == 1:
        return Form(model, config, compile_model=compile_model)
    return FORMS[name](model, config, place, compile_model=compile_model)
