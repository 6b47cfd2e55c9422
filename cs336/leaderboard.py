"""Scores of all presets, read from the artifacts' manifests."""

from __future__ import annotations

from pathlib import Path

from cs336.evals.report import ScoreRow
from cs336.files import read_json
from cs336.fingerprint import digest
from cs336.store import MANIFEST

SCORES_FILE = "scores.json"


def score_folders(root: Path) -> list[Path]:
    """Artifacts that hold scores, of every preset, cells too, in a fixed order."""
    found = [path for cells in ("", "*/") for path in root.glob(f"*/[!.]*/{cells}{SCORES_FILE}")]
    return sorted(path.parent for path in found if (path.parent / MANIFEST).exists())


def collect_scores(root: Path) -> list[ScoreRow]:
    """Every score there is; a run measured elsewhere says where.

    Args:
        root: folder of all presets' artifacts.
    """
    rows: list[ScoreRow] = []
    for folder in score_folders(root):
        elsewhere = read_json(folder / MANIFEST).get("measured_elsewhere")
        for row in read_json(folder / SCORES_FILE):
            rows.append(row | {"measured": elsewhere["hardware"] if elsewhere else "here"})
    return rows


def scores_version(root: Path) -> str:
    """Changes when any preset's scores do."""
    manifests = [(folder.relative_to(root).parts[0], read_json(folder / MANIFEST)) for folder in score_folders(root)]
    return digest([[preset, each["fingerprint"], each.get("measured_elsewhere")] for preset, each in manifests])
