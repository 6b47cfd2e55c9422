"""When communication hides behind computation: the second handout's accounting questions, as formulas.

The layer is a gated feed-forward, `y = (f(x W1) * x W2) W3`: x is (B, D), W1 and W2 are (D, F), W3 is (F, D),
all values of 2 bytes. A device computes C FLOP/s and sends W bytes/s; N devices form a ring, and
communication overlaps with computation, so a pass is bound by the slower of the two.

Source: CS336 2026, assignment 2, accounting; Austin et al. 2025, jax-ml.github.io/scaling-book.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

_VALUE_BYTES = 2
_MASTER_BYTES = 16  # fp32 weight, accumulated gradient, and AdamW's two moments


@dataclass(frozen=True)
class Machine:
    """Attributes:
    flops_per_second: C, of one device.
    bytes_per_second: W, that one device sends.
    """

    flops_per_second: float
    bytes_per_second: float


@dataclass(frozen=True)
class FeedForward:
    """Attributes:
    batch: B, tokens of the whole batch.
    d_model: D.
    d_ff: F.
    """

    batch: float
    d_model: float
    d_ff: float


@dataclass(frozen=True)
class Cost:
    """Seconds of one pass on one device."""

    compute: float
    communication: float

    @property
    def compute_bound(self) -> bool:
        """Whether the communication hides behind the computation."""
        return self.communication <= self.compute


def ring_gather_seconds(num_bytes: float, num_devices: int, machine: Machine) -> float:
    """Ring all-gather, or reduce-scatter: each device sends N - 1 pieces of 1/N of the whole."""
    return (num_devices - 1) / num_devices * num_bytes / machine.bytes_per_second


def ring_all_reduce_seconds(num_bytes: float, num_devices: int, machine: Machine) -> float:
    """A reduce-scatter, then an all-gather."""
    return 2 * ring_gather_seconds(num_bytes, num_devices, machine)


def whole_tensor_ring_seconds(num_bytes: float, num_devices: int, machine: Machine) -> float:
    """All-reduce that passes whole tensors around: N/2 times slower, since each step sends everything."""
    return (num_devices - 1) * num_bytes / machine.bytes_per_second


def data_parallel_backward(layer: FeedForward, num_devices: int, machine: Machine) -> Cost:
    """Each of three matrices costs two products of 2 B D F; the gradients, 6 D F bytes, are all-reduced."""
    return Cost(
        _flops(layer, backward=True) / num_devices / machine.flops_per_second,
        ring_all_reduce_seconds(_weight_bytes(layer), num_devices, machine),
    )


def fsdp_forward(layer: FeedForward, num_devices: int, machine: Machine) -> Cost:
    """The weights, 6 D F bytes, are gathered once."""
    return Cost(
        _flops(layer) / num_devices / machine.flops_per_second,
        ring_gather_seconds(_weight_bytes(layer), num_devices, machine),
    )


def fsdp_backward(layer: FeedForward, num_devices: int, machine: Machine) -> Cost:
    """The weights are gathered again, and their gradients reduce-scattered."""
    return Cost(
        _flops(layer, backward=True) / num_devices / machine.flops_per_second,
        2 * ring_gather_seconds(_weight_bytes(layer), num_devices, machine),
    )


def max_batch_sharded_devices(layer: FeedForward, machine: Machine) -> float:
    """N up to which data parallelism, and FSDP in both passes, is compute-bound: N - 1 <= B W / C.

    The same for all three, because bytes and FLOPs both double from forward to backward.
    """
    return 1 + layer.batch * machine.bytes_per_second / machine.flops_per_second


def tensor_parallel(layer: FeedForward, num_devices: int, machine: Machine, *, backward: bool = False) -> Cost:
    """W1 and W2 cut by columns, W3 by rows; in each direction one all-reduce of (B, D).

    Forward, the partial products `h W3` are summed into y. Backward, with g the gradient of y: every device
    has all of g, makes its slices `g W3^T` and from them its weights' gradients alone; the gradient of x
    is a sum over the slices of W1 and W2, hence over the devices.
    """
    return Cost(
        _flops(layer, backward=backward) / num_devices / machine.flops_per_second,
        ring_all_reduce_seconds(_VALUE_BYTES * layer.batch * layer.d_model, num_devices, machine),
    )


def max_tensor_parallel_devices(layer: FeedForward, machine: Machine, *, backward: bool = False) -> float:
    """N - 1 <= 3 F W / (2 C) forward, and twice that backward, where the same bytes hide behind twice the FLOPs."""
    return 1 + (3 if backward else 1.5) * layer.d_ff * machine.bytes_per_second / machine.flops_per_second


def fsdp_by_tensor_parallel_forward(
    layer: FeedForward, num_fsdp: float, num_tensor: float, machine: Machine, *, shared_network: bool = False
) -> Cost:
    """A grid: each device gathers 1/N_T of the weights and all-reduces 1/N_F of the activations.

    (N - 1)/N counts as 1. On separate axes the two overlap; on a shared network their times add up.
    """
    gather = _weight_bytes(layer) / num_tensor / machine.bytes_per_second
    reduce = 2 * _VALUE_BYTES * layer.batch * layer.d_model / num_fsdp / machine.bytes_per_second
    return Cost(
        _flops(layer) / (num_fsdp * num_tensor) / machine.flops_per_second,
        gather + reduce if shared_network else max(gather, reduce),
    )


def max_grid_devices(layer: FeedForward, machine: Machine, *, shared_network: bool = False) -> float:
    """N_F N_T up to which the best grid's forward is compute-bound.

    Separate axes: N_F <= B W / C and N_T <= 3 F W / (2 C), so their product 3 B F W^2 / (2 C^2). Shared:
    the sum is least where both parts are equal, each then half of the time: a quarter of that.
    """
    ratio = machine.bytes_per_second / machine.flops_per_second
    return 1.5 * layer.batch * layer.d_ff * ratio**2 * (0.25 if shared_network else 1)


def bucketed_overhead_seconds(
    num_bytes: float, num_buckets: float, bytes_per_second: float, call_seconds: float
) -> float:
    """What bucketed data parallelism adds to a step where making a bucket takes as long as sending it.

    Every bucket but the last hides behind the making of the next; the last one's s / (n w), and the cost of each
    call, stay: s / (n w) + n o.

    Args:
        num_bytes: s, of all gradients.
        bytes_per_second: w, of an all-reduce: its bytes over its time.
        call_seconds: o, of one call.

    Source: CS336 2025, assignment 2, problem ddp_bucketed.
    """
    return num_bytes / (num_buckets * bytes_per_second) + num_buckets * call_seconds


def best_bucket_bytes(num_bytes: float, bytes_per_second: float, call_seconds: float) -> float:
    """Size of a bucket at which `bucketed_overhead_seconds` is least: sqrt(s w o), from n = sqrt(s / (w o))."""
    return math.sqrt(num_bytes * bytes_per_second * call_seconds)


@dataclass(frozen=True)
class TwoLayerModel:
    """Blocks of two linear layers, D -> F -> D, and nothing else: the 2025 handout's XXL by default."""

    d_model: int = 16_384
    d_ff: int = 53_248
    num_blocks: int = 126

    @property
    def num_parameters(self) -> int:
        """Of all blocks."""
        return 2 * self.d_model * self.d_ff * self.num_blocks

    @property
    def master_bytes(self) -> int:
        """fp32 weights, accumulated gradients and optimizer states."""
        return _MASTER_BYTES * self.num_parameters

    def saved_bytes(self, num_tokens: int) -> int:
        """bf16 activations kept for the backward pass: the input of each linear layer."""
        return _VALUE_BYTES * (self.d_model + self.d_ff) * self.num_blocks * num_tokens

    def device_bytes(self, num_devices: int, num_tokens: int) -> float:
        """Of one device that holds 1/N of masters, gradients, states and of half of its activations.

        Args:
            num_tokens: of one device.
        """
        saved = self.saved_bytes(num_tokens)
        return self.master_bytes / num_devices + saved / 2 / num_devices + saved / 2

    def compute_bound_tokens(
        self, machine: Machine, *, num_fsdp: int, num_tensor: int, axes_fsdp: int = 1, axes_tensor: int = 1
    ) -> float:
        """Tokens of a whole batch from which a forward pass on a grid of devices is compute-bound.

        Compute 4 B D F / (X Y C); gather of weights 4 D F / (Y M_X W), which asks for B >= X C / (M_X W);
        activations 4 B D / (X M_Y W), which asks for F >= Y C / (M_Y W) at any batch.

        Args:
            machine: W of one mesh axis, both directions.
            axes_fsdp, axes_tensor: M_X and M_Y, mesh axes that each kind of parallelism uses.

        Raises:
            ValueError: no batch is large enough, since d_ff is too small for so much tensor parallelism.
        """
        ratio = machine.flops_per_second / machine.bytes_per_second
        needed = num_tensor * ratio / axes_tensor
        if self.d_ff < needed:
            raise ValueError(f"d_ff must be at least {needed:.0f} for {num_tensor} slices, got {self.d_ff}")
        return num_fsdp * ratio / axes_fsdp


def _flops(layer: FeedForward, *, backward: bool = False) -> float:
    return (12 if backward else 6) * layer.batch * layer.d_model * layer.d_ff


def _weight_bytes(layer: FeedForward) -> float:
    return _VALUE_BYTES * 3 * layer.d_model * layer.d_ff
