"""What every part of the service shares: log lines, request ids, limits, failures, life span."""

import contextlib
import json

import pytest
from fastapi import APIRouter, Request
from fastapi.testclient import TestClient

from cs336.service.app import Part, Refusal, create_app
from cs336.service.keys import add_key
from cs336.service.logs import PREVIEW_CHARACTERS, PREVIEW_TOKENS, open_log, preview
from cs336.service.state import Settings, service_of

router = APIRouter()


@router.get("/who")
def who(request: Request, api_key: str) -> str:
    service = service_of(request)
    with service.database.reading() as connection:
        key = service.authenticate(request, connection, api_key)
    if key is None:
        raise Refusal(422, f"Invalid API key provided: {api_key}")
    return key.name


@router.post("/echo")
async def echo(request: Request) -> str:
    return (await request.body()).decode()


@router.get("/broken")
def broken() -> None:
    raise ZeroDivisionError("a secret of the code")


@pytest.fixture
def settings(tmp_path):
    return Settings(
        database_url=f"sqlite:///{tmp_path}/service.db",
        log_file=tmp_path / "log" / "requests.jsonl",
        requests_per_second=0.001,
        burst=3,
        failures_per_second=0.001,
        failure_burst=2,
    )


@pytest.fixture
def client(settings):
    with TestClient(create_app(settings, [Part(router=router)]), raise_server_exceptions=False) as client:
        yield client


def lines(settings):
    return [json.loads(line) for line in settings.log_file.read_text().splitlines()]


def test_a_line_says_who_what_and_how_long_but_not_the_key(client, settings):
    secret = add_key(client.app.state.service.database, "ada")
    answer = client.get("/who", params={"api_key": secret, "x": "a&b"}, headers={"X-Request-ID": "abc-1"})
    assert answer.json() == "ada" and answer.headers["X-Request-ID"] == "abc-1"
    (line,) = lines(settings)
    assert line.pop("latency_ms") > 0 and line.pop("time").endswith("+00:00")
    assert line == {
        "request_id": "abc-1",
        "client": "testclient",
        "who": "ada",
        "method": "GET",
        "path": "/who",
        "query": "api_key=***&x=a%26b",
        "status": 200,
        "request": "",
        "response": '"ada"',
    }


@pytest.mark.parametrize("wrong", ["cs336-nearly", 'with "quotes"', "ключ"])
def test_a_wrong_key_is_not_in_the_log_though_the_answer_repeats_it(client, settings, wrong):
    answer = client.get("/who", params={"api_key": wrong})
    assert (answer.status_code, answer.json()) == (422, {"message": f"Invalid API key provided: {wrong}"})
    assert wrong not in settings.log_file.read_text()
    (line,) = lines(settings)
    assert line["response"] == '{"message":"Invalid API key provided: ***"}' and line["who"] is None


@pytest.mark.parametrize("name", ["api_key", "%61pi_key", "api%5Fkey"])
def test_however_the_keys_name_is_spelt_its_value_is_not_in_the_log(client, settings, name):
    client.get(f"/who?x=1&{name}=cs336%2Dnearly+1&=&y")
    (line,) = lines(settings)
    assert line["query"] == "x=1&api_key=***&=&y"
    assert line["response"] == '{"message":"Invalid API key provided: ***"}'


@pytest.mark.parametrize("given", ["", "a b", "x" * 65, 'a"b', None])
def test_an_id_that_is_none_gets_another(client, settings, given):
    answer = client.get("/nowhere", headers={} if given is None else {"X-Request-ID": given})
    (line,) = lines(settings)
    assert answer.headers["X-Request-ID"] == line["request_id"] != given
    assert len(line["request_id"]) == 32 and line["status"] == 404


def test_bodies_are_previewed_up_to_the_bounds(client, settings):
    client.post("/echo", content=b"word " * 10_000)
    client.post("/echo", content=b"x" * 60_000)
    words, letters = lines(settings)
    assert words["request"] == ("word " * PREVIEW_TOKENS).strip() + "…"
    assert letters["request"] == "x" * (PREVIEW_CHARACTERS - 1) + "…"
    assert len(settings.log_file.read_bytes()) < 40_000


def test_a_preview_by_hand():
    assert preview("short (text)") == "short (text)"
    assert preview("a " * PREVIEW_TOKENS) == "a " * PREVIEW_TOKENS  # ends just there: nothing is cut
    assert preview("a " * PREVIEW_TOKENS + "b") == ("a " * PREVIEW_TOKENS).strip() + "…"
    assert preview("x" * PREVIEW_CHARACTERS) == "x" * PREVIEW_CHARACTERS
    assert len(preview("x" * (PREVIEW_CHARACTERS + 1))) == PREVIEW_CHARACTERS


def test_a_failure_is_a_500_that_tells_the_id_and_nothing_of_the_code(client, settings):
    answer = client.get("/broken", headers={"X-Request-ID": "abc-2"})
    assert answer.status_code == 500 and answer.headers["X-Request-ID"] == "abc-2"
    assert answer.json() == {"message": "the server failed; its log has more under abc-2"}
    (line,) = lines(settings)
    assert (line["status"], line["request_id"]) == (500, "abc-2")


def test_a_body_too_long_is_logged_too(client, settings):
    assert client.post("/echo", content=b"x" * 65_537).status_code == 413
    assert [line["status"] for line in lines(settings)] == [413]


def test_each_key_has_a_rate_of_its_own(client):
    database = client.app.state.service.database
    ada, bob = add_key(database, "ada"), add_key(database, "bob")
    statuses = [client.get("/who", params={"api_key": ada}).status_code for _ in range(5)]
    assert statuses == [200, 200, 200, 429, 429]
    answer = client.get("/who", params={"api_key": ada})
    assert answer.json()["message"].startswith("too many requests; try again in")
    assert 900 < int(answer.headers["Retry-After"]) <= 1000
    assert client.get("/who", params={"api_key": bob}).status_code == 200


def test_wrong_keys_of_an_address_have_a_rate_and_good_ones_are_not_hit_by_it(client):
    ada = add_key(client.app.state.service.database, "ada")
    statuses = [client.get("/who", params={"api_key": f"wrong{number}"}).status_code for number in range(4)]
    assert statuses == [422, 422, 429, 429]
    assert client.get("/who", params={"api_key": ada}).status_code == 200


def test_a_part_lives_while_the_server_does_and_the_database_is_open_for_it(settings):
    seen = []

    @contextlib.asynccontextmanager
    async def alive(service):
        seen.append(("begin", add_key(service.database, "from-the-start")[:6]))
        yield
        seen.append(("end", add_key(service.database, "from-the-end")[:6]))

    with TestClient(create_app(settings, [Part(router=router, lifespan=alive), Part(router=APIRouter())])):
        assert seen == [("begin", "cs336-")]
    assert seen == [("begin", "cs336-"), ("end", "cs336-")]


def test_a_log_is_put_aside_before_it_grows_without_bound(tmp_path, monkeypatch):
    monkeypatch.setattr("cs336.service.logs.LOG_FILE_BYTES", 1_000)
    log = open_log(tmp_path / "requests.jsonl")
    for number in range(1_000):
        log.info(json.dumps({"number": number, "text": "x" * 100}))
    sizes = [path.stat().st_size for path in tmp_path.iterdir()]
    assert len(sizes) == 5 and max(sizes) <= 1_000
    assert json.loads((tmp_path / "requests.jsonl").read_text().splitlines()[-1])["number"] == 999
