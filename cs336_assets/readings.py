"""Pages to be read, and on them what their reader found.

What a reader found stands in `sheets/PRESET_KIND.toml`, a table for each item, as the verdicts of inspection sheets do:

    [failures]
    verdict = "Half of the wrong sums forget the carry."
    labels = {outputs = "0f3a9c21"}     # the mark of what was read, as the item shows it

Where the mark is another one than the item's, the page says that other outputs were read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cs336.files import replacing, sha256_of_file
from cs336.fingerprint import digest
from cs336.sheets import Verdict, read_verdicts, verdicts_file
from cs336_assets.asset import Metadata
from cs336_assets.step import Step

PAGE_FILE = "page.md"
_SHOWN = 400  # characters of a text on a page


@dataclass(frozen=True)
class Readings:
    """The pages of one kind.

    Attributes:
        kind: ends the name of the file of verdicts.
        items: what its tables are called.
    """

    kind: str
    items: tuple[str, ...]

    def version(self, root: Path) -> str:
        """Changes when somebody has read something."""
        written = sorted(verdicts_file("x").parent.glob(f"*_{self.kind}.toml"))
        return digest({path.name: sha256_of_file(path) for path in written})

    def finish(self, step: Step, item: str, page: Sequence[str], *, read: Any) -> Metadata:
        """Write the page with what its reader found.

        Args:
            read: what there is to read, by which readings of other outputs are told.
        """
        mark = digest(read)[:8]
        verdict = read_verdicts(verdicts_file(f"{step.preset}_{self.kind}"), self.items)[item]
        text = "\n\n".join([_reading(verdict, mark), *page])
        write_page(step, text)
        return {
            "is_read": verdict.is_read and verdict.labels.get("outputs") == mark,
            "mark": mark,
            item: {"markdown": text},
        }


def _reading(verdict: Verdict, mark: str) -> str:
    if not verdict.is_read:
        return f"*Not read yet (mark {mark}).*"
    other = "" if verdict.labels.get("outputs") == mark else f" (Written of other outputs; these have the mark {mark}.)"
    return f"**Read:** {verdict.text}{other}"


def write_page(step: Step, page: str) -> None:
    """The page as a file of the artifact."""
    with replacing(step.folder / PAGE_FILE, "w") as file:
        file.write(page + "\n")


def cut(text: str) -> str:
    """The beginning of a text."""
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]} …"
