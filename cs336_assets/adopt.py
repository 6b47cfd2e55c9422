"""Runs made elsewhere become materializations here, marked so, with their weights or without."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import dagster as dg

from cs336.files import UserError, read_json, read_jsonl, write_json
from cs336.preset_lookup import find_preset
from cs336.store import MANIFEST, Store, describe_files, install
from cs336_assets.asset import ELSEWHERE, data_version, part_names, version_of
from cs336_assets.benchmarks import subject_of
from cs336_assets.binding import to_dagster
from cs336_assets.crawl import page_table, table
from cs336_assets.flow import STAGES


def runs_below(folder: Path) -> list[Path]:
    """Runs in a folder of runs, in the order of the graph; a run or a file of rows stands for itself.

    Raises:
        UserError: the folder holds no run.
    """
    if subject_of(folder) or (folder / MANIFEST).exists():
        return [folder]
    order = list(STAGES)

    def place(run: Path) -> tuple[int, Path]:
        asset = str(read_json(run / MANIFEST)["asset"]).partition("/")[2]
        return order.index(asset) if asset in order else -1, run

    runs = sorted((path.parent for path in folder.rglob(MANIFEST)), key=place)
    if not runs:
        raise UserError(
            f"{folder / MANIFEST}: not found, nor one in a folder below; give a run's folder, or one of runs"
        )
    return runs


def adopt(source: Path, instance: dg.DagsterInstance, *, replace: bool = False) -> str:
    """Check a run folder or a file of benchmark rows, and report it; returns one line about it.

    A file that the manifest lists and the folder lacks counts as left behind, with its SHA-256:
    whatever needs it will say so. A file that differs from its manifest is an error.

    Args:
        replace: also where this machine has made the artifact itself.

    Raises:
        UserError: no manifest, a changed file, an unknown preset, asset or partition, or an artifact made
            here that it would replace.
    """
    if subject := subject_of(source):
        return _adopt_rows(subject, source, instance)
    manifest = read_json(source / MANIFEST)
    preset_name, _, asset = str(manifest["asset"]).partition("/")
    if asset not in STAGES:
        raise UserError(f"{source / MANIFEST}: {manifest['asset']} is no asset of this graph")
    preset = find_preset(preset_name)
    store = Store(preset_name)
    part = manifest["part"]
    if bool(part) != STAGES[asset].in_parts or (part and part not in part_names(STAGES[asset], preset, store)):
        raise UserError(
            f"{source / MANIFEST}: {preset_name}/{asset} has no partition {part!r}; plan the same crawl or experiment"
            " first"
        )
    present = store.manifest(asset, part)
    if present and ELSEWHERE not in present and not replace:
        raise UserError(f"{store.path(asset, part)}: was made on this machine; --replace puts the adopted one there")
    left_behind = _check_files(source, manifest)
    manifest["files"] = {name: facts for name, facts in manifest["files"].items() if name not in left_behind}
    manifest[ELSEWHERE] = {
        "hardware": ", ".join(manifest["machine"].get("gpu") or [manifest["machine"]["cpu"]]),
        "left_behind": left_behind,
    }
    work = store.folder / ".work" / f"adopt--{asset}--{manifest['fingerprint']}"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    for name in manifest["files"]:
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source / name, work / name)
    write_json(work / MANIFEST, manifest)
    with store.only_maker(asset, part):
        install(work, store.path(asset, part))
    instance.report_runless_asset_event(
        dg.AssetMaterialization(
            asset_key=dg.AssetKey([preset_name, asset]),
            partition=part,
            metadata=to_dagster(manifest["metadata"], store.path(asset, part))
            | {"unchanged": False, "fingerprint": manifest["fingerprint"], **_where(manifest)},
            tags={"dagster/data_version": data_version(asset, store, part)},
        )
    )
    return (
        f"{manifest['asset']}{f'[{part}]' if part else ''}: adopted, {_agreement(asset, preset, store, part, manifest)}"
    )


def _check_files(source: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    """Files of the manifest that are not there; a file that differs ends the adoption."""
    here = describe_files(source)
    for name, facts in manifest["files"].items():
        if name in here and here[name] != facts:
            raise UserError(
                f"{source / name}: differs from its manifest (sha256 {facts['sha256'][:12]}...); copy it again"
            )
    return {name: facts for name, facts in manifest["files"].items() if name not in here}


def _where(manifest: dict[str, Any]) -> dict[str, Any]:
    left_behind = manifest[ELSEWHERE]["left_behind"]
    return {
        ELSEWHERE: manifest[ELSEWHERE]["hardware"],
        "commit": manifest.get("commit") or "unknown",
        "left_behind": table(["file", "sha256"], [[name, facts["sha256"]] for name, facts in left_behind.items()]),
    }


def _agreement(asset: str, preset: Any, store: Store, part: str | None, manifest: dict[str, Any]) -> str:
    """Whether the run stands in this machine's lineage, or only beside it."""
    try:
        wanted = version_of(STAGES[asset], preset, store, part).fingerprint
    except UserError:
        return "its inputs are not on this machine, so the next run would make it again"
    if wanted == manifest["fingerprint"]:
        return "same code, settings and inputs as here"
    return "made from other code, settings or inputs than those here, so the next run would make it again"


def _adopt_rows(subject: str, source: Path, instance: dg.DagsterInstance) -> str:
    rows = list(read_jsonl(source))
    if not rows:
        raise UserError(f"{source}: holds no rows")
    columns = [
        name for name in ("case", "contender", "figure", "unit", "spread", "hardware", "commit") if name in rows[-1]
    ]
    instance.report_runless_asset_event(
        dg.AssetMaterialization(
            asset_key=dg.AssetKey(["benchmarks", subject]),
            metadata={
                "num_rows": len(rows),
                ELSEWHERE: True,
                "rows": dg.MetadataValue.md(
                    page_table(columns, [[row.get(name, "") for name in columns] for row in rows[-60:]])
                ),
            },
        )
    )
    return f"benchmarks/{subject}: {len(rows)} rows adopted"
