"""vLLM as a server: what it is asked and how its answers are read, by a fake; and vLLM itself, where installed."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cs336.files import UserError
from cs336.generate import vllm_server
from cs336.generate.backend import Sample, SamplingParams
from cs336.generate.vllm_requests import request_of
from cs336.generate.vllm_server import VllmServer, serving
from cs336.generate.weight_sync import sync_weights
from cs336.model.huggingface import huggingface_weights
from tests.generate.toy import letters_model, save_qwen2_of_letters
from tests.generate.vllm_checks import HAS_VLLM, PARAMS, check_against_ours


class ManyAtOnce(ThreadingHTTPServer):
    request_queue_size = 128  # the library's 5 refuses whoever else of 20 connects before a thread accepts


class FakeServer:
    """Speaks as much of vLLM's protocol as the adapter does; keeps requests, and weights as they were on arrival."""

    def __init__(self):
        self.requests, self.weights, self.resets, self.asleep, self.refuse = [], None, True, False, None
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.answer()

            def do_POST(self):
                self.answer()

            def answer(self):
                size = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(size)) if size else None
                status, content = server.answer(self.command, self.path, body)
                self.send_response(status)
                self.end_headers()
                self.wfile.write(b"" if content is None else json.dumps(content).encode())

            def log_message(self, *args):
                pass

        self.http = ManyAtOnce(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def answer(self, method, path, body):
        self.requests.append((method, path, body))
        if self.refuse and path.startswith(self.refuse[1]):
            return self.refuse[0], {"error": {"message": "no"}}
        match method, path.partition("?")[0]:
            case "GET", "/v1/models":
                return 200, {"data": [{"id": "tiny"}]}
            case "POST", "/v1/completions":
                return 200, {"choices": [self.choice(i, body) for i in reversed(range(body["n"]))]}
            case "POST", "/collective_rpc":
                self.weights = load_file(Path(body["kwargs"]["weights_path"]) / "model.safetensors")
                return 200, {"results": [None]}
            case "POST", "/reset_prefix_cache":
                return 200, {"success": self.resets}
            case "POST", "/sleep" | "/wake_up":
                self.asleep = path.startswith("/sleep")
                return 200, None
            case "GET", "/is_sleeping":
                return 200, {"is_sleeping": self.asleep}
        return 404, {"error": "unknown"}

    @staticmethod
    def choice(index, body):
        return {
            "index": index,
            "text": f"{body['prompt']}{index}",
            "token_ids": [index, 9],
            "prompt_token_ids": [1, 2],
            "finish_reason": "stop",
            "stop_reason": "</answer>" if index else None,
            "logprobs": None if body["logprobs"] is None else {"token_logprobs": [-1.0 - index, -2.0]},
        }


@pytest.fixture
def server():
    fake = FakeServer()
    yield fake
    fake.http.shutdown()
    fake.http.server_close()


def test_a_server_is_asked_and_read_like_the_package(server):
    backend = VllmServer(server.url)
    prompts = [f"p{i}" for i in range(20)]
    generations = backend.generate(prompts, PARAMS)
    for prompt, generation in zip(prompts, generations, strict=True):
        assert generation.prompt_ids == [1, 2]
        assert generation.samples == [
            Sample(f"{prompt}0", [0, 9], [-1.0, -2.0], "end"),
            Sample(f"{prompt}1", [1, 9], [-2.0, -2.0], "stop"),
        ]
    asked = {body["prompt"]: body for _, path, body in server.requests if path == "/v1/completions"}
    assert len({body["seed"] for body in asked.values()}) == 20
    assert asked["p3"] == request_of(PARAMS, 3) | {
        "model": "tiny",
        "prompt": "p3",
        "return_token_ids": True,
        "logprobs": 1,
        "repetition_penalty": 1.0,
    }
    assert backend.generate([[4, 5]], SamplingParams())[0].samples[0].logprobs is None
    assert server.requests[-1][2]["prompt"] == [4, 5]


def test_weights_reach_a_server_through_a_file_that_is_gone_afterwards(server, tmp_path):
    backend, trainer = VllmServer(server.url, exchange=tmp_path), letters_model(num_kv_heads=2)
    sync_weights(trainer, backend)
    expected = dict(huggingface_weights(trainer))
    assert server.weights.keys() == expected.keys()
    assert all(torch.equal(server.weights[name], expected[name]) for name in expected)
    assert [path for _, path, _ in server.requests[-2:]] == ["/collective_rpc", "/reset_prefix_cache"]
    assert not list(tmp_path.iterdir())
    server.resets = False
    with pytest.raises(RuntimeError, match="still running"):
        backend.reset_prefix_cache()


def test_a_server_sleeps_and_wakes(server):
    backend = VllmServer(server.url)
    backend.wake()
    backend.sleep(2)
    backend.wake()
    assert [path for _, path, _ in server.requests[1:]] == [
        "/is_sleeping",
        "/sleep?level=2",
        "/is_sleeping",
        "/wake_up",
    ]
    with pytest.raises(ValueError, match="level"):
        backend.sleep(0)


@pytest.mark.parametrize(
    ("status", "error", "message"),
    [(400, ValueError, "refused"), (404, RuntimeError, "VLLM_SERVER_DEV_MODE"), (500, RuntimeError, "by 500")],
)
def test_a_servers_refusal_is_an_error(server, status, error, message):
    backend = VllmServer(server.url)
    server.refuse = status, "/v1/completions"
    with pytest.raises(error, match=message):
        backend.generate(["a"], SamplingParams())


def test_no_server_is_an_error():
    with pytest.raises(RuntimeError, match="no vLLM server answers"):
        VllmServer("http://127.0.0.1:9")


@pytest.mark.skipif(HAS_VLLM, reason="vLLM is installed")
def test_without_vllm_one_line_names_the_extra():
    with pytest.raises(UserError, match=r"pip install -e '\.\[gpu\]'") as error, serving("model"):
        pass
    assert "\n" not in str(error.value)


@pytest.mark.skipif(HAS_VLLM, reason="vLLM is installed")
def test_a_server_that_does_not_start_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(vllm_server, "require_vllm", lambda: None)
    log = tmp_path / "log"
    with pytest.raises(UserError, match=r"status 1 .*its log is"), serving("model", log=log):
        pass
    assert "vllm" in log.read_text()


# ---- vLLM itself


@pytest.mark.vllm
@pytest.mark.skipif(not HAS_VLLM, reason="vLLM is not installed")
def test_vllm_as_a_server(tmp_path):
    checkpoint = tmp_path / "qwen2"
    save_qwen2_of_letters(checkpoint)
    options = ("--dtype", "float32", "--max-model-len", "128", "--enforce-eager", "--gpu-memory-utilization", "0.2")
    with serving(checkpoint, port=8_123, log=tmp_path / "log", options=options) as backend:
        check_against_ours(backend, checkpoint)
