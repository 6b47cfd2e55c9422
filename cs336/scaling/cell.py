"""A cell of the grid: one model, one nominal budget, one way to train; what follows from them in closed form."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from cs336.scaling.accounting import num_parameters, num_steps

PRECISIONS = ("float32", "bfloat16")
_SHAPE = re.compile(r"(\d+)x(\d+)x(\d+)")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run to be made.

    Attributes:
        compute_budget: nominal FLOPs, `6 * parameters * tokens`.
        precision: of the matrix products, "float32" or "bfloat16"; sums and weights are fp32 always.

    Raises:
        ValueError: a setting out of range, or heads that do not divide the width.
    """

    d_model: int
    num_layers: int
    num_heads: int
    batch_size: int
    learning_rate: float
    compute_budget: float
    seed: int = 0
    vocab_size: int = 32_000
    context_length: int = 512
    precision: str = "bfloat16"

    def __post_init__(self) -> None:
        for name in ("d_model", "num_layers", "num_heads", "batch_size", "vocab_size", "context_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is 1 or more, got {getattr(self, name)}")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision is {' or '.join(PRECISIONS)}, got {self.precision!r}")
        if self.d_model % self.num_heads:
            raise ValueError(f"num_heads must divide d_model, got {self.num_heads} heads for {self.d_model}")
        if not self.learning_rate > 0 or not self.compute_budget > 0 or math.isinf(self.compute_budget):
            raise ValueError(
                f"learning_rate and compute_budget are above 0, got {self.learning_rate} and {self.compute_budget}"
            )

    @property
    def name(self) -> str:
        """Unique among the cells of a grid; a partition's key."""
        shape = f"{self.d_model}x{self.num_layers}x{self.num_heads}"
        seed = f"-s{self.seed}" if self.seed else ""
        budget = f"{self.compute_budget:.0e}".replace("+", "")
        return f"{budget}-{shape}-b{self.batch_size}-lr{self.learning_rate:g}{seed}"

    @property
    def parameters(self) -> int:
        """Non-embedding parameters, `12 L d²`."""
        return num_parameters(self.num_layers, self.d_model)

    @property
    def tokens_per_step(self) -> int:
        return self.batch_size * self.context_length

    @property
    def steps(self) -> int:
        """Whole steps that the budget pays for; 0 where it does not pay for one."""
        return num_steps(self.compute_budget, self.parameters, self.batch_size, self.context_length)

    @property
    def tokens(self) -> int:
        return self.steps * self.tokens_per_step


def parse_shape(text: str) -> tuple[int, int, int]:
    """(d_model, num_layers, num_heads) of a text such as "512x8x8".

    Raises:
        ValueError: it is not of that form.
    """
    match = _SHAPE.fullmatch(text)
    if match is None:
        raise ValueError(f"a shape is written d_modelxlayersxheads, such as 512x8x8, got {text!r}")
    d_model, num_layers, num_heads = map(int, match.groups())
    return d_model, num_layers, num_heads
