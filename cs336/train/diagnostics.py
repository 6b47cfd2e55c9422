"""Norms of weights, gradients and activations: what to watch when a run does not learn."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from cs336.model.transformer import TransformerLM

if TYPE_CHECKING:
    from jaxtyping import Int


@torch.no_grad()
def weight_norms(model: nn.Module) -> dict[str, float]:
    """l2 norm of each parameter, by its name."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    return _norms(names, list(parameters))


@torch.no_grad()
def gradient_norms(model: nn.Module) -> dict[str, float]:
    """l2 norm of each gradient that exists, by its parameter's name."""
    present = [(name, parameter.grad) for name, parameter in model.named_parameters() if parameter.grad is not None]
    return _norms([name for name, _ in present], [gradient for _, gradient in present])


@torch.no_grad()
def activation_norms(model: TransformerLM, inputs: Int[Tensor, "batch seq"]) -> dict[str, float]:
    """Root mean square of what the embedding, each sublayer and each block give out, by its name.

    One more forward pass, without dropout; random streams and gradients stay as they are.
    """
    watched: dict[str, nn.Module] = {"token_embeddings": model.token_embeddings}
    for number, layer in enumerate(model.layers):
        watched[f"layers.{number}"] = layer
        watched |= {f"layers.{number}.{name}": part for name, part in layer.named_children() if name in ("attn", "ffn")}
    seen: dict[str, Tensor] = {}

    def watch(name: str) -> None:
        def note(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            seen[name] = output.float().square().mean().sqrt()

        handles.append(watched[name].register_forward_hook(note))

    handles: list[torch.utils.hooks.RemovableHandle] = []
    was_training = model.training
    model.eval()
    try:
        for name in watched:
            watch(name)
        model.hidden_states(inputs)
    finally:
        for handle in handles:
            handle.remove()
        model.train(was_training)
    return dict(zip(seen, torch.stack(list(seen.values())).tolist(), strict=True))


def _norms(names: list[str] | tuple[str, ...], tensors: list[Tensor]) -> dict[str, float]:
    if not tensors:
        return {}
    return dict(zip(names, torch.stack(torch._foreach_norm(tensors)).tolist(), strict=True))
