"""Scheduler and workers: real tiny jobs on the CPU through a real server, which is killed and started again."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
import requests
import sqlalchemy as sa

from cs336.files import UserError
from cs336.service import worker
from cs336.service.contest import Contest, contest_part
from cs336.service.database import open_database
from cs336.service.job_models import Finish, Heartbeat, Started
from cs336.service.jobs import Jobs, utc_now
from cs336.service.jobs_tables import job_events
from cs336.service.keys import add_key
from cs336.service.pool import LocalPool
from cs336.service.scheduler import Scheduler
from tests.service.job_examples import architecture, body, config, write_text
from tests.service.servers import ROOT

PATIENCE_SECONDS = 120


def until(condition, seconds=PATIENCE_SECONDS):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError("waited in vain")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """A contest's server in a process of its own, and one user."""

    def __init__(self, folder: Path, *options: str, **variables: str):
        self.folder = folder
        write_text(folder / "text")
        database = open_database(f"sqlite:///{folder}/service.db")
        self.headers = {"X-API-Key": add_key(database, "ada")}
        database.close()
        self.command = [sys.executable, "-m", "cs336", "serve", "scaling", "--text", str(folder / "text")]
        self.command += ["--devices", "cpu", "--log", str(folder / "requests.jsonl")]
        self.command += ["--database", f"sqlite:///{folder}/service.db"]
        self.command += options
        self.environment = os.environ | {"CS336_ARTIFACTS": str(folder), **variables}
        self.runs = folder / "scaling_service" / "runs"
        self.process = None

    def start(self):
        self.address = f"http://127.0.0.1:{(port := free_port())}"
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                [*self.command, "--port", str(port)], cwd=ROOT, env=self.environment, stdout=log, stderr=log
            )
        until(self.answers)

    def answers(self):
        assert self.process.poll() is None, (self.folder / "server.log").read_text()
        try:
            return self.get("/budget")
        except requests.ConnectionError:
            return None

    def stop(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        self.process.wait(60)

    def get(self, path):
        return requests.get(self.address + path, headers=self.headers, timeout=10).json()

    def submit(self, **changes):
        answer = requests.post(f"{self.address}/submit", json=body(**changes), headers=self.headers, timeout=10)
        assert answer.status_code == 200, answer.text
        return answer.json()["experiment_id"]

    def status(self, experiment_id):
        return self.get(f"/experiment/{experiment_id}")["status"]

    def until_state(self, experiment_id, *states):
        return until(lambda: (status := self.status(experiment_id))["state"] in states and status)

    def workers(self):
        """Ids of the processes that hold a run's lock."""
        locks = [path for path in (self.runs / "running").glob("*/lock") if path.read_text()]
        return [int(path.read_text()) for path in locks if Path(f"/proc/{path.read_text()}").exists()]


@pytest.fixture
def server(tmp_path):
    server = Server(tmp_path)
    server.start()
    yield server
    if server.process.poll() is None:
        server.stop()
    for process in server.workers():  # of a test that failed
        os.kill(process, signal.SIGKILL)


SLOW = {"n_evals": 8}  # a second or more for each validation


@pytest.mark.slow
def test_a_job_is_trained_and_charged_for_what_it_used(server):
    first, too_late = server.submit(), server.submit(max_runtime_seconds=1, **SLOW)
    wrong = server.submit(architecture=architecture(vocab_size=16))
    done = server.until_state(first, "completed", "failed")
    assert done["state"] == "completed" and len(done["val_losses"]) == 4 and done["error"] is None
    assert done["val_losses"][-1] < done["val_losses"][0]
    late = server.until_state(too_late, "completed", "failed")
    assert (late["state"], late["failure"]) == ("failed", "timeout")
    assert 1 <= len(late["val_losses"]) < 8 and "1 s were over" in late["error"]
    failed = server.until_state(wrong, "completed", "failed")
    assert (failed["state"], failed["failure"], failed["used_seconds"]) == ("failed", "unexpected", 0)
    assert failed["error"].startswith("vocab_size is 16, but the text has id") and failed["started_at"] is None
    used = server.get("/budget")["used_seconds"]
    assert used == pytest.approx(max(1, done["used_seconds"]) + 1 + 1)
    # What is put aside tells what happened, and the key is in none of it.
    until(lambda: len(list((server.runs / "done").iterdir())) == 3)
    assert (server.runs / "internal_key").stat().st_mode & 0o777 == 0o600
    key = (server.runs / "internal_key").read_text()
    for path in [*(server.runs / "done").rglob("*"), server.folder / "requests.jsonl"]:
        assert path.is_dir() or key not in path.read_text()


@pytest.mark.slow
def test_a_killed_server_finds_its_worker_again_and_nothing_is_charged_twice(server):
    running, waiting = server.submit(**SLOW), server.submit()
    until(lambda: server.status(running)["val_losses"])
    (process,) = server.workers()
    run_id = server.status(running)["run_id"]
    server.stop(signal.SIGKILL)
    assert server.workers() == [process]  # it trains on
    server.start()  # on another port
    status = server.until_state(running, "completed", "failed")
    assert status["state"] == "completed" and status["run_id"] == run_id and len(status["val_losses"]) == 8
    assert server.until_state(waiting, "completed", "failed")["state"] == "completed"
    charged = sum(max(1, server.status(each)["used_seconds"]) for each in (running, waiting))
    assert server.get("/budget")["used_seconds"] == pytest.approx(charged)


def test_a_worker_that_died_while_the_server_was_away_is_a_failure_that_says_so(server):
    running = server.submit(**SLOW)
    until(lambda: server.status(running)["val_losses"])
    (process,) = server.workers()
    server.stop(signal.SIGKILL)
    os.kill(process, signal.SIGKILL)
    server.start()
    status = server.until_state(running, "failed", "completed")
    assert (status["state"], status["failure"]) == ("failed", "unexpected")
    assert status["error"] == "the worker died without a word" and status["val_losses"]
    assert 1 <= server.get("/budget")["used_seconds"] < 600


@pytest.mark.slow
def test_a_server_told_to_stop_preempts_its_jobs_and_the_next_runs_them(server):
    running = server.submit(**SLOW)
    until(lambda: server.status(running)["val_losses"])
    first = server.status(running)["run_id"]
    server.stop()
    assert server.workers() == []
    server.start()
    status = server.until_state(running, "completed", "failed")
    assert status["state"] == "completed" and status["run_id"] != first and len(status["val_losses"]) == 8


@pytest.mark.slow
def test_a_preempted_worker_says_so_and_its_job_runs_again(server):
    running = server.submit(**SLOW)
    until(lambda: server.status(running)["val_losses"])
    first = server.status(running)["run_id"]
    os.kill(server.workers()[0], signal.SIGTERM)
    status = server.until_state(running, "completed", "failed")
    assert status["state"] == "completed" and status["run_id"] != first
    database = open_database(f"sqlite:///{server.folder}/service.db")
    with database.reading() as connection:
        kinds = list(connection.scalars(sa.select(job_events.c.kind).order_by(job_events.c.id)))
    database.close()
    assert kinds.count("preempted") == 1 and kinds.count("dispatched") == 2 and kinds.count("finished") == 1


# ---- the scheduler with a pool that only notes


class Notes:
    """A pool without processes."""

    def __init__(self):
        self.launched, self.ended, self.dead, self.words = [], [], set(), {}

    def ensure(self, job):
        if job.run_id in self.dead:
            return False
        if job.run_id not in self.launched:
            self.launched.append(job.run_id)
        return True

    def last_words(self, run_id):
        return self.words.get(run_id)

    def end(self, run_id):
        self.ended.append(run_id)

    def settle(self, running):
        self.running = running

    def preempt_all(self):
        pass


class Clock:
    def __init__(self):
        self.now = utc_now()

    def __call__(self):
        return self.now

    def pass_by(self, seconds):
        self.now += timedelta(seconds=seconds)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def jobs(tmp_path, clock):
    database = open_database(f"sqlite:///{tmp_path}/jobs.db")
    add_key(database, "ada")
    yield Jobs(database, now=clock)
    database.close()


@pytest.fixture
def scheduler(jobs, tmp_path):
    return Scheduler(jobs, Notes(), folder=tmp_path, num_workers=2)


def begun(jobs, scheduler, **changes):
    """A job whose first chunk has begun."""
    experiment_id, _ = jobs.submit(1, config(**changes))
    scheduler.tick()
    run_id = jobs.experiment(1, experiment_id).status.run_id
    jobs.worker_event(experiment_id, Started(type="started", run_id=run_id))
    return experiment_id, run_id


def test_a_tick_launches_what_is_free_to_run_each_once(jobs, scheduler):
    for seed in range(3):
        jobs.submit(1, config(model_seed=seed))
    for _ in range(3):
        scheduler.tick()
    running = jobs.running()
    assert scheduler.pool.launched == [job.run_id for job in running] and len(running) == 2


def test_a_job_marked_but_not_launched_is_launched_under_its_mark(jobs, scheduler):
    """As after a crash between the two."""
    jobs.submit(1, config())
    (marked,) = jobs.dispatch(1)
    scheduler.tick()
    scheduler.tick()
    assert scheduler.pool.launched == [marked.run_id] and scheduler.pool.running == {marked.run_id}


def test_the_watchdog_ends_a_run_that_does_not_end_itself(jobs, scheduler, clock):
    experiment_id, run_id = begun(jobs, scheduler, max_runtime_seconds=100)
    scheduler.patience_seconds = 1_000
    clock.pass_by(115)
    scheduler.tick()
    assert scheduler.pool.ended == []
    clock.pass_by(0.1)
    scheduler.tick()
    status = jobs.experiment(1, experiment_id).status
    assert scheduler.pool.ended == [run_id]
    assert (status.state, status.failure, status.error) == ("failed", "timeout", "ended by the watchdog")
    assert jobs.budget(1).used_seconds == 100


def test_a_silent_worker_is_given_up_and_charged_to_its_last_word(jobs, scheduler, clock):
    experiment_id, run_id = begun(jobs, scheduler, max_runtime_seconds=10_000)
    clock.pass_by(50)
    jobs.worker_event(experiment_id, Started(type="started", run_id=run_id))
    clock.pass_by(180)
    scheduler.tick()
    assert scheduler.pool.ended == []
    clock.pass_by(0.1)
    scheduler.tick()
    status = jobs.experiment(1, experiment_id).status
    assert scheduler.pool.ended == [run_id]
    assert (status.state, status.failure) == ("failed", "unexpected") and "silent" in status.error
    assert jobs.budget(1).used_seconds == pytest.approx(50)


def heard_but_never_begun(jobs, scheduler, clock, seconds):
    """A job whose worker tells that it lives, and nothing else."""
    experiment_id, _ = jobs.submit(1, config(max_runtime_seconds=10_000))
    scheduler.tick()
    run_id = jobs.experiment(1, experiment_id).status.run_id
    for _ in range(seconds // 50):
        clock.pass_by(50)
        jobs.worker_event(experiment_id, Heartbeat(type="heartbeat", run_id=run_id))
    return experiment_id, run_id


def test_a_worker_whose_training_does_not_begin_is_ended_though_it_is_heard(jobs, scheduler, clock):
    experiment_id, run_id = heard_but_never_begun(jobs, scheduler, clock, 1_800)
    scheduler.tick()
    assert scheduler.pool.ended == []
    clock.pass_by(0.1)
    scheduler.tick()
    status = jobs.experiment(1, experiment_id).status
    assert scheduler.pool.ended == [run_id]
    assert (status.state, status.failure) == ("failed", "unexpected") and "did not begin within 1800 s" in status.error
    assert jobs.budget(1).used_seconds == 1, "preparing is free"


def test_one_that_could_not_tell_that_training_began_is_not_ended(jobs, scheduler, clock, tmp_path):
    """The service was away meanwhile: the word is on its way."""
    experiment_id, run_id = heard_but_never_begun(jobs, scheduler, clock, 50)
    clock.pass_by(3_000)
    later = Scheduler(jobs, Notes(), folder=tmp_path)
    clock.pass_by(100)
    later.tick()
    assert later.pool.ended == []
    jobs.worker_event(experiment_id, Started(type="started", run_id=run_id))
    clock.pass_by(100)
    later.tick()
    assert later.pool.ended == []


def test_a_service_that_was_away_for_long_gives_workers_time_to_be_heard(jobs, scheduler, clock, tmp_path):
    experiment_id, run_id = begun(jobs, scheduler, max_runtime_seconds=10_000)
    clock.pass_by(3_000)
    later = Scheduler(jobs, Notes(), folder=tmp_path)
    clock.pass_by(100)
    later.tick()
    assert later.pool.ended == [] and jobs.experiment(1, experiment_id).status.state == "running"
    jobs.worker_event(experiment_id, Heartbeat(type="heartbeat", run_id=run_id))
    clock.pass_by(100)
    later.tick()
    assert later.pool.ended == []
    clock.pass_by(100)
    later.tick()
    assert later.pool.ended == [run_id]


def test_a_worker_that_died_while_the_service_was_away_is_no_timeout(jobs, scheduler, clock, tmp_path):
    """As after a reboot: nobody knows whether it would have ended in time, so it is charged to its last word."""
    experiment_id, run_id = begun(jobs, scheduler, max_runtime_seconds=100)
    clock.pass_by(30)
    jobs.worker_event(experiment_id, Heartbeat(type="heartbeat", run_id=run_id))
    scheduler.pool.dead.add(run_id)
    clock.pass_by(1_000)
    Scheduler(jobs, scheduler.pool, folder=tmp_path).tick()
    status = jobs.experiment(1, experiment_id).status
    assert (status.failure, status.error) == ("unexpected", "the worker died without a word")
    assert jobs.budget(1).used_seconds == pytest.approx(30)


def test_a_run_that_ended_in_time_while_the_service_was_away_is_no_timeout(jobs, scheduler, clock):
    experiment_id, run_id = begun(jobs, scheduler, max_runtime_seconds=100)
    scheduler.pool.words[run_id] = Finish(run_id=run_id, used_seconds=90)
    clock.pass_by(1_000)
    scheduler.tick()
    assert jobs.experiment(1, experiment_id).status.state == "completed"
    assert jobs.budget(1).used_seconds == 90


def test_the_last_words_of_a_dead_worker_count(jobs, scheduler):
    """It ended while the service was away, and wrote that down."""
    experiment_id, run_id = begun(jobs, scheduler)
    scheduler.pool.dead.add(run_id)
    scheduler.pool.words[run_id] = Finish(run_id=run_id, used_seconds=7, val_losses=(3.0, 2.0, 1.5, 1.0))
    scheduler.tick()
    status = jobs.experiment(1, experiment_id).status
    assert (status.state, status.used_seconds, status.val_losses) == ("completed", 7, (3.0, 2.0, 1.5, 1.0))


def test_a_worker_that_ended_between_two_looks_is_no_failure(jobs, scheduler, monkeypatch):
    experiment_id, run_id = begun(jobs, scheduler)
    scheduler.pool.dead.add(run_id)
    seen = jobs.running()
    jobs.finish(experiment_id, Finish(run_id=run_id, used_seconds=7))
    monkeypatch.setattr(jobs, "running", lambda: seen)
    scheduler.tick()
    assert jobs.experiment(1, experiment_id).status.state == "completed"


def test_a_launch_that_fails_is_tried_again(jobs, scheduler, monkeypatch):
    jobs.submit(1, config())

    def broken(job):
        raise OSError("no memory")

    with monkeypatch.context() as patch:
        patch.setattr(scheduler.pool, "ensure", broken)
        scheduler.tick()
    (job,) = jobs.running()
    scheduler.tick()
    assert scheduler.pool.launched == [job.run_id]


def test_one_scheduler_of_two_works_and_the_other_takes_over(jobs, tmp_path):
    told = []
    schedulers = [
        Scheduler(jobs, Notes(), folder=tmp_path / "lock", poll_seconds=0.01, on_turn=partial(told.append, number))
        for number in range(2)
    ]
    schedulers[0].start()
    jobs.submit(1, config())
    until(lambda: schedulers[0].pool.launched)
    schedulers[1].start()
    time.sleep(0.2)
    assert not schedulers[1].pool.launched and told == [0]
    schedulers[0].stop()  # its job waits again
    until(lambda: schedulers[1].pool.launched)
    assert told == [0, 1]
    schedulers[1].stop()


def test_a_tick_that_fails_does_not_end_the_scheduler(jobs, tmp_path, monkeypatch):
    scheduler = Scheduler(jobs, Notes(), folder=tmp_path / "lock", poll_seconds=0.01)
    failures = iter([RuntimeError("the database is away")])

    def dispatch(num_workers):
        for failure in failures:
            raise failure
        return []

    monkeypatch.setattr(jobs, "dispatch", dispatch)
    scheduler.start()
    until(lambda: next(failures, None) is None and hasattr(scheduler.pool, "running"))
    assert scheduler.is_alive()
    scheduler.stop()


# ---- the pool and the worker


def marked(jobs, **changes):
    jobs.submit(1, config(**changes))
    return jobs.dispatch(100)[-1]


def test_one_run_has_one_worker_though_it_be_launched_twice(jobs, tmp_path):
    job = marked(jobs, **SLOW)
    pools = [LocalPool(tmp_path / "runs", data=write_text(tmp_path / "text"), devices=["cpu"]) for _ in range(2)]
    for pool in pools:  # each is a server that knows nothing of the other's launch
        pool.announce("http://127.0.0.1:9")
        pool.internal_key()
        assert pool.ensure(job)
    run = tmp_path / "runs" / "running" / job.run_id
    until(lambda: "another process trains this run" in (run / "log.txt").read_text() or (run / "lock").read_text())
    processes = [pool._launched[job.run_id] for pool in pools]
    until(lambda: [process.poll() for process in processes].count(0) == 1)
    alive = [process for process in processes if process.poll() is None]
    assert (run / "lock").read_text() == str(alive[0].pid)
    third = LocalPool(tmp_path / "runs", data=tmp_path / "text")
    assert third.ensure(job) and third._launched == {}
    third.end(job.run_id)
    assert alive[0].wait(10) == -signal.SIGKILL
    assert not third.ensure(job) and third.last_words(job.run_id) is None
    third.settle(set())
    assert (tmp_path / "runs" / "done" / job.run_id / "log.txt").exists() and not run.exists()


def test_runs_are_spread_over_the_devices(jobs, tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", lambda *args, **settings: None)
    pool = LocalPool(tmp_path / "runs", data=tmp_path, devices=["cuda:0", "cuda:1"])
    for seed in range(4):
        pool._launch(marked(jobs, model_seed=seed), tmp_path / "runs" / "running" / f"run{seed}")
    used = [json.loads(path.read_text())["device"] for path in sorted((tmp_path / "runs").rglob("job.json"))]
    assert used == ["cuda:0", "cuda:1"] * 2


def test_a_second_server_leaves_the_first_ones_workers_their_address(server, tmp_path):
    until(lambda: (server.runs / "address").exists())
    first = server.address
    command = [*server.command, "--port", str(free_port()), "--database", f"sqlite:///{tmp_path}/other.db"]
    with (tmp_path / "second.log").open("wb") as log:
        second = subprocess.Popen(command, cwd=ROOT, env=server.environment, stdout=log, stderr=log)
        try:
            until(lambda: b"/dashboard" in (tmp_path / "second.log").read_bytes())
            time.sleep(1)
            assert second.poll() is None and (server.runs / "address").read_text() == first
        finally:
            second.terminate()
            second.wait(60)


def test_the_reporter_tries_again_until_it_is_heard_in_order_and_beats_its_heart(tmp_path, monkeypatch):
    heard, answers = [], [503, requests.ConnectionError("down"), 401, 204, 204, 500]

    def post(address, *, json, headers, timeout):
        answer = answers.pop(0) if answers else 204
        if isinstance(answer, Exception):
            raise answer
        heard.append((answer, address, json.get("type"), headers["X-Internal-Key"]))
        return type("Answer", (), {"status_code": answer, "text": ""})

    monkeypatch.setattr(requests, "post", post)
    monkeypatch.setattr(worker, "HEARTBEAT_SECONDS", 0.2)
    (tmp_path / "address").write_text("http://here\n")
    (tmp_path / "internal_key").write_text("secret")
    reporter = worker.Reporter(tmp_path / "running" / "r", 7, "r")
    reporter.event("started")
    reporter.event("validation_loss", number=0, loss=3.0)
    until(lambda: len(heard) >= 5)  # with a heartbeat
    reporter.finish({"run_id": "r"})
    reporter.close()
    event = "http://here/internal/worker/7/event"
    assert heard[:4] == [
        (503, event, "started", "secret"),
        (401, event, "started", "secret"),
        (204, event, "started", "secret"),
        (204, event, "validation_loss", "secret"),
    ]
    assert heard[4] == (500, event, "heartbeat", "secret")  # an answer: not said again
    assert heard[-1][1:] == ("http://here/internal/worker/7/finish", None, "secret")


@pytest.mark.parametrize("missing", ["train.bin", "valid.bin"])
def test_a_contest_without_its_text_does_not_start(tmp_path, missing):
    write_text(tmp_path / "text")
    (tmp_path / "text" / missing).unlink()
    with pytest.raises(UserError, match=missing.partition(".")[0]):
        contest_part(Contest(address="", folder=tmp_path / "runs", data=tmp_path / "text"))
