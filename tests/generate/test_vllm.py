"""vLLM in a process: what it is asked and how its answers are read, by a fake; and vLLM itself, where installed."""

import importlib.util
import os
import sys
import types
import weakref
from dataclasses import dataclass, field

import pytest
import torch

from cs336.files import UserError
from cs336.generate import vllm as adapter
from cs336.generate.backend import Sample, SamplingParams
from cs336.generate.vllm import VllmEngine
from tests.generate.toy import save_qwen2_of_letters
from tests.generate.vllm_checks import HAS_VLLM, PARAMS, check_against_ours, our_engine


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


def test_vllm_starts_and_generates_in_usual_forms_beside_a_run_that_is_equal_to_the_last_bit(fake):
    """What it compiles on a GPU Inductor refuses to, where deterministic kernels are asked for."""
    seen = []

    class Watching(FakeLLM):
        def __init__(self, **options):
            super().__init__()
            seen.append(torch.are_deterministic_algorithms_enabled())

        def generate(self, *arguments, **options):
            seen.append(torch.are_deterministic_algorithms_enabled())
            return super().generate(*arguments, **options)

    fake.LLM = Watching
    torch.use_deterministic_algorithms(True)
    try:
        VllmEngine.start("model").generate(["a"], SamplingParams())
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
    assert seen == [False, False]


@pytest.mark.skipif(HAS_VLLM, reason="vLLM is installed")
def test_without_vllm_one_line_names_the_extra():
    with pytest.raises(UserError, match=r"pip install -e '\.\[gpu\]'") as error:
        VllmEngine.start("model")
    assert "\n" not in str(error.value)


# ---- vLLM itself


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("qwen2")
    save_qwen2_of_letters(folder)
    return folder


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
