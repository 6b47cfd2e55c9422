"""vLLM's adapter: what it asks and how it reads answers, against fakes; and vLLM itself, where it is installed."""

import copy
import importlib.util
import json
import os
import sys
import threading
import types
import weakref
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cs336.files import UserError
from cs336.generate import vllm as adapter
from cs336.generate.backend import HuggingFaceCodec, Sample, SamplingParams
from cs336.generate.continuous import Engine
from cs336.generate.vllm import VllmEngine, VllmServer, serving
from cs336.generate.weight_sync import check_logprobs, sync_weights
from cs336.model.huggingface import huggingface_weights, load_huggingface
from tests.generate.toy import letters_model, save_qwen2_of_letters

HAS_VLLM = importlib.util.find_spec("vllm") is not None
PARAMS = SamplingParams(
    n=2, temperature=0.8, top_p=0.9, top_k=7, max_tokens=5, min_tokens=1, stop=("</answer>",), seed=3, logprobs=True
)


@dataclass
class FakeSamplingParams:
    """The fields of vLLM's that the adapter sets, by their names there; an unknown one is an error."""

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: list[str] | None = None
    max_tokens: int | None = 16
    min_tokens: int = 0
    logprobs: int | None = None
    include_stop_str_in_output: bool = False


@dataclass
class FakeOutput:
    """A `vllm.CompletionOutput`."""

    index: int
    text: str
    token_ids: tuple[int, ...]
    finish_reason: str
    stop_reason: int | str | None = None
    logprobs: list[dict] | None = None


@dataclass
class FakeLLM:
    """A `vllm.LLM` that remembers what it was asked, and answers from a list."""

    outputs: list[FakeOutput] = field(default_factory=list)
    calls: list[tuple] = field(default_factory=list)
    resets: bool = True

    def generate(self, prompts, sampling_params, *, use_tqdm):
        self.calls.append(("generate", prompts, sampling_params))
        return [types.SimpleNamespace(prompt_token_ids=(1, 2), outputs=self.outputs) for _ in prompts]

    def collective_rpc(self, method, timeout=None, args=(), kwargs=None):
        self.calls.append((method, list(kwargs["weights_iterator"])))

    def apply_model(self, function):
        function(types.SimpleNamespace(load_weights=lambda weights: self.calls.append(("load", list(weights)))))

    def reset_prefix_cache(self):
        self.calls.append(("reset",))
        return self.resets

    def sleep(self, level):
        self.calls.append(("sleep", level))

    def wake_up(self):
        self.calls.append(("wake",))


@pytest.fixture
def fake(monkeypatch):
    module = types.ModuleType("vllm")
    module.__spec__ = importlib.util.spec_from_loader("vllm", loader=None)
    module.SamplingParams = FakeSamplingParams
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setenv("VLLM_NO_USAGE_STATS", "1")
    return module


def test_requests_say_what_was_asked_and_each_prompt_has_its_seed(fake):
    llm = FakeLLM()
    engine = VllmEngine(llm)
    engine.generate(["same", "same", [4, 5]], PARAMS)
    _, prompts, requests = llm.calls[-1]
    assert prompts == ["same", "same", {"prompt_token_ids": [4, 5]}]
    for request in requests:
        assert (request.n, request.temperature, request.top_p, request.top_k) == (2, 0.8, 0.9, 7)
        assert (request.max_tokens, request.min_tokens, request.stop) == (5, 1, ["</answer>"])
        assert (request.logprobs, request.include_stop_str_in_output) == (0, False)
    seeds = [request.seed for request in requests]
    # vLLM gives sample j of a prompt the seed + j: none may be another prompt's.
    assert len({seed + j for seed in seeds for j in range(PARAMS.n)}) == 6
    engine.generate(["same"], PARAMS, numbers=[1])
    assert llm.calls[-1][2][0].seed == seeds[1]
    assert engine.generate([], PARAMS) == [] and len(llm.calls) == 2


def test_answers_are_read_in_order_with_their_reason(fake):
    def of(*pairs):
        return [{token: types.SimpleNamespace(logprob=value), 99: None} for token, value in pairs]

    llm = FakeLLM(
        outputs=[
            FakeOutput(2, "c", (7,), "length", None, of((7, -0.5))),
            FakeOutput(0, "a", (5, 6), "stop", "</answer>", of((5, -1.0), (6, -2.0))),
            FakeOutput(3, "d", (8,), "stop", 151_645, of((8, -0.1))),
            FakeOutput(1, "b", (0,), "stop", None, of((0, -3.0))),
        ]
    )
    generation = VllmEngine(llm).generate(["x"], PARAMS)[0]
    assert generation.prompt_ids == [1, 2]
    assert generation.samples == [
        Sample("a", [5, 6], [-1.0, -2.0], "stop"),
        Sample("b", [0], [-3.0], "end"),
        Sample("c", [7], [-0.5], "length"),
        Sample("d", [8], [-0.1], "end"),
    ]
    llm.outputs = [FakeOutput(0, "a", (5,), "abort")]
    with pytest.raises(RuntimeError, match="abort"):
        VllmEngine(llm).generate(["x"], SamplingParams())


def test_greedy_samples_of_a_prompt_are_asked_for_once(fake):
    llm = FakeLLM(outputs=[FakeOutput(0, "a", (5,), "length")])
    generation = VllmEngine(llm).generate(["x"], SamplingParams(n=3, temperature=0))[0]
    assert llm.calls[0][2][0].n == 1
    assert generation.samples == [Sample("a", [5], None, "length")] * 3


@pytest.mark.parametrize("reloads", [True, False])
def test_weights_are_loaded_before_the_prefix_cache_is_reset(fake, monkeypatch, reloads):
    monkeypatch.setattr(adapter.importlib.util, "find_spec", lambda name: object() if reloads else None)
    llm, weights = FakeLLM(), [("lm_head.weight", torch.ones(2))]
    VllmEngine(llm).load_weights(iter(weights))
    assert llm.calls == [("reload_weights" if reloads else "load", weights), ("reset",)]
    llm.resets = False
    with pytest.raises(RuntimeError, match="still running"):
        VllmEngine(llm).load_weights(iter(weights))


def test_sleep_and_wake_are_asked_for_once(fake):
    llm = FakeLLM()
    engine = VllmEngine(llm)
    engine.wake()
    engine.sleep(2)
    engine.sleep(2)
    engine.wake()
    engine.wake()
    assert llm.calls == [("sleep", 2), ("wake",)]
    with pytest.raises(ValueError, match="level"):
        engine.sleep(3)


def test_an_engine_that_is_closed_is_awake_shut_down_once_and_gone(fake):
    llm = FakeLLM()
    llm.llm_engine = types.SimpleNamespace(
        engine_core=types.SimpleNamespace(shutdown=lambda: calls.append(("shutdown",)))
    )
    calls, gone = llm.calls, weakref.ref(llm)
    engine = VllmEngine(llm)
    del llm
    engine.sleep(1)
    engine.close()
    engine.close()
    assert calls == [("sleep", 1), ("wake",), ("shutdown",)] and gone() is None


@pytest.mark.parametrize("own_process", [True, False])
def test_vllm_runs_in_a_process_of_its_own_or_in_this_one_and_the_environment_stays(own_process, fake, monkeypatch):
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "as before")
    seen = []

    def start(**options):
        seen.append((os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"], options["model"]))
        return FakeLLM()

    fake.LLM = start
    VllmEngine.start("model", own_process=own_process)
    assert seen == [(str(int(own_process)), "model")]
    assert os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] == "as before"


@pytest.mark.skipif(HAS_VLLM, reason="vLLM is installed")
def test_without_vllm_one_line_names_the_extra():
    for start in (lambda: VllmEngine.start("model"), lambda: serving("model").__enter__()):
        with pytest.raises(UserError, match=r"pip install 'cs336\[gpu\]'") as error:
            start()
        assert "\n" not in str(error.value)


# ---- the server


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

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
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
    assert asked["p3"] == adapter._request(PARAMS, 3) | {
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
def test_a_server_that_does_not_start_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(adapter, "require_vllm", lambda: None)
    log = tmp_path / "log"
    with pytest.raises(UserError, match=r"status 1 .*its log is"), serving("model", log=log):
        pass
    assert "vllm" in log.read_text()


# ---- vLLM itself


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("qwen2")
    save_qwen2_of_letters(folder)
    return folder


def our_engine(folder):
    from transformers import AutoTokenizer

    return Engine(load_huggingface(folder), HuggingFaceCodec(AutoTokenizer.from_pretrained(folder)))


def check_against_ours(backend, folder):
    """What every backend must do, before and after a sync."""
    ours = our_engine(folder)
    prompts, greedy = ["hello", [5, 9, 2], "abc"], SamplingParams(temperature=0, max_tokens=24, logprobs=True)
    sampled = SamplingParams(n=4, max_tokens=16, min_tokens=4, seed=1, logprobs=True)
    trainer = copy.deepcopy(ours.model)
    for _ in range(2):
        for mine, theirs in zip(ours.generate(prompts, greedy), backend.generate(prompts, greedy), strict=True):
            assert theirs.prompt_ids == mine.prompt_ids
            for one, other in zip(mine.samples, theirs.samples, strict=True):
                assert (other.text, other.token_ids, other.finish) == (one.text, one.token_ids, one.finish)
                assert other.logprobs == pytest.approx(one.logprobs, abs=1e-3)
        first = backend.generate(prompts, sampled)
        for generation, again in zip(first, backend.generate(prompts, sampled), strict=True):
            assert [sample.text for sample in generation.samples] == [sample.text for sample in again.samples]
            assert len({sample.text for sample in generation.samples}) == 4
            assert all(len(sample.token_ids) >= 4 for sample in generation.samples)
        text = backend.generate(prompts, greedy)[0].samples[0].text
        for kept in (False, True):
            stopping = SamplingParams(temperature=0, max_tokens=24, stop=(text[3:5],), include_stop_str_in_output=kept)
            stopped = backend.generate(prompts, stopping)[0].samples[0]
            end = text.index(text[3:5])
            assert (stopped.text, stopped.finish) == (text[: end + 2 * kept], "stop")
        assert check_logprobs(trainer, backend, prompts, sampled).max_logprob_difference < 1e-3
        with torch.no_grad():
            for weight in trainer.parameters():
                weight += 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(2))
        assert check_logprobs(trainer, backend, prompts, sampled).max_logprob_difference > 0.01
        sync_weights(trainer, backend)
        sync_weights(trainer, ours)


def test_our_engine_passes_what_vllm_must(checkpoint):
    check_against_ours(our_engine(checkpoint), checkpoint)


@pytest.mark.vllm
@pytest.mark.skipif(not HAS_VLLM, reason="vLLM is not installed")
def test_vllm_in_this_process(checkpoint):
    backend = VllmEngine.start(
        checkpoint, dtype="float32", sleep_mode=False, max_model_len=128, enforce_eager=True, memory_share=0.2
    )
    check_against_ours(backend, checkpoint)
    (gone,) = backend._llm.apply_model(weakref.ref)
    assert gone() is not None
    backend.close()
    assert gone() is None  # the weights are, and with them their memory


@pytest.mark.vllm
@pytest.mark.skipif(not HAS_VLLM, reason="vLLM is not installed")
def test_vllm_as_a_server(checkpoint, tmp_path):
    options = ("--dtype", "float32", "--max-model-len", "128", "--enforce-eager", "--gpu-memory-utilization", "0.2")
    with serving(checkpoint, port=8_123, log=tmp_path / "log", options=options) as backend:
        check_against_ours(backend, checkpoint)
