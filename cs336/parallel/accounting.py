"""Bytes that each parallel form moves and holds per rank, in closed form.

Payloads count the whole tensor that a collective works on: the sum of an all-reduce, the gathered whole of an
all-gather, the unreduced whole of a reduce-scatter. What a rank puts on the wire follows from the ring
algorithm, see `Traffic.sent_bytes`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, prod

from torch import nn

from cs336.parallel.fsdp_units import unit_plans
from cs336.parallel.optimizer_shard import assign_owners

FORMS = ("ddp", "zero1", "fsdp")
_FP32_BYTES = 4
_ADAMW_STATES = 2  # first and second moments


@dataclass(frozen=True)
class Weight:
    """One distinct parameter, as far as communication is concerned.

    Attributes:
        shape: of the whole.
        gathered_for: kinds of the modules for which FSDP gathers it, "block", "Linear" or "Embedding" each; empty if
            it stays whole.
        unit: number of the unit with which it travels.
        trainable: has a gradient.
    """

    shape: tuple[int, ...]
    gathered_for: tuple[str, ...] = ()
    unit: int = -1
    trainable: bool = True

    @property
    def num_elements(self) -> int:
        """Of the whole."""
        return prod(self.shape)

    def padded_elements(self, world_size: int) -> int:
        """Of the whole as FSDP sends it, its rows filled up to a multiple of the ranks."""
        if not self.gathered_for:
            return self.num_elements
        return ceil(self.shape[0] / world_size) * world_size * prod(self.shape[1:])


@dataclass(frozen=True)
class Traffic:
    """Payload bytes of one step, by collective."""

    all_reduce: int = 0
    broadcast: int = 0
    all_gather: int = 0
    reduce_scatter: int = 0

    def sent_bytes(self, world_size: int) -> float:
        """What one rank sends, by ring algorithms, on average over the ranks.

        An all-reduce is a reduce-scatter and an all-gather; in each of these two, a rank sends N - 1 of the
        N pieces; in a broadcast, all ranks but the last pass everything on.
        """
        once = self.broadcast + self.all_gather + self.reduce_scatter
        return (2 * self.all_reduce + once) * (world_size - 1) / world_size


@dataclass(frozen=True)
class Held:
    """Bytes that stay on one rank between steps, before gradients are cleared.

    Attributes:
        states: of AdamW, fp32.
    """

    parameters: int
    gradients: int
    states: int

    @property
    def total(self) -> int:
        """All three."""
        return self.parameters + self.gradients + self.states


def weights_of(module: nn.Module) -> list[Weight]:
    """The distinct parameters of a module that is not wrapped yet, in the order of `parameters()`."""
    plans = unit_plans(module)
    unit_of = {parameter: number for number, plan in enumerate(plans) for parameter in plan.weights}
    return [
        Weight(
            shape=tuple(parameter.shape),
            gathered_for=tuple(plans[unit_of[parameter]].kinds) if parameter in unit_of else (),
            unit=unit_of.get(parameter, -1),
            trainable=parameter.requires_grad,
        )
        for parameter in module.parameters()
    ]


def step_traffic(form: str, weights: Sequence[Weight], world_size: int, *, compute_bytes: int = _FP32_BYTES) -> Traffic:
    """What one training step (one forward, one backward, one update) sends, fp32 parameters assumed.

    Args:
        form: "ddp", the same however gradients are bundled; "zero1", that with a `ShardedOptimizer`; "fsdp".
        compute_bytes: of an element in FSDP's compute dtype.

    FSDP gathers a weight for each block or layer that uses it forward, and once for the backward pass unless only
    embeddings use it; layers that share a weight must not run one right after the other.

    Raises:
        ValueError: there is no such form.
    """
    _check(form)
    if world_size == 1:
        return Traffic()
    trainable = [weight for weight in weights if weight.trainable]
    num_elements = sum(weight.num_elements for weight in trainable)
    if form != "fsdp":
        counts = len(trainable)  # on how many ranks each parameter has a gradient: one more small sum
        return Traffic(
            all_reduce=_FP32_BYTES * (num_elements + counts),
            broadcast=_FP32_BYTES * num_elements if form == "zero1" else 0,
        )
    whole = sum(weight.num_elements for weight in trainable if not weight.gathered_for)
    gathered = sum(_num_gathers(weight) * weight.padded_elements(world_size) for weight in weights)
    reduced = sum(weight.padded_elements(world_size) for weight in trainable if weight.gathered_for)
    return Traffic(
        all_reduce=_FP32_BYTES * whole, all_gather=compute_bytes * gathered, reduce_scatter=compute_bytes * reduced
    )


def held_bytes(form: str, weights: Sequence[Weight], world_size: int) -> Held:
    """What the fullest rank holds under AdamW, fp32 parameters assumed; arguments and errors as above."""
    _check(form)
    trainable = [weight for weight in weights if weight.trainable]
    if form == "fsdp":
        here = [weight.padded_elements(world_size) // (world_size if weight.gathered_for else 1) for weight in weights]
        trained = sum(size for size, weight in zip(here, weights, strict=True) if weight.trainable)
        return Held(_FP32_BYTES * sum(here), _FP32_BYTES * trained, _FP32_BYTES * _ADAMW_STATES * trained)
    num_elements = sum(weight.num_elements for weight in trainable)
    owned = num_elements
    if form == "zero1":
        loads = [0] * world_size
        owners = assign_owners([weight.num_elements for weight in weights], loads)
        owned = max(
            sum(w.num_elements for w, owner in zip(weights, owners, strict=True) if owner == rank and w.trainable)
            for rank in range(world_size)
        )
    return Held(
        parameters=_FP32_BYTES * sum(weight.num_elements for weight in weights),
        gradients=_FP32_BYTES * num_elements,
        states=_FP32_BYTES * _ADAMW_STATES * owned,
    )


def fsdp_messages(weights: Sequence[Weight]) -> dict[str, int]:
    """How many messages FSDP sends in such a step, by collective: units send all their weights in one.

    Parameters that stay whole are summed in one, if they are of one dtype.
    """
    units = {weight.unit: weight for weight in weights if weight.gathered_for}
    return {
        "all_gather": sum(_num_gathers(weight) for weight in units.values()),
        "reduce_scatter": len({weight.unit for weight in weights if weight.gathered_for and weight.trainable}),
        "all_reduce": int(any(weight.trainable and not weight.gathered_for for weight in weights)),
    }


def whole_weights_bytes(weights: Sequence[Weight], world_size: int, *, compute_bytes: int = _FP32_BYTES) -> int:
    """The most that FSDP's forward holds in whole weights at once: the largest two units."""
    return compute_bytes * sum(sorted(unit_elements(weights, world_size).values())[-2:])


def unit_elements(weights: Sequence[Weight], world_size: int) -> dict[int, int]:
    """Elements of each of FSDP's units when it is whole, by its number."""
    sizes: dict[int, int] = {}
    for weight in weights:
        if weight.gathered_for:
            sizes[weight.unit] = sizes.get(weight.unit, 0) + weight.padded_elements(world_size)
    return sizes


def _num_gathers(weight: Weight) -> int:
    return len(weight.gathered_for) + any(kind != "Embedding" for kind in weight.gathered_for)


def _check(form: str) -> None:
    if form not in FORMS:
        raise ValueError(f"form is one of {', '.join(FORMS)}, got {form!r}")
