"""Pictures of instruction tuning and DPO."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cs336.pictures import new_figure, save, tidy

_FIELDS_A_ROW = 4
_TRAINED, _HELD_OUT = "#1f77b4", "#d62728"


def instruction_curve(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Loss of instruction tuning over the steps, on a batch and on what is held out."""
    figure = new_figure(6.0, 3.2)
    axes = figure.add_subplot()
    _draw(axes, rows, "train_loss", color=_TRAINED, label="training, one batch", lw=0.6, alpha=0.45)
    _draw(axes, rows, "valid_loss", "o-", color=_HELD_OUT, label="held out", ms=3)
    _dress(axes, "loss, nats per token")
    save(figure, path)


def preference_curves(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """DPO over the steps: loss, reward accuracies, and what the rewards of both sides and their margin do."""
    figure = new_figure(11.0, 3.4)
    loss, accuracy, reward = figure.subplots(1, 3)
    _draw(loss, rows, "train_loss", color=_TRAINED, label="training, one batch", lw=0.6, alpha=0.45)
    _draw(loss, rows, "valid_loss", "o-", color=_HELD_OUT, label="held out", ms=3)
    _dress(loss, "loss, nats per pair")
    _draw(accuracy, rows, "valid_accuracy", "o-", color=_HELD_OUT, label="chosen is likelier (policy)", ms=3)
    trained = [row for row in rows if row["step"]]  # before the first step both rewards are 0
    _draw(accuracy, trained, "valid_implicit_accuracy", "s-", color="#2ca02c", label="chosen has more reward", ms=3)
    accuracy.axhline(0.5, lw=0.8, ls=":", color="grey")
    _dress(accuracy, "share of held-out pairs")
    for column, label, color in (
        ("valid_chosen_reward", "chosen", "#2ca02c"),
        ("valid_rejected_reward", "rejected", "#ff7f0e"),
        ("valid_margin", "margin", _HELD_OUT),
    ):
        _draw(reward, rows, column, "o-", color=color, label=label, ms=3)
    reward.axhline(0.0, lw=0.8, ls=":", color="grey")
    _dress(reward, "reward, nats")
    save(figure, path)


def preferences_by_kind(
    runs: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]],
    shares: Mapping[str, tuple[float, float, float]],
    path: Path,
) -> None:
    """Reward accuracy and margin on held-out pairs, a colour a kind and a line a seed; and shares with intervals.

    Args:
        runs: rows of each seed's run, by kind.
        shares: share, low, high of right answers, by model.
    """
    figure = new_figure(11.0, 3.4)
    accuracy, margin, right = figure.subplots(1, 3)
    for place, (kind, of_seeds) in enumerate(runs.items()):
        for number, rows in enumerate(of_seeds):
            label = kind if number == 0 else None
            trained = [row for row in rows if row["step"]]  # before the first step both rewards are 0
            _draw(accuracy, trained, "valid_implicit_accuracy", "o-", color=f"C{place}", label=label, ms=3)
            _draw(margin, rows, "valid_margin", "o-", color=f"C{place}", label=label, ms=3)
    accuracy.axhline(0.5, lw=0.8, ls=":", color="grey")
    _dress(accuracy, "reward accuracy, held-out pairs")
    _dress(margin, "margin, held-out pairs, nats")
    _bars(right, shares)
    right.spines[["top", "right"]].set_visible(False)
    right.set_ylabel("problems answered rightly, %")
    save(figure, path)


def scores_by_model(scores: Mapping[str, Mapping[str, tuple[float, float, float]]], path: Path) -> None:
    """One field a task, a bar a model with its 95 % interval: share, low, high."""
    num_rows = -(-len(scores) // _FIELDS_A_ROW)
    figure = new_figure(11.0, 2.9 * num_rows)
    fields = figure.subplots(num_rows, _FIELDS_A_ROW, squeeze=False).flatten()
    for empty in fields[len(scores) :]:
        empty.set_axis_off()
    models = list(dict.fromkeys(model for of_task in scores.values() for model in of_task))
    for axes, (task, of_task) in zip(fields, scores.items(), strict=False):
        axes.spines[["top", "right"]].set_visible(False)
        _bars(axes, {model: of_task.get(model) for model in models})
        axes.set_ylim(0, max(5.0, axes.get_ylim()[1]))
        axes.set_title(task.replace(": ", ":\n", 1), fontsize=9)
        axes.set_ylabel("%")
    save(figure, path)


def _bars(axes: Any, shares: Mapping[str, tuple[float, float, float] | None]) -> None:
    """A bar a name with its interval, in percent; none where there is no share."""
    for place, share in enumerate(shares.values()):
        if share is not None:
            value, low, high = (100 * number for number in share)
            axes.bar([place], [value], color=f"C{place}")
            axes.errorbar([place], [value], yerr=[[value - low], [high - value]], color="black", capsize=3)
    axes.set_xticks(range(len(shares)), list(shares), rotation=35, ha="right", fontsize=8)


def _draw(axes: Any, rows: Sequence[Mapping[str, Any]], column: str, style: str = "-", **look: Any) -> None:
    there = [row for row in rows if column in row]
    axes.plot([row["step"] for row in there], [row[column] for row in there], style, **look)


def _dress(axes: Any, label: str) -> None:
    tidy(axes)
    axes.set_xlabel("steps")
    axes.set_ylabel(label)
    axes.legend(frameon=False, fontsize=8)
