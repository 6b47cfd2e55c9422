"""`cs336 evaluate`: a folder's scores on every task, answers kept, and mistakes in one line."""

import gc
import json
from types import SimpleNamespace

import pytest
import torch

from cs336 import evaluation_commands
from cs336.cli import main
from cs336.evals import judges, suite
from cs336.files import read_jsonl
from cs336.generate import generators, vllm
from cs336.generate.backend import Generation, Sample
from cs336.model.transformer import ModelConfig, TransformerLM
from cs336.posttrain.policy import save_policy
from tests.evals.test_answerer import BYTES
from tests.posttrain.models import calls_of


@pytest.fixture(autouse=True)
def no_data(monkeypatch, tmp_path):
    monkeypatch.delenv("CS336_DATA", raising=False)
    monkeypatch.setenv("CS336_DOWNLOADS", str(tmp_path / "downloads"))
    monkeypatch.setenv("CS336_ARTIFACTS", str(tmp_path / "artifacts"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model") / "mine", context_length=96)


def save_model(folder, *, context_length):
    torch.manual_seed(0)
    shape = ModelConfig(vocab_size=256, context_length=context_length, d_model=16, num_layers=1, num_heads=2, d_ff=32)
    folder.mkdir()
    save_policy(TransformerLM(shape), BYTES, folder)
    return folder


def test_every_task_leaves_its_answers_and_a_score_with_its_interval(folder, tmp_path, capsys):
    tasks = ["mmlu", "gsm8k", "generated", "alpaca_eval", "safety"]
    assert main(["evaluate", *tasks, "--model", str(folder), "--examples", "3", "--out", "scored"]) == 0
    printed = capsys.readouterr().out
    assert "examples/s" in printed and "judged by offline: " in printed and "accuracy, likeliest choice" in printed
    rows = json.loads((tmp_path / "scored" / "scores.json").read_text())
    assert {row["task"] for row in rows} == set(tasks) and {row["num_examples"] for row in rows} == {3}
    assert all(row["model"] == "mine" for row in rows)
    assert all(row["low"] is not None for row in rows if row["metric"] != "unparseable_share")
    for task in tasks:
        answers = list(read_jsonl(tmp_path / "scored" / task / "seed-0" / "rows.jsonl"))
        assert len(answers) == 3 and {"prompt", "output", "finish"} <= answers[0].keys()
    predictions = json.loads((tmp_path / "scored" / "alpaca_eval" / "seed-0" / "predictions.json").read_text())
    assert {row["generator"] for row in predictions} == {"mine"}
    safety = list(read_jsonl(tmp_path / "scored" / "safety" / "seed-0" / "predictions.jsonl"))
    assert {"prompts_final", "output"} <= safety[0].keys()


def test_seeds_are_pooled_and_reasoning_is_rewarded(folder, tmp_path, capsys):
    asked = ["--frame", "r1_zero_short", "--temperature", "1", "--seeds", "0", "1", "--examples", "4"]
    assert main(["evaluate", "generated", "--model", str(folder), *asked, "--max-new-tokens", "8"]) == 0
    capsys.readouterr()
    (out,) = (tmp_path / "evaluations").iterdir()
    score, unparseable = json.loads((out / "scores.json").read_text())
    assert (score["num_examples"], score["value"]) == (4, 0.0) and score["high"] > 0
    assert (unparseable["metric"], unparseable["value"]) == ("unparseable_share", 1.0)
    outputs = [
        [row["output"] for row in read_jsonl(out / "generated" / f"seed-{seed}" / "rows.jsonl")] for seed in (0, 1)
    ]
    assert outputs[0] != outputs[1]
    metrics = json.loads((out / "generated" / "seed-0" / "metrics.json").read_text())
    assert metrics["categories"]["(0,0)"]["count"] == 4


def test_answers_that_think_are_sampled_and_the_supplements_are_greedy(folder, monkeypatch, capsys):
    asked, _ = calls_of(monkeypatch)
    short = ["--model", str(folder), "--examples", "2", "--max-new-tokens", "8"]
    for more in (
        ["gsm8k", "generated"],
        ["generated", "--frame", "r1_zero_short", "--seeds", "0", "1"],
        ["generated", "--frame", "question_only", "--temperature", "0"],
    ):
        assert main(["evaluate", *more, *short]) == 0
    assert [each.temperature for each in asked] == [0, 0, 1, 1, 0]
    assert {(each.top_p, each.top_k, each.min_tokens) for each in asked} == {(1, 0, 0)}


def test_math_is_asked_of_its_own_file_in_the_prompt_of_reasoning(folder, tmp_path, shared_data, monkeypatch):
    monkeypatch.setenv("CS336_DATA", str(shared_data))
    assert (
        main(["evaluate", "math", "--model", str(folder), "--examples", "2", "--max-new-tokens", "8", "--out", "m"])
        == 0
    )
    rows = list(read_jsonl(tmp_path / "m" / "math" / "seed-0" / "rows.jsonl"))
    assert len(rows) == 2 and all(row["prompt"].endswith("Assistant: <think>") and row["reward"] == 0 for row in rows)


def test_sets_of_choices_are_scored_by_the_likeliest_option(tmp_path, shared_data, monkeypatch, capsys):
    monkeypatch.setenv("CS336_DATA", str(shared_data))
    folder = save_model(tmp_path / "long", context_length=512)
    asked = ["--model", str(folder), "--examples", "3", "--shots", "1", "--out", "c"]
    assert main(["evaluate", *evaluation_commands.CHOICES, *asked]) == 0
    printed = capsys.readouterr().out
    assert "copa, seed 0: 3 questions in " in printed and "guessing gets 50.0%" in printed
    for task in evaluation_commands.CHOICES:
        rows = list(read_jsonl(tmp_path / "c" / task / "seed-0" / "rows.jsonl"))
        assert len(rows) == 3 and all(len(row["choice_logprobs"]) == len(row["options"]) > 1 for row in rows)
        metrics = json.loads((tmp_path / "c" / task / "seed-0" / "metrics.json").read_text())
        assert metrics["choice_accuracy"] == sum(row["choice_correct"] for row in rows) / 3
    scores = json.loads((tmp_path / "c" / "scores.json").read_text())
    assert [(row["task"], row["metric"]) for row in scores] == [
        (task, f"choice_{per}accuracy") for task in evaluation_commands.CHOICES for per in ("", "per_byte_")
    ]


def test_an_option_that_is_longer_than_the_context_is_one_line_that_names_the_set(
    folder, shared_data, monkeypatch, capsys
):
    monkeypatch.setenv("CS336_DATA", str(shared_data))
    assert main(["evaluate", "piqa", "--model", str(folder), "--examples", "20"]) == 1
    assert "piqa: a continuation needs 1 to 95 tokens" in capsys.readouterr().err


RANKING = '[{"model": "model_1", "rank": 1}, {"model": "model_2", "rank": 2}]'


class Fake:
    """An engine of vLLM that answers every prompt alike, and says when it starts and ends."""

    def __init__(self, events):
        self.events = events

    def generate(self, prompts, params, *, progress):
        return [Generation(list(ids), [Sample("no", [1], None, "end")]) for ids in prompts]

    def close(self):
        self.events.append("the model ends")


@pytest.mark.parametrize("engine", ["ours", "vllm"])
def test_the_model_is_gone_before_a_judge_starts_and_each_task_has_one_judge(folder, engine, monkeypatch, capsys):
    events, models = [], []
    before = {id(each) for each in gc.get_objects() if type(each) is TransformerLM}

    def start_model(model, **options):
        assert options["own_process"]
        return Fake(events)

    def start_judge(*, own_process, model, **options):
        gc.collect()
        models.append([each for each in gc.get_objects() if type(each) is TransformerLM and id(each) not in before])
        events.append(f"a judge starts, {own_process}")
        reply = SimpleNamespace(outputs=[SimpleNamespace(text=RANKING)])
        return SimpleNamespace(chat=lambda messages, params: [reply] * len(messages))

    monkeypatch.setattr(generators.VllmEngine, "start", start_model)
    for module in (generators, suite, vllm):
        monkeypatch.setattr(module, "require_vllm", lambda: None)
    monkeypatch.setattr(judges, "start_llm", start_judge)
    monkeypatch.setattr(judges, "vllm_sampling", lambda **settings: settings)
    asked = ["--temperature", "1", "--seeds", "0", "1", "--examples", "2", "--max-new-tokens", "4"]
    asked += ["--engine", engine, "--judge", "someone/judge"]
    assert main(["evaluate", "alpaca_eval", "safety", "--model", str(folder), *asked]) == 0
    assert events == ["the model ends"] * (engine == "vllm") + ["a judge starts, True"] * 2
    assert models == [[], []]
    assert capsys.readouterr().out.count("judged by someone/judge") == 4


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["gsm8k"], "not there yet; `cs336 run --preset tiny` makes it, or give --model"),
        (["gsm8k", "--preset", "huge"], "no preset 'huge'"),
        (["gsm8k", "--preset", "qwen_math"], "qwen2.5-math-1.5b (Qwen2.5-Math-1.5B base"),
        (["gsm8k", "--model", "nowhere"], "nowhere: no such folder"),
        (["math", "gsm8k", "--seeds", "0", "1"], "greedy answers are the same with every seed"),
        (["gsm8k", "--seeds", "0", "1"], "greedy answers are the same with every seed"),
        (["copa", "--frame", "alpaca"], "of copa the options are compared as they stand"),
        (["copa", "--engine", "vllm"], "copa needs the likelihood of options; take ours"),
        (["copa"], "icl-tasks ("),
        (["mmlu", "--frame", "r1_zero"], "of mmlu there is no ground truth to reward"),
        (["math", "--frame", "alpaca"], "math is asked with one of r1_zero"),
        (["gsm8k", "--examples", "-1"], "are 0 or more"),
        (["mmlu", "--shots", "-1"], "are 0 or more"),
    ],
)
def test_mistakes_are_one_line(arguments, said, capsys):
    assert main(["evaluate", *arguments]) == 1
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_what_is_not_here_is_told_before_anything_is_answered(folder, monkeypatch, capsys):
    asked = ["--model", str(folder), "--examples", "1", "--max-new-tokens", "4"]
    assert main(["evaluate", "gsm8k", "math", *asked]) == 1
    printed = capsys.readouterr()
    assert "math (" in printed.err and not printed.out
    monkeypatch.setattr(vllm.importlib.util, "find_spec", lambda name: None)
    assert main(["evaluate", "gsm8k", "safety", *asked, "--judge", "some/judge"]) == 1
    printed = capsys.readouterr()
    assert "vLLM is not installed" in printed.err and not printed.out
    monkeypatch.setattr(vllm.importlib.util, "find_spec", lambda name: name)
    assert main(["evaluate", "gsm8k", "safety", *asked, "--judge", "llama-3.3-70b-instruct"]) == 1
    printed = capsys.readouterr()
    assert "llama-3.3-70b-instruct (" in printed.err and not printed.out
    assert main(["evaluate", "gsm8k", *asked, "--judge", "some/judge"]) == 0


def test_what_was_cut_off_and_how_answers_were_formed_stands_beside_the_score(folder, capsys):
    asked = ["--model", str(folder), "--examples", "3", "--max-new-tokens", "4"]
    assert main(["evaluate", "gsm8k", *asked]) == 0
    assert "; prompts without their beginning: 3; answers cut off: 3\n" in capsys.readouterr().out
    assert main(["evaluate", "gsm8k", *asked, "--frame", "r1_zero_short"]) == 0
    assert "; (format, answer): (1,1) 0, (1,0) 0, (0,0) 3\n" in capsys.readouterr().out


def test_more_tokens_than_the_model_has_places_are_one_line(folder, capsys):
    assert main(["evaluate", "gsm8k", "--model", str(folder), "--max-new-tokens", "96"]) == 1
    assert "leaves no room for a prompt in a context of 96" in capsys.readouterr().err


def test_help_teaches_by_examples(capsys):
    with pytest.raises(SystemExit):
        main(["evaluate", "--help"])
    printed = capsys.readouterr().out
    assert "cs336 evaluate math --model Qwen/Qwen2.5-Math-1.5B --engine vllm --seeds 0 1 2" in printed
    for task in ("mmlu", "gsm8k", "math", "generated", "alpaca_eval", "safety"):
        assert f"\n  {task} " in printed
