"""From a source to WARC files: one plan, then one file a shard."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from cs336.crawl.source import Shard, Source
from cs336.files import read_json, write_json
from cs336_assets.asset import Metadata, Step, asset, check
from cs336_assets.parts import PLAN_FILE


@asset(group="crawl", kinds={"python"}, owner="team:data")
def crawl_plan(step: Step, source: Source) -> Metadata:
    """What will be crawled, split into shards.

    Reads what the source offers (the modules of the installed packages, files on disk, a Common
    Crawl snapshot's path list) and pins it: page addresses, or file names with size and checksum.
    The shards named here become the partitions of everything up to the token arrays.
    """
    shards = source.plan(progress=step.progress)
    write_json(step.folder / PLAN_FILE, {"shards": [dataclasses.asdict(shard) for shard in shards]})
    sizes = {shard.name: len(shard.items) for shard in shards}
    return {
        "source": type(source).__name__,
        "num_shards": len(shards),
        "num_items": sum(sizes.values()),
        "shards": table(["shard", "items"], [[name, size] for name, size in list(sizes.items())[:50]]),
    }


@asset(group="crawl", kinds={"python"}, owner="team:data", per_shard=True, resumable=True, pool="crawl")
def crawl(step: Step, crawl_plan: Path, source: Source) -> Metadata:
    """One WARC file per shard, as its source sent it.

    Pages are fetched over HTTP (robots.txt obeyed, redirects and errors recorded), or files are
    taken over whole; either way the shard's requests are counted by their outcome.
    """
    stats = source.fetch(
        planned_shard(crawl_plan, step.part), step.folder, num_workers=step.num_workers, progress=step.progress
    )
    written = {  # files taken over whole are not read here
        "num_records": sum(stats.num_records.values()),
        "records": table(["record type", "records"], sorted(stats.num_records.items())),
    }
    return (written if stats.num_records else {}) | {
        "fetches": table(["outcome", "requests"], stats.num_fetches.most_common()),
        "num_bytes": stats.num_bytes,
        "fetch_seconds": round(stats.fetch_seconds, 2),
    }


@check(asset="crawl", blocking=True, of_shards="each")
def every_shard_has_a_warc_file(crawl: list[Path]) -> tuple[bool, Metadata]:
    """Each shard holds a WARC file. One without a byte in it is named, and in the ledger; it stops nothing."""
    files = {folder.name: warc_files(folder) for folder in crawl}
    sizes = {name: sum(path.stat().st_size for path in paths) for name, paths in files.items()}
    missing = [name for name, paths in files.items() if not paths]
    return not missing, {
        "shards_without_a_file": missing,
        "empty_shards": [name for name, size in sizes.items() if size == 0],
        "num_bytes": sum(sizes.values()),
    }


def planned_shard(crawl_plan: Path, name: str | None) -> Shard:
    """A shard of the plan by its name."""
    shards = {shard["name"]: shard for shard in read_json(crawl_plan / PLAN_FILE)["shards"]}
    assert name is not None and name in shards, f"shard {name} is not in the plan"
    return Shard(name=name, items=tuple(shards[name]["items"]))


def warc_files(folder: Path) -> list[Path]:
    """WARC and ARC files of one shard."""
    return sorted(
        path for path in folder.iterdir() if path.name.removesuffix(".gz").endswith((".warc", ".arc", ".wet"))
    )


def commonest(counts: Mapping[str, int], number: int = 3) -> str:
    """The first of some counts, which come the commonest first, in one line."""
    return ", ".join(f"{name} ({count:,})" for name, count in list(counts.items())[:number])


def table(header: list[str], rows: list) -> dict[str, str]:
    """A Markdown table as asset metadata."""
    return {"markdown": page_table(header, rows)}


def page_table(header: list[str], rows: list) -> str:
    """A table for a page, whole numbers with commas."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for row in rows:
        cells = [f"{cell:,}" if isinstance(cell, int) and not isinstance(cell, bool) else str(cell) for cell in row]
        lines.append("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |")
    return "\n".join(lines)
