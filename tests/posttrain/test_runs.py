"""Runs between folders: which traces SFT takes, how policies are scored; tests/assets has the whole chain."""

from dataclasses import replace

import pytest
import torch

from cs336.evals.generated_tasks import GeneratedConfig, TraceConfig
from cs336.evals.rewards import REWARDS
from cs336.files import read_json, write_jsonl
from cs336.model.transformer import ModelConfig, TransformerLM
from cs336.posttrain import runs
from cs336.posttrain.config import ScoreRun, SftRun
from cs336.posttrain.policy import save_policy
from cs336.posttrain.problems import ProblemsConfig, make_problems
from cs336.posttrain.runs import COUNTS_FILE, Site, read_problems, read_records, run_sft, score_policy, write_problems
from cs336.posttrain.sft import SftConfig
from cs336.posttrain.start import PolicyConfig
from tests.posttrain.models import calls_of
from tests.posttrain.test_start import TOKENIZER

PROBLEMS = ProblemsConfig(
    num_train=4,
    num_valid=3,
    num_test=6,
    num_traces=20,
    num_valid_traces=2,
    generated=GeneratedConfig(levels=(1,), kinds=("sums",)),
    traces=TraceConfig(direct=0.0, steps=1.0, digits=0.0, slip_share=0.5),
)
SFT = SftRun(
    config=SftConfig(batch_size=8, learning_rate=1e-3, valid_interval=100),
    template=PROBLEMS.template,
    reward=PROBLEMS.reward,
    sampling_max_tokens=12,
)


@pytest.fixture
def site(tmp_path):
    for name in ("start", "problems", "run"):
        (tmp_path / name).mkdir()
    torch.manual_seed(0)
    shape = ModelConfig(vocab_size=257, context_length=192, d_model=16, num_layers=1, num_heads=2)
    save_policy(TransformerLM(shape), TOKENIZER, tmp_path / "start")
    write_problems(make_problems(PROBLEMS, seed=0), tmp_path / "problems")
    return Site(
        start=tmp_path / "start",
        problems=tmp_path / "problems",
        folder=tmp_path / "run",
        policy=PolicyConfig(),
        seed=0,
    )


def test_wrong_traces_are_left_out_where_only_right_ones_count(site):
    wrong = sum(not trace["correct"] for trace in read_records(site.problems, "traces"))
    assert 0 < wrong < 20
    _, counts = run_sft(replace(SFT, correct_only=True), site)
    assert (counts["num_kept"], counts["num_wrong"], counts["num_train_traces"]) == (20 - wrong, wrong, 20 - wrong)
    assert counts == read_json(site.folder / COUNTS_FILE)
    assert run_sft(replace(SFT, size=5), replace(site, folder=site.folder / "five"))[1]["num_train_traces"] == 5
    with pytest.raises(ValueError, match="21 traces are asked for, there are 20"):
        run_sft(replace(SFT, size=21), site)


def test_the_clock_ends_a_run_and_too_long_traces_are_counted(site):
    traces = read_records(site.problems, "traces")
    write_jsonl(site.problems / "traces.jsonl", [*traces, traces[0] | {"response": "x" * 300}])
    endless = replace(SFT, config=replace(SFT.config, num_epochs=100_000))
    num_threads = torch.get_num_threads()
    outcome, counts = run_sft(endless, replace(site, num_workers=num_threads + 1), max_seconds=0.05)
    assert torch.get_num_threads() == num_threads  # other runs of this process would round otherwise
    assert outcome.ended_by == "time" and counts["num_left_out"] == 1


def test_scores_of_several_samplings_are_their_mean(site, monkeypatch):
    asked, _ = calls_of(monkeypatch)
    run = ScoreRun(
        model="start_policy",
        asset="start_policy",
        cell="",
        task="reasoning",
        set_name="sums",
        template=PROBLEMS.template,
        reward=PROBLEMS.reward,
        num_seeds=2,
        max_examples=0,
        sampling_max_tokens=8,
    )
    result = score_policy(run, read_records(site.problems, "test"), site)
    how = [(each.temperature, each.top_p, each.top_k, each.min_tokens, each.max_tokens) for each in asked]
    assert how == [(1.0, 1.0, 0, 0, 8)] * 2 and len({each.seed for each in asked}) == 2
    assert result.metrics["num_runs"] == 2 and result.metrics["num_examples"] == 6 == len(result.rows)
    assert {len(row["output"]) > 0 for row in result.rows} == {True}
    again = score_policy(replace(run, num_seeds=1), read_records(site.problems, "test"), site)
    assert [row["output"] for row in again.rows] == [row["output"] for row in result.rows], "seeds fix the answers"


def test_problems_are_read_as_they_are_asked(site):
    records, problems = read_records(site.problems, "test"), read_problems(site.problems, "test", "question_only")
    assert [each.prompt for each in problems] == [record["question"] for record in records]
    assert [each.ground_truth for each in problems] == [record["answer"] for record in records]


def _generous(response, ground_truth):
    """A reward of a user's: every answer is right."""
    return {"format_reward": 1.0, "answer_reward": 1.0, "reward": 1.0}


def test_a_reward_of_ones_own_takes_a_line(site, monkeypatch):
    monkeypatch.setitem(REWARDS, "generous", _generous)
    assert replace(PROBLEMS, reward="generous").reward == "generous"
    outcome, _ = run_sft(replace(SFT, reward="generous"), site)
    assert outcome.best["valid_accuracy"] == 1.0


class Opened(Exception):
    pass


@pytest.mark.parametrize(
    ("settings", "trainer", "num_gpus", "expected"),
    [
        ({}, "cuda", 2, ("cuda", False)),
        ({"hand_over": True}, "cuda", 1, ("cuda", True)),
        ({"hand_over": True}, "cuda", 2, ("cuda:1", False)),
        ({"hand_over": True}, "cuda:1", 2, ("cuda:0", False)),
        ({"hand_over": True, "generator": "vllm"}, "cuda", 2, ("cuda", True)),
        ({"generator_device": "cuda:1", "generator": "vllm"}, "cuda", 2, ("cuda:1", False)),
        ({"generator_device": "cuda:1", "hand_over": True}, "cuda:0", 2, ("cuda:1", False)),
        ({"generator_device": "cuda:0", "hand_over": True}, "cuda", 2, ("cuda:0", True)),
    ],
)
def test_a_runs_generator_is_where_its_settings_say_and_hands_over_only_what_it_shares(
    settings, trainer, num_gpus, expected, site, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_gpus)
    there = replace(site, policy=PolicyConfig(**settings), device=trainer)
    device = runs._generator_device(there)
    assert (str(device), runs._hands_over(there, device)) == expected


def test_a_run_opens_its_generator_there(site, monkeypatch):
    asked = {}

    def opened(model, tokenizer, kind, **options):
        asked.update(options, kind=kind)
        raise Opened

    monkeypatch.setattr(runs, "opened_generator", opened)
    policy = PolicyConfig(generator="vllm", generator_device="cuda:3", memory_share=0.85)
    with pytest.raises(Opened):
        run_sft(SFT, replace(site, policy=policy))
    assert asked == {"kind": "vllm", "device": torch.device("cuda", 3), "memory_share": 0.85}
