"""What the data stages took, by asset, and what a larger crawl would take: from the manifests of a finished run."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import NamedTuple

from cs336.cli import add_preset_option
from cs336.files import UserError
from cs336.store import Store

_ABOUT = """What the data stages took for each megabyte crawled, and how long more files would take on N cores.

  cs336 run --preset mine --job data
  cs336 cost --preset mine --files 5000 100000 --cores 64 1024

Read from the manifests: processor time, so it matters little what else the machine did. A file is as large as this
crawl's are, or --megabytes. What is one for all shards is told, and left out of the sum: it does not spread."""


class Cost(NamedTuple):
    """What an asset took.

    Attributes:
        core_seconds: processor time of all its parts.
        spreads: made in one part a shard.
    """

    asset: str
    core_seconds: float
    spreads: bool


def measured(store: Store) -> list[Cost]:
    """The cost of each asset of the data job that is there; older manifests do not tell it."""
    from cs336.preset_lookup import find_preset
    from cs336_assets.asset import part_names
    from cs336_assets.flow import STAGES
    from cs336_assets.jobs import job_assets

    preset = find_preset(store.preset)
    found = []
    for name in job_assets("data"):
        stage = STAGES[name]
        parts = part_names(stage, preset, store) if stage.in_parts else [None]
        manifests = [manifest for part in parts if (manifest := store.manifest(name, part))]
        seconds = [manifest["cpu_seconds"] for manifest in manifests if "cpu_seconds" in manifest]
        found.append(Cost(name, sum(seconds), stage.per_shard))
    return found


def hours(core_seconds_a_megabyte: float, *, num_files: int, megabytes: float, cores: int) -> float:
    """Wall time of a crawl whose shards keep all cores busy."""
    return core_seconds_a_megabyte * megabytes * num_files / cores / 3_600


def report(options: argparse.Namespace) -> Iterator[str]:
    """The table of assets, and the times, a line at a time."""
    from cs336_assets.asset import shard_names

    store = Store(options.preset)
    crawled = [store.manifest("crawl", shard) for shard in shard_names(store)]
    sizes = [sum(facts["bytes"] for facts in each["files"].values()) for each in crawled if each]
    if not sizes:
        raise UserError(f"{store.path('crawl')}: nothing there; `cs336 run --preset {options.preset} --job data` first")
    num_files = sum(len(each["files"]) for each in crawled if each)
    total = sum(sizes) / 1e6
    megabytes = options.megabytes or total / num_files
    costs = measured(store)
    yield f"{num_files:,} files of {total / num_files:,.1f} MB, {len(sizes):,} shards; core-seconds a MB:"
    for cost in sorted(costs, key=lambda cost: -cost.core_seconds):
        rest = "" if cost.spreads else f"   one for all shards: {cost.core_seconds:,.1f} s"
        yield f"  {cost.asset:<24}{cost.core_seconds / total:>10.3f}{rest}"
    a_megabyte = sum(cost.core_seconds for cost in costs if cost.spreads) / total
    yield f"  {'all that spreads':<24}{a_megabyte:>10.3f}"
    yield f"a file of {megabytes:,.1f} MB: {a_megabyte * megabytes:,.1f} core-seconds"
    for count in options.files:
        times = [
            f"{hours(a_megabyte, num_files=count, megabytes=megabytes, cores=cores):,.1f} h on {cores:,} cores"
            for cores in options.cores
        ]
        yield f"{count:>9,} files: {', '.join(times)}"


def register(commands: argparse._SubParsersAction) -> None:
    """Add `cost` to `cs336`'s commands."""
    command = commands.add_parser(
        "cost",
        help="what the data stages took, and what a larger crawl would take",
        description=_ABOUT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_preset_option(command)
    command.add_argument("--files", type=int, nargs="+", default=[5_000, 100_000], help="default: %(default)s")
    command.add_argument("--cores", type=int, nargs="+", default=[64, 1_024], help="default: %(default)s")
    command.add_argument("--megabytes", type=float, help="of a file; a WET file of Common Crawl has about 75 to 81")
    command.set_defaults(run=lambda options: print("\n".join(report(options))))
