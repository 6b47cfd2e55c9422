"""From declared stages and checks to Dagster assets of one preset."""

# No `from __future__ import annotations` here: Dagster reads the types of `context` and `runtime`.
import base64
import inspect
import sys
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dagster as dg
from dagster._core.definitions.asset_checks.asset_check_evaluation import AssetCheckEvaluationTargetMaterializationData
from dagster._core.storage.tags import (
    ASSET_PARTITION_RANGE_END_TAG,
    ASSET_PARTITION_RANGE_START_TAG,
    PARTITION_NAME_TAG,
)

from cs336.files import UserError
from cs336.presets import Preset
from cs336.processes import available_cores
from cs336.progress import Progress, bar, both, log_lines
from cs336.store import Store, Version
from cs336_assets.asset import (
    PLAN_ASSET,
    STAGES,
    WHOLE,
    Check,
    Metadata,
    Stage,
    Step,
    code_version,
    data_version,
    input_folders,
    make,
    part_names,
    shard_names,
)
from cs336_assets.resources import Runtime

# Backfill policies, code references and parts of Pipes are new in the pinned version; nothing a user could do.
warnings.filterwarnings("ignore", category=dg.BetaWarning)
warnings.filterwarnings("ignore", category=dg.PreviewWarning)
warnings.filterwarnings("ignore", category=dg.SupersessionWarning)


def shard_partitions(preset: Preset) -> dg.DynamicPartitionsDefinition:
    """Crawl shards of a preset; `crawl_plan` registers them."""
    return dg.DynamicPartitionsDefinition(name=f"{preset.name}_shards")


def _partitions_of(stage: Stage, preset: Preset) -> dg.PartitionsDefinition | None:
    if stage.cells:
        return dg.StaticPartitionsDefinition(list(stage.cells(preset)))
    return shard_partitions(preset) if stage.per_shard else None


def bind_stage(stage: Stage, preset: Preset, machine: Runtime) -> dg.AssetsDefinition:
    """One stage as an asset of one preset.

    Args:
        machine: says how a backfill is cut into runs, and whether Dagster queues the steps of pools: not where one
            process runs all (see `turns`).
    """
    one_run = machine.terminal or not machine.partitions_per_run or not stage.in_parts

    @dg.asset(
        name=stage.name,
        key_prefix=[preset.name],
        group_name=group_name(stage.group, preset),
        kinds=set(stage.kinds),
        owners=[stage.owner],
        description=stage.description,
        code_version=code_version(stage, preset),
        deps=_dependencies(stage, preset),
        partitions_def=_partitions_of(stage, preset),
        backfill_policy=dg.BackfillPolicy.single_run()
        if one_run
        else dg.BackfillPolicy.multi_run(machine.partitions_per_run),
        metadata=_code_reference(stage),
        pool=None if machine.terminal else stage.pool,
    )
    def compute(context: dg.AssetExecutionContext, runtime: Runtime) -> dg.MaterializeResult:
        return _compute(context, runtime, stage, preset)

    return compute


def _dependencies(stage: Stage, preset: Preset) -> list[dg.AssetDep]:
    """What this preset makes a stage from: of some inputs certain cells alone, or nothing."""
    dependencies = []
    for name, everything in stage.inputs.items():
        key = dg.AssetKey([preset.name, name])
        taken = stage.taken(name, preset) if name in stage.takes else [WHOLE]
        if everything:
            dependencies.append(dg.AssetDep(key, partition_mapping=dg.AllPartitionMapping()))
        elif taken == [WHOLE]:
            dependencies.append(dg.AssetDep(key))
        elif taken:
            dependencies.append(dg.AssetDep(key, partition_mapping=dg.SpecificPartitionsPartitionMapping(taken)))
    return dependencies


def group_name(group: str, preset: Preset) -> str:
    """Groups are listed by name, so a number keeps them in flow order, and the preset keeps them apart."""
    order = list(dict.fromkeys(stage.group for stage in STAGES.values()))
    return f"{preset.name}_{order.index(group) + 1}_{group}"


def _compute(context: dg.AssetExecutionContext, runtime: Runtime, stage: Stage, preset: Preset) -> dg.MaterializeResult:
    """Make each part that is asked for, or the one artifact of an unpartitioned asset."""
    store = Store(preset.name)
    parts: list[str | None] = list(context.partition_keys) if stage.in_parts else [None]
    at_once = runtime.runs_at_once if stage.cells else 1

    def make_part(part: str | None) -> tuple[Version, Metadata, bool]:
        start = time.monotonic()
        step = Step(
            folder=Path(),
            preset=preset.name,
            part=part,
            num_workers=max(1, (runtime.num_workers or available_cores()) // at_once),
            device=runtime.device,
            compile_model=runtime.compile_model,
            num_processes=runtime.num_processes,
            parallel=runtime.parallel,
            recompute=runtime.recompute,
            progress=_progress(context, runtime),
            context=context,
        )
        try:
            version, metadata, current = make(stage, preset, store, step)
        except UserError as error:
            raise dg.Failure(description=str(error), allow_retries=False) from error
        said = f"{preset.name}/{stage.name}{f'[{part}]' if part else ''}: " + (
            "unchanged, skipped" if current else f"made in {time.monotonic() - start:,.1f} s"
        )
        context.log.info(said)
        if runtime.terminal:
            print(said, flush=True)
        return version, metadata, current

    cells = stage.cells(preset) if stage.cells else {}
    alone = {name for name, cell in cells.items() if getattr(cell, "runs_alone", False)}
    for part, (version, metadata, current) in _several_at_once(make_part, parts, at_once, alone=alone):
        folder = store.path(stage.name, part)
        shown = to_dagster(metadata, folder) | {
            "unchanged": current,
            "fingerprint": version.fingerprint,
            "folder": dg.MetadataValue.path(str(folder)),
            "artifact_bytes": _num_bytes(store.manifest(stage.name, part)),
        }
        if "num_documents" in metadata:
            shown["dagster/row_count"] = metadata["num_documents"]  # what Dagster draws as the asset's size
        context.add_asset_metadata(shown, partition_key=part) if part else context.add_asset_metadata(shown)
    if stage.name == PLAN_ASSET:
        register_shards(context.instance, preset, store)
    # Dagster allows one data version a step: for parts it derives one from code, settings and inputs.
    return dg.MaterializeResult(
        data_version=None if stage.in_parts else dg.DataVersion(data_version(stage.name, store, None))
    )


def _several_at_once(
    work: Callable[[str | None], tuple[Version, Metadata, bool]],
    parts: Sequence[str | None],
    at_once: int,
    *,
    alone: Collection[str] = (),
) -> Iterator[tuple[str | None, tuple[Version, Metadata, bool]]]:
    """Each part with its result: those made side by side in order, then those made alone.

    After a failure nothing new begins, what runs is finished, and what is made stays.
    """
    together = [part for part in parts if at_once > 1 and part not in alone]
    with ThreadPoolExecutor(at_once) as threads:
        running = [threads.submit(work, part) for part in together]
        try:
            for part, future in zip(together, running, strict=True):
                yield part, future.result()
        finally:
            for future in running:
                future.cancel()
    for part in parts:
        if part not in together:
            yield part, work(part)


def _num_bytes(manifest: dict[str, Any] | None) -> int:
    return sum(facts["bytes"] for facts in manifest["files"].values()) if manifest else 0


def bind_check(check: Check, preset: Preset) -> dg.AssetChecksDefinition:
    """One check as an asset check of one preset.

    One that speaks of each shard has a verdict a shard, as the asset has a materialization: a run of some shards says
    nothing of the others, and hides nothing that was said of them.
    """
    is_of_each = check.of_shards == "each"

    @dg.asset_check(
        asset=dg.AssetKey([preset.name, check.asset]),
        name=check.function.__name__,
        description=inspect.cleandoc(check.function.__doc__ or ""),
        blocking=check.blocking,
        additional_deps=[dg.AssetKey([preset.name, name]) for name in check.inputs if name != check.asset],
        partitions_def=shard_partitions(preset) if is_of_each else None,
    )
    def compute(context: dg.AssetCheckExecutionContext) -> Any:
        store = Store(preset.name)
        shards = shards_of_run(check, context.run.tags, preset, store)
        if not is_of_each:
            yield dg.AssetCheckResult(**_verdict(check, preset, store, shards))
            return
        made = [shard for shard in shards or shard_names(store) if store.manifest(check.asset, shard)]
        yield from _of_each_shard(context.instance, check, preset, store, made)
        yield dg.Output(None, output_name=context.op_def.output_defs[0].name)

    return compute


def _of_each_shard(
    instance: dg.DagsterInstance, check: Check, preset: Preset, store: Store, shards: Sequence[str]
) -> Iterator[dg.AssetCheckEvaluation]:
    """The check's verdict on each shard that was made. All are looked at together, and one by one only if some fail."""
    if not shards:
        return
    key = dg.AssetKey([preset.name, check.asset])
    made = _latest_materializations(instance, key, shards)
    of_all = _verdict(check, preset, store, shards)
    for shard in shards:
        verdict = of_all if of_all["passed"] or len(shards) == 1 else _verdict(check, preset, store, [shard])
        yield dg.AssetCheckEvaluation(
            asset_key=key,
            check_name=check.function.__name__,
            blocking=check.blocking,
            partition=shard,
            target_materialization_data=made.get(shard),
            **verdict,
        )


def _verdict(check: Check, preset: Preset, store: Store, shards: Collection[str] | None) -> dict[str, Any]:
    """What Dagster is told of a check."""
    severity = dg.AssetCheckSeverity.ERROR if check.blocking else dg.AssetCheckSeverity.WARN
    try:
        passed, metadata = evaluate(check, preset, store, shards)
    except UserError as missing:  # what it compares with is not here: that is no pass
        return {"passed": False, "severity": severity, "description": f"not checked: {missing}", "metadata": {}}
    facts = ", ".join(f"{name} {value}" for name, value in metadata.items() if not isinstance(value, dict))
    fails = f"does not hold: {inspect.cleandoc(check.function.__doc__ or '')}" + f" ({facts})" * bool(facts)
    return {
        "passed": bool(passed),
        "severity": severity,
        "description": None if passed else fails,
        "metadata": to_dagster(metadata, store.path(check.asset)),
    }


def _latest_materializations(
    instance: dg.DagsterInstance, key: dg.AssetKey, shards: Sequence[str]
) -> dict[str, AssetCheckEvaluationTargetMaterializationData]:
    """Of each shard that was made, the event: a verdict counts until there is a later one."""
    made = dg.DagsterEventType.ASSET_MATERIALIZATION
    ids = instance.event_log_storage.get_latest_storage_id_by_partition(key, made, set(shards))
    wanted = dg.AssetRecordsFilter(key, storage_ids=list(ids.values()))
    records = instance.fetch_materializations(wanted, limit=len(ids)).records if ids else ()
    return {
        str(record.partition_key): AssetCheckEvaluationTargetMaterializationData(
            storage_id=record.storage_id, run_id=record.run_id, timestamp=record.timestamp
        )
        for record in records
    }


def evaluate(check: Check, preset: Preset, store: Store, shards: Collection[str] | None) -> tuple[bool, Metadata]:
    """What a check says, and the facts, after a run of some shards (None: of all, or of none)."""
    settings = {name: getattr(preset, name) for name in check.settings}
    own = None if check.of_shards == "all" else shards
    passed, metadata = check.function(**input_folders(check.inputs, preset, store, shards=own), **settings)
    if check.of_shards == "some" and not passed and own is not None:
        if not _all_parts_are_there(check.asset, preset, store):  # what is not there yet may be what it takes
            return True, metadata | {"state": "of these shards; the others are not there yet"}
        return check.function(**input_folders(check.inputs, preset, store), **settings)
    return passed, metadata


def _all_parts_are_there(asset: str, preset: Preset, store: Store) -> bool:
    return all(store.manifest(asset, part) for part in part_names(STAGES[asset], preset, store))


def shards_of_run(check: Check, tags: Mapping[str, str], preset: Preset, store: Store) -> list[str] | None:
    """Those that a run was asked for; None if it was for no shards, as one for the cells of an asset, or of none."""
    if not STAGES[check.asset].per_shard:
        return None
    if shard := tags.get(PARTITION_NAME_TAG):
        return [shard]
    first, last = tags.get(ASSET_PARTITION_RANGE_START_TAG), tags.get(ASSET_PARTITION_RANGE_END_TAG)
    shards = shard_names(store) if first and last else []
    return shards[shards.index(first) : shards.index(last) + 1] if first in shards and last in shards else None


def register_shards(instance: dg.DagsterInstance, preset: Preset, store: Store) -> None:
    """Make Dagster's partitions those of the plan; artifacts of other shards stay, unused."""
    name = shard_partitions(preset).name
    assert name is not None
    planned = shard_names(store)
    known = instance.get_dynamic_partitions(name)
    if known != planned:  # deleting all first keeps the plan's order
        for key in known:
            instance.delete_dynamic_partition(name, key)
        instance.add_dynamic_partitions(name, planned)


def to_dagster(metadata: Metadata, folder: Path) -> dict[str, Any]:
    """Plain metadata as Dagster shows it: {"markdown": text} and {"image": file} are drawn."""
    return {name: _metadata_value(value, folder) for name, value in metadata.items()}


def _metadata_value(value: Any, folder: Path) -> Any:
    if isinstance(value, dict) and value.keys() == {"markdown"}:
        return dg.MetadataValue.md(value["markdown"])
    if isinstance(value, dict) and value.keys() == {"image"}:
        if not (folder / value["image"]).exists():  # of a run measured elsewhere
            return f"{value['image']} was left behind"
        image = base64.b64encode((folder / value["image"]).read_bytes()).decode()
        return dg.MetadataValue.md(f"![{value['image']}](data:image/png;base64,{image})")
    if isinstance(value, dict | list):
        return dg.MetadataValue.json(value)
    return value


def _progress(context: dg.AssetExecutionContext, runtime: Runtime) -> Progress:
    lines = log_lines(context.log.info)
    return both(bar, lines) if runtime.terminal and sys.stderr.isatty() else lines


def _code_reference(stage: Stage) -> dict[str, Any]:
    function = stage.function
    source = inspect.getsourcefile(function)
    assert source is not None
    return {
        "dagster/code_references": dg.CodeReferencesMetadataValue(
            code_references=[
                dg.LocalFileCodeReference(
                    file_path=source, line_number=function.__code__.co_firstlineno, label=stage.name
                )
            ]
        )
    }
