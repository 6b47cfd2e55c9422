"""Small pictures for asset metadata."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure  # no pyplot: nothing global, safe in threads


def _axes(width: float = 6.0, height: float = 3.2) -> Any:
    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    return figure, axes


def training_curve(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Training and validation loss over the tokens seen, and the learning rate behind them."""
    figure, axes = _axes()
    tokens = [row["num_tokens"] / 1e6 for row in rows]
    axes.plot(
        tokens, [row["train_loss"] for row in rows], lw=0.6, alpha=0.45, color="#1f77b4", label="training, one batch"
    )
    valid = [row for row in rows if "valid_loss" in row]
    axes.plot(
        [row["num_tokens"] / 1e6 for row in valid],
        [row["valid_loss"] for row in valid],
        "o-",
        ms=3,
        color="#d62728",
        label="held-out documents",
    )
    axes.set_xlabel("million tokens seen")
    axes.set_ylabel("loss, nats per token")
    axes.legend(frameon=False, loc="upper right")
    rate = axes.twinx()
    rate.plot(tokens, [row["learning_rate"] for row in rows], lw=0.8, ls=":", color="grey")
    rate.set_ylabel("learning rate", color="grey")
    rate.spines[["top"]].set_visible(False)
    _save(figure, path)


def ledger_bars(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """What each filter dropped, in documents."""
    figure, axes = _axes(height=0.4 * len(rows) + 1.0)
    names = [row["filter"] for row in rows]
    axes.barh(names, [row["dropped"] for row in rows], color="#d62728")
    for position, row in enumerate(rows):
        axes.text(row["dropped"], position, f" {row['dropped']:,}", va="center", fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("documents dropped")
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    # Without the version note, the same data gives the same bytes.
    figure.savefig(path, format="png", metadata={"Software": None})
