"""The training step that the studies of parallel training time, the same under every form of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from cs336.model.transformer import TransformerLM
from cs336.parallel.process_group import Rank
from cs336.profiling.parallel_config import ParallelConfig, StepSetting
from cs336.profiling.rank_cells import Rows, Say, Stopwatch, run_cell
from cs336.profiling.spread import ROUND, pooled
from cs336.train.loss import cross_entropy


def fresh_ranks(config: ParallelConfig) -> Callable[..., Callable[[], dict[str, Any]]]:
    """(function, arguments) -> what runs it as a cell on the study's ranks; see `run_cell`."""

    def cell(function: Callable[..., Any], *arguments: Any) -> Callable[[], dict[str, Any]]:
        return lambda: run_cell(
            function, config.world_size, *arguments, device=config.device, timeout_seconds=config.timeout_seconds
        )

    return cell


def by_turns(
    config: ParallelConfig,
    contenders: Sequence[tuple[dict[str, Any], Callable[[], dict[str, Any]]]],
    rows: Rows,
    say: Say,
) -> list[dict[str, Any]]:
    """Measure each contender once a round, one after the other; returns a row for each, its rounds together.

    One that is out of memory, or fails, is left out of the rounds after.

    Args:
        contenders: each with its cell, and what measures it.
    """
    # A turn is a job, not a step: at xl weights, gradients and states of one contender take 51 GiB, whole, and its
    # update 63, so two do not fit on a GPU. A job for each turn also lets none leave its memory's state to the next.
    found: list[list[dict[str, Any]]] = [[] for _ in contenders]
    for number in range(config.num_rounds):
        for (cell, run), own in zip(contenders, found, strict=True):
            if all("ms" in row for row in own):
                own.append(rows.measure(cell | {ROUND: number}, run, say))
    return pooled(row for own in found for row in own)


def measured_sizes(
    config: ParallelConfig, measure: Callable[[StepSetting], list[dict[str, Any]]]
) -> list[dict[str, Any]]:
    """Rows of the size that is studied; if a cell of it did not fit, those of the smaller size too."""
    rows = measure(config.setting())
    if any("state" in row for row in rows) and config.smaller_size:
        rows += measure(config.setting(config.smaller_size))
    return rows


def new_model(setting: StepSetting, device: torch.device) -> TransformerLM:
    """The same weights on every rank, in fp32, made on the device; TF32 where products stay in fp32."""
    torch.set_float32_matmul_precision("high")
    torch.manual_seed(0)
    model = TransformerLM(setting.model, device=device).train()
    if device.type == "cuda":  # the reference holds all scores
        model.use_attention_kernel("fused")
    return model.recompute_in_segments(setting.layers_per_segment)


def random_batch(setting: StepSetting, place: Rank) -> tuple[Tensor, Tensor]:
    """Inputs and targets of this rank, drawn by its number."""
    generator = torch.Generator().manual_seed(1 + place.rank)
    shape = (2, setting.batch_size, setting.model.context_length)
    ids = torch.randint(setting.model.vocab_size, shape, generator=generator).to(place.device)
    return ids[0], ids[1]


def training_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: tuple[Tensor, Tensor],
    precision: str,
    synchronize_gradients: Callable[[], object],
    *,
    zero_grad: Callable[[], object] | None = None,
    before_update: Callable[[], object] | None = None,
) -> Callable[[Stopwatch], Tensor]:
    """A full step: zero_grad, forward, loss, backward, gradients over the ranks, update.

    Args:
        precision: "bfloat16" runs forward and loss under autocast.
        zero_grad: in place of the optimizer's, where gradients are kept elsewhere too.
        before_update: called once the gradients are there.

    Returns:
        The step; it marks "forward", "backward", "synchronization" and "optimizer", for a profiler too, and returns
        the loss.
    """
    inputs, targets = batch

    def step(watch: Stopwatch) -> Tensor:
        watch.mark("start")
        (zero_grad or optimizer.zero_grad)()
        low = torch.autocast(inputs.device.type, torch.bfloat16, enabled=precision == "bfloat16")
        with record_function("forward"), low:
            loss = cross_entropy(model(inputs).float(), targets)
        watch.mark("forward")
        with record_function("backward"):
            loss.backward()
        watch.mark("backward")
        with record_function("synchronization"):
            synchronize_gradients()
        watch.mark("synchronization")
        if before_update is not None:
            before_update()
        with record_function("optimizer"):
            optimizer.step()
        watch.mark("optimizer")
        return loss.detach()

    return step


def tensor_bytes(tensors: Iterable[Tensor | None]) -> int:
    """Of distinct tensors; of one that is distributed over ranks, this rank's part."""
    distinct = {id(tensor): tensor for tensor in tensors if tensor is not None}
    here = [tensor.to_local() if hasattr(tensor, "to_local") else tensor for tensor in distinct.values()]
    return sum(tensor.numel() * tensor.element_size() for tensor in here)


def fullest(counted: Iterable[dict[str, int]]) -> dict[str, int]:
    """Of the ranks' bytes by kind, those of the rank that holds most."""
    return max(counted, key=lambda kinds: sum(kinds.values()))


def held_by_kind(parameters: Iterable[Tensor], optimizer: torch.optim.Optimizer) -> dict[str, int]:
    """Bytes of this rank's parameters, gradients and optimizer states, by counting its tensors."""
    parameters = list(parameters)
    states = [value for values in optimizer.state.values() for value in values.values() if isinstance(value, Tensor)]
    return {
        "parameters": tensor_bytes(parameters),
        "gradients": tensor_bytes(parameter.grad for parameter in parameters),
        "states": tensor_bytes(states),
    }
