"""The chain in miniature, from an imported checkpoint: SFT, Expert Iteration, GRPO, by our engine and by vLLM; and a
run that is interrupted.
"""

from dataclasses import replace

import pytest

from cs336.evals.rewards import reward_each
from cs336.generate.backend import SamplingParams
from cs336.generate.generators import generator_for
from cs336.model.huggingface import load_huggingface
from cs336.posttrain.expert_iteration import ExpertIterationConfig, train_expert_iteration
from cs336.posttrain.grpo import GrpoConfig
from cs336.posttrain.grpo_loop import train_grpo
from cs336.posttrain.rollouts import Problem, RolloutValidation, Sampler
from cs336.posttrain.sft import SftConfig, train_sft
from tests.generate.toy import save_qwen2_of_letters
from tests.generate.vllm_checks import HAS_VLLM
from tests.posttrain.models import assert_same_weights, curve

ON_A_CPU = {"dtype": "float32", "sleep_mode": False, "max_model_len": 128, "enforce_eager": True, "memory_share": 0.2}
STOP = "Z"
VOWELS, CONSONANTS = "aeiou", "bcdfg"
PROBLEMS = [Problem(f"say{letters}", letters) for letters in (VOWELS, CONSONANTS, "hjklm", "npqrs")]

GRPO = GrpoConfig(
    n_grpo_steps=6,
    learning_rate=1e-3,
    rollout_batch_size=16,
    group_size=4,
    train_batch_size=16,
    gradient_accumulation_steps=1,
    sampling_min_tokens=1,
    sampling_max_tokens=6,
    valid_interval=2,
    keep="last",
)
by_each_generator = pytest.mark.parametrize(
    "kind",
    [
        "ours",
        pytest.param(
            "vllm", marks=[pytest.mark.vllm, pytest.mark.skipif(not HAS_VLLM, reason="vLLM is not installed")]
        ),
    ],
)


def said(response, letters):
    """Right is a response of two letters that were asked for, and of nothing else."""
    formatted = response.endswith(STOP)
    right = formatted and len(response) == 3 and set(response[:-1]) <= set(letters)
    return {"format_reward": float(formatted), "answer_reward": float(right), "reward": float(right)}


@pytest.fixture(scope="module")
def policy_and_tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("qwen2")
    tokenizer = save_qwen2_of_letters(folder)
    return load_huggingface(folder), tokenizer


@by_each_generator
def test_each_stage_improves_on_the_one_before(kind, policy_and_tokenizer, tmp_path):
    policy, tokenizer = policy_and_tokenizer
    backend = generator_for(policy, tokenizer, kind, **(ON_A_CPU if kind == "vllm" else {}))
    run = {"reward": reward_each(said), "seed": 0, "stop": (STOP,)}
    sampler = Sampler(
        backend, tokenizer, run["reward"], SamplingParams(max_tokens=6, min_tokens=1, stop=(STOP,)), seed=0
    )
    # Half of the traces say a letter too many, and those who learn both do, too.
    traces = [
        (problem.prompt, problem.ground_truth[place] + problem.ground_truth[place - 1] * (1 + place % 2) + STOP)
        for problem in PROBLEMS
        for place in range(5)
    ]
    many = PROBLEMS * 16  # to validate on
    by_accuracy = {"best_by": "valid_accuracy", "best_is": "highest", "keep": "last", "batch_size": 8}
    sft = SftConfig(learning_rate=3e-3, num_epochs=30, valid_interval=10**6, **by_accuracy)
    train_sft(
        policy, tokenizer, traces, (), sft, seed=0, folder=tmp_path / "sft", evaluate=RolloutValidation(sampler, many)
    )
    tuned = curve(tmp_path / "sft")
    assert tuned[0]["valid_accuracy"] == 0 and 0.2 < tuned[-1]["valid_accuracy"] < 0.85

    experts = ExpertIterationConfig(
        n_ei_steps=1,
        question_batch_size=4,
        group_size=16,
        sft=SftConfig(learning_rate=1e-3, num_epochs=2, valid_interval=10**6, **by_accuracy),
        sampling_min_tokens=1,
        sampling_max_tokens=6,
    )
    rows = train_expert_iteration(
        policy, tokenizer, backend, PROBLEMS, many, experts, folder=tmp_path / "experts", **run
    )
    assert rows[1]["valid_accuracy"] > rows[0]["valid_accuracy"] == tuned[-1]["valid_accuracy"]

    grpo = replace(GRPO, n_grpo_steps=12, rollout_batch_size=64, train_batch_size=64, group_size=16, valid_interval=12)
    train_grpo(policy, tokenizer, backend, PROBLEMS, many, grpo, folder=tmp_path / "grpo", **run)
    rewarded = curve(tmp_path / "grpo")
    assert rewarded[-1]["valid_accuracy"] > max(0.9, rows[1]["valid_accuracy"])
    assert max(row.get("max_logprob_difference", 0) for row in rewarded) < 1e-3


class Ended(BaseException):
    """As an interrupt."""


@by_each_generator
def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(kind, tmp_path):
    """Weights, moments, random numbers, and what the generator samples from."""
    tokenizer = save_qwen2_of_letters(tmp_path / "qwen2")
    first = load_huggingface(tmp_path / "qwen2")
    backend = generator_for(first, tokenizer, kind, **(ON_A_CPU if kind == "vllm" else {}))

    def has_some(response, letters):
        right = float(bool(set(response) & set(letters)))
        return {"format_reward": 1.0, "answer_reward": right, "reward": right}

    def run(folder, report):
        policy = load_huggingface(tmp_path / "qwen2")
        generator = generator_for(policy, tokenizer) if kind == "ours" else backend
        options = {"reward": reward_each(has_some), "seed": 0, "stop": (STOP,), "report": report}
        train_grpo(policy, tokenizer, generator, PROBLEMS, PROBLEMS, GRPO, folder=tmp_path / folder, **options)
        return {name: weight.clone() for name, weight in policy.state_dict().items()}

    def interrupt(row):
        if row["step"] == 5:
            raise Ended

    seen = []
    with pytest.raises(Ended):
        run("ended", interrupt)
    resumed = run("ended", lambda row: seen.append(row["step"]))
    whole = run("whole", lambda row: None)
    assert seen == [5, 6]
    assert curve(tmp_path / "ended") == curve(tmp_path / "whole")
    assert any(row.get("grad_norm", 0) > 0 for row in curve(tmp_path / "whole"))
    assert_same_weights(resumed, whole)
