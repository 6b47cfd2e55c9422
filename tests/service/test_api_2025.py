"""The contract of the 2025 API, line by line, on SQLite and on PostgreSQL."""

import itertools
import json
from dataclasses import asdict

import pytest
import sqlalchemy as sa
from fastapi.testclient import TestClient

from cs336.scaling.loss_model import configuration_of
from cs336.scaling.surrogate import BUDGETS, fit_surrogate
from cs336.service import api_2025
from cs336.service.app import create_app
from cs336.service.keys import add_key, find_key, list_keys, revoke_key
from cs336.service.state import Settings
from tests.scaling.made_runs import configuration, made_run

MEASURED = made_run(configuration(256, 4, 4, 128, 1e-3, 10**15), loss=4.321)
RUN = asdict(configuration_of(MEASURED))
NUMBERS = itertools.count()
OTHER = RUN | {"d_model": 512}


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def client(request, tmp_path_factory):
    """One server of each kind for all tests: each has a key of its own."""
    folder = tmp_path_factory.mktemp("service")
    url = f"sqlite:///{folder}/service.db"
    if request.param == "postgresql":
        url = request.getfixturevalue("postgres_url_of_module")
    settings = Settings(database_url=url, log_file=folder / "log.jsonl", failures_per_second=1e6, failure_burst=1e6)
    with TestClient(create_app(settings, [api_2025.part(fit_surrogate([MEASURED]))])) as client:
        yield client


@pytest.fixture
def database(client):
    return client.app.state.service.database


@pytest.fixture
def key(database):
    return add_key(database, f"ada-{next(NUMBERS)}")


@pytest.fixture
def bob(database):
    return add_key(database, f"bob-{next(NUMBERS)}")


def ask(client, path, key, **query):
    answer = client.get(path, params=query | {"api_key": key})
    return answer.status_code, answer.json()


# /loss


def test_a_loss_has_these_two_values_and_no_others(client, key):
    assert ask(client, "/loss", key, **RUN) == (200, {"loss": 4.321, "total_flops_used": 1e15})


def test_each_new_configuration_is_charged_its_flops(client, key):
    totals = [
        ask(client, "/loss", key, **RUN | changes)[1]["total_flops_used"]
        for changes in (
            {},
            {"d_model": 257},
            {"num_layers": 5},
            {"num_heads": 5},
            {"batch_size": 256},
            {"learning_rate": 0.00099},
            {"train_flops": 3 * 10**15},
        )
    ]
    assert totals == [1e15, 2e15, 3e15, 4e15, 5e15, 6e15, 9e15]


def test_a_repeated_configuration_is_free_and_answered_alike(client, key):
    first = ask(client, "/loss", key, **OTHER)
    assert ask(client, "/loss", key, **OTHER) == first
    assert ask(client, "/total_flops_used", key) == (200, 1e15)
    assert len(ask(client, "/previous_runs", key)[1]["previous_runs"]) == 1


def test_an_answer_stays_when_the_surrogate_changes(client, key):
    """A key was charged for a loss; it keeps that one."""
    before = ask(client, "/loss", key, **OTHER)[1]["loss"]
    other = fit_surrogate([made_run(configuration(512, 4, 4, 128, 1e-3, 10**15), loss=1.0)])
    usual, client.app.state.surrogate = client.app.state.surrogate, other
    try:
        assert ask(client, "/provenance", key, **OTHER)[1]["provenance"] == "measured"
        assert ask(client, "/loss", key, **OTHER)[1]["loss"] == before
    finally:
        client.app.state.surrogate = usual


def test_what_is_free_for_one_key_is_not_for_another(client, key, bob):
    ask(client, "/loss", key, **RUN)
    assert ask(client, "/loss", bob, **RUN) == (200, {"loss": 4.321, "total_flops_used": 1e15})


@pytest.mark.parametrize("spelling", ["1e15", "1E15", "1.0e+15", "1000000000000000", "1000000000000000.0"])
def test_spellings_of_a_budget_are_one_configuration(client, key, spelling):
    ask(client, "/loss", key, **RUN)
    assert ask(client, "/loss", key, **RUN | {"train_flops": spelling})[1] == {"loss": 4.321, "total_flops_used": 1e15}


def test_spellings_of_a_rate_are_one_configuration(client, key):
    for rate in ("0.001", "1e-3", "1.0E-3"):
        assert ask(client, "/loss", key, **RUN | {"learning_rate": rate})[1]["total_flops_used"] == 1e15


def test_heads_need_not_divide_the_width(client, key):
    status, body = ask(client, "/loss", key, **RUN | {"num_heads": 7})
    assert status == 200 and 1 < body["loss"] < 11


@pytest.mark.parametrize("budget", BUDGETS)
def test_all_sixteen_budgets_are_answered(client, key, budget):
    status, body = ask(client, "/loss", key, **RUN | {"train_flops": budget})
    assert status == 200 and body["total_flops_used"] == budget


@pytest.mark.parametrize("shape", list(itertools.product((64, 1024), (2, 24), (2, 16), (128, 256), (1e-4, 1e-3))))
def test_all_corners_of_the_ranges_are_answered(client, key, shape):
    names = ("d_model", "num_layers", "num_heads", "batch_size", "learning_rate")
    for budget in (10**13, 10**18):
        status, body = ask(client, "/loss", key, **dict(zip(names, shape, strict=True)), train_flops=budget)
        assert status == 200 and 1 < body["loss"] < 11


# out of range: 404 with the message on top


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("d_model", 63, "d_model must be in range [64, 1024], got 63"),
        ("d_model", 1025, "d_model must be in range [64, 1024], got 1025"),
        ("d_model", -(10**30), f"d_model must be in range [64, 1024], got {-(10**30)}"),
        ("num_layers", 1, "num_layers must be in range [2, 24], got 1"),
        ("num_layers", 25, "num_layers must be in range [2, 24], got 25"),
        ("num_heads", 1, "num_heads must be in range [2, 16], got 1"),
        ("num_heads", 17, "num_heads must be in range [2, 16], got 17"),
        ("batch_size", 64, "batch_size must be one of [128, 256], got 64"),
        ("batch_size", 129, "batch_size must be one of [128, 256], got 129"),
        ("learning_rate", 9.99e-5, "learning_rate must be in range [0.0001, 0.001], got 9.99e-05"),
        ("learning_rate", 0.0010001, "learning_rate must be in range [0.0001, 0.001], got 0.0010001"),
        ("learning_rate", -1, "learning_rate must be in range [0.0001, 0.001], got -1.0"),
    ],
)
def test_a_value_out_of_range_is_a_404_that_says_the_range(client, key, name, value, message):
    assert ask(client, "/loss", key, **RUN | {name: value}) == (404, {"message": message})
    assert ask(client, "/provenance", key, **RUN | {name: value}) == (404, {"message": message})
    assert ask(client, "/previous_runs", key) == (200, {"previous_runs": []})


@pytest.mark.parametrize("value", ["2e13", "1e12", "3e18", "0", "-1e13", "1.5", "10000000000001"])
def test_a_budget_that_is_none_of_the_sixteen_is_a_404_with_all_of_them(client, key, value):
    status, body = ask(client, "/loss", key, **RUN | {"train_flops": value})
    assert status == 404
    assert body["message"].startswith("train_flops must be one of [1e+13, 3e+13, 6e+13, 1e+14")
    assert body["message"].count("e+") >= 16 and "1e+18], got" in body["message"]


def test_the_status_of_ranges_is_one_constant(client, key, monkeypatch):
    monkeypatch.setattr(api_2025, "OUT_OF_RANGE_STATUS", 422)
    assert ask(client, "/loss", key, **RUN | {"d_model": 63})[0] == 422


# missing or unparsable: the framework's 422


@pytest.mark.parametrize("missing", list(RUN))
def test_a_missing_parameter_is_the_frameworks_422(client, key, missing):
    query = {name: value for name, value in RUN.items() if name != missing}
    status, body = ask(client, "/loss", key, **query)
    assert status == 422 and list(body) == ["detail"]
    assert [(error["type"], error["loc"]) for error in body["detail"]] == [("missing", ["query", missing])]


@pytest.mark.parametrize("path", ["/loss", "/total_flops_used", "/previous_runs", "/provenance"])
def test_a_missing_key_is_the_frameworks_422(client, path):
    answer = client.get(path, params=RUN)
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["query", "api_key"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("d_model", "wide"),
        ("d_model", "64.5"),
        ("num_heads", ""),
        ("batch_size", "1e2x"),
        ("learning_rate", "fast"),
        ("learning_rate", "nan"),
        ("train_flops", "1e13.5"),
        ("train_flops", "inf"),
        ("train_flops", "-nan"),
        ("train_flops", "1e999"),
    ],
)
def test_an_unparsable_parameter_is_the_frameworks_422(client, key, name, value):
    status, body = ask(client, "/loss", key, **RUN | {name: value})
    assert status == 422 and body["detail"][0]["loc"] == ["query", name]


# keys


@pytest.mark.parametrize("path", ["/loss", "/total_flops_used", "/previous_runs", "/provenance"])
@pytest.mark.parametrize("wrong", ["", "nobody", "cs336-" + "a" * 43, 'a"b\\c', "ключ", "\x00"])
def test_an_unknown_key_is_a_422_that_repeats_it(client, key, path, wrong):
    assert ask(client, path, wrong, **RUN) == (422, {"message": f"Invalid API key provided: {wrong}"})


def test_an_unknown_key_comes_before_a_value_out_of_range(client):
    assert ask(client, "/loss", "nobody", **RUN | {"d_model": 1})[0] == 422


def test_a_revoked_key_is_unknown(client, database, key):
    ask(client, "/loss", key, **RUN)
    revoke_key(database, list_keys(database)[-1].name)
    for path in ("/loss", "/total_flops_used", "/previous_runs", "/provenance"):
        assert ask(client, path, key, **RUN) == (422, {"message": f"Invalid API key provided: {key}"})


# /total_flops_used


def test_the_total_is_a_bare_number(client, key):
    ask(client, "/loss", key, **RUN)
    answer = client.get("/total_flops_used", params={"api_key": key})
    assert answer.status_code == 200 and json.loads(answer.text) == 1e15
    assert answer.headers["content-type"] == "application/json"


def test_a_key_that_asked_for_no_loss_has_no_total(client, key):
    status, body = ask(client, "/total_flops_used", key)
    assert status == 422 and list(body) == ["message"]


# /previous_runs


def test_previous_runs_stand_in_the_order_they_were_asked_for(client, key):
    asked = [RUN | {"d_model": width} for width in (900, 100, 500, 256)]
    losses = [ask(client, "/loss", key, **query)[1]["loss"] for query in asked]
    ask(client, "/loss", key, **asked[0])  # a repetition adds nothing and moves nothing
    status, body = ask(client, "/previous_runs", key)
    assert status == 200 and list(body) == ["previous_runs"]
    assert body["previous_runs"] == [query | {"loss": loss} for query, loss in zip(asked, losses, strict=True)]
    assert list(body["previous_runs"][0]) == [*RUN, "loss"]


def test_a_key_that_asked_for_no_loss_has_no_previous_runs(client, key):
    assert ask(client, "/previous_runs", key) == (200, {"previous_runs": []})


def test_one_user_never_sees_anothers_runs(client, key, bob):
    ask(client, "/loss", key, **RUN)
    ask(client, "/loss", bob, **OTHER)
    assert [run["d_model"] for run in ask(client, "/previous_runs", key)[1]["previous_runs"]] == [256]
    assert [run["d_model"] for run in ask(client, "/previous_runs", bob)[1]["previous_runs"]] == [512]
    assert ask(client, "/total_flops_used", bob) == (200, 1e15)


# the budget


def test_the_budget_can_be_spent_to_the_last_flop_and_no_further(client, key):
    for query in (OTHER, RUN):
        assert ask(client, "/loss", key, **query | {"train_flops": 10**18})[0] == 200
    assert ask(client, "/total_flops_used", key) == (200, 2e18)
    status, body = ask(client, "/loss", key, **RUN | {"train_flops": 10**13})
    assert status == 400 and list(body) == ["message"]
    assert body["message"] == "this run takes 1e+13 FLOPs, but 2e+18 of the limit of 2e+18 are used"
    assert ask(client, "/total_flops_used", key) == (200, 2e18)
    assert len(ask(client, "/previous_runs", key)[1]["previous_runs"]) == 2


def test_a_run_that_is_too_dear_leaves_room_for_a_cheaper_one(client, key):
    ask(client, "/loss", key, **RUN | {"train_flops": 10**18})
    ask(client, "/loss", key, **RUN | {"train_flops": 6 * 10**17})
    assert ask(client, "/loss", key, **OTHER | {"train_flops": 6 * 10**17})[0] == 400
    assert ask(client, "/loss", key, **OTHER | {"train_flops": 3 * 10**17})[0] == 200
    assert ask(client, "/total_flops_used", key) == (200, 1.9e18)


def test_a_repeated_configuration_is_free_after_the_cap_too(client, key):
    first = ask(client, "/loss", key, **OTHER | {"train_flops": 10**18})[1]["loss"]
    ask(client, "/loss", key, **RUN | {"train_flops": 10**18})
    repeated = ask(client, "/loss", key, **OTHER | {"train_flops": 10**18})
    assert repeated == (200, {"loss": first, "total_flops_used": 2e18})


def test_every_budget_together_is_too_much_for_one_key(client, key):
    """One configuration at all 16 budgets would cost 2.1111e18: the last one, 1e18, is refused."""
    statuses = [ask(client, "/loss", key, **RUN | {"train_flops": budget})[0] for budget in BUDGETS]
    assert statuses == [200] * 15 + [400]
    assert ask(client, "/total_flops_used", key) == (200, 1.1111e18)


def test_the_charge_and_the_run_are_one_transaction(client, database, key, monkeypatch):
    """If the charge fails after the run was stored, neither is there."""
    monkeypatch.setattr(api_2025, "_CHARGE", sa.text("UPDATE nowhere SET total = 1"))
    with pytest.raises(sa.exc.DatabaseError, match="nowhere"):
        ask(client, "/loss", key, **RUN)
    monkeypatch.undo()
    with database.reading() as connection:
        assert find_key(connection, key).flops_used == 0
    assert ask(client, "/previous_runs", key) == (200, {"previous_runs": []})


# /provenance


def test_provenance_tells_measured_from_not_and_is_free(client, key):
    status, body = ask(client, "/provenance", key, **RUN)
    assert status == 200 and list(body) == ["provenance", "uncertainty", "source", "surrogate"]
    assert body["provenance"] == "measured" and body["uncertainty"] > 0
    assert body["surrogate"]["measured_runs"] == 1
    status, body = ask(client, "/provenance", key, **OTHER)
    assert body["provenance"] == "extrapolated" and "published law" in body["source"]
    assert ask(client, "/previous_runs", key) == (200, {"previous_runs": []})


def test_provenance_does_not_give_the_loss_away(client, key):
    assert "4.321" not in client.get("/provenance", params=RUN | {"api_key": key}).text


# and around it


def test_other_methods_and_paths_are_refused(client, key):
    assert client.post("/loss", params=RUN | {"api_key": key}).status_code == 405
    assert client.get("/nothing").status_code == 404


def test_the_page_of_the_api_lists_the_four(client):
    described = client.get("/openapi.json").json()
    assert sorted(described["paths"]) == ["/loss", "/previous_runs", "/provenance", "/total_flops_used"]
    answers = described["paths"]["/loss"]["get"]["responses"]
    assert sorted(answers) == ["200", "400", "404", "422", "429"]
    assert client.get("/docs").status_code == 200
