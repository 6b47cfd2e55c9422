"""The whole graph of one preset, for Dagster."""

from __future__ import annotations

import dagster as dg

from cs336.preset_lookup import find_preset
from cs336.presets import Preset
from cs336_assets import benchmarks
from cs336_assets.binding import bind_check, bind_stage
from cs336_assets.contest_run import scaling_contest
from cs336_assets.executors import executor_of
from cs336_assets.flow import CHECKS, STAGES
from cs336_assets.jobs import build_jobs
from cs336_assets.resources import Runtime


def build_definitions(preset: str | Preset, *, runtime: Runtime | None = None) -> dg.Definitions:
    """The whole graph of one preset; asset keys start with its name.

    Args:
        preset: a preset, or the name of one (built in, or from `presets.toml`).
        runtime: this machine's choices; from the environment by default.

    Raises:
        UserError: no preset has that name.
    """
    chosen = find_preset(preset) if isinstance(preset, str) else preset
    runtime = runtime or Runtime.from_environment()
    assets = [bind_stage(stage, chosen, runtime) for stage in STAGES.values()]
    return dg.Definitions(
        assets=[*assets, *benchmarks.result_assets()],
        asset_checks=[bind_check(check, chosen) for check in CHECKS.values()],
        jobs=[*build_jobs(chosen), scaling_contest],
        resources={"runtime": runtime},
        executor=executor_of(runtime),
    )
