"""One backfill of 5,000 WET files: asked for and cut into runs, none of which is started."""

import logging
from datetime import UTC, datetime
from types import SimpleNamespace

import dagster as dg
import pytest
from dagster._core.asset_graph_view.asset_graph_view import AssetGraphView, TemporalContext
from dagster._core.definitions.assets.graph.remote_asset_graph import RemoteWorkspaceAssetGraph
from dagster._core.execution.asset_backfill import execute_asset_backfill_iteration_inner
from dagster._core.execution.backfill import BulkActionStatus, PartitionBackfill
from dagster._core.remote_representation.external import RemoteRepository
from dagster._core.remote_representation.external_data import RepositorySnap
from dagster._core.remote_representation.handle import RepositoryHandle

from cs336.crawl.common_crawl import CommonCrawl
from cs336.files import UserError, write_json
from cs336.presets import DATA_COURSE
from cs336.store import Store, Version
from cs336_assets.binding import register_shards, shard_partitions
from cs336_assets.graph import build_definitions
from cs336_assets.jobs import job_assets
from cs336_assets.parts import PLAN_ASSET, PLAN_FILE
from cs336_assets.resources import Runtime


def planned(store: Store, source: CommonCrawl) -> int:
    """Make a plan of a snapshot's list, in Common Crawl's form, without asking it; returns the number of shards."""
    items = [{"path": f"segments/{number}.warc.wet.gz", "bytes": 1, "etag": ""} for number in range(source.num_files)]
    shards = [{"name": shard.name, "items": shard.items} for shard in source._shards(items)]
    with store.staging(PLAN_ASSET, None, Version(code="", config="")) as (folder, _):
        write_json(folder / PLAN_FILE, {"shards": shards})
    return len(shards)


def as_the_daemon_sees(definitions: dg.Definitions) -> RemoteWorkspaceAssetGraph:
    """The graph as it is read from a code location, without starting one."""
    snapshot = RepositorySnap.from_def(definitions.get_repository_def())
    repository = RemoteRepository(snapshot, RepositoryHandle.for_test(), auto_materialize_use_sensors=True)
    location = SimpleNamespace(name="here", get_repositories=lambda: {"graph": repository})
    workspace = SimpleNamespace(code_location_entries={"here": SimpleNamespace(code_location=location)})
    return RemoteWorkspaceAssetGraph.build(workspace)


def test_a_backfill_of_5000_files_spreads_over_runs(tmp_path):
    assert isinstance(DATA_COURSE.source, CommonCrawl)
    store = Store(DATA_COURSE.name, tmp_path)
    num_shards = planned(store, DATA_COURSE.source)
    assert DATA_COURSE.source.num_files == 5_000 and num_shards == 1_250
    graph = as_the_daemon_sees(build_definitions(DATA_COURSE, runtime=Runtime(partitions_per_run=10)))
    with dg.instance_for_test() as instance:
        register_shards(instance, DATA_COURSE, store)
        assert len(instance.get_dynamic_partitions(shard_partitions(DATA_COURSE).name)) == num_shards
        backfill = PartitionBackfill.from_asset_partitions(
            backfill_id="all",
            asset_graph=graph,
            partition_names=None,
            asset_selection=[dg.AssetKey([DATA_COURSE.name, name]) for name in job_assets("data")],
            backfill_timestamp=1.0,
            tags={},
            dynamic_partitions_store=instance,
            all_partitions=True,
            title=None,
            description=None,
            run_config=None,
        )
        instance.add_backfill(backfill)
        (found,) = instance.get_backfills()
        assert found.status == BulkActionStatus.REQUESTED
        time = TemporalContext(effective_dt=datetime.now(tz=UTC), last_event_id=None)
        view = AssetGraphView(temporal_context=time, instance=instance, asset_graph=graph)
        log = logging.getLogger(__name__)
        first = execute_asset_backfill_iteration_inner("all", backfill.asset_backfill_data, view, 1.0, log, None)
    crawls = [run for run in first.run_requests if dg.AssetKey([DATA_COURSE.name, "crawl"]) in run.asset_selection]
    ranges = {tuple(run.tags[f"dagster/asset_partition_range_{end}"] for end in ("start", "end")) for run in crawls}
    assert len(crawls) == len(ranges) == 125
    # What stands behind a barrier waits: a part of the repeated lines needs the line hashes of all shards.
    names = {key.path[-1] for run in crawls for key in run.asset_selection}
    assert {"crawl", "extracted_text"} <= names and "repeated_lines" not in names


def test_an_executor_that_is_none_is_an_error():
    with pytest.raises(UserError, match="choose multiprocess or ray"):
        build_definitions("tiny", runtime=Runtime(executor="cluster"))
