"""Rollouts: problems in order, groups together, the same random numbers for the same step, lengths and shares."""

import pytest
import torch

from cs336.evals.rewards import reward_each
from cs336.files import UserError, read_jsonl
from cs336.generate.backend import SamplingParams
from cs336.generate.continuous import Engine
from cs336.generate.generators import generator_for
from cs336.generate.vllm import require_vllm
from cs336.hardware import device_of
from cs336.posttrain.rollouts import (
    Problem,
    Rollout,
    RolloutValidation,
    Rows,
    Sampler,
    log_generations,
    problems_of_step,
    response_log_probs,
    rollouts_path,
)
from tests.posttrain.models import MODELS, Saved, calls_of, our_model, their_model
from tests.posttrain.test_grpo_loop import PROBLEMS, said
from tests.posttrain.tokenizers import BOS, Letters, TheirLetters

PARAMS = SamplingParams(max_tokens=6, min_tokens=1, stop=("a", "b", "c", "d"))


def sampler(model, *, seed=0, backend=None, **options):
    backend = backend or generator_for(model, Saved())
    return Sampler(backend, Saved(), reward_each(said), PARAMS, seed=seed, **options)


def texts(sampled):
    return [each.text for each in sampled.rollouts]


def test_responses_of_a_problem_stand_together_with_their_rewards():
    sampled = sampler(our_model()).sample(our_model(), PROBLEMS, n=8, step=0)
    rollouts = sampled.rollouts
    assert [each.problem for each in rollouts] == [problem for problem in PROBLEMS for _ in range(8)]
    for each in rollouts:
        assert each.prompt_ids == Saved().encode(each.problem.prompt)
        assert each.rewards == said(each.text, each.problem.ground_truth)
        assert len(each.logprobs) == len(each.token_ids) <= 6 and max(each.logprobs) <= 0
        assert each.finish != "stop" or each.text[-1] in PARAMS.stop  # the stop string is kept
    assert {"stop", "length"} <= {each.finish for each in rollouts}
    metrics = sampled.metrics()
    lengths = [len(each.token_ids) for each in rollouts]
    right = [len(each.token_ids) for each in rollouts if each.correct]
    assert metrics["mean_length"] == sum(lengths) / 32 and metrics["mean_length_correct"] == sum(right) / len(right)
    assert metrics["share_truncated"] == sum(each.finish == "length" for each in rollouts) / 32
    assert set(sampled.seconds) == {"sync", "generate", "grade"} and min(sampled.seconds.values()) >= 0


def test_prompts_begin_as_their_tokenizer_has_it_for_generator_and_trainer():
    model, theirs = our_model(), TheirLetters()
    drawn = Sampler(generator_for(model, theirs), theirs, reward_each(said), PARAMS, seed=0)
    rollouts = drawn.sample(model, PROBLEMS, n=1, step=0).rollouts
    assert [each.prompt_ids for each in rollouts] == [[BOS, *Letters().encode(each.prompt)] for each in PROBLEMS]
    read = []
    handle = model.token_embeddings.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0][:, 0].tolist()))
    Rows(rollouts, theirs, device_of(model), "float32").scores(model, range(len(rollouts)), entropy=False)
    handle.remove()
    assert read == [[BOS] * len(rollouts)]


def test_a_step_has_its_own_random_numbers_and_always_the_same():
    model = our_model()
    first = texts(sampler(model).sample(model, PROBLEMS, n=8, step=3))
    assert texts(sampler(model).sample(model, PROBLEMS, n=8, step=3)) == first
    assert texts(sampler(model).sample(model, PROBLEMS, n=8, step=4)) != first
    assert texts(sampler(model, seed=1).sample(model, PROBLEMS, n=8, step=3)) != first


def test_the_policys_weights_are_what_generates():
    """The generator is a copy with other weights until it gets the policy's."""
    policy, copy = our_model(0), our_model(1)
    engine = Engine(copy, Saved())
    expected = texts(sampler(policy).sample(policy, PROBLEMS, n=8, step=0))
    assert texts(sampler(policy, backend=engine).sample(policy, PROBLEMS, n=8, step=0)) == expected
    with torch.no_grad():
        policy.lm_head.weight.mul_(3.0)
    changed = texts(sampler(policy, backend=engine).sample(policy, PROBLEMS, n=8, step=0))
    assert changed != expected and changed == texts(sampler(policy).sample(policy, PROBLEMS, n=8, step=0))


def test_a_generator_that_hands_its_memory_over_has_none_afterwards():
    policy, copy = our_model(0), our_model(1)
    engine = Engine(copy, Saved())
    expected = texts(sampler(policy).sample(policy, PROBLEMS, n=2, step=0))
    engine.sleep()
    sampled = sampler(policy, backend=engine, hand_over=True).sample(policy, PROBLEMS, n=2, step=0)
    assert texts(sampled) == expected and copy.lm_head.weight.untyped_storage().nbytes() == 0


def test_a_validation_draws_the_same_numbers_every_time_and_disturbs_nothing(tmp_path):
    model = our_model().eval()
    validation = RolloutValidation(sampler(model), PROBLEMS, tmp_path)
    first, second = validation(model, 0), validation(model, 7)
    assert {name: second[name] for name in first if not name.endswith("_seconds")} == {
        name: value for name, value in first.items() if not name.endswith("_seconds")
    }
    assert 0 <= first["valid_accuracy"] <= first["valid_format"] <= 1 and 1 <= first["valid_length"] <= 6
    wrong, right = (
        [row["num_tokens"] for row in read_jsonl(rollouts_path(tmp_path, 7)) if row["answer_reward"] == mark]
        for mark in (0, 1)
    )
    lengths = {"valid_length_incorrect": wrong, "valid_length_correct": right}
    assert {name: second[name] for name in lengths if name in second} == {
        name: pytest.approx(sum(some) / len(some)) for name, some in lengths.items() if some
    }
    assert [path.name for path in sorted((tmp_path / "rollouts").iterdir())] == [
        "step-000000.jsonl",
        "step-000007.jsonl",
    ]


def test_a_least_length_is_asked_of_rollouts_and_of_no_validation(monkeypatch):
    asked, _ = calls_of(monkeypatch)
    model = our_model().eval()
    params = SamplingParams(max_tokens=6, min_tokens=4)
    drawn = Sampler(Engine(model, Saved()), Saved(), reward_each(said), params, seed=0)
    drawn.sample(model, PROBLEMS, n=2, step=0)
    RolloutValidation(drawn, PROBLEMS)(model, 0)
    assert [(each.n, each.min_tokens, each.max_tokens) for each in asked] == [(2, 4, 6), (1, 0, 6)]


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("batch_size", [1, 3])
def test_logged_responses_say_what_they_earned_and_how_sure_the_policy_was(kind, batch_size):
    policy = MODELS[kind]().train()
    ids, rewards = Letters().encode, {"reward": 1.0, "format_reward": 1.0, "answer_reward": 1.0}
    rollouts = [
        Rollout(Problem(prompt, "aa"), ids(prompt), ids(text), text, [-1.0] * len(text), finish, rewards)
        for prompt, text, finish in (("what is a? ", "aa", "stop"), ("b? ", "", "end"), ("c? ", "b, i think", "length"))
    ]
    logged = log_generations(policy, Letters(), rollouts, batch_size=batch_size)
    for row, rollout in zip(logged, rollouts, strict=True):
        assert row == rollout.row() | {"mean_token_entropy": row["mean_token_entropy"]}
        if not rollout.text:
            assert row["mean_token_entropy"] is None
            continue
        row_ids = rollout.prompt_ids + rollout.token_ids
        output = policy(torch.tensor([row_ids[:-1]]))
        log_p = torch.log_softmax(getattr(output, "logits", output)[0].double(), dim=-1)
        entropies = -(log_p.exp() * log_p).sum(-1)[len(rollout.prompt_ids) - 1 :]
        assert len(entropies) == len(rollout.text)
        assert row["mean_token_entropy"] == pytest.approx(entropies.mean().item(), abs=1e-5)
    assert policy.training


def test_each_pass_takes_every_problem_once_in_an_order_of_its_own():
    problems = [Problem(str(number), None) for number in range(6)]
    steps = [problems_of_step(problems, 4, step, seed=0) for step in range(6)]  # 24 problems: 4 passes
    taken = [problem.prompt for step in steps for problem in step]
    passes = [tuple(taken[start : start + 6]) for start in range(0, 24, 6)]
    assert all(sorted(each) == list("012345") for each in passes) and len(set(passes)) == 4
    assert problems_of_step(problems, 4, 3, seed=0) == steps[3] != problems_of_step(problems, 4, 3, seed=1)


@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_log_probs_of_rollouts_are_the_generators(batch_size):
    model = our_model().eval()
    rollouts = sampler(model).sample(model, PROBLEMS, n=4, step=0).rollouts
    rows = Rows(rollouts, Saved(), device_of(model), "float32")
    for each, log_probs in zip(rollouts, response_log_probs(model, rows, batch_size=batch_size), strict=True):
        torch.testing.assert_close(log_probs, torch.tensor(each.logprobs), atol=1e-5, rtol=0)


def test_no_problems_are_an_error():
    with pytest.raises(ValueError, match="no problems to respond to"):
        sampler(our_model()).sample(our_model(), [], n=1, step=0)


def test_generators_are_of_a_known_kind_and_for_our_models():
    with pytest.raises(ValueError, match="ours or vllm, got 'theirs'"):
        generator_for(our_model(), Saved(), "theirs")
    with pytest.raises(ValueError, match="LlamaForCausalLM; load its checkpoint with load_huggingface"):
        generator_for(their_model(), Saved())
    try:
        require_vllm()
    except UserError:
        with pytest.raises(UserError, match="vLLM is not installed"):
            generator_for(our_model(), Saved(), "vllm")
