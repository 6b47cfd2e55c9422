"""Runs that nobody trained: their losses come from a law, bent towards the start, with effects of all settings."""

import dataclasses
import itertools

import numpy as np

from cs336.scaling.accounting import num_parameters
from cs336.scaling.loss_model import Configuration
from cs336.scaling.runs import Run
from cs336.scaling.surrogate import BUDGETS
from tests.scaling.test_runs import made_run as made_row

INITIAL_LOSS = 10.45
SHAPES = [(64, 2, 2), (128, 2, 2), (192, 3, 3), (192, 4, 4), (256, 4, 4), (320, 5, 5), (384, 6, 6), (512, 8, 8)]
SHAPES += [(512, 2, 4), (320, 2, 8), (128, 8, 2), (192, 8, 2), (64, 5, 4)]  # off the ladder


def made_loss(asked: Configuration) -> float:
    """What a run of this configuration would lose, were the world so."""
    parameters = num_parameters(asked.num_layers, asked.d_model)
    tokens = asked.train_flops / (6 * parameters)
    if not asked.steps:
        return INITIAL_LOSS
    loss = 1.9 + 300 / parameters**0.33 + 700 / tokens**0.31
    best_rate = 1e-3 * (parameters / 1e6) ** -0.1
    loss *= 1 + 0.02 * np.log(asked.learning_rate / best_rate) ** 2
    loss *= 1 + 0.004 * np.log(asked.d_model / asked.num_layers / 50) ** 2
    loss *= 1 + 0.01 * (asked.batch_size == 256)
    return float((INITIAL_LOSS**-7 + loss**-7) ** (-1 / 7))


def made_run(asked: Configuration, *, loss: float | None = None, seed: int = 0, **changes) -> Run:
    """A row of the grid with that loss."""
    loss = made_loss(asked) if loss is None else loss
    values = {
        **dataclasses.asdict(asked),
        "parameters": num_parameters(asked.num_layers, asked.d_model),
        "compute_budget": asked.train_flops,
        "final_loss": loss,
        "valid_loss": loss,
        "seed": seed,
        "steps": asked.steps,
        "tokens": asked.steps * asked.batch_size * 512,
        "data": "made from a law, not trained",
    }
    return made_row(**(values | changes))


def made_runs(
    *, noise: float = 0.0, keep: float = 0.5, budgets=BUDGETS[:8], seed: int = 0, max_steps: int = 5_000
) -> list[Run]:
    """A share of a grid of sizes, budgets, batch sizes and rates, with noise in nats."""
    draw = np.random.default_rng(seed)
    runs = []
    for shape, budget, batch_size, rate in itertools.product(SHAPES, budgets, (128, 256), (2e-4, 5e-4, 1e-3)):
        asked = configuration(*shape, batch_size, rate, budget)
        kept, error = draw.random() < keep, noise * draw.normal()
        if kept and 1 <= asked.steps <= max_steps:
            runs.append(made_run(asked, loss=made_loss(asked) + error))
    return runs


def configuration(d_model, num_layers, num_heads, batch_size, learning_rate, train_flops) -> Configuration:
    """The six values in the API's order."""
    return Configuration(
        d_model=d_model,
        num_layers=num_layers,
        num_heads=num_heads,
        batch_size=batch_size,
        learning_rate=learning_rate,
        train_flops=train_flops,
    )
