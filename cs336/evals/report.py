"""Scores with confidence intervals, as rows and as tables for terminals and Markdown."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypedDict

Z_95 = 1.959963984540054  # the normal distribution's 97.5% point

# metric in an evaluation's results -> its name in a table
METRIC_NAMES = {
    "accuracy": "accuracy, generated",
    "choice_accuracy": "accuracy, likeliest choice",
    "choice_per_byte_accuracy": "accuracy, likeliest choice per byte",
    "unparseable_share": "unparseable outputs",
    "bits_per_byte": "bits per byte",
    "nats_per_token": "nats per token",
    "perplexity": "perplexity",
    "win_rate": "win rate",
    "lc_win_rate": "win rate, length-controlled",
    "safe": "safe replies",
}

_PERCENTAGES = (
    "accuracy",
    "choice_accuracy",
    "choice_per_byte_accuracy",
    "unparseable_share",
    "win_rate",
    "lc_win_rate",
    "safe",
)
_COLUMNS = ("preset", "model", "task", "set", "metric", "score", "95% interval", "n", "measured")
_RIGHT_ALIGNED = ("score", "95% interval", "n")


class ScoreRow(TypedDict):
    """One number of one model, with all that is needed to read it.

    Attributes:
        preset: which preset's graph the model belongs to.
        model: the model's name.
        task: "mmlu", "gsm8k", "perplexity".
        set_name: which questions or documents: "mmlu", "mmlu sample", "held-out documents".
        metric: a key of `METRIC_NAMES`.
        value: shares from 0 to 1, not percent.
        low, high: 95% interval; None where there is none.
        num_examples: questions, or predicted tokens.
        measured: where: "here", or the machine of a run made elsewhere.
    """

    preset: str
    model: str
    task: str
    set_name: str
    metric: str
    value: float
    low: float | None
    high: float | None
    num_examples: int
    measured: str


def wilson_interval(num_correct: int, num_examples: int, *, z: float = Z_95) -> tuple[float, float]:
    """Confidence interval of a share, good also for few examples and for shares of 0 and 1.

    Args:
        num_correct: successes.
        num_examples: trials.
        z: the normal quantile; the default gives 95%.

    Returns:
        Lowest and highest share in the interval, both within 0 to 1.

    Raises:
        ValueError: no examples, or more correct than there are.

    Source: Wilson 1927, JASA 22(158), 209-212.
    """
    if num_examples < 1:
        raise ValueError(f"an interval needs at least one example, got {num_examples}")
    if not 0 <= num_correct <= num_examples:
        raise ValueError(f"{num_correct} correct of {num_examples} is no share; check the counts")
    share = num_correct / num_examples
    scale = 1 + z * z / num_examples
    centre = (share + z * z / (2 * num_examples)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / num_examples + z * z / (4 * num_examples**2))
    # At the ends the formula gives exactly 0 and 1; rounding may miss them by one unit.
    low = 0.0 if num_correct == 0 else max(0.0, centre - half)
    high = 1.0 if num_correct == num_examples else min(1.0, centre + half)
    return low, high


class Share(NamedTuple):
    """A share with its 95% interval, or, of a difference, points from -1 to 1 with theirs."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.1%} ({self.low:.1%} to {self.high:.1%})"


def difference(first: Share, second: Share) -> Share:
    """How much larger the first of two shares is, measured on samples of their own, with the 95% interval.

    Of shares on the same questions, which both find easy or hard alike, the interval is wider than need be.

    Source: Newcombe 1998, Statistics in Medicine 17, 873-890, method 10: from both Wilson intervals.
    """
    value = first.value - second.value
    below = math.hypot(first.value - first.low, second.high - second.value)
    above = math.hypot(first.high - first.value, second.value - second.low)
    return Share(value, value - below, value + above)


def score_rows(
    metrics: Mapping[str, Any], *, preset: str, model: str, task: str, set_name: str, measured: str = "here"
) -> list[ScoreRow]:
    """The metrics of one evaluation as rows of the score table, in the order of `METRIC_NAMES`.

    Args:
        metrics: `EvalResult.metrics` or what `evaluate_perplexity` returned; `metric_low` and
            `metric_high` are a metric's interval.
    """
    return [
        ScoreRow(
            preset=preset,
            model=model,
            task=task,
            set_name=set_name,
            metric=metric,
            value=metrics[metric],
            low=metrics.get(f"{metric}_low"),
            high=metrics.get(f"{metric}_high"),
            num_examples=metrics["num_predicted"] if "num_predicted" in metrics else metrics["num_examples"],
            measured=measured,
        )
        for metric in METRIC_NAMES
        if metric in metrics
    ]


def format_score(metric: str, value: float, *, low: float | None = None, high: float | None = None) -> str:
    """A score as people read it: `26.7% (17.1–39.0%)`, `1.234`."""
    interval = _format_interval(metric, low, high)
    return _format_value(metric, value) + (f" ({interval})" if interval else "")


def text_table(rows: Sequence[ScoreRow]) -> str:
    """The score table for a terminal, columns lined up; one line when there are no scores."""
    if not rows:
        return "no scores yet"
    return lined_up([_cells(row) for row in rows], _COLUMNS, right_aligned=_RIGHT_ALIGNED)


def lined_up(cells: Sequence[Mapping[str, str]], columns: Sequence[str], *, right_aligned: Sequence[str]) -> str:
    """A table for a terminal, a line a row below the columns' names."""
    lines = [dict(zip(columns, columns, strict=True)), *cells]
    widths = {column: max(len(line[column]) for line in lines) for column in columns}
    lines.insert(1, {column: "-" * widths[column] for column in columns})
    return "\n".join(
        "  ".join(
            line[column].rjust(widths[column]) if column in right_aligned else line[column].ljust(widths[column])
            for column in columns
        ).rstrip()
        for line in lines
    )


def markdown_table(rows: Sequence[ScoreRow]) -> str:
    """The score table in Markdown; one line when there are no scores."""
    if not rows:
        return "no scores yet"
    lines = [
        list(_COLUMNS),
        ["---:" if column in _RIGHT_ALIGNED else "---" for column in _COLUMNS],
        *([cell.replace("|", "\\|") for cell in _cells(row).values()] for row in rows),
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cells(row: ScoreRow) -> dict[str, str]:
    metric = row["metric"]
    values = (
        row["preset"],
        row["model"],
        row["task"],
        row["set_name"],
        METRIC_NAMES.get(metric, metric),
        _format_value(metric, row["value"]),
        _format_interval(metric, row["low"], row["high"]),
        f"{row['num_examples']:,}",
        row["measured"],
    )
    return dict(zip(_COLUMNS, values, strict=True))


def _format_interval(metric: str, low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return ""
    return f"{_format_value(metric, low).removesuffix('%')}–{_format_value(metric, high)}"


def _format_value(metric: str, value: float) -> str:
    if metric in _PERCENTAGES:
        return f"{100 * value:.1f}%"
    return f"{value:,.2f}" if metric == "perplexity" else f"{value:.3f}"
