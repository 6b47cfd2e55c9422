"""Small pictures for asset metadata."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cs336.pictures import new_figure, save, shade, tidy


def _axes(width: float = 6.0, height: float = 3.2) -> Any:
    figure = new_figure(width, height)
    axes = figure.add_subplot()
    tidy(axes)
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
    save(figure, path)


def loss_curves(curves: Mapping[str, Sequence[dict[str, Any]]], path: Path) -> None:
    """Validation loss of several runs, over the tokens seen and over the seconds of training.

    Those that differ in the seed alone have one color.
    """
    figure = new_figure(9.0, 3.8)
    sides = figure.subplots(1, 2, sharey=True)
    groups = list(dict.fromkeys(name.partition("-seed-")[0] for name in curves))
    for axes, column, scale, label in zip(
        sides, ("num_tokens", "seconds"), (1e-6, 1.0), ("million tokens seen", "seconds of training"), strict=True
    ):
        tidy(axes)
        axes.set_xlabel(label)
        for name, rows in curves.items():
            group = name.partition("-seed-")[0]
            color = shade(groups.index(group), len(groups))
            places = [row[column] * scale for row in rows]
            axes.plot(places, [row["valid_loss"] for row in rows], "-", lw=1.1, color=color, label=group)
    losses = [row["valid_loss"] for rows in curves.values() for row in rows]
    if losses and max(losses) > min(losses) + 3:  # the first steps, all alike, would flatten the rest
        ends = [rows[-1]["valid_loss"] for rows in curves.values() if rows]
        top = max([min(losses) + 3, *(end + 0.1 for end in ends if end < min(losses) + 5)])
        sides[0].set_ylim(min(losses) - 0.1, top)
    sides[0].set_ylabel("validation loss, nats per token")
    if len(groups) <= 30:
        lines, names = sides[0].get_legend_handles_labels()
        legend = dict(zip(names, lines, strict=True))
        figure.legend(legend.values(), legend.keys(), loc="outside right center", frameon=False, fontsize=7)
    save(figure, path)


def loss_over_rate(groups: Mapping[str, Sequence[dict[str, Any]]], path: Path) -> None:
    """Final validation loss over the learning rate, a line a group; runs that diverged stand at the top edge."""
    figure, axes = _axes()
    axes.set_xscale("log")
    losses = [run["valid_loss"] for runs in groups.values() for run in runs if not run["diverged"]]
    top = max(losses, default=1.0) + 0.1
    for name, runs in groups.items():
        ordered = sorted(runs, key=lambda run: run["learning_rate"])
        sound = [run for run in ordered if not run["diverged"]]
        places, heights = [run["learning_rate"] for run in sound], [run["valid_loss"] for run in sound]
        (line,) = axes.plot(places, heights, "o-", ms=4, lw=1.2, label=name)
        lost = [run["learning_rate"] for run in ordered if run["diverged"]]
        if lost:
            axes.plot(lost, [top] * len(lost), "x", ms=7, color=line.get_color(), label=f"{name} diverged".strip())
    axes.set_xlabel("learning rate")
    axes.set_ylabel("validation loss, nats per token")
    if any(axes.get_legend_handles_labels()[1]):
        axes.legend(frameon=False, fontsize=7)
    save(figure, path)


def means_with_spread(values: Mapping[str, tuple[float, float]], path: Path) -> None:
    """Means over seeds with their standard deviation."""
    figure, axes = _axes(height=0.4 * len(values) + 1.0)
    for place, (mean, spread) in enumerate(values.values()):
        axes.errorbar([mean], [place], xerr=[spread], fmt="o", capsize=4, color="#1f77b4")
        axes.annotate(
            f"{mean:.3f} ± {spread:.3f}", (mean, place), xytext=(0, 7), textcoords="offset points", fontsize=7
        )
    axes.set_yticks(range(len(values)), list(values))
    axes.invert_yaxis()
    axes.set_xlabel("validation loss, nats per token")
    save(figure, path)


def ledger_bars(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """What each filter dropped, in documents."""
    figure, axes = _axes(height=0.4 * len(rows) + 1.0)
    names = [row["filter"] for row in rows]
    axes.barh(names, [row["dropped"] for row in rows], color="#d62728")
    for position, row in enumerate(rows):
        axes.text(row["dropped"], position, f" {row['dropped']:,}", va="center", fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("documents dropped")
    save(figure, path)


def compression(by_size: Mapping[int, float], others: Mapping[str, tuple[int, float]], path: Path) -> None:
    """Bytes per token over the entries of the vocabulary, and where other presets' tokenizers stand on this text."""
    figure, axes = _axes()
    axes.plot(
        list(by_size), list(by_size.values()), "o-", ms=3, color="#1f77b4", label="this training, stopped earlier"
    )
    for place, (name, (size, value)) in enumerate(others.items(), 1):
        axes.plot([size], [value], "s", ms=5, color=f"C{place}", label=f"tokenizer of {name}")
    axes.set_xscale("log", base=2)
    axes.set_xlabel("entries of the vocabulary")
    axes.set_ylabel("bytes per token")
    axes.legend(frameon=False, loc="lower right", fontsize=8)
    save(figure, path)


def stacked_shares(shares: Mapping[str, Mapping[str, float]], path: Path) -> None:
    """One bar for each name, cut into its parts, which add up to 1."""
    figure, axes = _axes(height=0.4 * len(shares) + 1.2)
    left = [0.0] * len(shares)
    for part in next(iter(shares.values())):
        widths = [row[part] for row in shares.values()]
        bars = axes.barh(list(shares), widths, left=left, label=part)
        axes.bar_label(
            bars, [f"{width:.0%}" if width > 0.04 else "" for width in widths], label_type="center", fontsize=8
        )
        left = [before + width for before, width in zip(left, widths, strict=True)]
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xlabel("share of the forward pass's FLOPs")
    axes.legend(frameon=False, ncols=4, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    save(figure, path)


def losses_by_rate(losses: Mapping[float, Sequence[float]], path: Path) -> None:
    """Loss over steps for each learning rate, on a logarithmic scale; a loss of 0 is not drawn."""
    figure, axes = _axes()
    for rate, values in losses.items():
        axes.plot(range(len(values)), [value or float("nan") for value in values], "o-", ms=3, label=f"{rate:g}")
    axes.set_yscale("log")
    axes.set_xlabel("steps done")
    axes.set_ylabel("loss")
    axes.legend(frameon=False, title="learning rate", loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)
    save(figure, path)


def precision_recall(curves: Mapping[str, Sequence[tuple[bool, float]]], path: Path) -> None:
    """Precision over recall as the threshold falls from 1 to 0, for (is positive, score) of held-out texts."""
    figure, axes = _axes()
    for name, scored in curves.items():
        ordered = sorted(scored, key=lambda pair: -pair[1])
        num_positives = max(1, sum(label for label, _ in ordered))
        points = []
        right = 0
        for taken, (label, _) in enumerate(ordered, 1):
            right += label
            points.append((right / num_positives, right / taken))
        axes.plot([recall for recall, _ in points], [precision for _, precision in points], lw=1.2, label=name)
        axes.axhline(num_positives / max(1, len(ordered)), lw=0.8, ls=":", color="grey")  # chance
    axes.set_xlim(0, 1.02)
    axes.set_ylim(0, 1.05)
    axes.set_xlabel("recall")
    axes.set_ylabel("precision")
    axes.legend(frameon=False, fontsize=8, loc="lower left")
    save(figure, path)


def accuracy_by_length(curves: Mapping[str, Mapping[int, float]], path: Path) -> None:
    """Share of texts in their right language over the number of sentences in them, a line a detector."""
    figure, axes = _axes()
    for name, by_length in curves.items():
        axes.plot(list(by_length), list(by_length.values()), "o-", ms=4, lw=1.2, label=name)
    axes.set_xscale("log")
    lengths = sorted({length for by_length in curves.values() for length in by_length})
    axes.set_xticks(lengths, [str(length) for length in lengths])
    axes.set_xlabel("sentences in a text")
    axes.set_ylabel("right language")
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    save(figure, path)
