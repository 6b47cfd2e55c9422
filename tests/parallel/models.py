"""Small models with what makes parallel training hard, and one process's training to compare with."""

from __future__ import annotations

import copy

import torch
from torch import nn

from cs336.model.transformer import ModelConfig, TransformerLM
from cs336.train.loss import cross_entropy

VOCAB = 13


class Mixed(nn.Module):
    """Rows that no world size divides, a frozen weight, an unused one, buffers, and tied ends."""

    def __init__(self, *, tied: bool = False, unused: bool = True) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCAB, 6)
        self.norm = nn.LayerNorm(6)
        self.first = nn.Linear(6, 7)
        self.frozen = nn.Linear(7, 3, bias=False)
        self.frozen.weight.requires_grad_(False)
        self.last = nn.Linear(3, 6)
        self.head = nn.Linear(6, VOCAB, bias=False)
        if unused:
            self.unused = nn.Linear(5, 2)
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.register_buffer("shift", torch.tensor([0.25, -0.5]))
        self.register_buffer("flags", torch.tensor([True, False]))
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.embed(ids))
        x = torch.tanh(self.first(x))
        return self.head(self.last(self.frozen(x)) * self.scale + self.shift[0])


class Block(nn.Module):
    """Takes and returns two tensors; has frozen weights and an unused one, and rows that no world size divides."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)  # its backward comes after all gradients
        self.norm = nn.LayerNorm(6)
        self.up = nn.Linear(6, 7)
        self.frozen = nn.Linear(7, 5, bias=False)
        for frozen in (self.first, self.frozen):
            frozen.weight.requires_grad_(False)
        self.down = nn.Linear(5, 6, bias=False)
        self.unused = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor, *, total: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        h = self.down(self.frozen(torch.tanh(self.up(self.norm(self.first(x))))))
        return x + h, total + h


class Feed(nn.Module):
    """A block whose second weight may have a dtype of its own."""

    def __init__(self, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4)
        self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 4, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(self.up(self.norm(x)).to(self.down.weight.dtype)).to(x.dtype)


class Blocks(nn.Module):
    """Blocks of which one is frozen, two share a weight, and one runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCAB, 6)
        self.layers = nn.ModuleList(Block() for _ in range(3))
        self.layers[1].requires_grad_(False)
        self.layers[2].down.weight = self.layers[0].down.weight
        self.head = nn.Linear(6, VOCAB)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = total = self.embed(ids)
        for layer in (*self.layers, self.layers[0]):
            x, total = layer(x, total=total)
        return self.head(x + total)


def transformer(*, tied: bool = False) -> TransformerLM:
    """Ours, of 2 layers."""
    return TransformerLM(
        ModelConfig(context_length=8, d_model=16, num_layers=2, num_heads=2, d_ff=24, vocab_size=VOCAB, tied=tied)
    )


MODELS = {
    "mixed": lambda: Mixed(),
    "mixed, tied": lambda: Mixed(tied=True),
    "blocks": lambda: Blocks(),
    "transformer": lambda: transformer(),
    "transformer, tied": lambda: transformer(tied=True),
}


def names_for(world_size: int) -> list[str]:
    """All models on two ranks; on more, one of each kind, of which one is tied."""
    return list(MODELS) if world_size == 2 else ["mixed", "blocks", "transformer, tied"]


def made(name: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return MODELS[name]()


def batches(num_steps: int, batch_size: int = 8) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(3)
    shape = (num_steps, 2, batch_size, 8)
    ids = torch.randint(VOCAB, shape, generator=generator)
    return [(inputs, targets) for inputs, targets in ids]


def loss_of(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return cross_entropy(model(batch[0]).float(), batch[1])


def slice_of(batch: tuple[torch.Tensor, torch.Tensor], rank: int, world_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    return batch[0].chunk(world_size)[rank], batch[1].chunk(world_size)[rank]


def reference(model: nn.Module, make_optimizer, num_steps: int) -> list[dict[str, torch.Tensor]]:
    """Weights after each step of one process on whole batches."""
    model = copy.deepcopy(model)
    optimizer = make_optimizer(model.parameters())
    states = []
    for batch in batches(num_steps):
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        optimizer.step()
        states.append(copy.deepcopy(model.state_dict()))
    return states
