"""Rows of measurements as tables: Markdown to read, LaTeX to hand in. Nothing is typed by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

OUT_OF_MEMORY = "out of memory"
_LATEX = {"\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "_": r"\_", "#": r"\#", "$": r"\$"}


def markdown_table(rows: Sequence[dict[str, Any]], columns: dict[str, str]) -> str:
    """A table in Markdown, its columns aligned: numbers to the right.

    Args:
        rows: one line each.
        columns: key in a row -> heading, in order; a key that a row lacks leaves its cell empty.
    """
    heads, body, right = _cells(rows, columns)
    widths = [max(3, *(len(line[place]) for line in [heads, *body])) for place in range(len(heads))]
    rule = [
        ("-" * (width - 1) + ":") if is_right else "-" * width for width, is_right in zip(widths, right, strict=True)
    ]
    lines = []
    for line in [heads, rule, *body]:
        padded = [
            cell.rjust(width) if is_right else cell.ljust(width)
            for cell, width, is_right in zip(line, widths, right, strict=True)
        ]
        lines.append(f"| {' | '.join(padded)} |")
    return "\n".join(lines)


def latex_table(rows: Sequence[dict[str, Any]], columns: dict[str, str], *, caption: str = "") -> str:
    """The same as a `table` in LaTeX, with booktabs' rules.

    Args:
        caption: above the table; none if empty.
    """
    heads, body, right = _cells(rows, columns)
    layout = "".join("r" if is_right else "l" for is_right in right)
    lines = [" & ".join(map(_escaped, line)) + r" \\" for line in [heads, *body]]
    inner = [rf"\begin{{tabular}}{{{layout}}}", r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule"]
    inner.append(r"\end{tabular}")
    title = [rf"\caption{{{_escaped(caption)}}}"] if caption else []
    return "\n".join([r"\begin{table}", r"\centering", *title, *inner, r"\end{table}"])


def span(values: Sequence[float], form: str) -> str:
    """The least to the largest of them, in a format; one number where both read alike."""
    low, high = format(min(values), form), format(max(values), form)
    return low if low == high else f"{low} to {high}"


def _cells(rows: Sequence[dict[str, Any]], columns: dict[str, str]) -> tuple[list[str], list[list[str]], list[bool]]:
    """Headings, cells as text, and which columns hold numbers."""
    values = [[row.get(key) for key in columns] for row in rows]
    right = [any(isinstance(line[place], int | float) for line in values) for place in range(len(columns))]
    return list(columns.values()), [[_text(value) for value in line] for line in values], right


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):  # three significant digits, as far as a timing carries
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return str(value).replace("|", "/").replace("\n", " ")


def _escaped(text: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in text)
