"""The client against a server's answers: numbers, refusals, and what it sends again."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, urlsplit

import pytest
import requests

from cs336.service.client import ScalingClient, ServiceError

RUN = {
    "d_model": 256,
    "num_layers": 4,
    "num_heads": 4,
    "batch_size": 128,
    "learning_rate": 1e-3,
    "train_flops": 1e15,
}


@pytest.fixture
def scripted():
    """A server that gives the answers of a list in turn, and notes what it was asked."""
    asked, answers = [], []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            parts = urlsplit(self.path)
            asked.append((parts.path, dict(parse_qsl(parts.query))))
            status, body, headers = answers.pop(0)
            if status is None:  # hang up
                self.close_connection = True
                return
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", asked, answers
    server.shutdown()
    server.server_close()


def test_a_loss_is_asked_for_with_all_six_values_and_the_key(scripted):
    url, asked, answers = scripted
    answers.append((200, {"loss": 4.5, "total_flops_used": 1e15}, {}))
    assert ScalingClient(url + "/", "secret").loss(**RUN) == 4.5
    assert asked == [("/loss", {name: str(value) for name, value in RUN.items()} | {"api_key": "secret"})]


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (400, {"message": "spent"}, "spent"),
        (404, {"message": "d_model must be in range"}, "d_model must be in range"),
        (422, {"detail": [{"type": "missing"}]}, "missing"),
        (500, b"<html>", "<html>"),
    ],
)
def test_a_refusal_is_an_error_with_the_servers_words(scripted, status, body, message):
    url, asked, answers = scripted
    answers.append((status, body, {}))
    with pytest.raises(ServiceError, match=message) as caught:
        ScalingClient(url, "secret").loss(**RUN)
    assert caught.value.status == status and len(asked) == 1


def test_it_comes_again_after_a_hang_up_and_after_too_many(scripted):
    url, asked, answers = scripted
    answers += [(None, None, {}), (429, {"message": "too many"}, {"Retry-After": "1"}), (200, {"loss": 4.5}, {})]
    start = time.monotonic()
    assert ScalingClient(url, "secret").loss(**RUN) == 4.5
    assert len(asked) == 3 and time.monotonic() - start > 1


def test_it_comes_again_after_half_an_answer(scripted):
    """As of a server that is killed while it writes."""
    url, asked, answers = scripted
    answers += [(200, b'{"loss": 4', {"Content-Length": "54"}), (200, {"loss": 4.5}, {})]
    assert ScalingClient(url, "secret").loss(**RUN) == 4.5
    assert len(asked) == 2


def test_its_patience_ends(scripted):
    url, _, answers = scripted
    answers += [(429, {"message": "too many"}, {"Retry-After": "100"})]
    with pytest.raises(ServiceError, match="too many"):
        ScalingClient(url, "secret", patience_seconds=1).loss(**RUN)
    with pytest.raises(requests.ConnectionError):
        ScalingClient("http://127.0.0.1:9", "secret", patience_seconds=0.3).previous_runs()


def test_a_key_that_asked_for_nothing_has_used_nothing(scripted):
    url, asked, answers = scripted
    answers += [(200, {"previous_runs": []}, {}), (200, {"previous_runs": [RUN | {"loss": 4.5}]}, {}), (200, 1e15, {})]
    client = ScalingClient(url, "secret")
    assert client.total_flops_used() == 0
    assert client.total_flops_used() == 1e15
    assert [path for path, _ in asked] == ["/previous_runs", "/previous_runs", "/total_flops_used"]
