"""What fully sharded data parallelism gathers and frees together: its units, and how each weight is cut.

A block's sharded weights make one unit, with one message for each gather and one for the sum of its gradients; what
stands outside all blocks is a unit by itself. Blocks are the entries of lists of modules (`nn.ModuleList` and the
like; of lists within lists, the outermost entries), as a Transformer's layers are.

A layer is recognized by its class's name, or that of a base class, and a matrix called `weight`: the parallel
forms know nothing of the models they carry. While a unit is in use, its whole weights stand in the layers'
`__dict__`, where Python looks before PyTorch's own table of parameters; so the table keeps the slice under its
name at all times, and optimizers, `named_parameters()` and checkpoints see nothing else.

Source: Zhao et al. 2023, arXiv:2304.11277, section 3.2; messages in one launch, each weight straight into its place:
NCCL's group calls.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn

from cs336.parallel.collectives import Pending, start_all_gathers, start_reduce_scatters
from cs336.parallel.process_group import rank, world_size

_SHARDED_LAYERS = ("Linear", "Embedding")
_LISTS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)
_ALIGNMENT = 256  # bytes: whole weights of a unit begin where the allocator might have put them


@dataclass
class UnitPlan:
    """Weights that are gathered together.

    Attributes:
        name: of the first entry within the module.
        entries: the modules whose forward needs them: one block, or the layers that share one weight.
        kinds: of the entries: "block", "Linear" or "Embedding" each.
        weights: each with the layers that hold it; of one dtype.
    """

    name: str
    entries: list[nn.Module]
    kinds: list[str]
    weights: dict[nn.Parameter, list[nn.Module]]


def unit_plans(module: nn.Module) -> list[UnitPlan]:
    """The units of a module that is not wrapped yet, in the order of `parameters()`.

    A weight that is used outside its block, too, is a unit by itself.
    """
    block_of: dict[nn.Module, set[nn.Module]] = {}
    for block in _blocks(module):
        for part in block.modules():
            block_of.setdefault(part, set()).add(block)
    names = {part: name for name, part in module.named_modules()}
    plans: dict[object, UnitPlan] = {}
    for parameter, layers in sharded_layers(module).items():
        blocks = {block for layer in layers for block in block_of.get(layer, {layer})}
        shared = len(blocks) > 1 or blocks <= set(layers)
        entries = layers if shared else list(blocks)
        kinds = [layer_kind(layer) or "" for layer in layers] if shared else ["block"]
        key = parameter if shared else (*blocks, parameter.dtype)
        plans.setdefault(key, UnitPlan(names[entries[0]], entries, kinds, {})).weights[parameter] = layers
    return list(plans.values())


def sharded_layers(module: nn.Module) -> dict[nn.Parameter, list[nn.Module]]:
    """The weights to shard, each with the layers that share it, in the order of `parameters()`."""
    layers: dict[nn.Parameter, list[nn.Module]] = {}
    whole = set()
    for layer in module.modules():
        for name, parameter in layer._parameters.items():
            if parameter is None:
                continue
            if name == "weight" and _can_be_cut(parameter) and layer_kind(layer):
                layers.setdefault(parameter, []).append(layer)
            else:
                whole.add(parameter)
    return {parameter: users for parameter, users in layers.items() if parameter not in whole}


def layer_kind(layer: nn.Module) -> str | None:
    """ "Linear" or "Embedding" for a layer of that name or one derived from it; else None."""
    names = [base.__name__ for base in type(layer).__mro__]
    return next((name for name in names if name in _SHARDED_LAYERS), None)


def _can_be_cut(parameter: nn.Parameter) -> bool:
    return parameter.ndim == 2 and parameter.numel() > 0 and parameter.is_floating_point()


def _blocks(module: nn.Module, *, listed: bool = False) -> Iterator[nn.Module]:
    is_list = isinstance(module, _LISTS)
    if listed and not is_list:
        yield module
        return
    for child in module.children():
        yield from _blocks(child, listed=is_list)


class Weight:
    """One sharded weight: this rank's slice, and where its whole stands when it is gathered.

    Attributes:
        layers: that hold it.
        rows, shard_rows: of the whole, and of every rank's slice, the last ones padded with zeros.
        padded_shape: of the whole with its padding.
        shard: (shard_rows, columns), fp32 unless the parameter's dtype is kept; the module's parameter.
        whole: (rows, columns) in the dtype that travels; autograd's leaf. Has no memory most of the time.
    """

    whole: Tensor

    def __init__(self, parameter: nn.Parameter, layers: list[nn.Module], *, keep_dtype: bool) -> None:
        self.layers = layers
        self.rows = parameter.shape[0]
        self.shard_rows = -(-self.rows // world_size())
        wide = parameter.dtype if keep_dtype else torch.promote_types(parameter.dtype, torch.float32)
        self.shard = nn.Parameter(
            self.slice_of(parameter.detach()).to(wide, copy=True), requires_grad=parameter.requires_grad
        )
        self.padded_shape = (self.shard_rows * world_size(), parameter.shape[1])
        for layer in layers:
            layer._parameters["weight"] = self.shard

    def slice_of(self, whole: Tensor) -> Tensor:
        """This rank's rows of a whole tensor, with zeros in the padding."""
        own = whole[rank() * self.shard_rows :][: self.shard_rows]
        padding = whole.new_zeros(self.shard_rows - len(own), *whole.shape[1:])
        return torch.cat([own, padding])

    def gathered(self, slices: Tensor) -> Tensor:
        """The whole of a tensor that every rank holds a slice of, in the slices' dtype."""
        full = torch.empty(self.padded_shape, dtype=slices.dtype, device=slices.device)
        start_all_gathers([full], [slices.detach().contiguous()]).wait()
        return full[: self.rows]

    def take_gradient(self) -> Tensor:
        """The whole gradient with zeros in the padding, no longer kept; all zeros where there is none."""
        gradient, self.whole.grad = self.whole.grad, None
        if gradient is None:
            return torch.zeros(self.padded_shape, dtype=self.whole.dtype, device=self.shard.device)
        missing = self.padded_shape[0] - self.rows
        return torch.cat([gradient, gradient.new_zeros(missing, gradient.shape[1])]) if missing else gradient


@dataclass(eq=False)
class Call:
    """One run of an entry.

    Attributes:
        used: weights of the unit that took part.
        awaits_inputs: its backward is over only when all its inputs have their gradients.
    """

    used: set[Weight]
    awaits_inputs: bool = False


class Unit:
    """Weights that are gathered, used and freed together, in one storage that is filled and emptied.

    Attributes:
        name, entries, kinds: see `UnitPlan`.
        is_whole: the storage is filled, or being filled.
        calls: whose forward is running.
        in_backward: calls whose backward has begun and is not known to be over.
        arrived: weights whose whole gradient is there.
        pending: the gather under way.
    """

    def __init__(self, plan: UnitPlan, compute_dtype: torch.dtype | None, *, keep_dtype: bool) -> None:
        self.name, self.entries, self.kinds = plan.name, plan.entries, plan.kinds
        self.compute_dtype = compute_dtype
        travel_dtype = compute_dtype or next(iter(plan.weights)).dtype
        self.weights = [Weight(parameter, layers, keep_dtype=keep_dtype) for parameter, layers in plan.weights.items()]
        self.trainable = [weight for weight in self.weights if weight.shard.requires_grad]
        self.is_whole = False
        self.calls: list[Call] = []
        self.in_backward: set[Call] = set()
        self.arrived: set[Weight] = set()
        self.pending = Pending()
        self._lay_out(travel_dtype)
        self._with_biases = list(
            {
                layer: None
                for weight in self.weights
                for layer in weight.layers
                if compute_dtype is not None and any(name != "weight" for name in layer._parameters)
            }
        )

    def _lay_out(self, dtype: torch.dtype) -> None:
        """Give every whole weight its place in one storage, for now without memory."""
        step = _ALIGNMENT // dtype.itemsize
        sizes = [-(-prod(weight.padded_shape) // step) * step for weight in self.weights]
        flat = torch.empty(sum(sizes), dtype=dtype, device=self.weights[0].shard.device)
        self._storage = flat.untyped_storage()
        self._num_bytes = self._storage.nbytes()
        self._full, self._own = [], []
        for weight, part in zip(self.weights, flat.split(sizes), strict=True):
            # Through `.data`, because autograd would take the refill for a change of what it has saved.
            padded = part[: prod(weight.padded_shape)].view(weight.padded_shape).data
            weight.whole = padded[: weight.rows].detach().requires_grad_(weight.shard.requires_grad)
            self._full.append(padded.data)
            self._own.append(padded[rank() * weight.shard_rows :][: weight.shard_rows].data)
        self._storage.resize_(0)

    @torch.no_grad()
    def start_gather(self) -> None:
        """Begin to fill the whole weights, unless they are there."""
        if self.is_whole:
            return
        self.is_whole = True
        self._storage.resize_(self._num_bytes)
        shards = [weight.shard.detach() for weight in self.weights]
        if shards[0].dtype != self._own[0].dtype:  # cast into place
            torch._foreach_copy_(self._own, shards)
            shards = self._own
        self.pending = start_all_gathers(self._full, shards)

    def wait(self) -> None:
        """Until the whole weights may be used."""
        self.pending.wait()

    def free(self) -> None:
        """Give the memory back, unless somebody still needs it."""
        if self.is_whole and not self.calls and not self.in_backward:
            self.pending.wait()
            self._storage.resize_(0)
            self.is_whole = False

    def enter(self, call: Call) -> None:
        """Put the whole weights where the layers find them."""
        self.calls.append(call)
        for weight in self.weights:
            for layer in weight.layers:
                layer.__dict__["weight"] = weight.whole
        for layer in self._with_biases:
            # Autograd carries a bias's gradient back to the fp32 one.
            for name, parameter in layer._parameters.items():
                if name != "weight" and parameter is not None and parameter.is_floating_point():
                    layer.__dict__[name] = parameter.to(self.compute_dtype)

    def leave(self) -> Call | None:
        """Take them away again once no entry runs; returns the call that is over, None if entering has failed."""
        if not self.calls:
            return None
        call = self.calls.pop()
        if not self.calls:
            for weight in self.weights:
                for layer in weight.layers:
                    layer.__dict__.pop("weight", None)
            for layer in self._with_biases:
                for name in layer._parameters:
                    layer.__dict__.pop(name, None)
        return call


class Reduction:
    """The sum over the ranks of a unit's gradients on its way to the slices; those that are missing here are zeros."""

    def __init__(self, weights: Sequence[Weight]) -> None:
        self._shards = [weight.shard for weight in weights]
        gradients = [weight.take_gradient().contiguous() for weight in weights]
        self._sizes = [shard.numel() for shard in self._shards]
        self._flat = gradients[0].new_empty(sum(self._sizes))
        self._slices = self._parts(self._flat)
        self._pending = start_reduce_scatters(self._slices, gradients)

    def finish(self) -> None:
        """Wait, and leave or add the mean in each slice's gradient."""
        self._pending.wait()
        mean = self._flat.to(self._shards[0].dtype).div_(world_size())
        parts = self._slices if mean is self._flat else self._parts(mean)
        old, more = [], []
        for shard, part in zip(self._shards, parts, strict=True):
            if shard.grad is None:
                shard.grad = part
            else:
                old.append(shard.grad)
                more.append(part)
        if old:
            torch._foreach_add_(old, more)

    def _parts(self, flat: Tensor) -> list[Tensor]:
        parts = flat.split_with_sizes(self._sizes)
        return [part.view(shard.shape) for part, shard in zip(parts, self._shards, strict=True)]
