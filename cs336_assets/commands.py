"""Console commands that need the graph: run, demo, adopt."""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from cs336.cli import add_preset_option
from cs336.files import UserError

if TYPE_CHECKING:
    import dagster as dg

PROCESS_TAG = "cs336/process"
PROJECT = Path(__file__).resolve().parent.parent


def register(commands: argparse._SubParsersAction) -> None:
    """Add the commands to `cs336`'s parser."""
    command = commands.add_parser("run", help="materialize a job of the graph: plan the crawl, then make what changed")
    command.add_argument("--job", default="all", choices=["plan", "data", "pretrain", "evals", "all"])
    add_preset_option(command)
    command.set_defaults(run=lambda options: run(options.preset, options.job))

    command = commands.add_parser("demo", help="the whole chain at preset tiny, then the scores")
    add_preset_option(command)
    command.set_defaults(run=_demo)

    command = commands.add_parser(
        "adopt",
        help="take over a run made on another machine, marked `measured elsewhere`",
        description="FOLDER holds an artifact with its manifest (copied from another machine's artifact folder),"
        " or is a benchmark result file of benchmarks/results/. It is checked against the manifest, copied into the"
        " artifacts, and reported to Dagster as a materialization.",
    )
    command.add_argument("folder", type=Path, help="run folder, or benchmarks/results/SUBJECT.jsonl")
    command.add_argument("--replace", action="store_true", help="also where this machine has made the artifact itself")
    command.set_defaults(run=_adopt)


def run(preset: str, job: str) -> None:
    """Materialize a job in this process, with bars; what is unchanged is skipped.

    Raises:
        UserError: an asset failed; the line says which and why.
    """
    use_project_home()
    import dagster as dg

    from cs336.presets import find_preset
    from cs336_assets.binding import partitions_of
    from cs336_assets.definitions import build_definitions
    from cs336_assets.flow import STAGES
    from cs336_assets.jobs import PLAN_JOB, job_assets
    from cs336_assets.resources import Runtime

    chosen = find_preset(preset)
    definitions = build_definitions(chosen, runtime=Runtime.from_environment(terminal=True))
    with dg.DagsterInstance.get() as instance:
        close_dead_runs(instance)
        if job in (PLAN_JOB, "data", "all"):
            _execute(definitions, f"{preset}_{PLAN_JOB}", instance, {})
        if job == PLAN_JOB:
            return
        tags = {}
        if any(STAGES[name].per_shard for name in job_assets(job)):
            keys = instance.get_dynamic_partitions(partitions_of(chosen).name or "")
            if not keys:
                raise UserError(f"{preset}: the crawl has no shards; check its source with `cs336 presets {preset}`")
            tags = {"dagster/asset_partition_range_start": keys[0], "dagster/asset_partition_range_end": keys[-1]}
        _execute(definitions, f"{preset}_{job}", instance, tags)


def _execute(definitions: dg.Definitions, job: str, instance: dg.DagsterInstance, tags: dict[str, str]) -> None:
    result = definitions.resolve_job_def(job).execute_in_process(
        instance=instance,
        tags=tags | {PROCESS_TAG: _process_mark(os.getpid()) or ""},
        run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},  # the event log has it all
        raise_on_error=False,
    )
    made = skipped = 0
    for event in result.get_asset_materialization_events():
        unchanged = bool(event.materialization.metadata["unchanged"].value)
        skipped, made = skipped + unchanged, made + (not unchanged)
    print(f"{job}: {made} artifacts made, {skipped} unchanged and skipped")
    for evaluation in result.get_asset_check_evaluations():
        if not evaluation.passed:
            facts = evaluation.description or {name: value.value for name, value in evaluation.metadata.items()}
            print(f"{job}: check {evaluation.check_name} of {evaluation.asset_key.to_user_string()} failed: {facts}")
    if not result.success:
        raise UserError(_first_failure(result))


def _first_failure(result: dg.ExecuteInProcessResult) -> str:
    for event in result.all_events:
        if event.is_step_failure:
            data = event.step_failure_data
            if data.user_failure_data and data.user_failure_data.description:
                return f"{event.step_key}: {data.user_failure_data.description}"
            error = data.error.cause or data.error if data.error else None
            text = error.message.strip().splitlines()[-1] if error else "failed"
            return f"{event.step_key}: {text} (the whole traceback is in the run's log: `make ui`)"
    return "the run failed; `make ui` shows its log"


def _demo(options: argparse.Namespace) -> int:
    from cs336.cli import main
    from cs336.store import Store

    start = time.monotonic()
    run(options.preset, "all")
    print()
    main(["scores"])
    print(f"\nartifacts  {Store(options.preset).folder}")
    print(f"took       {time.monotonic() - start:,.0f} s")
    print("the graph  make ui, then http://127.0.0.1:3000")
    print("read text  cs336 look    (in .venv/bin)")
    return 0


def _adopt(options: argparse.Namespace) -> None:
    use_project_home()
    import dagster as dg

    from cs336_assets.adopt import adopt

    with dg.DagsterInstance.get() as instance:
        print(adopt(options.folder, instance, replace=options.replace))


def use_project_home() -> None:
    """Dagster's home is the project's own unless the environment names another."""
    os.environ.setdefault("DAGSTER_HOME", str(PROJECT / "dagster_home"))


def close_dead_runs(instance: dg.DagsterInstance) -> None:
    """End runs of `cs336 run` whose process was killed, and free their places in the pools.

    Nothing else would: Dagster watches only the runs that it launched itself.
    """
    import dagster as dg

    unfinished = dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.STARTING])
    for run in instance.get_runs(filters=unfinished):
        mark = run.tags.get(PROCESS_TAG)
        if mark and _process_mark(int(mark.partition(" ")[0])) != mark:
            instance.report_run_failed(run, message=f"process {mark.partition(' ')[0]} ended without a word (killed?)")
            instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)


def _process_mark(pid: int) -> str | None:
    """Process id and start time (ids are used again); None when there is no such process."""
    try:
        started = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except FileNotFoundError:
        if Path("/proc/self").exists():
            return None
        started = ""  # a system without /proc: the id must do
    return f"{pid} {started}"
