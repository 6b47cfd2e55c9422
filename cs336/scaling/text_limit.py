"""Approach 2 where the text ends first: the best size among those that do not read it too often.

With a text of U tokens that may be read E times, no budget C can train fewer than C / (6 E U) parameters. From some
budget on, the lowest loss is that of this size: no profile has sizes on both sides of its minimum any more, and what
can be extrapolated is the best loss under the limit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cs336.scaling.accounting import num_tokens
from cs336.scaling.isoflops import Minima, fit_frontier, lowest_runs
from cs336.scaling.measurements import CannotFit, Measurements
from cs336.scaling.power_law import Array, Frontier, fit_floored, fit_log_log
from cs336.scaling.uncertainty import HeldOut, compared

TEXT_LIMIT = "text limit"
NUM_DRAWS, SEED = 1_000, 0
_NEARLY = 0.9  # of the limit: the next smaller shape of a ladder would exceed it
_LOSS_NUMBERS, _SIZE_NUMBERS = 3, 2  # of the laws


@dataclass(frozen=True)
class TextLimit:
    """Finds and extrapolates the best sizes under a limit of tokens.

    Attributes:
        max_tokens: that a run may read: unique tokens by epochs.
        num_draws: of the residuals; 0 for none.
        seed: of the draws.
    """

    max_tokens: float
    num_draws: int = NUM_DRAWS
    seed: int = SEED

    def minima(self, runs: Measurements) -> Minima:
        """The lowest run at each budget; one of the smallest size counts where a smaller one would exceed the limit."""
        found = lowest_runs(runs)
        smallest = np.array([runs.parameters[runs.compute == budget].min() for budget in runs.budgets])
        at_limit = (found.parameters == smallest) & (found.tokens >= _NEARLY * self.max_tokens)
        return Minima(found.compute, found.parameters, found.losses, found.bracketed | at_limit)

    def __call__(self, runs: Measurements) -> tuple[Frontier, Frontier]:
        """The frontier under the limit, and those of bootstrap draws of its residuals, arrays of one number a draw.

        Raises:
            CannotFit: fewer than five budgets have a best size under the limit; a law of three numbers would be exact.
        """
        minima = self.minima(runs)
        use = minima.bracketed
        if use.sum() < _LOSS_NUMBERS + 2:
            raise CannotFit(
                f"{int(use.sum())} of {len(use)} budgets have their lowest loss between two sizes or where the text"
                f" ends; a law with a floor and its residuals need {_LOSS_NUMBERS + 2}: add budgets or smaller sizes"
            )
        compute, parameters, losses = minima.compute[use], minima.parameters[use], minima.losses[use]
        best = fit_frontier(Minima(compute, parameters, losses, use[use]))
        generator = np.random.default_rng(self.seed)

        def drawn(values: Array, law: Array, numbers: int) -> Array:
            residuals = (values - law) * np.sqrt(len(values) / (len(values) - numbers))
            return law + generator.choice(residuals, size=(self.num_draws, len(values)))

        of_size = np.exp(drawn(np.log(parameters), np.log(best.parameters(compute)), _SIZE_NUMBERS))
        of_loss = drawn(losses, best.loss(compute), _LOSS_NUMBERS)
        sizes, tokens = fit_log_log(compute, of_size), fit_log_log(compute, num_tokens(compute, of_size))
        return best, Frontier(sizes, tokens, fit_floored(compute, of_loss))

    def held_out(self, runs: Measurements) -> HeldOut:
        """The error at the largest budget with a best size under the limit, of a fit to those below.

        Raises:
            CannotFit: they allow none.
        """
        minima = self.minima(runs)
        if not minima.bracketed.any():
            raise CannotFit("no budget has a best size under the limit, so none to compare a prediction with")
        last = int(np.flatnonzero(minima.bracketed)[-1])
        frontier, _ = self(runs.where(runs.compute < minima.compute[last]))
        return compared(frontier, minima, last)
