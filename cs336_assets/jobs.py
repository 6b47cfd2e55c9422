"""Named selections of a preset's graph."""

from __future__ import annotations

import dagster as dg

from cs336.presets import Preset
from cs336_assets.asset import PLAN_ASSET, STAGES
from cs336_assets.selections import GROUPS, PLAN_JOB


def job_assets(job: str) -> list[str]:
    """Assets of a job; the plan has its own, since it decides which shards the others have."""
    if job == PLAN_JOB:
        return [PLAN_ASSET]
    return [stage.name for stage in STAGES.values() if stage.group in GROUPS[job] and stage.name != PLAN_ASSET]


def build_jobs(preset: Preset) -> list:
    """`plan`, then `data`, `pretrain`, `evals`, or `all` of them."""
    descriptions = {
        PLAN_JOB: "Decide what to crawl; makes the shards that the other jobs are partitioned by.",
        "data": "From the crawl to token arrays.",
        "data_quality": "How good the filters are, on labelled data.",
        "pretrain": "Train the base model.",
        "evals": "Score the base model, and the leaderboard.",
        "parallel": "Training on several devices: correctness, time and memory of each form.",
        "all": "Everything after the plan.",
    }
    return [
        dg.define_asset_job(
            f"{preset.name}_{job}",
            selection=[dg.AssetKey([preset.name, name]) for name in job_assets(job)],
            description=description,
        )
        for job, description in descriptions.items()
    ]
