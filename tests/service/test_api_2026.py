"""The 2026 contract line by line, on SQLite and PostgreSQL, with the real application."""

import itertools
import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa
from fastapi.testclient import TestClient

from cs336.service.api_2026 import users_router, workers_router
from cs336.service.app import Part, create_app
from cs336.service.jobs import Jobs
from cs336.service.jobs_tables import job_events
from cs336.service.keys import add_key, revoke_key
from cs336.service.state import Settings
from tests.service.job_examples import architecture, body

INTERNAL = {"X-Internal-Key": "between us"}


class Contest:
    """The application with two users."""

    def __init__(self, client):
        self.client, self.database = client, client.app.state.service.database
        self.jobs = Jobs(self.database)
        self.ada, self.bob = ({"X-API-Key": add_key(self.database, name)} for name in ("ada", "bob"))

    def submit(self, user=None, **changes):
        return self.client.post("/submit", json=body(**changes), headers=user or self.ada)

    def get(self, path, user=None):
        return self.client.get(path, headers=user or self.ada)

    def tell(self, experiment_id, path, **content):
        return self.client.post(f"/internal/worker/{experiment_id}/{path}", json=content, headers=INTERNAL)

    def launch(self, **changes):
        """Submit and dispatch a job; its experiment and run id."""
        experiment_id = self.submit(**changes).json()["experiment_id"]
        (job,) = [job for job in self.jobs.dispatch(100) if job.experiment_id == experiment_id]
        return experiment_id, job.run_id

    def status(self, experiment_id):
        return self.get(f"/experiment/{experiment_id}").json()["status"]

    def events(self):
        with self.database.reading() as connection:
            return connection.execute(sa.select(job_events).order_by(job_events.c.id)).all()


@pytest.fixture
def contest(database_url):
    parts = [Part(router=users_router(num_train_tokens=10**9)), Part(router=workers_router("between us"))]
    settings = Settings(database_url=database_url, failure_burst=1_000)
    with TestClient(create_app(settings, parts), raise_server_exceptions=False) as client:
        yield Contest(client)


def test_submit_answers_with_an_id_and_the_budget(contest):
    answer = contest.submit(max_runtime_seconds=600)
    assert answer.status_code == 200
    assert answer.json() == {
        "experiment_id": 1,
        "budget_summary": {"used_seconds": 600.0, "remaining_seconds": 42_600.0, "total_budget_seconds": 43_200.0},
    }
    assert contest.get("/budget").json() == answer.json()["budget_summary"]


@pytest.mark.parametrize("path", ["/budget", "/experiments", "/experiment/1", "/final_submission"])
def test_a_missing_unknown_or_revoked_key_is_401(contest, path):
    assert contest.client.get(path).status_code == 401
    assert contest.get(path, {"X-API-Key": "cs336-made-up"}).status_code == 401
    assert contest.client.get(path, params=contest.ada).status_code == 401  # only the header counts
    revoke_key(contest.database, "ada")
    assert contest.get(path).status_code == 401


def test_posts_need_a_key_too(contest):
    for path in ("/submit", "/final_submission"):
        assert contest.client.post(path, json=body()).status_code == 401
    assert contest.jobs.dispatch(100) == []


def test_a_job_longer_than_what_remains_is_400_with_the_summary(contest):
    contest.submit(max_runtime_seconds=43_000)
    answer = contest.submit(max_runtime_seconds=201)
    assert answer.status_code == 400
    assert answer.json()["detail"] == {
        "message": "max_runtime_seconds is 201, but 200 of 43200 remain",
        "budget_summary": {"used_seconds": 43_000.0, "remaining_seconds": 200.0, "total_budget_seconds": 43_200.0},
    }
    assert len(contest.get("/experiments").json()) == 1
    assert contest.submit(max_runtime_seconds=200).status_code == 200  # what remains, to the second


def test_an_identical_config_is_409_in_every_state_and_for_this_user_only(contest):
    experiment_id, run_id = contest.launch()
    assert contest.submit().status_code == 409  # running
    contest.tell(experiment_id, "finish", run_id=run_id, used_seconds=1, failure="unexpected", error="out of memory")
    assert contest.submit().status_code == 409  # failed
    assert contest.submit(model_seed=1).status_code == 200
    assert contest.submit(model_seed=1).status_code == 409  # queued
    assert contest.submit(contest.bob).status_code == 200


def test_a_duplicate_on_a_spent_budget_is_409_not_400(contest):
    contest.submit(max_runtime_seconds=43_200)
    assert contest.submit(max_runtime_seconds=43_200).status_code == 409
    assert contest.submit(max_runtime_seconds=1).status_code == 400


def test_invalid_is_422(contest):
    for changes in ({"n_evals": 3}, {"surprise": 1}, {"architecture": architecture(head_dim=7)}, {"optimizer": {}}):
        answer = contest.submit(**changes)
        assert answer.status_code == 422 and answer.json()["detail"][0]["loc"][0] == "body"
    answer = contest.submit(total_train_tokens=2**20 * 1_000)
    assert answer.status_code == 422 and "none is taken twice" in answer.json()["detail"][0]["msg"]
    for content, kind in itertools.product(
        (b"{", b"\xff", b"[" * 50_000, b""), ({}, {"Content-Type": "application/json"})
    ):
        answer = contest.client.post("/submit", content=content, headers=contest.ada | kind)
        assert answer.status_code == 422 and answer.json()["detail"][0]["loc"][0] == "body"
    assert contest.get("/experiments").json() == []


def test_an_optimizer_without_its_tag_is_refused_and_with_it_kept(contest):
    """A body of fields that both kinds share was once taken for SGD."""
    shared = {"schedule": {"peak_value": 0.01}, "grad_clip_norm": 1.0}
    assert contest.submit(optimizer=shared).status_code == 422
    for kind in ("adamw", "sgd"):
        experiment_id = contest.submit(optimizer=shared | {"type": kind}).json()["experiment_id"]
        kept = contest.get(f"/experiment/{experiment_id}").json()["training_config"]["optimizer"]
        assert kept["type"] == kind and ("beta1" in kept) == (kind == "adamw")


def test_experiments_are_oldest_first_with_config_and_status(contest):
    for seed in (3, 1, 2):
        contest.submit(model_seed=seed)
    found = contest.get("/experiments").json()
    assert [each["training_config"]["model_seed"] for each in found] == [3, 1, 2]
    assert [each.keys() for each in found] == [{"experiment_id", "training_config", "status"}] * 3
    assert found[1] == contest.get(f"/experiment/{found[1]['experiment_id']}").json()
    assert found[1]["status"]["state"] == "queued" and found[1]["status"]["val_losses"] == []


def test_a_user_never_sees_anothers_runs(contest):
    experiment_id, _ = contest.launch()
    contest.client.post(
        "/final_submission", json={"training_config": body(), "predicted_final_loss": 3.0}, headers=contest.ada
    )
    assert contest.get("/experiments", contest.bob).json() == []
    theirs, none = (contest.get(f"/experiment/{n}", contest.bob) for n in (experiment_id, 999))
    assert theirs.status_code == none.status_code == 404
    assert theirs.json() == {"detail": f"there is no experiment {experiment_id}"}
    assert contest.get("/budget", contest.bob).json()["used_seconds"] == 0
    assert contest.get("/final_submission", contest.bob).json() is None


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS"])
def test_another_method_is_405_and_names_both(contest, method):
    answer = contest.client.request(method, "/final_submission", headers=contest.ada)
    assert answer.status_code == 405 and answer.headers["allow"] == "GET, POST"


def test_an_id_that_is_no_number_is_422(contest):
    for wrong in ("x", "0", "-1", str(2**40)):
        assert contest.get(f"/experiment/{wrong}").status_code == 422


# ---- final submissions


def test_a_final_submission_is_null_then_the_last_one(contest):
    assert contest.get("/final_submission").json() is None
    before = datetime.now(UTC)
    for loss, seconds in ((3.5, 600), (3.036, 172_800)):
        sent = {"training_config": body(max_runtime_seconds=seconds), "predicted_final_loss": loss}
        answer = contest.client.post("/final_submission", json=sent, headers=contest.ada)
        assert answer.status_code == 200 and answer.json()["predicted_final_loss"] == loss
        assert before <= datetime.fromisoformat(answer.json()["submitted_at"]) <= datetime.now(UTC)
    kept = contest.get("/final_submission").json()
    assert kept["training_config"]["max_runtime_seconds"] == 172_800 and kept["predicted_final_loss"] == 3.036
    assert datetime.fromisoformat(kept["submitted_at"]) == pytest.approx(
        datetime.fromisoformat(answer.json()["submitted_at"]), abs=timedelta(milliseconds=1)
    )
    assert contest.get("/budget").json()["used_seconds"] == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"predicted_final_loss": 0},
        {"predicted_final_loss": -1.0},
        {"training_config": body(max_runtime_seconds=172_801)},
        {"training_config": body(n_evals=3)},
        {"note": "hello"},
    ],
)
def test_a_wrong_final_submission_is_422(contest, changes):
    sent = {"training_config": body(), "predicted_final_loss": 3.0} | changes
    assert contest.client.post("/final_submission", json=sent, headers=contest.ada).status_code == 422
    assert contest.get("/final_submission").json() is None


def test_a_job_for_fitting_is_still_limited_to_12_hours(contest):
    assert contest.submit(max_runtime_seconds=43_201).status_code == 422


# ---- what workers tell


def test_a_run_as_its_worker_tells_it(contest):
    experiment_id, run_id = contest.launch()
    assert contest.status(experiment_id)["state"] == "running"
    news = [{"type": "started"}, {"type": "heartbeat"}]
    news += [{"type": "validation_loss", "number": number, "loss": 7.5 - number} for number in range(2)]
    for each in news:
        answer = contest.tell(experiment_id, "event", run_id=run_id, **each)
        assert (answer.status_code, answer.content) == (204, b"")
    assert contest.status(experiment_id)["val_losses"] == [7.5, 6.5]
    assert contest.get("/budget").json()["used_seconds"] == 600
    answer = contest.tell(experiment_id, "finish", run_id=run_id, used_seconds=10.2, val_losses=[7.5, 6.5, 6.0])
    assert (answer.status_code, answer.content) == (204, b"")
    status = contest.status(experiment_id)
    assert (status["state"], status["val_losses"], status["used_seconds"]) == ("completed", [7.5, 6.5, 6.0], 10.2)
    moments = [status[name] for name in ("queued_at", "dispatched_at", "started_at", "finished_at")]
    assert moments == sorted(moments) and None not in moments and status["run_id"] == run_id
    assert contest.get("/budget").json()["used_seconds"] == pytest.approx(10.2)


@pytest.mark.parametrize(("used", "charged"), [(0, 1), (0.3, 1), (10.2, 10.2), (600, 600), (700, 600)])
@pytest.mark.parametrize("failure", [None, "timeout", "unexpected"])
def test_what_is_charged_is_what_was_used_from_1_to_the_limit(contest, used, charged, failure):
    experiment_id, run_id = contest.launch()
    contest.tell(experiment_id, "finish", run_id=run_id, used_seconds=used, failure=failure, error="text")
    assert contest.get("/budget").json()["used_seconds"] == pytest.approx(charged)
    status = contest.status(experiment_id)
    assert status["state"] == ("failed" if failure else "completed") and status["failure"] == failure


def test_what_is_given_back_can_be_spent(contest):
    experiment_id, run_id = contest.launch(max_runtime_seconds=43_200)
    assert contest.submit(max_runtime_seconds=43_000).status_code == 400
    contest.tell(experiment_id, "finish", run_id=run_id, used_seconds=200)
    assert contest.submit(max_runtime_seconds=43_000).status_code == 200


def test_the_internal_key_is_not_a_users(contest):
    experiment_id, run_id = contest.launch()
    for headers in ({}, {"X-Internal-Key": "wrong"}, contest.ada):
        for path in ("event", "finish"):
            sent = {"type": "heartbeat", "run_id": run_id, "used_seconds": 1}
            address = f"/internal/worker/{experiment_id}/{path}"
            assert contest.client.post(address, json=sent, headers=headers).status_code == 401
    assert contest.get("/experiments", INTERNAL).status_code == 401


def test_workers_paths_are_absent_from_the_public_description(contest):
    described = contest.client.get("/openapi.json").json()
    paths = {"/submit", "/budget", "/experiments", "/experiment/{experiment_id}", "/final_submission", "/dashboard"}
    assert described["paths"].keys() == paths
    assert "internal" not in json.dumps(described).lower()


def test_an_unknown_experiment_is_404_and_a_run_that_does_not_run_500(contest):
    assert contest.tell(7, "event", type="heartbeat", run_id="x").status_code == 404
    assert contest.tell(7, "finish", run_id="x", used_seconds=1).status_code == 404
    experiment_id = contest.submit().json()["experiment_id"]
    assert contest.tell(experiment_id, "finish", run_id="x", used_seconds=1).status_code == 500  # it waits
    contest.jobs.dispatch(1)
    assert contest.tell(experiment_id, "finish", run_id="x", used_seconds=1).status_code == 500  # another run does
    assert contest.status(experiment_id)["state"] == "running"


def test_an_end_told_twice_charges_once(contest):
    experiment_id, run_id = contest.launch()
    answers = [contest.tell(experiment_id, "finish", run_id=run_id, used_seconds=used) for used in (10, 500)]
    assert [answer.status_code for answer in answers] == [204, 500]
    assert contest.get("/budget").json()["used_seconds"] == 10


def test_a_preempted_job_waits_again_and_its_old_run_is_not_heard(contest):
    experiment_id, old = contest.launch()
    contest.tell(experiment_id, "event", type="validation_loss", run_id=old, number=0, loss=5.0)
    assert contest.tell(experiment_id, "event", type="preempted", run_id=old).status_code == 204
    status = contest.status(experiment_id)
    assert (status["state"], status["run_id"], status["val_losses"]) == ("queued", None, [])
    assert contest.get("/budget").json()["used_seconds"] == 600
    (job,) = contest.jobs.dispatch(1)
    assert job.run_id != old
    stale = {"type": "validation_loss", "number": 0, "loss": 1.0}
    assert contest.tell(experiment_id, "event", run_id=old, **stale).status_code == 204
    assert contest.tell(experiment_id, "event", run_id=old, type="preempted").status_code == 204
    assert contest.tell(experiment_id, "finish", run_id=old, used_seconds=1).status_code == 500
    status = contest.status(experiment_id)
    assert (status["state"], status["run_id"], status["val_losses"]) == ("running", job.run_id, [])


def test_a_late_heartbeat_of_a_finished_run_changes_nothing(contest):
    experiment_id, run_id = contest.launch()
    contest.tell(experiment_id, "finish", run_id=run_id, used_seconds=5)
    before = contest.status(experiment_id)
    assert contest.tell(experiment_id, "event", type="heartbeat", run_id=run_id).status_code == 204
    assert contest.status(experiment_id) == before


def test_events_that_are_none_are_422(contest):
    experiment_id, run_id = contest.launch()
    for wrong in (
        {"type": "bored"},
        {"type": "validation_loss", "number": 0},
        {"type": "validation_loss", "number": 1, "loss": 2.0},  # the first has not come
        {"type": "validation_loss", "number": -1, "loss": 2.0},
    ):
        assert contest.tell(experiment_id, "event", run_id=run_id, **wrong).status_code == 422
    address = f"/internal/worker/{experiment_id}/event"
    nan = f'{{"type": "validation_loss", "number": 0, "run_id": "{run_id}", "loss": NaN}}'
    assert contest.client.post(address, content=nan, headers=INTERNAL).status_code == 422
    assert contest.tell(experiment_id, "finish", run_id=run_id, used_seconds=-1).status_code == 422
    assert contest.status(experiment_id)["val_losses"] == []


def test_everything_is_in_a_log_to_which_rows_are_only_added(contest):
    experiment_id, run_id = contest.launch()
    contest.tell(experiment_id, "event", type="started", run_id=run_id)
    contest.tell(experiment_id, "event", type="heartbeat", run_id="stale")
    contest.tell(experiment_id, "finish", run_id=run_id, used_seconds=5)
    events = contest.events()
    assert [event.kind for event in events] == ["submitted", "dispatched", "started", "ignored", "finished"]
    assert events[1].detail == {"run_id": run_id} and events[4].detail["used_seconds"] == 5
    assert {event.experiment_id for event in events} == {experiment_id}
    for change in (sa.update(job_events).values(kind="x"), sa.delete(job_events)):
        with pytest.raises(sa.exc.DatabaseError, match="only added"), contest.database.writing() as connection:
            connection.execute(change)
    assert contest.events() == events


def test_many_submissions_at_once_never_overshoot_nor_double(contest):
    """16 clients, 8 distinct jobs twice each, room for 5."""
    with ThreadPoolExecutor(16) as clients:
        codes = list(
            clients.map(lambda n: contest.submit(max_runtime_seconds=8_000, model_seed=n % 8).status_code, range(16))
        )
    assert codes.count(200) == 5 and set(codes) <= {200, 400, 409}
    assert contest.get("/budget").json()["used_seconds"] == 40_000
    seeds = [each["training_config"]["model_seed"] for each in contest.get("/experiments").json()]
    assert len(set(seeds)) == len(seeds) == 5


# ---- the queue


def test_dispatch_takes_free_workers_only_in_the_fair_order(contest):
    for seed in range(3):
        contest.submit(model_seed=seed)
    contest.submit(contest.bob)
    first = contest.jobs.dispatch(2)
    assert [job.experiment_id for job in first] == [1, 4]  # ada's first, then bob's, before ada's second
    assert contest.jobs.dispatch(2) == []
    contest.tell(4, "finish", run_id=first[1].run_id, used_seconds=1)
    assert [job.experiment_id for job in contest.jobs.dispatch(2)] == [2]
    assert len({job.run_id for job in contest.jobs.running()}) == 2


def test_two_schedulers_at_once_mark_each_job_once(contest):
    for seed in range(6):
        contest.submit(model_seed=seed)
    with ThreadPoolExecutor(6) as several:
        marked = [
            job.experiment_id for jobs in several.map(lambda _: contest.jobs.dispatch(4), range(6)) for job in jobs
        ]
    assert sorted(marked) == [1, 2, 3, 4]
