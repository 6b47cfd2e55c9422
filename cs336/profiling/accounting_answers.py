"""The accounting questions of the handout on systems, answered by the formulas of `parallel/cost_model.py`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from cs336.parallel.cost_model import (
    Cost,
    FeedForward,
    Machine,
    TwoLayerModel,
    data_parallel_backward,
    fsdp_backward,
    fsdp_by_tensor_parallel_forward,
    fsdp_forward,
    max_batch_sharded_devices,
    max_grid_devices,
    max_tensor_parallel_devices,
    ring_all_reduce_seconds,
    ring_gather_seconds,
    tensor_parallel,
    whole_tensor_ring_seconds,
)

# A feed-forward of the contest's 8B model at its batch, on H100s: dense bf16, NVLink in one direction (data sheet).
LAYER = FeedForward(batch=65_536, d_model=4_096, d_ff=11_008)
H100 = Machine(flops_per_second=989e12, bytes_per_second=450e9)
NUM_DEVICES = 8
H100_BYTES = 80e9
V5P_BYTES = 95e9
V5P = Machine(flops_per_second=4.6e14, bytes_per_second=2 * 9e10)  # the handout's figures
NUM_FSDP, NUM_TENSOR, AXES_FSDP, AXES_TENSOR = 16, 4, 2, 1  # X, Y, M_X, M_Y


class Answer(NamedTuple):
    """A question, its formula, why it is so, and its value for an example."""

    question: str
    formula: str
    reason: str
    example: str


@dataclass(frozen=True)
class Limit:
    """The number of devices up to which a pass is compute-bound, beside the pass itself."""

    name: str
    devices: float
    cost: Callable[[int], Cost]


def limits(layer: FeedForward = LAYER, machine: Machine = H100) -> list[Limit]:
    """Those of the questions in one dimension."""

    def backward_of_slices(count: int) -> Cost:
        return tensor_parallel(layer, count, machine, backward=True)

    everywhere = max_batch_sharded_devices(layer, machine)
    return [
        Limit("data parallel, backward", everywhere, lambda count: data_parallel_backward(layer, count, machine)),
        Limit("FSDP, forward", everywhere, lambda count: fsdp_forward(layer, count, machine)),
        Limit("FSDP, backward", everywhere, lambda count: fsdp_backward(layer, count, machine)),
        Limit(
            "tensor parallel, forward",
            max_tensor_parallel_devices(layer, machine),
            lambda count: tensor_parallel(layer, count, machine),
        ),
        Limit(
            "tensor parallel, backward",
            max_tensor_parallel_devices(layer, machine, backward=True),
            backward_of_slices,
        ),
    ]


def accounting_answers(
    layer: FeedForward = LAYER, machine: Machine = H100, num_devices: int = NUM_DEVICES
) -> list[Answer]:
    """The questions of 2026: a gated feed-forward under each kind of parallelism."""
    bound = {limit.name: f"compute-bound up to N = {int(limit.devices):,}" for limit in limits(layer, machine)}

    def at(cost: Cost, name: str) -> str:
        return f"N = {num_devices}: {_ms(cost.compute)} computing, {_ms(cost.communication)} sending; {bound[name]}"

    weights = 2 * 3 * layer.d_model * layer.d_ff
    whole, ring = (
        whole_tensor_ring_seconds(weights, num_devices, machine),
        ring_all_reduce_seconds(weights, num_devices, machine),
    )
    gather = ring_gather_seconds(weights, num_devices, machine)
    separate = max_grid_devices(layer, machine)
    shared = max_grid_devices(layer, machine, shared_network=True)
    grid = fsdp_by_tensor_parallel_forward(layer, num_devices / 2, 2, machine)
    together = fsdp_by_tensor_parallel_forward(layer, num_devices / 2, 2, machine, shared_network=True)
    return [
        Answer(
            "Ring all-gather or reduce-scatter, ring all-reduce",
            "(N−1)/N·S/W; 2(N−1)/N·S/W",
            "each device sends N−1 pieces of S/N, and an all-reduce is both, one after the other.",
            f"{weights / 1e6:,.0f} MB, N = {num_devices}: {_ms(gather)}; {_ms(ring)}",
        ),
        Answer(
            "All-reduce that passes whole tensors around the ring",
            "(N−1)·S/W",
            "each of N−1 steps sends all of S instead of a piece of S/N, which is N/2 times as long.",
            f"N = {num_devices}: {_ms(whole)}, {whole / ring:.3g} times",
        ),
        Answer(
            "Data parallelism, backward",
            "12BDF/N FLOP; 12DF/W·(N−1)/N; compute-bound while N−1 ≤ BW/C",
            "two products of 2BDF for each of three matrices are split over N, while an all-reduce of their 6DF bytes"
            " of gradients hardly depends on N.",
            at(data_parallel_backward(layer, num_devices, machine), "data parallel, backward"),
        ),
        Answer(
            "FSDP, forward",
            "6BDF/N FLOP; 6DF/W·(N−1)/N; compute-bound while N−1 ≤ BW/C",
            "one product for each matrix, whose 6DF bytes are gathered once: half of both.",
            at(fsdp_forward(layer, num_devices, machine), "FSDP, forward"),
        ),
        Answer(
            "FSDP, backward",
            "12BDF/N FLOP; 12DF/W·(N−1)/N; compute-bound while N−1 ≤ BW/C",
            "weights are gathered again and gradients reduce-scattered, together the bytes of one all-reduce.",
            at(fsdp_backward(layer, num_devices, machine), "FSDP, backward"),
        ),
        Answer(
            "Tensor parallelism: W1, W2 by columns, W3 by rows; forward",
            "y = Σₙ (f(xW1ₙ) ∗ xW2ₙ) W3ₙ; 6BDF/N FLOP; 4BD/W·(N−1)/N; compute-bound while N−1 ≤ 3FW/(2C)",
            "columns need all of x and give a slice of the inside, rows turn it into a partial sum of y: one"
            " all-reduce of 2BD bytes, and B cancels.",
            at(tensor_parallel(layer, num_devices, machine), "tensor parallel, forward"),
        ),
        Answer(
            "The same, backward, g the gradient of y",
            "dhₙ = gW3ₙᵀ; dW3ₙ = hₙᵀg; dW1ₙ, dW2ₙ = xᵀ(daₙ), xᵀ(dbₙ); dx = Σₙ (daₙW1ₙᵀ + dbₙW2ₙᵀ); 12BDF/N FLOP;"
            " 4BD/W·(N−1)/N; compute-bound while N−1 ≤ 3FW/C",
            "every device has all of g and makes its slices' gradients alone; only dx is a sum over devices, so the"
            " same all-reduce hides behind twice the FLOPs.",
            at(tensor_parallel(layer, num_devices, machine, backward=True), "tensor parallel, backward"),
        ),
        Answer(
            "FSDP × tensor parallelism, forward, axes of their own",
            "6BDF/N FLOP; max(6DF/(N_T·W), 4BD/(N_F·W)); compute-bound while N ≤ 3BFW²/(2C²)",
            "each device gathers 1/N_T of the weights and sums 1/N_F of the activations at the same time, so each axis"
            " has its own limit and N their product.",
            f"{num_devices // 2} x 2: {_ms(grid.compute)} computing, {_ms(grid.communication)} sending; up to"
            f" N = {int(separate):,}",
        ),
        Answer(
            "The same, axes that share the network",
            "6DF/(N_T·W) + 4BD/(N_F·W); compute-bound while N ≤ 3BFW²/(8C²)",
            "the two add up; the sum is least where both are equal, each then half of the time, so each axis has half"
            " its limit and N a quarter.",
            f"{num_devices // 2} x 2: {_ms(together.communication)} sending; up to N = {int(shared):,}",
        ),
    ]


def xxl_answers(model: TwoLayerModel | None = None) -> list[Answer]:
    """The questions of 2025 on XXL: 126 blocks of two linear layers."""
    xxl = model or TwoLayerModel()
    tokens = xxl.compute_bound_tokens(
        V5P, num_fsdp=NUM_FSDP, num_tensor=NUM_TENSOR, axes_fsdp=AXES_FSDP, axes_tensor=AXES_TENSOR
    )
    per_device = tokens / (NUM_FSDP * NUM_TENSOR)
    own = -(-tokens // (NUM_FSDP * NUM_TENSOR))
    fewest = [fewest_devices(xxl, int(count), V5P_BYTES) for count in (0, own)]
    saved = xxl.saved_bytes(1)
    return [
        Answer(
            "(a) fp32 masters, accumulated gradients and states; bf16 saved for backward",
            "16·2·D·F·L; 2(D + F)·L a token",
            "four numbers of 4 bytes for each weight; of each linear layer its input.",
            f"{xxl.num_parameters / 1e9:.1f} B parameters: {xxl.master_bytes / 1e12:.3g} TB,"
            f" {xxl.master_bytes / H100_BYTES:.3g} H100s of 80 GB; {saved / 1e6:.3g} MB a token, so"
            f" {saved * tokens / 1e9:,.3g} GB or {saved * tokens / H100_BYTES:.2g} H100s for the batch of (c)",
        ),
        Answer(
            "(b) Per device, masters, gradients, states and half of the activations sharded",
            "(16P + a/2)/N + a/2, a the bytes saved for the device's tokens",
            "what is sharded shrinks with N, the other half of the activations does not.",
            f"below {V5P_BYTES / 1e9:.0f} GB from N_FSDP = {fewest[0]} on without activations, from {fewest[1]} on with"
            f" {int(own):,} tokens a device",
        ),
        Answer(
            f"(c) Forward on X = {NUM_FSDP} (FSDP, {AXES_FSDP} axes), Y = {NUM_TENSOR} (tensor): least batch",
            "B ≥ X·C/(M_X·W), if F ≥ Y·C/(M_Y·W)",
            "computing 4BDF/(XYC) has to cover the gather 4DF/(Y·M_X·W), from which D, F and Y cancel.",
            f"{tokens:,.0f} tokens in all, {per_device:,.0f} a device",
        ),
        Answer(
            "(d) A smaller batch at the same throughput",
            "",
            "The batch is bound by the gather of weights, so anything that sends fewer bytes of weights for each FLOP"
            " helps: more tensor parallelism, as long as F ≥ Y·C/(M_Y·W), on more mesh axes; pipeline stages, which"
            " send activations of a stage in place of weights (GPipe, arXiv:1811.06965; without bubbles,"
            " arXiv:2401.10241); weights gathered within a small group only and replicated between groups (MiCS,"
            " arXiv:2205.00119), or in 8 bits (ZeRO++, arXiv:2306.10209); and slices of the sequence over devices, so"
            " that fewer sequences fill them (arXiv:2205.05198, arXiv:2310.01889).",
            "",
        ),
    ]


def fewest_devices(model: TwoLayerModel, num_tokens: int, device_bytes: float) -> int:
    """The least number of devices on which each needs less than `device_bytes`.

    Raises:
        ValueError: no number is enough, since half of the activations is not sharded.
    """
    if model.saved_bytes(num_tokens) / 2 >= device_bytes:
        raise ValueError(f"the activations of {num_tokens} tokens alone fill {device_bytes / 1e9:.0f} GB")
    count = 1
    while model.device_bytes(count, num_tokens) >= device_bytes:
        count += 1
    return count


def page() -> str:
    """All answers as Markdown."""
    setting = (
        f"`y = (f(xW1) ∗ xW2) W3`, values of 2 bytes; B = {LAYER.batch:,}, D = {LAYER.d_model:,}, F = {LAYER.d_ff:,},"
        f" C = {H100.flops_per_second / 1e12:.0f} TFLOP/s, W = {H100.bytes_per_second / 1e9:.0f} GB/s in the examples."
    )
    parts = ["## Feed-forward (2026)", setting, *map(_as_markdown, accounting_answers())]
    parts += ["## XXL (2025)", *map(_as_markdown, xxl_answers())]
    return "\n\n".join(parts)


def _as_markdown(answer: Answer) -> str:
    formula = f" `{answer.formula}`" if answer.formula else ""
    example = f" *{answer.example}.*" if answer.example else ""
    reason = answer.reason[0].upper() + answer.reason[1:]
    return f"**{answer.question}.**{formula}\n{reason}{example}"


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms"
