"""What the names of a preset's runs say, and which of them are its chain."""

from dataclasses import replace

import pytest

from cs336.posttrain.config import (
    chain_cells,
    expert_iteration_runs,
    grpo_runs,
    longer_sft_runs,
    score_runs,
    sft_runs,
    stop_strings,
)
from cs336.posttrain.problems import ProblemsConfig
from cs336.posttrain.recipes import MATH_PROBLEMS, MATH_REASONING, REASONER_PROBLEMS, REASONER_REASONING
from cs336.presets import PRESETS


@pytest.mark.parametrize(
    ("config", "problems"), [(MATH_REASONING, MATH_PROBLEMS), (REASONER_REASONING, REASONER_PROBLEMS)]
)
def test_presets_with_variants_of_grpo_have_both_prompts(config, problems):
    runs = grpo_runs(config, problems).values()
    assert {"question_only", problems.template} == {run.template for run in runs}


def test_sft_by_size_and_filter():
    runs = sft_runs(replace(MATH_REASONING, sft_runs=("full", "128", "256-correct")), MATH_PROBLEMS)
    assert [(run.size, run.correct_only) for run in runs.values()] == [(0, False), (128, False), (256, True)]
    assert {run.template for run in runs.values()} == {"r1_zero"}


def test_expert_iteration_varies_one_setting_a_run():
    names = ("expert-iteration", "batch-1024", "samples-8", "epochs-3")
    runs = expert_iteration_runs(replace(MATH_REASONING, expert_iteration_runs=names), MATH_PROBLEMS)
    own, batch, samples, epochs = (run.config for run in runs.values())
    assert batch == replace(own, question_batch_size=1_024)
    assert samples == replace(own, group_size=8)
    assert epochs == replace(own, sft=replace(own.sft, num_epochs=3))


def test_the_rows_of_grpo():
    names = ("grpo", "no-baseline", "constant-length", "no-std", "rate-3e-6", "question-only")
    runs = grpo_runs(replace(MATH_REASONING, grpo_runs=names), MATH_PROBLEMS)
    own, no_baseline, constant, no_std, rate, question_only = runs.values()
    assert own.config == MATH_REASONING.grpo and own.config.loss_type == "reinforce_with_baseline"
    assert no_baseline.config == replace(own.config, loss_type="no_baseline")
    assert constant.config == replace(own.config, normalize_constant=1_024.0)
    assert no_std.config == replace(own.config, use_std_normalization=False)
    assert rate.config == replace(own.config, learning_rate=3e-6)
    assert (question_only.template, question_only.reward) == ("question_only", "question_only")
    assert question_only.config == own.config


def test_off_policy_runs_cut_the_rollouts_and_keep_what_a_forward_pass_holds():
    runs = grpo_runs(replace(MATH_REASONING, grpo_runs=("off-policy-2x4", "no-clip-2x4")), MATH_PROBLEMS)
    clipped, unclipped = (run.config for run in runs.values())
    assert (clipped.num_updates, clipped.train_batch_size, clipped.micro_batch_size) == (8, 64, 2)
    assert (clipped.loss_type, unclipped.loss_type) == ("grpo_clip", "grpo_no_clip")
    assert replace(clipped, loss_type="grpo_no_clip") == unclipped


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sft_runs": ("half",)}, "'half' is no run"),
        ({"expert_iteration_runs": ("batch",)}, "'batch' is no run"),
        ({"grpo_runs": ("dr-grpo",)}, "'dr-grpo' is no run"),
        ({"grpo_runs": ("off-policy-1x3",)}, "256 rollouts into 3"),
        ({"grpo_runs": ("off-policy-1x1",)}, "ratio of 1"),
    ],
)
def test_a_name_that_says_nothing_is_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        score_runs(replace(MATH_REASONING, **changes), MATH_PROBLEMS)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"chain": ("sft", "ppo")}, "no 'ppo'"),
        ({"chain": ("sft", "grpo"), "sft_runs": ()}, "sft_runs are empty"),
        ({"chain": ("grpo",)}, "which is not in the chain"),
        ({"chain": ("sft",), "grpo_from": "sft", "longer_sft": True}, "both must be in it"),
        ({"num_score_seeds": 0}, "num_score_seeds 1 or more"),
    ],
)
def test_a_chain_must_hold_together(changes, said):
    with pytest.raises(ValueError, match=said):
        replace(REASONER_REASONING, **changes)


def test_the_chain_is_the_first_run_of_each_stage_and_every_score_of_its_models():
    chain = chain_cells(REASONER_REASONING, REASONER_PROBLEMS)
    assert chain["sft_model"] == ("full",) and chain["grpo_model"] == ("grpo",)
    assert chain["longer_sft_model"] == ("as-long-as-grpo",)
    assert "grpo_model-x-gsm8k" in chain["reasoning_scores"]
    assert not any("no-std" in name for name in chain["reasoning_scores"])
    scores = list(score_runs(REASONER_REASONING, REASONER_PROBLEMS))
    assert tuple(scores[: len(chain["reasoning_scores"])]) == chain["reasoning_scores"], "runs take them as a range"
    alone = chain_cells(MATH_REASONING, MATH_PROBLEMS)
    assert alone["sft_model"] == alone["expert_iteration_model"] == () and alone["grpo_model"] == ("grpo",)


def test_models_beside_the_chain_are_asked_the_held_out_problems_alone_and_nothing_twice():
    runs = score_runs(REASONER_REASONING, REASONER_PROBLEMS)
    assert {run.task for run in runs.values() if run.beside_the_chain} == {"reasoning"}
    assert runs["grpo_model-no-std-x-reasoning"].model == "grpo_model/no-std"
    gsm8k = replace(REASONER_PROBLEMS, task="gsm8k")
    assert {run.task for run in score_runs(REASONER_REASONING, gsm8k).values()} == {"reasoning"}


def test_the_second_arm_of_sft_has_no_end_of_its_own_and_is_kept_as_grpo_is():
    (run,) = longer_sft_runs(REASONER_REASONING, REASONER_PROBLEMS).values()
    kept = REASONER_REASONING.grpo.updates
    assert (run.config.best_by, run.config.best_is) == (kept.best_by, kept.best_is)
    assert run.config.patience == 0 and run.config.schedule == "constant"
    assert run.config.learning_rate_at(1, 10**6) == run.config.learning_rate
    assert longer_sft_runs(MATH_REASONING, MATH_PROBLEMS) == {}


def test_responses_end_where_the_template_lets_them():
    assert stop_strings("r1_zero") == stop_strings("r1_zero_short") == ("</answer>",)
    assert stop_strings("question_only") == ()


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_describes_its_runs(name):
    preset = PRESETS[name]
    assert score_runs(preset.reasoning, preset.problems)
    assert set(chain_cells(preset.reasoning, preset.problems)) >= {"sft_model", "grpo_model"}


def test_problems_and_traces_are_asked_alike():
    with pytest.raises(ValueError, match="give both the same"):
        ProblemsConfig(template="r1_zero")
    with pytest.raises(ValueError, match="no task 'sums'"):
        ProblemsConfig(task="sums")
    with pytest.raises(ValueError, match="no reward named 'taste'"):
        ProblemsConfig(reward="taste")
    with pytest.raises(ValueError, match="num_test is 0"):
        ProblemsConfig(num_test=0)
