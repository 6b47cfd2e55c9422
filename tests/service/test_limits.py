"""Buckets by hand, and bounded requests over ASGI."""

import anyio
import pytest
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient

from cs336.service.limits import BoundedRequests, RateLimiter


def test_a_bucket_empties_and_fills_by_hand():
    now = 100.0
    limiter = RateLimiter(per_second=2.0, burst=3.0, clock=lambda: now)
    assert [limiter.take("ada") for _ in range(3)] == [0, 0, 0]
    assert limiter.take("ada") == 0.5
    assert limiter.take("bob") == 0  # has a bucket of its own
    now += 0.25
    assert limiter.take("ada") == 0.25  # half a token is there
    now += 0.25
    assert limiter.take("ada") == 0 and limiter.take("ada") > 0
    now += 1_000
    assert [limiter.take("ada") for _ in range(4)] == [0, 0, 0, 0.5]  # never more than the burst


def test_only_so_many_buckets_are_kept():
    limiter = RateLimiter(per_second=1.0, burst=1.0, max_names=2, clock=lambda: 0.0)
    assert limiter.take("a") == 0 and limiter.take("b") == 0 and limiter.take("a") > 0
    assert limiter.take("c") == 0  # b, unused for longest, is forgotten
    assert limiter.take("a") > 0
    assert limiter.take("b") == 0


@pytest.mark.parametrize(("per_second", "burst"), [(0, 5), (-1, 5), (1, 0.5)])
def test_a_bucket_that_nothing_passes_is_an_error(per_second, burst):
    with pytest.raises(ValueError, match="per_second"):
        RateLimiter(per_second=per_second, burst=burst)


@pytest.fixture
def client():
    app = FastAPI()

    @app.post("/echo")
    async def echo(request: Request) -> int:
        return len(await request.body())

    app.add_middleware(BoundedRequests, max_body_bytes=100, max_query_bytes=50)
    with TestClient(app) as client:
        yield client


def test_bodies_up_to_the_bound_pass_and_longer_ones_do_not(client):
    assert client.post("/echo", content=b"x" * 100).json() == 100
    answer = client.post("/echo", content=b"x" * 101)
    assert (answer.status_code, answer.json()) == (413, {"message": "the body is longer than 100 bytes"})


def test_a_streamed_body_has_the_same_bound(client):
    assert client.post("/echo", content=iter([b"x" * 50] * 2)).json() == 100
    assert client.post("/echo", content=iter([b"x" * 50] * 3)).status_code == 413


def test_a_length_that_is_none_is_refused(client):
    assert client.post("/echo", content=b"x", headers={"Content-Length": "-1"}).status_code == 413


def test_queries_have_a_bound(client):
    assert client.post("/echo", params={"q": "x" * 48}).status_code == 200
    answer = client.post("/echo", params={"q": "x" * 49})
    assert (answer.status_code, answer.json()) == (414, {"message": "the query is longer than 50 bytes"})


def test_an_endless_body_is_not_read_to_its_end():
    taken = 0

    async def receive():
        nonlocal taken
        taken += 1
        return {"type": "http.request", "body": b"x" * 60, "more_body": True}

    sent = []

    async def send(message):
        sent.append(message)

    async def never(scope, receive, send):
        raise AssertionError

    scope = {"type": "http", "query_string": b"", "headers": []}
    anyio.run(BoundedRequests(never, max_body_bytes=100), scope, receive, send)
    assert taken == 2 and sent[0]["status"] == 413
