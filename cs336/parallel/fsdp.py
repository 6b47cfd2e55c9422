"""Fully sharded data parallelism: each rank keeps a slice of every large weight, and of its gradient and state.

The weights of all `Linear` and `Embedding` layers are cut along their first dimension into equal slices (the
last padded with zeros). They are gathered in units, a Transformer block each: a unit's forward gathers its whole
weights in one message and frees them again; its backward gathers them once more, and the gradients are summed and
sliced over the ranks as soon as the unit has made them. Norms, biases and the rest are whole on every rank.

Source: Zhao et al. 2023, arXiv:2304.11277; Rajbhandari et al. 2020, arXiv:1910.02054, section 5.3.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import register_multi_grad_hook
from torch.utils._pytree import tree_leaves

from cs336.parallel.collectives import broadcast, start_all_reduce
from cs336.parallel.fsdp_units import Call, Reduction, Unit, Weight, unit_plans
from cs336.parallel.process_group import world_size


class FSDP(nn.Module):
    """Shards a module's large weights over the ranks, in place.

        fsdp = FSDP(model)
        optimizer = AdamW(fsdp.parameters())
        loss_of(fsdp(inputs)).backward()
        fsdp.finish_gradient_synchronization()
        optimizer.step()

    Construction gives every rank the values of rank 0. All ranks must run the same units in the same order;
    gradients of several backward passes add up. Frozen weights are sharded too, tied ones once. A weight that
    is also a parameter of another kind of layer stays whole. For products in 16 bits use `compute_dtype`, not
    autocast, which would keep a cast of every whole weight.

    A unit (`fsdp_units.py`) is a block, which runs its layers only in its own `forward` and returns what the loss
    depends on, or a layer outside all blocks. The gather for the i-th unit that runs starts once unit i-2 has finished
    its forward, so that at most two are whole at once; the order is learned in the first forward pass. The backward
    pass gathers the next unit while it computes with one, in the order of the backward pass before, which activation
    checkpointing makes another than the reverse: blocks run forward once more in it. While a unit's gradients are
    summed, at most those of one more are made. A layer of a block may go unused on some ranks and not on others.

    Args:
        module: already on this rank's device.
        compute_dtype: of the weights that travel, of the sharded layers' inputs and products, and of
            the gradients that travel; None for the parameters' own. Slices, and what optimizers see, are
            fp32.
        prefetch: gather ahead, as above; False gathers each unit only when it is needed.
        keep_dtype: slices, and with them gradients and optimizer states, keep the parameters' own dtype, such as
            bf16, in place of fp32.

    Attributes:
        module: the one wrapped, with its own names.
        units: what is gathered and freed together.
        max_whole_units: the most units that were whole at once in the last forward pass.
    """

    def __init__(
        self,
        module: nn.Module,
        compute_dtype: torch.dtype | None = None,
        *,
        prefetch: bool = True,
        keep_dtype: bool = False,
    ) -> None:
        super().__init__()
        self.module = module
        self._in_forward = False
        self._forward_order = _Order(prefetch)
        self._backward_order = _Order(prefetch)
        self._reduction: Reduction | None = None  # under way
        self.max_whole_units = 0
        broadcast([*module.parameters(), *module.buffers()])
        plans = unit_plans(module)
        self.units = [Unit(plan, compute_dtype, keep_dtype=keep_dtype) for plan in plans]
        for unit in self.units:
            self._register(unit)
        sharded = {weight.shard for unit in self.units for weight in unit.weights}
        self._replicated = [p for p in module.parameters() if p.requires_grad and p not in sharded]

    def forward(self, *inputs: Any, **kwargs: Any) -> Any:
        """The module's own."""
        with self.forward_pass():
            return self.module(*inputs, **kwargs)

    @contextlib.contextmanager
    def forward_pass(self) -> Iterator[None]:
        """Around a forward pass that does not call the module itself, but other functions of it: gathers ahead."""
        self._in_forward, self.max_whole_units = True, 0
        self._backward_order.learn()
        try:
            self._forward_order.gather_first(2)  # unit 1 waits for no other
            yield
        finally:
            self._in_forward = False
            self._forward_order.learn()
            for unit in self.units:  # gathered in vain: the pass took another way than the one before
                unit.free()

    def with_whole_weight(self, layer: nn.Module, function: Callable[..., Any], *inputs: Any) -> Any:
        """`function(*inputs)` in place of the forward of a layer outside all blocks, whose `weight` is whole meanwhile.

        For losses that take the output head's weight instead of its logits. Gradients reach the weight as they
        do through the layer.
        """
        layer.__dict__["forward"] = function
        try:
            return layer(*inputs)
        finally:
            del layer.__dict__["forward"]

    @torch.no_grad()
    def finish_gradient_synchronization(self) -> None:
        """Wait for all sums and leave the mean gradient over the ranks in each `.grad`, zeros where there is none.

        Call it after `backward()` and before `optimizer.step()`, on every rank.
        """
        self._backward_order.learn()
        for unit in self.units:
            if unit.in_backward or unit.arrived:  # a backward pass that ended inside it
                self._end_backward(unit)
            unit.free()  # what a pass that went another way gathered in vain
        self._finish_reduction()
        for unit in self.units:
            for weight in unit.trainable:
                if weight.shard.grad is None:
                    weight.shard.grad = torch.zeros_like(weight.shard)
        for parameter in self._replicated:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        for parameters in _by_dtype(self._replicated):  # small: one message
            gradients: list[Tensor] = [p.grad for p in parameters if p.grad is not None]
            flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
            start_all_reduce(flat).wait()
            parts = flat.div_(world_size()).split([gradient.numel() for gradient in gradients])
            means = [part.view(gradient.shape) for part, gradient in zip(parts, gradients, strict=True)]
            torch._foreach_copy_(gradients, means)

    def named_shards(self) -> list[tuple[str, nn.Parameter]]:
        """What this rank holds, under each of its names in the whole model."""
        return list(self.module.named_parameters(remove_duplicate=False))

    def cuts(self) -> dict[nn.Parameter, Weight]:
        """How each sharded parameter is cut; the others are whole."""
        return {weight.shard: weight for unit in self.units for weight in unit.weights}

    def _register(self, unit: Unit) -> None:
        for entry, kind in zip(unit.entries, unit.kinds, strict=True):
            entry.register_forward_pre_hook(self._before(unit, kind))
            entry.register_forward_hook(self._after(unit, kind), with_kwargs=True, always_call=True)
        for weight in unit.weights if unit.compute_dtype is not None or "block" in unit.kinds else ():
            for layer in weight.layers:
                layer.register_forward_pre_hook(_note_and_cast(unit, weight), with_kwargs=True)
        for weight in unit.trainable:
            weight.whole.register_post_accumulate_grad_hook(self._gradient_arrived(unit, weight))

    def _before(self, unit: Unit, kind: str) -> Callable[..., None]:
        def hook(entry: nn.Module, inputs: tuple[Any, ...]) -> None:
            if self._in_forward or not torch.is_grad_enabled():
                unit.start_gather()
                unit.wait()
            else:  # activation checkpointing runs the block again
                self._gather_in_backward(unit)
            unit.enter(Call(set() if kind == "block" else set(unit.weights)))
            if self._in_forward:
                self.max_whole_units = max(self.max_whole_units, sum(unit.is_whole for unit in self.units))
                self._forward_order.note(unit)

        return hook

    def _after(self, unit: Unit, kind: str) -> Callable[..., None]:
        def hook(entry: nn.Module, inputs: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            call = unit.leave()
            results = [value for value in _tensors(output) if value.requires_grad]
            frozen = len(unit.trainable) < len(unit.weights)
            values = _tensors((inputs, kwargs)) if results and (frozen or kind == "Embedding") else []
            # The gradient of a table of rows does not depend on the table.
            looked_up = kind == "Embedding" and not any(value.is_floating_point() for value in values)
            if call is not None and results and not looked_up:
                self._watch_backward(unit, call, results, values if frozen else [])
            unit.free()
            if self._in_forward:
                self._forward_order.gather_next(2)  # unit i + 2, now that unit i is done

        return hook

    def _watch_backward(self, unit: Unit, call: Call, results: list[Tensor], values: list[Tensor]) -> None:
        # A frozen weight has no gradient of its own to say that it has served.
        uses_frozen = any(not weight.shard.requires_grad for weight in call.used)

        def begin(gradient: Tensor) -> None:
            call.awaits_inputs = uses_frozen
            unit.in_backward.add(call)
            self._gather_in_backward(unit)

        def inputs_done(*gradients: Any) -> None:
            call.awaits_inputs = False
            self._end_backward_if_done(unit)

        for result in results:
            result.register_hook(begin)
        watched = [value for value in values if value.requires_grad] if uses_frozen else []
        if len(watched) == 1:
            watched[0].register_hook(inputs_done)
        elif watched:
            register_multi_grad_hook(watched, inputs_done)

    def _gather_in_backward(self, unit: Unit) -> None:
        unit.start_gather()
        unit.wait()
        self._backward_order.note(unit)
        self._backward_order.gather_next(1)

    def _gradient_arrived(self, unit: Unit, weight: Weight) -> Callable[[Tensor], None]:
        def hook(whole: Tensor) -> None:
            unit.arrived.add(weight)  # once all layers that share the weight are done
            self._end_backward_if_done(unit)

        return hook

    def _end_backward_if_done(self, unit: Unit) -> None:
        for call in unit.in_backward:
            if call.awaits_inputs or any(
                weight.shard.requires_grad and weight not in unit.arrived for weight in call.used
            ):
                return
        self._end_backward(unit)

    @torch.no_grad()
    def _end_backward(self, unit: Unit) -> None:
        """Free the weights and send the gradients; one unit's are sent while the next one's are made."""
        unit.in_backward.clear()
        unit.free()
        if unit.arrived:
            unit.arrived.clear()
            self._finish_reduction()
            self._reduction = Reduction(unit.trainable)

    def _finish_reduction(self) -> None:
        if self._reduction is not None:
            self._reduction.finish()
            self._reduction = None


class _Order:
    """In which order the last pass needed the units, each once in a row, and how far the pass under way follows it."""

    def __init__(self, prefetch: bool) -> None:
        self._prefetch = prefetch
        self.last: list[Unit] = []
        self._seen: list[Unit] = []
        self._follows = True

    def note(self, unit: Unit) -> None:
        """It is needed now."""
        if self._seen and self._seen[-1] is unit:
            return
        place = len(self._seen)
        self._follows = self._follows and place < len(self.last) and self.last[place] is unit
        self._seen.append(unit)

    def gather_first(self, count: int) -> None:
        """Of a pass that is about to begin."""
        for unit in self.last[:count] if self._prefetch else ():
            unit.start_gather()

    def gather_next(self, distance: int) -> None:
        """Begin to gather the unit that comes so many after the one needed last, if the pass goes the known way."""
        place = len(self._seen) - 1 + distance
        if self._prefetch and self._follows and place < len(self.last):
            self.last[place].start_gather()

    def learn(self) -> None:
        """The pass is over, if there was one."""
        if self._seen:
            self.last, self._seen = self._seen, []
        self._follows = True


def gather_full_params(fsdp: FSDP) -> dict[str, Tensor]:
    """All parameters in full, in fp32, under the names that they have in `fsdp.module`; on every rank.

    All ranks call it. Tied parameters appear under each of their names, as one tensor.
    """
    weights = fsdp.cuts()
    full: dict[nn.Parameter, Tensor] = {}
    result = {}
    for name, parameter in fsdp.module.named_parameters(remove_duplicate=False):
        if parameter not in full:
            full[parameter] = (
                weights[parameter].gathered(parameter).float()
                if parameter in weights
                else parameter.detach().float().clone()
            )
        result[name] = full[parameter]
    return result


def _note_and_cast(unit: Unit, weight: Weight) -> Callable[..., Any]:
    """A layer's hook that notes the use of its weight and casts what comes in to the unit's compute dtype."""
    dtype = unit.compute_dtype

    def hook(layer: nn.Module, inputs: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not unit.calls:
            raise RuntimeError(
                f"a {type(layer).__name__} of a sharded block runs outside the block's own forward, without its whole"
                " weight; call the block"
            )
        if torch.is_grad_enabled():
            unit.calls[-1].used.add(weight)
        if dtype is None:
            return None
        cast = {name: _cast(value, dtype) for name, value in kwargs.items()}
        return tuple(_cast(value, dtype) for value in inputs), cast

    return hook


def _cast(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def _tensors(value: Any) -> list[Tensor]:
    """All that a module was given, or has returned."""
    if isinstance(value, Tensor):
        return [value]
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


def _by_dtype(parameters: list[nn.Parameter]) -> list[list[nn.Parameter]]:
    groups: dict[torch.dtype, list[nn.Parameter]] = {}
    for parameter in parameters:
        groups.setdefault(parameter.dtype, []).append(parameter)
    return list(groups.values())
