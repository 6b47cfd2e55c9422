"""What a study says: sentences and tables, as one page of Markdown and as LaTeX."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cs336.files import replacing
from cs336.profiling.tables import latex_table, markdown_table


@dataclass(frozen=True)
class Table:
    """Rows to be shown.

    Attributes:
        rows: one line each.
        columns: key in a row -> heading, in order.
        title: above it.
    """

    rows: Sequence[dict[str, Any]]
    columns: dict[str, str]
    title: str = ""


@dataclass(frozen=True)
class Page:
    """Sentences in Markdown, then tables."""

    text: str = ""
    tables: Sequence[Table] = field(default=())

    def markdown(self) -> str:
        """The page; a table without rows says so."""
        parts = [self.text] if self.text else []
        for table in self.tables:
            parts += [f"**{table.title}**"] if table.title else []
            parts.append(markdown_table(table.rows, table.columns) if table.rows else "Nothing was measured.")
        return "\n\n".join(parts) + "\n"

    def latex(self) -> str:
        """The tables, with their titles as captions."""
        return "\n\n".join(
            latex_table(table.rows, table.columns, caption=table.title) for table in self.tables if table.rows
        )

    def write(self, folder: Path) -> None:
        """`page.md`, and the tables alone as `tables.tex`."""
        for name, text in (("page.md", self.markdown()), ("tables.tex", self.latex() + "\n")):
            with replacing(folder / name, "w") as file:
                file.write(text)
