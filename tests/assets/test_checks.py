"""Checks that speak of each shard: a verdict a shard, which no other shard's run hides."""

from dataclasses import replace
from pathlib import Path

import dagster as dg
import pytest

from cs336.crawl.local_files import TextFiles
from cs336.files import UserError
from cs336.presets import TINY
from cs336_assets.asset import STAGES, Check
from cs336_assets.binding import bind_check, bind_stage
from cs336_assets.commands import _execute, partition_range
from cs336_assets.flow import CHECKS
from cs336_assets.resources import Runtime

KEY = dg.AssetKey(["tiny", "crawl"])


@pytest.fixture
def graph(tmp_path, monkeypatch):
    """A crawl of two shards with one check; which of them fail, and what the check was asked."""
    monkeypatch.setenv("CS336_ARTIFACTS", str(tmp_path / "artifacts"))
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text("some text")
    bad: set[str] = set()
    asked: list[list[str]] = []

    def shards_are_good(crawl: list[Path]):
        """No shard is bad."""
        asked.append([folder.name for folder in crawl])
        return not bad & set(asked[-1]), {"num_shards": len(crawl)}

    preset = replace(TINY, source=TextFiles(paths=(str(tmp_path / "*.txt"),)))
    check = Check(shards_are_good, "crawl", True, "each", {"crawl": True}, ())
    runtime = Runtime(num_workers=1)
    definitions = dg.Definitions(
        assets=[bind_stage(STAGES[name], preset, runtime) for name in ("crawl_plan", "crawl")],
        asset_checks=[bind_check(check, preset)],
        resources={"runtime": runtime},
    )
    everything = definitions.resolve_implicit_global_asset_job_def()
    with dg.instance_for_test() as instance:
        plan = everything.get_subset(asset_selection={dg.AssetKey(["tiny", "crawl_plan"])})
        assert plan.execute_in_process(instance=instance).success
        yield everything.get_subset(asset_selection={KEY}), instance, bad, asked


def verdicts(instance) -> dict[str, str]:
    """What the UI shows of each shard; nothing of one whose verdict is of an earlier materialization."""
    infos = instance.event_log_storage.get_asset_check_partition_info([dg.AssetCheckKey(KEY, "shards_are_good")])
    return {info.partition_key: info.latest_execution_status.value for info in infos if info.is_current}


def test_a_later_run_of_another_shard_hides_no_failure(graph):
    job, instance, bad, asked = graph
    bad.add("a")
    assert not job.execute_in_process(instance=instance, partition_key="a", raise_on_error=False).success
    assert job.execute_in_process(instance=instance, partition_key="b").success, "only its own shard stops a run"
    assert asked == [["a"], ["b"]]
    assert verdicts(instance) == {"a": "FAILED", "b": "SUCCEEDED"}
    bad.clear()
    assert job.execute_in_process(instance=instance, partition_key="a").success
    assert verdicts(instance) == {"a": "SUCCEEDED", "b": "SUCCEEDED"}


def test_a_run_of_several_shards_tells_them_apart_and_looks_at_all_together_first(graph, capsys):
    job, instance, bad, asked = graph
    bad |= {"a", "b"}
    with pytest.raises(UserError, match="crawl"):
        _execute(job, "tiny", "crawl", instance, partition_range("a", "c"))
    assert verdicts(instance) == {"a": "FAILED", "b": "FAILED", "c": "SUCCEEDED"}
    assert asked == [["a", "b", "c"], ["a"], ["b"], ["c"]]
    said = [line for line in capsys.readouterr().out.splitlines() if "check failed" in line]
    assert said == [
        "tiny_crawl: check failed: tiny/crawl[a]: does not hold: No shard is bad. (num_shards 1) (and 1 more)"
    ]
    bad.clear()
    _execute(job, "tiny", "crawl", instance, partition_range("a", "c"))
    assert verdicts(instance) == dict.fromkeys("abc", "SUCCEEDED") and asked[4:] == [["a", "b", "c"]]


def test_nothing_is_said_of_a_shard_that_was_never_made(graph):
    job, instance, _, asked = graph
    check = job.get_subset(asset_selection=set(), asset_check_selection={dg.AssetCheckKey(KEY, "shards_are_good")})
    assert check.execute_in_process(instance=instance, partition_key="b").success
    assert asked == [] and verdicts(instance) == {"b": "PLANNED"}, "nor does the run fail"
    assert job.execute_in_process(instance=instance, partition_key="a").success
    _execute(check, "tiny", "crawl", instance, partition_range("a", "c"))
    assert asked == [["a"], ["a"]]
    assert verdicts(instance) == {"a": "SUCCEEDED", "b": "PLANNED", "c": "PLANNED"}


def test_every_check_that_speaks_of_each_shard_is_partitioned():
    for check in CHECKS.values():
        (spec,) = bind_check(check, TINY).check_specs
        assert (spec.partitions_def is not None) == (check.of_shards == "each"), check.function.__name__
