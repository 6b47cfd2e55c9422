"""Fully sharded data parallelism: each rank keeps a slice of every large weight, and of its gradient and state.

The weights of all `Linear` and `Embedding` layers are cut along their first dimension into equal slices (the
last padded with zeros). A layer's forward gathers its whole weight and frees it again; its backward gathers it
once more, and the gradient is summed and sliced over the ranks as soon as it is made. Norms, biases and the
rest are whole on every rank.

A layer is recognized by its class's name, or that of a base class, and a matrix called `weight`: the parallel
forms know nothing of the models they carry. While a layer runs, its whole weight stands in the instance's
`__dict__`, where Python looks before PyTorch's own table of parameters; so the table keeps the slice under its
name at all times, and optimizers, `named_parameters()` and checkpoints see nothing else.

Source: Zhao et al. 2023, arXiv:2304.11277; Rajbhandari et al. 2020, arXiv:1910.02054, section 5.3.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from cs336.parallel.collectives import (
    Pending,
    broadcast,
    start_all_gather,
    start_all_reduce,
    start_reduce_scatter,
)
from cs336.parallel.process_group import rank, world_size

_SHARDED_LAYERS = ("Linear", "Embedding")
# Whole gradients whose sums are under way at once: one being sent while the next is made.
_MAX_REDUCTIONS = 2


class FSDP(nn.Module):
    """Shards a module's large weights over the ranks, in place.

        fsdp = FSDP(model)
        optimizer = AdamW(fsdp.parameters())
        loss_of(fsdp(inputs)).backward()
        fsdp.finish_gradient_synchronization()
        optimizer.step()

    Construction gives every rank the values of rank 0. All ranks must run the same layers in the same order;
    gradients of several backward passes add up. Frozen weights are sharded too, tied ones once. A weight that
    is also a parameter of another kind of layer stays whole. For products in 16 bits use `compute_dtype`, not
    autocast, which would keep a cast of every whole weight.

    The gather of the i-th layer that runs starts once layer i-2 has finished its forward, so that at most two
    whole weights exist at once; the order is learned in the first forward pass. The backward pass gathers the
    next weight while it computes with one, in the order of the backward pass before, which activation
    checkpointing makes another than the reverse: layers run forward once more in it, and gather once more.

    Args:
        module: already on this rank's device.
        compute_dtype: of the weights that travel, of the sharded layers' inputs and products, and of
            the gradients that travel; None for the parameters' own. Slices, and what optimizers see, are
            fp32.
        prefetch: gather ahead, as above; False gathers each weight only when it is needed.
        keep_dtype: slices, and with them gradients and optimizer states, keep the parameters' own dtype, such as
            bf16, in place of fp32.

    Attributes:
        module: the one wrapped, with its own names.
        max_whole_weights: the most whole weights that existed at once in the last forward pass.
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
        self._prefetch = prefetch
        self._in_forward = False
        self._order: list[_Weight] = []  # in which the last forward pass needed them, each once in a row
        self._seen: list[_Weight] = []  # the same of the pass under way
        self._backward_order: list[_Weight] = []  # in which the last backward pass needed them, each once in a row
        self._backward_seen: list[_Weight] = []
        self._reductions: deque[_Reduction] = deque()
        self.max_whole_weights = 0
        broadcast([*module.parameters(), *module.buffers()])
        self._weights: list[_Weight] = []
        for parameter, layers in sharded_layers(module).items():
            weight = _Weight(parameter, layers, compute_dtype, keep_dtype)
            self._weights.append(weight)
            if weight.shard.requires_grad:
                weight.whole.register_post_accumulate_grad_hook(self._reducer(weight))
            for layer in layers:
                layer.register_forward_pre_hook(self._before(weight), with_kwargs=True)
                layer.register_forward_hook(self._after(weight), with_kwargs=True, always_call=True)
        sharded = {weight.shard for weight in self._weights}
        self._replicated = [p for p in module.parameters() if p.requires_grad and p not in sharded]

    def forward(self, *inputs: Any, **kwargs: Any) -> Any:
        """The module's own."""
        with self.forward_pass():
            return self.module(*inputs, **kwargs)

    @contextlib.contextmanager
    def forward_pass(self) -> Iterator[None]:
        """Around a forward pass that does not call the module itself, but other functions of it: gathers ahead."""
        self._in_forward, self._seen, self.max_whole_weights = True, [], 0
        self._learn_backward_order()
        try:
            if self._prefetch:  # layer 1 waits for no layer
                for weight in self._order[:2]:
                    weight.start_gather()
            yield
        finally:
            self._in_forward = False
            self._order = self._seen
            for weight in self._weights:  # gathered in vain: the pass took another way than the one before
                weight.free()

    def with_whole_weight(self, layer: nn.Module, function: Callable[..., Any], *inputs: Any) -> Any:
        """`function(*inputs)` in place of the layer's forward, with `layer.weight` whole while it runs.

        For losses that take the output head's weight instead of its logits. Gradients reach the weight as they
        do through the layer, if the result is a tensor or a tuple of tensors.
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
        self._learn_backward_order()
        while self._reductions:
            self._reductions.popleft().finish()
        for weight in self._weights:
            weight.backward_users = 0
            weight.free()  # what a pass that went another way gathered in vain
            if weight.shard.requires_grad and weight.shard.grad is None:
                weight.shard.grad = torch.zeros_like(weight.shard)
        for parameter in self._replicated:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        for parameters in _by_dtype(self._replicated):  # small: one message
            gradients: list[Tensor] = [p.grad for p in parameters if p.grad is not None]
            flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
            start_all_reduce(flat).wait()
            flat /= world_size()
            for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
                gradient.copy_(mean.view(gradient.shape))

    def named_shards(self) -> list[tuple[str, nn.Parameter]]:
        """What this rank holds, under each of its names in the whole model."""
        return list(self.module.named_parameters(remove_duplicate=False))

    def cuts(self) -> dict[nn.Parameter, _Weight]:
        """How each sharded parameter is cut; the others are whole."""
        return {weight.shard: weight for weight in self._weights}

    def _before(self, weight: _Weight) -> Callable[..., Any]:
        def hook(layer: nn.Module, inputs: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if self._in_forward or not torch.is_grad_enabled():
                weight.start_gather()
                weight.wait()
            else:  # activation checkpointing runs the layer again
                self._gather_in_backward(weight)
            weight.users += 1
            layer.__dict__["weight"] = weight.whole
            if self._in_forward:
                self.max_whole_weights = max(self.max_whole_weights, sum(w.is_whole for w in self._weights))
                if not self._seen or self._seen[-1] is not weight:
                    self._seen.append(weight)
            if weight.compute_dtype is None:
                return None
            _cast_others(layer, weight.compute_dtype)
            cast = [_cast(value, weight.compute_dtype) for value in inputs]
            return tuple(cast), {name: _cast(value, weight.compute_dtype) for name, value in kwargs.items()}

        return hook

    def _after(self, weight: _Weight) -> Callable[..., None]:
        def hook(layer: nn.Module, inputs: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            weight.users -= 1
            for name in ("weight", *layer._parameters):
                layer.__dict__.pop(name, None)
            values = [value for value in (*inputs, *kwargs.values()) if isinstance(value, Tensor)]
            outputs = output if isinstance(output, tuple) else (output,)
            results = [value for value in outputs if isinstance(value, Tensor) and value.requires_grad]
            # The gradient of a table of rows does not depend on the table.
            looked_up = not any(value.is_floating_point() for value in values)
            for result in results if not looked_up else ():
                result.register_hook(lambda _: self._before_backward(weight))
            if results and not weight.shard.requires_grad:  # no gradient of its own will say that it has served
                for value in values:
                    if value.requires_grad:
                        value.register_hook(lambda _: self._after_backward(weight))
            weight.free()
            if self._in_forward and self._prefetch:
                place = len(self._seen) + 1  # of layer i + 2, now that layer i is done
                if self._order[: len(self._seen)] == self._seen and place < len(self._order):
                    self._order[place].start_gather()

        return hook

    def _before_backward(self, weight: _Weight) -> None:
        weight.backward_users += 1
        self._gather_in_backward(weight)

    def _learn_backward_order(self) -> None:
        if self._backward_seen:
            self._backward_order, self._backward_seen = self._backward_seen, []

    def _gather_in_backward(self, weight: _Weight) -> None:
        weight.start_gather()
        weight.wait()
        if not self._backward_seen or self._backward_seen[-1] is not weight:
            self._backward_seen.append(weight)
        done = len(self._backward_seen)
        if self._prefetch and self._backward_order[:done] == self._backward_seen and done < len(self._backward_order):
            self._backward_order[done].start_gather()

    def _after_backward(self, weight: _Weight) -> None:
        # A gradient is made once all layers that share the weight are done; a frozen weight counts them.
        weight.backward_users = 0 if weight.shard.requires_grad else weight.backward_users - 1
        weight.free()

    def _reducer(self, weight: _Weight) -> Callable[[Tensor], None]:
        @torch.no_grad()
        def hook(whole: Tensor) -> None:
            gradient, whole.grad = whole.grad, None
            assert gradient is not None
            self._after_backward(weight)
            while len(self._reductions) >= _MAX_REDUCTIONS:
                self._reductions.popleft().finish()
            self._reductions.append(_Reduction(weight, gradient))

        return hook


def gather_full_params(fsdp: FSDP) -> dict[str, Tensor]:
    """All parameters in full, in fp32, under the names that they have in `fsdp.module`; on every rank.

    All ranks call it. Tied parameters appear under each of their names, as one tensor.
    """
    weights = {weight.shard: weight for weight in fsdp._weights}
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


class _Weight:
    """One sharded weight: this rank's slice, and room for the whole that is filled and emptied.

    Attributes:
        shard: (ceil(rows / world_size), columns), fp32 unless the parameter's dtype is kept; the module's parameter.
        whole: (rows, columns) in the compute dtype; autograd's leaf. Its storage has no bytes most of the time.
        is_whole: the storage is filled, or being filled.
        users: layers whose forward is running with it.
        backward_users: layers whose backward has begun and is not known to be over.
    """

    def __init__(
        self,
        parameter: nn.Parameter,
        layers: list[nn.Module],
        compute_dtype: torch.dtype | None,
        keep_dtype: bool,
    ) -> None:
        self.rows = parameter.shape[0]
        self.shard_rows = -(-self.rows // world_size())
        wide = parameter.dtype if keep_dtype else torch.promote_types(parameter.dtype, torch.float32)
        self.shard = nn.Parameter(
            self.slice_of(parameter.detach()).to(wide, copy=True), requires_grad=parameter.requires_grad
        )
        self.compute_dtype = compute_dtype
        self.travel_dtype = compute_dtype or parameter.dtype
        for layer in layers:
            layer._parameters["weight"] = self.shard
        self._padded = self._empty(self.travel_dtype)
        self.whole = self._padded[: self.rows].detach().requires_grad_(parameter.requires_grad)
        self._num_bytes = self._padded.untyped_storage().nbytes()
        self._padded.untyped_storage().resize_(0)
        self.is_whole = False
        self.users = 0
        self.backward_users = 0
        self._pending = Pending()

    def start_gather(self) -> None:
        """Begin to fill the whole weight, unless it is there."""
        if self.is_whole:
            return
        self.is_whole = True
        self._padded.untyped_storage().resize_(self._num_bytes)
        # Through `.data`, because autograd would take the refill for a change of what it has saved.
        self._pending = start_all_gather(self._padded.data, self.shard.detach().to(self.travel_dtype))

    def wait(self) -> None:
        """Until the whole weight may be used."""
        self._pending.wait()

    def free(self) -> None:
        """Give the memory back, unless somebody still needs it."""
        if self.is_whole and not self.users and not self.backward_users:
            self._pending.wait()
            self._padded.untyped_storage().resize_(0)
            self.is_whole = False

    def slice_of(self, whole: Tensor) -> Tensor:
        """This rank's rows of a whole tensor, with zeros in the padding."""
        own = whole[rank() * self.shard_rows :][: self.shard_rows]
        padding = whole.new_zeros(self.shard_rows - len(own), *whole.shape[1:])
        return torch.cat([own, padding])

    def gathered(self, slices: Tensor) -> Tensor:
        """The whole of a tensor that every rank holds a slice of, in the slices' dtype."""
        full = self._empty(slices.dtype)
        start_all_gather(full, slices.detach().contiguous()).wait()
        return full[: self.rows]

    def _empty(self, dtype: torch.dtype) -> Tensor:
        shape = (self.shard_rows * world_size(), self.shard.shape[1])
        return torch.empty(shape, dtype=dtype, device=self.shard.device)


class _Reduction:
    """The sum of one weight's gradient on its way to the ranks' slices."""

    def __init__(self, weight: _Weight, gradient: Tensor) -> None:
        missing = weight.shard_rows * world_size() - weight.rows
        if missing:
            gradient = torch.cat([gradient, gradient.new_zeros(missing, gradient.shape[1])])
        self._weight = weight
        self._slice = gradient.new_empty(weight.shard.shape)
        self._pending = start_reduce_scatter(self._slice, gradient.contiguous())

    def finish(self) -> None:
        self._pending.wait()
        shard = self._weight.shard
        mean = self._slice.to(shard.dtype) / world_size()
        shard.grad = mean if shard.grad is None else shard.grad + mean


def sharded_layers(module: nn.Module) -> dict[nn.Parameter, list[nn.Module]]:
    """The weights to shard, each with the layers that share it, in the order of `parameters()`."""
    layers: dict[nn.Parameter, list[nn.Module]] = {}
    whole = set()
    for layer in module.modules():
        for name, parameter in layer._parameters.items():
            if parameter is None:
                continue
            if name == "weight" and parameter.ndim == 2 and parameter.is_floating_point() and layer_kind(layer):
                layers.setdefault(parameter, []).append(layer)
            else:
                whole.add(parameter)
    return {parameter: users for parameter, users in layers.items() if parameter not in whole}


def layer_kind(layer: nn.Module) -> str | None:
    """ "Linear" or "Embedding" for a layer of that name or one derived from it; else None."""
    names = [base.__name__ for base in type(layer).__mro__]
    return next((name for name in names if name in _SHARDED_LAYERS), None)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def _cast_others(layer: nn.Module, dtype: torch.dtype) -> None:
    """Let a bias take part in the compute dtype; autograd carries its gradient back to the fp32 one."""
    for name, parameter in layer._parameters.items():
        if name != "weight" and parameter is not None:
            layer.__dict__[name] = _cast(parameter, dtype)


def _by_dtype(parameters: list[nn.Parameter]) -> list[list[nn.Parameter]]:
    groups: dict[torch.dtype, list[nn.Parameter]] = {}
    for parameter in parameters:
        groups.setdefault(parameter.dtype, []).append(parameter)
    return list(groups.values())
