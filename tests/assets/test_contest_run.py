"""Jobs of a contest as Dagster runs: the service hears the worker's news, and Dagster's storage has the run."""

import json
import os
import signal
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import dagster as dg
import pytest

from cs336.files import UserError, read_json, write_json
from cs336_assets.contest_run import EXPERIMENT_TAG, RUN_TAG
from tests.assets.conftest import ROOT, make_project
from tests.service.job_examples import architecture, body, write_text
from tests.service.test_commands import contest_of
from tests.service.test_contest import SLOW, Server, until


@pytest.fixture
def heard():
    """What a service that takes everything was told, and its address."""
    told = []

    class Service(BaseHTTPRequestHandler):
        def do_POST(self):
            told.append((self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"])))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *arguments):
            pass

    server = HTTPServer(("127.0.0.1", 0), Service)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield told, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def run_of(project, tag, value):
    """Of the project's Dagster storage, the one run with a tag."""
    with dg.DagsterInstance.from_config(project.environment["DAGSTER_HOME"]) as instance:
        (run,) = instance.get_runs(filters=dg.RunsFilter(tags={tag: value}))
        return run, instance.all_logs(run.run_id)


def test_a_job_is_a_run_of_dagsters_and_the_service_hears_its_losses(tmp_path, heard, monkeypatch):
    told, address = heard
    project = make_project(tmp_path)
    monkeypatch.setenv("DAGSTER_HOME", project.environment["DAGSTER_HOME"])
    folder = tmp_path / "runs" / "running" / "one"
    folder.mkdir(parents=True)
    (tmp_path / "runs" / "address").write_text(address)
    (tmp_path / "runs" / "internal_key").write_text("secret")
    text = write_text(tmp_path / "text")
    job = {"experiment_id": 7, "run_id": "one", "config": body(), "data": str(text), "device": "cpu"}
    write_json(folder / "job.json", job)
    done = subprocess.run(
        [sys.executable, "-m", "cs336_assets.contest_run", str(folder)],
        cwd=ROOT,
        env=project.environment | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-3_000:]
    assert [news.get("type") for _, news in told] == ["started", *["validation_loss"] * 4, None]
    path, finish = told[-1]
    assert path == "/internal/worker/7/finish" and finish == read_json(folder / "finish.json")
    run, logs = run_of(project, EXPERIMENT_TAG, "7")
    assert run.status == dg.DagsterRunStatus.SUCCESS and run.tags[RUN_TAG] == "one"
    (output,) = [each.dagster_event for each in logs if each.dagster_event and each.dagster_event.is_successful_output]
    metadata = output.step_output_data.metadata
    assert metadata["used_seconds"].value == finish["used_seconds"]
    assert all(str(loss) in metadata["val_losses"].value for loss in finish["val_losses"])


@pytest.mark.slow
def test_a_server_with_the_pool_dagster_trains_charges_fails_and_preempts_as_with_its_own_processes(
    tmp_path, monkeypatch
):
    project = make_project(tmp_path / "project")
    home = project.environment["DAGSTER_HOME"]
    monkeypatch.setenv("DAGSTER_HOME", home)
    server = Server(tmp_path / "service", "--pool", "dagster", DAGSTER_HOME=home)
    server.start()
    try:
        first, wrong = server.submit(), server.submit(architecture=architecture(vocab_size=16))
        done = server.until_state(first, "completed", "failed")
        assert done["state"] == "completed" and len(done["val_losses"]) == 4
        failed = server.until_state(wrong, "completed", "failed")
        assert failed["failure"] == "unexpected" and failed["error"].startswith("vocab_size is 16, but the text")
        assert server.get("/budget")["used_seconds"] == pytest.approx(max(1, done["used_seconds"]) + 1)
        until(lambda: run_of(project, EXPERIMENT_TAG, str(first))[0].is_finished)
        until(lambda: run_of(project, EXPERIMENT_TAG, str(wrong))[0].is_finished)
        assert run_of(project, EXPERIMENT_TAG, str(first))[0].status == dg.DagsterRunStatus.SUCCESS
        run, logs = run_of(project, EXPERIMENT_TAG, str(wrong))
        assert run.status == dg.DagsterRunStatus.FAILURE and any("vocab_size is 16" in str(log) for log in logs)

        last = server.submit(model_seed=1, **SLOW)
        until(lambda: server.status(last)["val_losses"])
        before = server.status(last)["run_id"]
        os.kill(server.workers()[0], signal.SIGTERM)  # the machine is taken away
        done = server.until_state(last, "completed", "failed")
        assert done["state"] == "completed" and done["run_id"] != before and len(done["val_losses"]) == 8
        until(lambda: run_of(project, RUN_TAG, done["run_id"])[0].is_finished)
        assert run_of(project, RUN_TAG, before)[0].status == dg.DagsterRunStatus.FAILURE
        assert run_of(project, RUN_TAG, done["run_id"])[0].status == dg.DagsterRunStatus.SUCCESS
    finally:
        if server.process.poll() is None:
            server.stop()


def test_a_pool_that_there_is_not_is_named_with_those_that_there_are():
    import argparse

    options = argparse.Namespace(host="::1", port=80, text=None, workers=1, devices="auto", pool="nope")
    with pytest.raises(UserError, match="--pool is nope; there are processes"):
        contest_of(options)
