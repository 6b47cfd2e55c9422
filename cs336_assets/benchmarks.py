"""Rows of `benchmarks/results/` as assets: measured by `python -m benchmarks`, here or elsewhere."""

from __future__ import annotations

from pathlib import Path

import dagster as dg

RESULTS = Path(__file__).resolve().parent.parent / "benchmarks" / "results"


def subject_of(rows: Path) -> str | None:
    """Whose rows a file has: `SUBJECT.jsonl`, or older ones in `SUBJECT.jsonl.gz`; None for other files."""
    subject, _, suffix = rows.name.partition(".")
    return subject if suffix in ("jsonl", "jsonl.gz") else None


def result_assets() -> list[dg.AssetSpec]:
    """One external asset per subject; `cs336 adopt` reports its rows."""
    subjects = sorted({subject for subject in map(subject_of, RESULTS.iterdir()) if subject})
    return [
        dg.AssetSpec(
            key=dg.AssetKey(["benchmarks", subject]),
            group_name="benchmarks",
            kinds={"python"},
            owners=["team:systems"],
            description=f"Figures of `python -m benchmarks {subject}`: ours beside the peers, each row with its"
            f" hardware and commit. `cs336 adopt benchmarks/results/{subject}.jsonl` brings new rows in, and with"
            " `.jsonl.gz` those that were packed.",
        )
        for subject in subjects
    ]
