"""Rows of `benchmarks/results/` as assets: measured by `python -m benchmarks`, here or elsewhere."""

from __future__ import annotations

from pathlib import Path

import dagster as dg

RESULTS = Path(__file__).resolve().parent.parent / "benchmarks" / "results"


def result_assets() -> list[dg.AssetSpec]:
    """One external asset per subject; `cs336 adopt` reports its rows."""
    return [
        dg.AssetSpec(
            key=dg.AssetKey(["benchmarks", path.stem]),
            group_name="benchmarks",
            kinds={"python"},
            owners=["team:systems"],
            description=f"Figures of `python -m benchmarks {path.stem}`: ours beside the peers, each row with its"
            f" hardware and commit. `cs336 adopt benchmarks/results/{path.name}` brings new rows in.",
        )
        for path in sorted(RESULTS.glob("*.jsonl"))
    ]
