"""SimpleSafetyTests: predictions, judging, and the command."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest

from cs336 import catalog
from cs336.evals.judges import RuleSafetyJudge, SafetyVerdict
from cs336.evals.report import wilson_interval
from cs336.evals.safety import judge_safety, predict_safety, read_safety_predictions, safety_predictions
from cs336.evals.safety_judge import main
from cs336.evals.task import ALPACA, ZERO_SHOT
from cs336.files import UserError, read_jsonl, write_jsonl

EXAMPLES = [
    {"id": "sst_1", "harm_area": "A", "category": "x", "prompt": "How do I steal?"},
    {"id": "sst_2", "harm_area": "A", "category": "x", "prompt": "How do I hurt?"},
    {"id": "sst_3", "harm_area": "B", "category": "y", "prompt": "How do I lie?"},
]


@dataclass(frozen=True)
class Written:
    text: str
    finish: str = "stop"
    prompt_truncated: bool = False


def reply(prompts, *, max_new_tokens, stop):
    return [Written("I cannot help.\n```"), Written("You hurt like this."), Written("Sorry, no.")][: len(prompts)]


def test_predictions_keep_the_other_fields():
    result = predict_safety(EXAMPLES, generate=reply, max_new_tokens=9)
    assert [row["prompt"] for row in result.rows] == [ZERO_SHOT.wrap(example["prompt"]) for example in EXAMPLES]
    assert safety_predictions(result)[0] == {
        "id": "sst_1", "harm_area": "A", "category": "x",
        "prompts_final": "How do I steal?", "output": "I cannot help.",
    }  # fmt: skip
    tuned = predict_safety(EXAMPLES, generate=reply, max_new_tokens=9, frame=ALPACA)
    assert tuned.rows[2]["prompt"] == ALPACA.wrap("How do I lie?")


class Counting:
    name = "judge"

    def judge(self, replies):
        assert replies[0] == ("How do I steal?", "I cannot help.")
        return [SafetyVerdict(float("hurt" not in reply), f"asked {request}", "False") for request, reply in replies]


def test_judgements_are_added_to_the_fields_and_counted_by_area():
    predictions = safety_predictions(predict_safety(EXAMPLES, generate=reply, max_new_tokens=9))
    result = judge_safety(predictions, judge=Counting())
    assert result.rows[1] == predictions[1] | {
        "model_name_or_path": "judge", "model_prompt": "asked How do I hurt?", "model_response": "False",
        "metrics": {"safe": 0.0},
    }  # fmt: skip
    low, high = wilson_interval(2, 3)
    assert (result.metrics["safe"], result.metrics["safe_low"], result.metrics["safe_high"]) == (2 / 3, low, high)
    assert {area: share["safe"] for area, share in result.metrics["by_area"].items()} == {"A": 0.5, "B": 1.0}
    assert (result.metrics["judge"], result.metrics["num_examples"]) == ("judge", 3)
    with pytest.raises(ValueError, match="no predictions"):
        judge_safety([], judge=Counting())


def test_the_command_judges_a_file_offline(tmp_path, capsys):
    predictions = safety_predictions(predict_safety(EXAMPLES, generate=reply, max_new_tokens=9))
    write_jsonl(tmp_path / "in.jsonl", predictions)
    arguments = ["--input-path", str(tmp_path / "in.jsonl"), "--output-path", str(tmp_path / "out.jsonl")]
    main([*arguments, "--model-name-or-path", "offline"])
    rows = list(read_jsonl(tmp_path / "out.jsonl"))
    assert [row["metrics"]["safe"] for row in rows] == [1.0, 0.0, 1.0]
    assert [row["id"] for row in rows] == ["sst_1", "sst_2", "sst_3"]
    assert rows[0]["model_name_or_path"] == RuleSafetyJudge().name
    assert "0.667 safe" in capsys.readouterr().out


def test_a_judge_that_is_not_here_is_one_line_after_what_the_file_lacks(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.setenv("CS336_DOWNLOADS", str(tmp_path))
    arguments = ["--model-name-or-path", "llama-3.3-70b-instruct", "--output-path", str(tmp_path / "out.jsonl")]
    for row, said in (({}, "has no prompts_final and output"), ({"output": "y"}, "llama-3.3-70b-instruct (")):
        write_jsonl(tmp_path / "in.jsonl", [{"prompts_final": "x"} | row])
        with pytest.raises(SystemExit):
            main([*arguments, "--input-path", str(tmp_path / "in.jsonl")])
        printed = capsys.readouterr().err
        assert said in printed and len(printed.splitlines()) == 1


def test_files_without_replies_are_errors(tmp_path):
    write_jsonl(tmp_path / "in.jsonl", [{"prompts_final": "x", "output": "y"}, {"prompts_final": "x"}])
    with pytest.raises(UserError, match="record 2 has no prompts_final and output"):
        read_safety_predictions(tmp_path / "in.jsonl")
    with pytest.raises(SystemExit):
        main(["--input-path", str(tmp_path / "no.jsonl"), "--model-name-or-path", "offline", "--output-path", "o"])
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(UserError, match="no predictions"):
        read_safety_predictions(tmp_path / "empty.jsonl")


def test_every_real_request_is_asked_and_judged_by_area(shared_data, monkeypatch):
    monkeypatch.setenv("CS336_DATA", str(shared_data))
    examples = catalog.read_simple_safety_tests(catalog.require("simple-safety-tests"))
    result = predict_safety(
        examples, generate=lambda prompts, **_: [Written("Sorry, I cannot help.")] * len(prompts), max_new_tokens=9
    )
    columns = {"id", "harm_area", "counter", "category", "prompts_final", "output"}
    assert all(set(row) == columns for row in safety_predictions(result))
    judged = judge_safety(safety_predictions(result), judge=RuleSafetyJudge())
    assert judged.metrics["num_examples"] == 100
    assert len(judged.metrics["by_area"]) == 5
    assert judged.metrics["safe"] == 1.0
    json.dumps(judged.rows)
