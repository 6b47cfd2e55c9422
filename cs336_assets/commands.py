"""Console commands that need the graph: run, demo, ui, adopt."""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from cs336.cli import add_preset_option
from cs336.files import UserError
from cs336.processes import uncollected
from cs336.service.commands import POOLS
from cs336_assets import cost, provenance_commands
from cs336_assets.selections import EXPERIMENTS, GROUPS, PLAN_JOB, REASONING, REASONING_CHAIN, SWEEPS

if TYPE_CHECKING:
    import dagster as dg

    from cs336.presets import Preset

PROCESS_TAG = "cs336/process"
PROJECT = Path(__file__).resolve().parent.parent


def register(commands: argparse._SubParsersAction) -> None:
    """Add the commands to `cs336`'s parser."""
    command = commands.add_parser("run", help="materialize a job of the graph: plan the crawl, then make what changed")
    command.add_argument(
        "--job",
        default="all",
        choices=["plan", *GROUPS, "experiments", *SWEEPS],
        help="default: %(default)s, which leaves out the experiments: they train many models",
    )
    add_preset_option(command)
    command.add_argument(
        "--cells",
        metavar="FIRST...LAST",
        help="of a sweep only the runs from FIRST to LAST, to share it between GPUs; then run the job without this",
    )
    command.set_defaults(run=lambda options: run(options.preset, options.job, options.cells))

    command = commands.add_parser("demo", help="the whole chain at preset tiny, then the scores")
    add_preset_option(command)
    command.set_defaults(run=_demo)

    command = commands.add_parser("ui", help="open the graph in the browser: `dagster dev` on the project")
    command.add_argument("--port", type=int, default=3000, help="default: %(default)s")
    command.set_defaults(run=_ui)

    command = commands.add_parser(
        "adopt",
        help="take over a run made on another machine, marked `measured elsewhere`",
        description="FOLDER holds an artifact with its manifest (copied from another machine's artifact folder),"
        " or several of them below it, or is a benchmark result file of benchmarks/results/. Each is checked against"
        " its manifest, copied into the artifacts, and reported to Dagster as a materialization.",
    )
    command.add_argument(
        "folder", type=Path, help="run folder, folder of runs, or benchmarks/results/SUBJECT.jsonl, packed or not"
    )
    command.add_argument("--replace", action="store_true", help="also where this machine has made the artifact itself")
    command.set_defaults(run=_adopt)

    POOLS["dagster"] = "cs336_assets.contest_run:DagsterPool"
    provenance_commands.register(commands)
    cost.register(commands)


def run(preset: str, job: str, cells: str | None = None, *, base_model_is_made: bool = False) -> None:
    """Materialize a job in this process, with bars; what is unchanged is skipped.

    Args:
        cells: FIRST...LAST: of a sweep only these runs, and what they need, but not the study of them.
        base_model_is_made: by the caller, just before: the job that would begin with it does not look.

    Raises:
        UserError: an asset failed, and the line says which and why; or the job has no such cells.
    """
    if cells is not None and job not in SWEEPS:
        raise UserError(f"--cells: only the runs of an experiment can be chosen; give --job {'|'.join(SWEEPS)}")
    use_project_home()
    with uncollected():
        import dagster as dg

        from cs336.preset_lookup import find_preset
        from cs336_assets.graph import build_definitions
        from cs336_assets.jobs import job_assets
        from cs336_assets.resources import Runtime

        chosen = find_preset(preset)
        definitions = build_definitions(chosen, runtime=Runtime.from_environment(terminal=True))
    with dg.DagsterInstance.get() as instance:
        close_dead_runs(instance)
        own_model = job == REASONING_CHAIN and not chosen.policy.start and not base_model_is_made
        if job in (PLAN_JOB, "data", "all") or own_model:
            _execute(definitions.resolve_job_def(f"{preset}_{PLAN_JOB}"), preset, PLAN_JOB, instance, {})
        if job == PLAN_JOB:
            return
        if own_model:
            _make_base_model(definitions, chosen, instance)
        if job == "experiments" or job in SWEEPS:
            for name in EXPERIMENTS if job == "experiments" else [job]:
                _run_experiment(definitions, chosen, name, instance, cells)
            return
        tags = _all_shards(job_assets(job), chosen, instance)
        _execute(definitions.resolve_job_def(f"{preset}_{job}"), preset, job, instance, tags)


def _all_shards(assets: Collection[str], preset: Preset, instance: dg.DagsterInstance) -> dict[str, str]:
    """Tags of a run over every shard, if any of the assets has some."""
    from cs336_assets.binding import shard_partitions
    from cs336_assets.flow import STAGES

    if not any(STAGES[name].per_shard for name in assets):
        return {}
    keys = instance.get_dynamic_partitions(shard_partitions(preset).name or "")
    if not keys:
        raise UserError(f"{preset.name}: the crawl has no shards; check its source with `cs336 presets {preset.name}`")
    return partition_range(keys[0], keys[-1])


def _make_base_model(definitions: dg.Definitions, preset: Preset, instance: dg.DagsterInstance) -> None:
    """Materialize the base model and all that it is made from, but none of the studies along the way."""
    import dagster as dg

    from cs336_assets.flow import STAGES
    from cs336_assets.parts import PLAN_ASSET

    needed, waiting = {"base_model"}, ["base_model"]
    while waiting:
        new = STAGES[waiting.pop()].inputs.keys() - needed - {PLAN_ASSET}
        needed |= new
        waiting += new
    everything = definitions.resolve_implicit_global_asset_job_def()
    job = everything.get_subset(asset_selection={dg.AssetKey([preset.name, name]) for name in needed})
    _execute(job, preset.name, "base_model", instance, _all_shards(needed, preset, instance))


def _run_experiment(
    definitions: dg.Definitions, preset: Preset, name: str, instance: dg.DagsterInstance, wanted: str | None
) -> None:
    """Materialize assets one after the other, each with all its cells or the chosen ones."""
    import dagster as dg

    from cs336.posttrain.config import chain_cells
    from cs336_assets.flow import STAGES

    everything = definitions.resolve_implicit_global_asset_job_def()
    cells = {asset: list(of(preset)) for asset in SWEEPS[name] if (of := STAGES[asset].cells)}
    assets = list(SWEEPS[name])
    if name == REASONING_CHAIN:
        cells = {asset: list(keys) for asset, keys in chain_cells(preset.reasoning, preset.problems).items()}
    if name in REASONING:  # a stage that the preset leaves out
        assets = [asset for asset in assets if cells.get(asset) != []]
        cells = {asset: keys for asset, keys in cells.items() if keys}
    if wanted is not None:
        first, _, last = wanted.partition("...")
        last = last or first
        sweeps = {
            asset: keys[keys.index(first) : keys.index(last) + 1]
            for asset, keys in cells.items()
            if first in keys and last in keys[keys.index(first) :]
        }
        if not sweeps:
            known = "; ".join(f"{asset}: {', '.join(keys)}" for asset, keys in cells.items())
            raise UserError(f"--cells {wanted}: {name} of {preset.name} has no such runs, but {known or 'none'}")
        inputs = {each: whole for asset in sweeps for each, whole in STAGES[asset].inputs.items()}
        needed = {each for each, whole in inputs.items() if whole or each not in cells}  # all cells of it, or none
        assets = [asset for asset in assets if asset in sweeps or asset in needed]
        cells = {asset: sweeps.get(asset, keys) for asset, keys in cells.items() if asset in assets}
    for asset, keys in cells.items():
        if not keys:
            raise UserError(f"{preset.name}: {asset} has nothing to run; fill its grid in the preset's experiments")
    for asset in assets:
        tags = partition_range(cells[asset][0], cells[asset][-1]) if asset in cells else {}
        job = everything.get_subset(asset_selection={dg.AssetKey([preset.name, asset])})
        _execute(job, preset.name, asset, instance, tags)


def partition_range(first: str, last: str) -> dict[str, str]:
    """Tags of a run that covers several partitions of its assets."""
    return {"dagster/asset_partition_range_start": first, "dagster/asset_partition_range_end": last}


def _execute(
    definition: dg.JobDefinition, preset: str, job: str, instance: dg.DagsterInstance, tags: dict[str, str]
) -> None:
    result = definition.execute_in_process(
        instance=instance,
        tags=tags | {PROCESS_TAG: process_mark(os.getpid()) or ""},
        run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},  # the event log has it all
        raise_on_error=False,
    )
    materialized = [event.materialization for event in result.get_asset_materialization_events()]
    made = [each for each in materialized if not each.metadata["unchanged"].value]
    if materialized:
        print(f"{preset}_{job}: {len(made)} artifacts made, {len(materialized) - len(made)} unchanged and skipped")
    failed: dict[dg.AssetCheckKey, list[dg.AssetCheckEvaluation]] = {}
    for evaluation in result.get_asset_check_evaluations():
        if not evaluation.passed and any(
            each.asset_key == evaluation.asset_key and evaluation.partition in (None, each.partition) for each in made
        ):
            failed.setdefault(evaluation.asset_check_key, []).append(evaluation)
    for first, *others in failed.values():
        level = "check failed" if first.blocking else "warning"
        shard = f"[{first.partition}]" if first.partition else ""
        more = f" (and {len(others):,} more)" if others else ""
        print(f"{preset}_{job}: {level}: {first.asset_key.to_user_string()}{shard}: {first.description}{more}")
    if not result.success:
        raise UserError("\n       ".join(_failures(result, preset)) or "the run failed; `make ui` shows its log")


def _failures(result: dg.ExecuteInProcessResult, preset: str) -> list[str]:
    """One line for each step that failed by itself."""
    lines = []
    for event in result.all_events:
        if event.is_step_failure:
            error = event.step_failure_data.error
            if error and "DagsterExecutionInterruptedError" in (error.cls_name, error.cause and error.cause.cls_name):
                raise KeyboardInterrupt
            asset = event.step_key.replace(f"{preset}__", f"{preset}/", 1) if event.step_key else preset
            data = event.step_failure_data
            if data.user_failure_data and data.user_failure_data.description:
                lines.append(f"{asset}: {data.user_failure_data.description}")
                continue
            error = data.error.cause or data.error if data.error else None
            text = error.message.strip().splitlines()[-1] if error else "failed"
            if error and error.cls_name == "DagsterAssetCheckFailedError":  # said above, with what was found
                lines.append(f"stopped by a check: {text.strip()}")
                continue
            lines.append(f"{asset}: {text} (the whole traceback is in the run's log: `make ui`)")
    return lines


def _demo(options: argparse.Namespace) -> int:
    from cs336.cli import main
    from cs336.store import Store

    start = time.monotonic()
    run(options.preset, "all")
    run(options.preset, REASONING_CHAIN, base_model_is_made=True)
    run(options.preset, "evals")  # the leaderboard once more, with what reasoning came to
    print()
    main(["scores"])
    print(f"\nartifacts  {Store(options.preset).folder}")
    print(f"took       {time.monotonic() - start:,.0f} s")
    print("the graph  make ui, then http://127.0.0.1:3000")
    print("read text  cs336 look    (in .venv/bin)")
    return 0


def _ui(options: argparse.Namespace) -> None:
    use_project_home()
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", options.port))
        except OSError as error:
            raise UserError(
                f"port {options.port} is taken ({error.strerror}): is the UI open already at"
                f" http://127.0.0.1:{options.port}? Otherwise `cs336 ui --port {options.port + 1}`"
            ) from None
    print(f"the graph is at http://127.0.0.1:{options.port} in about 20 seconds; Ctrl-C ends it", flush=True)
    dagster = [sys.executable, "-m", "dagster", "dev", "--workspace", str(PROJECT / "workspace.yaml")]
    # A shell starts a script's background jobs with this signal ignored, and Dagster would never hear its end.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.setdefault("PYTHONWARNINGS", "ignore:Function")  # "... is superseded": nothing that a user could do
    os.chdir(PROJECT)  # the workspace names its modules from there
    os.execv(sys.executable, [*dagster, "--host", "127.0.0.1", "--port", str(options.port)])


def _adopt(options: argparse.Namespace) -> None:
    use_project_home()
    import dagster as dg

    from cs336_assets.adopt import adopt, runs_below

    with dg.DagsterInstance.get() as instance:
        runs = runs_below(options.folder)
        lines = [adopt(run, instance, replace=options.replace) for run in runs]
    if len(lines) == 1:
        print(lines[0])
        return
    print("\n".join(line.partition(":")[0] for line in lines))
    for agreement, count in Counter(line.partition(": adopted, ")[2] for line in lines).items():
        print(f"{count} adopted: {agreement}")
    if any((run / "scores.json").exists() for run in runs):
        print("`cs336 scores` shows their scores")


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
        if mark and process_mark(int(mark.partition(" ")[0])) != mark:
            instance.report_run_failed(run, message=f"process {mark.partition(' ')[0]} ended without a word (killed?)")
            instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)


def process_mark(pid: int) -> str | None:
    """What stands for a process: its id and start time (ids are used again); None when there is no such process."""
    try:
        started = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except FileNotFoundError:
        if Path("/proc/self").exists():
            return None
        started = ""  # a system without /proc: the id must do
    return f"{pid} {started}"
