"""The graph on a real Ray cluster of two nodes, each with artifacts of its own; they share an S3 server."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from cs336.preset_lookup import find_preset
from cs336.store import Store
from cs336_assets.asset import Step, make
from cs336_assets.flow import STAGES
from tests.assets.conftest import BUCKET, ROOT, Project, free_port, make_project

pytestmark = [pytest.mark.ray, pytest.mark.timeout(440)]
pytest.importorskip("dagster_ray", reason="Ray is not installed; `make test-ray` installs it, and runs these")

SHARDS = ("docs-00000", "docs-00001")
BETWEEN = ("toxicity_classifier", "reference_pages", "reference_text", "quality_classifier", "eval_index")
BETWEEN += ("document_scores", "filtered_text", "line_hashes")


@dataclass(frozen=True)
class Job:
    """A Ray job: its state, the node it ran on, and which step of which of Dagster's runs it is."""

    state: str
    node: str
    run: str | None
    step: str | None


@dataclass
class Cluster:
    """Two nodes, and a machine beside them that gives them work."""

    address: str
    nodes: dict[str, Project]  # by Ray's id
    outside: Project

    def jobs(self) -> dict[str, Job]:
        """All Ray jobs so far, by their id."""
        from ray.job_submission import JobSubmissionClient

        return {
            job.submission_id: Job(
                str(job.status), job.driver_node_id, *map((job.metadata or {}).get, ("dagster/run-id", "dagster/op"))
            )
            for job in JobSubmissionClient(self.address).list_jobs()
        }

    def materialize(self, *names: str) -> list[Job]:
        """Make assets, each shard in a run of its own, all runs at once; returns the Ray jobs that did it."""
        before = self.jobs()
        command = [sys.executable, "-m", "dagster", "asset", "materialize", "-m", "cs336_assets.definitions"]
        command += ["--select", ",".join(f"micro/{name}" for name in names)]
        environment = self.outside.environment | {"CS336_EXECUTOR": "ray"}
        runs = [
            subprocess.Popen(
                [*command, "--partition", shard],
                cwd=ROOT,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for shard in SHARDS
        ]
        printed = [run.communicate(timeout=200)[0] for run in runs]
        assert [run.returncode for run in runs] == [0, 0], "\n".join(text[-4_000:] for text in printed)
        return [job for name, job in self.finished_jobs().items() if name not in before]

    def finished_jobs(self) -> dict[str, Job]:
        """`jobs`, once none of them runs any more: Ray hears of the end of a step a little later than Dagster."""
        for _ in range(240):
            jobs = self.jobs()
            if not {job.state for job in jobs.values()} & {"PENDING", "RUNNING"}:
                return jobs
            time.sleep(0.5)
        raise AssertionError(f"two minutes later: {jobs}")


@pytest.fixture(scope="module")
def cluster(s3, tmp_path_factory):
    scratch = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # short: sockets lie below it
    folder = tmp_path_factory.mktemp("cluster")
    port, dashboard = free_port(), free_port()
    address = f"http://127.0.0.1:{dashboard}"
    shared = s3 | {
        "CS336_STORAGE": f"s3://{BUCKET}/ray",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "RAY_API_SERVER_ADDRESS": address,
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    outside, *nodes = (make_project(folder / name, **shared) for name in ("outside", "head", "worker"))
    # The project's own settings for a cluster, but for small nodes, and without a queue, which needs a daemon.
    settings = yaml.safe_load((ROOT / "dagster_home" / "cluster" / "dagster.yaml").read_text())
    del settings["concurrency"]
    settings["run_launcher"]["config"]["ray"]["num_cpus"] = 1
    settings["run_coordinator"] = {"module": "dagster.core.run_coordinator", "class": "DefaultRunCoordinator"}
    (outside.folder / "dagster_home" / "dagster.yaml").write_text(yaml.safe_dump(settings))
    head = ["--head", f"--port={port}", f"--dashboard-port={dashboard}", f"--temp-dir={scratch}"]
    worker = [f"--address=127.0.0.1:{port}"]
    started = []
    by_id: dict[str, Project] = {}
    try:
        for node, options in zip(nodes, (head, worker), strict=True):
            started.append(_start(node, options))
            (new,) = _wait_for(address, len(started), started) - by_id.keys()
            by_id[new] = node
        yield Cluster(address, by_id, outside)
    finally:
        for process in reversed(started):
            process.terminate()
        for process in started:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
        _kill_what_names(scratch)
        shutil.rmtree(scratch, ignore_errors=True)


def _start(node: Project, options: list[str]) -> subprocess.Popen:
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--num-cpus=1"]
    command += ["--object-store-memory=100000000", "--disable-usage-stats", "--dashboard-host=127.0.0.1"]
    command += [f"--dashboard-agent-listen-port={free_port()}"]  # not one for all: another cluster may be running
    log = (node.folder / "ray.log").open("w")
    return subprocess.Popen([*command, *options], env=node.environment, cwd=node.folder, stdout=log, stderr=log)


def _wait_for(address: str, num_nodes: int, processes: list[subprocess.Popen]) -> set[str]:
    """The nodes' ids, once there are as many."""
    import requests

    alive: set[str] = set()
    for _ in range(120):
        assert all(process.poll() is None for process in processes), "ray start ended"
        try:
            answer = requests.get(f"{address}/nodes?view=summary", timeout=5).json()
            raylets = [node["raylet"] for node in answer["data"]["summary"]]
            alive = {raylet["nodeId"] for raylet in raylets if raylet["state"] == "ALIVE"}
        except (requests.RequestException, KeyError, ValueError):
            pass
        if len(alive) == num_nodes:
            return alive
        time.sleep(0.5)
    raise AssertionError(f"{len(alive)} of {num_nodes} nodes are alive after a minute")


def _kill_what_names(scratch: Path) -> None:
    """End what Ray left behind of this cluster: processes that have its folder in their command line."""
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if str(scratch) in (place / "cmdline").read_text():
                os.kill(int(place.name), signal.SIGKILL)
        except (OSError, UnicodeDecodeError):
            continue


def contents(folder: Path) -> dict[str, str]:
    return {
        name: facts["sha256"] for name, facts in json.loads((folder / "manifest.json").read_text())["files"].items()
    }


def test_shards_made_by_two_nodes_are_those_of_one_machine(cluster, tmp_path, monkeypatch):
    # The plan, by a run that the launcher submits to the cluster.
    before = cluster.jobs()
    done = cluster.outside.python(
        "-m", "dagster", "job", "launch", "-m", "cs336_assets.definitions", "-j", "micro_plan"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (run,) = cluster.jobs().keys() - before.keys()
    assert run.startswith("dagster-run-")
    assert cluster.finished_jobs()[run].state == "SUCCEEDED"

    # Shards, by runs whose steps are jobs of the cluster; what one node makes the other fetches.
    of_shards = cluster.materialize("crawl", "extracted_text")
    for name, value in cluster.outside.environment.items():
        monkeypatch.setenv(name, value)
    preset = find_preset("micro")
    for name in BETWEEN:  # by the machine beside the cluster
        for part in SHARDS if STAGES[name].per_shard else (None,):
            make(STAGES[name], preset, Store("micro"), Step(tmp_path, preset="micro", part=part))
    of_all = cluster.materialize("repeated_lines")
    assert {job.state for job in of_shards + of_all} == {"SUCCEEDED"}
    assert len({job.node for job in of_shards + of_all}) == 2  # Ray's choice; with a core each, never one for all

    # A node has only what its own steps needed: the WARC files of their shards (a run is one; a check may do without),
    # and the line hashes of both shards, made elsewhere.
    for node, project in cluster.nodes.items():
        crawl, line_hashes = (
            len(list(project.artifacts.glob(f"{name}/*/manifest.json"))) for name in ("crawl", "line_hashes")
        )
        here = [job for job in of_shards if job.node == node]
        needing = {job.run for job in here if job.step in ("micro__crawl", "micro__extracted_text")}
        assert len(needing) <= crawl <= len({job.run for job in here}), (crawl, here)
        assert line_hashes == (2 if any(job.node == node for job in of_all) else 0)

    # The same without Ray and without storage.
    monkeypatch.delenv("CS336_STORAGE")
    monkeypatch.setenv("CS336_ARTIFACTS", str(tmp_path / "alone"))
    alone = Store("micro")
    names = ("crawl_plan", "crawl", "extracted_text", *BETWEEN, "repeated_lines")
    for name in names:
        for part in SHARDS if STAGES[name].per_shard else (None,):
            make(STAGES[name], preset, alone, Step(tmp_path, preset="micro", part=part))
    monkeypatch.setenv("CS336_STORAGE", cluster.outside.environment["CS336_STORAGE"])
    monkeypatch.setenv("CS336_ARTIFACTS", cluster.outside.environment["CS336_ARTIFACTS"])
    shared = Store("micro")
    for name in names:
        for part in SHARDS if STAGES[name].per_shard else (None,):
            assert contents(shared.local(name, part)) == contents(alone.path(name, part)), (name, part)
