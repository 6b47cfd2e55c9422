"""Which device generates: the policy's, or another, where vLLM is a server of its own."""

import contextlib
import copy

import pytest
import torch

from cs336.generate import generators
from cs336.generate.backend import SamplingParams
from cs336.generate.continuous import Engine
from cs336.generate.generators import is_same_device, opened_generator
from cs336.generate.weight_sync import check_logprobs, sync_weights
from cs336.model.huggingface import load_huggingface
from tests.generate.toy import save_qwen2_of_letters
from tests.generate.vllm_checks import HAS_VLLM


@pytest.fixture(scope="module")
def policy_and_tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("qwen2")
    tokenizer = save_qwen2_of_letters(folder)
    return load_huggingface(folder), tokenizer


@pytest.fixture
def started(monkeypatch):
    """What a server was started with, in place of one."""
    started = {}

    @contextlib.contextmanager
    def serving(folder, *, port, devices, options):
        started.update(model=load_huggingface(folder), port=port, devices=devices, options=options)
        yield "server"
        started["ended"] = True

    monkeypatch.setattr(generators, "serving", serving)
    monkeypatch.setattr(generators, "require_vllm", lambda: None)
    return started


@pytest.mark.parametrize(("visible", "devices"), [(None, "1"), ("", "1"), ("4,6", "6")])
def test_vllm_on_another_gpu_is_a_server_there_with_the_policys_weights(
    visible, devices, started, policy_and_tokenizer, monkeypatch
):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    policy, tokenizer = policy_and_tokenizer
    with opened_generator(policy, tokenizer, "vllm", device="cuda:1", memory_share=0.7, options=("--x",)) as backend:
        assert backend == "server" and "ended" not in started
    assert (started["devices"], started["ended"]) == (devices, True) and started["port"] > 0
    assert started["options"] == ("--gpu-memory-utilization", "0.7", "--x")
    theirs = started["model"].state_dict()
    assert all(torch.equal(weight, theirs[name]) for name, weight in policy.state_dict().items())


def test_on_the_policys_own_device_it_is_no_server(started, policy_and_tokenizer, monkeypatch):
    policy, tokenizer = policy_and_tokenizer
    monkeypatch.setattr(generators.VllmEngine, "start", lambda folder, **options: options)
    with opened_generator(policy, tokenizer, "vllm", device="cpu", memory_share=0.3) as backend:
        assert backend == {"memory_share": 0.3}
    with opened_generator(policy, tokenizer, device="cpu") as backend:
        assert isinstance(backend, Engine) and backend.model is policy
    assert not started


def test_the_copy_that_generates_on_a_gpu_has_the_policys_weights_from_the_start(policy_and_tokenizer):
    """A policy that is only asked, and not trained, is never synced."""
    policy, _ = policy_and_tokenizer
    weights = generators._copy_for_generation(policy, torch.device("cpu")).state_dict()
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}
    assert all(torch.equal(weight.bfloat16(), weights[name]) for name, weight in policy.state_dict().items())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_a_policy_answers_with_its_own_weights(policy_and_tokenizer):
    policy, tokenizer = policy_and_tokenizer
    policy = copy.deepcopy(policy).to("cuda")
    with opened_generator(policy, tokenizer) as backend:
        agreement = check_logprobs(policy, backend, ["hello", "abc"], SamplingParams(max_tokens=8))
    assert agreement.mean_logprob_difference < 0.05


def test_the_first_gpu_has_two_names():
    assert is_same_device("cuda", "cuda:0") and is_same_device("cpu", torch.device("cpu"))
    assert not is_same_device("cuda", "cuda:1") and not is_same_device("cuda", "cpu")


@pytest.mark.vllm
@pytest.mark.skipif(not HAS_VLLM, reason="vLLM is not installed")
def test_a_server_gets_the_policys_weights_of_each_step(policy_and_tokenizer):
    """The CPU build takes any device's name."""
    policy, tokenizer = policy_and_tokenizer
    options = ("--dtype", "float32", "--max-model-len", "128", "--enforce-eager")
    drawn = SamplingParams(max_tokens=8, logprobs=True)
    with opened_generator(policy, tokenizer, "vllm", device="cuda:1", memory_share=0.2, options=options) as backend:
        assert check_logprobs(policy, backend, ["hello", "abc"], drawn).max_logprob_difference < 1e-3
        with torch.no_grad():
            policy.lm_head.weight.mul_(1.5)
        sync_weights(policy, backend)
        assert check_logprobs(policy, backend, ["hello", "abc"], drawn).max_logprob_difference < 1e-3
