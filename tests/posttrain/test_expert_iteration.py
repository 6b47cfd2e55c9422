"""Expert Iteration: it learns from what was right, round after round, and an interrupted run ends alike."""

from dataclasses import replace

import pytest

from cs336.evals.rewards import reward_each
from cs336.files import UserError, read_jsonl
from cs336.generate.generators import generator_for
from cs336.posttrain import expert_iteration
from cs336.posttrain.expert_iteration import KEPT_FILE, ExpertIterationConfig, train_expert_iteration
from cs336.posttrain.sft import SftConfig, train_sft
from tests.posttrain.models import Saved, assert_same_weights, curve, our_model, weights
from tests.posttrain.test_grpo_loop import PROBLEMS, said

CONFIG = ExpertIterationConfig(
    n_ei_steps=3,
    question_batch_size=4,
    group_size=16,
    sft=SftConfig(
        batch_size=8,
        learning_rate=1e-2,
        num_epochs=2,
        best_by="valid_accuracy",
        best_is="highest",
        keep="last",
        valid_interval=2,
    ),
    sampling_min_tokens=1,
    sampling_max_tokens=5,
)


def _run(folder, config=CONFIG, problems=PROBLEMS, **options):
    model, tokenizer = our_model(), Saved()
    backend = generator_for(model, tokenizer)
    options = {"reward": reward_each(said), "seed": 0, "folder": folder} | options
    rows = train_expert_iteration(model, tokenizer, backend, problems, problems, config, **options)
    return model, rows


def test_each_round_learns_from_its_own_right_responses(tmp_path):
    model, rows = _run(tmp_path)
    assert [row["step"] for row in rows] == [0, 1, 2, 3] and rows == list(read_jsonl(tmp_path / "metrics.jsonl"))
    assert rows[3]["reward"] > rows[1]["reward"] + 0.1 and rows[3]["token_entropy"] < rows[1]["token_entropy"]
    for number, row in enumerate(rows[1:], 1):
        home = tmp_path / f"round-{number:02d}"
        kept = list(read_jsonl(home / KEPT_FILE))
        assert len(kept) == row["num_kept"] <= row["reward"] * row["num_sampled"] and row["num_sampled"] == 64
        assert all(said(each["response"], each["ground_truth"])["reward"] == 1 for each in kept)
        assert len({(each["prompt"], each["response"]) for each in kept}) == len(kept)
        curve_of_round = curve(home)
        assert curve_of_round[0]["valid_accuracy"] == rows[number - 1]["valid_accuracy"]
        assert curve_of_round[-1]["valid_accuracy"] == row["valid_accuracy"]
        assert curve_of_round[-1]["step"] == row["num_updates"] == 2 * -(-len(kept) // 8)
    assert (tmp_path / "letters.txt").exists() and not model.training


def test_a_round_without_a_right_response_changes_nothing(tmp_path):
    reward = reward_each(lambda response, truth: {"format_reward": 1.0, "answer_reward": 0.0, "reward": 0.0})
    model, rows = _run(tmp_path, reward=reward)
    assert [row["num_kept"] for row in rows[1:]] == [0, 0, 0] and rows[3]["valid_accuracy"] == 0
    assert_same_weights(weights(model), weights(our_model()))


class Ended(BaseException):
    """As an interrupt."""


def test_an_interrupted_run_ends_with_the_same_bytes(tmp_path, monkeypatch):
    def interrupted(*args, folder, **options):
        def report(row):
            if row["step"] == 3 and folder.name == "round-02":
                raise Ended

        return train_sft(*args, folder=folder, report=report, **options)

    with monkeypatch.context() as patch:
        patch.setattr(expert_iteration, "train_sft", interrupted)
        with pytest.raises(Ended):
            _run(tmp_path / "ended")
    kept = (tmp_path / "ended" / "round-02" / KEPT_FILE).stat().st_mtime_ns
    resumed, _ = _run(tmp_path / "ended")
    assert (tmp_path / "ended" / "round-02" / KEPT_FILE).stat().st_mtime_ns == kept  # not sampled again
    whole, _ = _run(tmp_path / "whole")
    assert_same_weights(weights(resumed), weights(whole))
    assert curve(tmp_path / "ended") == curve(tmp_path / "whole")
    assert curve(tmp_path / "ended" / "round-02") == curve(tmp_path / "whole" / "round-02")


def test_more_rounds_may_follow_and_another_run_does_not_go_on(tmp_path):
    _run(tmp_path / "a", replace(CONFIG, n_ei_steps=1))
    model, rows = _run(tmp_path / "a", replace(CONFIG, n_ei_steps=2))
    whole, _ = _run(tmp_path / "b", replace(CONFIG, n_ei_steps=2))
    assert_same_weights(weights(model), weights(whole))
    assert len(rows) == 3
    with pytest.raises(UserError, match="of a run with other settings"):
        _run(tmp_path / "a", replace(CONFIG, group_size=8))


def test_settings_and_problems_out_of_range_are_refused(tmp_path):
    with pytest.raises(ValueError, match="group_size must be at least 1"):
        ExpertIterationConfig(group_size=0)
    with pytest.raises(ValueError, match="best_by is 'valid_loss'"):
        ExpertIterationConfig(sft=SftConfig(batch_size=1, learning_rate=1.0))
    with pytest.raises(ValueError, match="3 training and 3 validation problems; a round asks 4"):
        _run(tmp_path, problems=PROBLEMS[:3])
