"""Which learning rate each size of a profile has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cs336.scaling.cell import Cell
    from cs336.scaling.runs import Run


@dataclass(frozen=True, kw_only=True, order=True)
class Rates:
    """Which learning rate each width of a profile has: one for all, or one over the width.

    AdamW's best rate falls as one over the width (Yang et al., 2022, "Tensor Programs V"): one rate for all is too low
    for the small sizes of a profile, too high for its large ones, or both.

    Attributes:
        constant: the rate of all widths, or 0.
        per_width: rate times `d_model`, or 0.
    """

    constant: float = 0.0
    per_width: float = 0.0

    def at(self, d_model: int) -> float:
        """The rate of a width; one over the width to three digits, as names and rows have it."""
        return self.constant or float(f"{self.per_width / d_model:.3g}")

    def __str__(self) -> str:
        return f"{self.constant:g}" if self.constant else f"{self.per_width:g}/width"

    @classmethod
    def of(cls, run: Run | Cell) -> tuple[Rates, Rates]:
        """Both rules that a run may belong to."""
        return cls(constant=run.learning_rate), cls(per_width=float(f"{run.learning_rate * run.d_model:.2g}"))
