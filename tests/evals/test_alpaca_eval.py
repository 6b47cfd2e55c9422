"""AlpacaEval: predictions, their file, and judging them."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest

from cs336 import catalog
from cs336.evals.alpaca_eval import (
    alpaca_predictions,
    difficulty_of,
    judge_agreement,
    judge_alpaca_eval,
    predict_alpaca_eval,
    read_annotations,
    read_predictions,
    references_of,
    write_predictions,
)
from cs336.evals.alpaca_judge import main
from cs336.evals.judges import Preference, rule_pair_judge
from cs336.evals.task import ALPACA, ZERO_SHOT
from cs336.files import UserError, write_jsonl

EXAMPLES = [
    {"instruction": "Name a colour.", "output": "old", "generator": "davinci", "dataset": "helpful_base"},
    {"instruction": " ", "output": "old", "generator": "davinci", "dataset": "koala"},
    {"instruction": "Name {two}.", "output": "old", "generator": "davinci", "dataset": "vicuna"},
]


@dataclass(frozen=True)
class Written:
    text: str
    finish: str = "stop"
    prompt_truncated: bool = False


def answer(prompts, *, max_new_tokens, stop):
    return [Written(f" answer {number}\n```\n") for number, _ in enumerate(prompts)]


def test_the_prediction_file_is_an_array_of_the_models_own_outputs(tmp_path):
    result = predict_alpaca_eval(EXAMPLES, generate=answer, max_new_tokens=9)
    assert [row["prompt"] for row in result.rows] == [ZERO_SHOT.wrap(EXAMPLES[i]["instruction"]) for i in (0, 2)]
    assert result.metrics["skipped"] == {"no instruction": 1}
    assert result.metrics["examples_per_second"] > 0
    assert "accuracy" not in result.metrics
    predictions = alpaca_predictions(result, generator="ours")
    write_predictions(tmp_path / "outputs.json", predictions)
    assert json.loads((tmp_path / "outputs.json").read_text()) == [
        {"instruction": "Name a colour.", "output": "answer 0", "generator": "ours", "dataset": "helpful_base"},
        {"instruction": "Name {two}.", "output": "answer 1", "generator": "ours", "dataset": "vicuna"},
    ]
    assert read_predictions(tmp_path / "outputs.json") == predictions


def test_tuned_models_are_asked_in_their_template():
    result = predict_alpaca_eval(EXAMPLES[:1], generate=answer, max_new_tokens=9, frame=ALPACA)
    assert result.rows[0]["prompt"] == ALPACA.wrap("Name a colour.")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"instruction": "x"}', "not a JSON array"),
        ('[{"instruction": "x", "output": "y"}]', "not a JSON array"),
        ("[]", "one generator"),
        (
            '[{"instruction": "x", "output": "y", "generator": "a"},'
            ' {"instruction": "x", "output": "y", "generator": "b"}]',
            "one generator",
        ),
    ],
)
def test_files_of_another_form_are_errors(tmp_path, content, message):
    (tmp_path / "p.json").write_text(content)
    with pytest.raises(UserError, match=message):
        read_predictions(tmp_path / "p.json")


class LikesEven:
    """Prefers outputs with an even number; cannot make up its mind on 5."""

    name = "offline: even numbers"

    def compare(self, pairs):
        assert all(pair.reference == f"reference to {pair.instruction}" for pair in pairs)
        values = [None if pair.output == "5" else 2.0 if int(pair.output) % 2 == 0 else 1.0 for pair in pairs]
        return [Preference(value, f"saw {pair.output}") for value, pair in zip(values, pairs, strict=True)]


def test_judging_counts_wins_over_the_reference_to_the_same_instruction():
    predictions = [{"instruction": f"do {i}", "output": str(i), "generator": "ours"} for i in range(8)]
    references = [
        {"instruction": f"do {i}", "output": f"reference to do {i}", "generator": "gpt4"} for i in reversed(range(8))
    ]
    result = judge_alpaca_eval(predictions, references, judge=LikesEven())
    assert result.rows[1] == {
        "instruction": "do 1", "output_1": "reference to do 1", "generator_1": "gpt4", "output_2": "1",
        "generator_2": "ours", "preference": 1.0, "annotator": "offline: even numbers", "judge_reply": "saw 1",
    }  # fmt: skip
    assert (result.metrics["num_examples"], result.metrics["num_unjudged"]) == (7, 1)
    assert result.metrics["win_rate"] == pytest.approx(4 / 7)
    assert result.metrics["lc_win_rate"] == pytest.approx(4 / 7, abs=1e-3)  # all lengths differ by the same
    assert result.metrics["judge"] == "offline: even numbers"
    assert result.metrics["output_characters"] == 1
    assert result.metrics["reference_characters"] == 17
    with pytest.raises(ValueError, match="no reference output for 1 instructions, such as 'do 7'"):
        judge_alpaca_eval(predictions, references[1:], judge=LikesEven())
    with pytest.raises(ValueError, match="none of 1 replies could be read"):
        judge_alpaca_eval(predictions[5:6], references, judge=LikesEven())


def test_every_real_instruction_is_asked(shared_data, monkeypatch):
    monkeypatch.setenv("CS336_DATA", str(shared_data))
    examples = catalog.read_alpaca_eval(catalog.require("alpaca-eval"))
    result = predict_alpaca_eval(examples, generate=answer, max_new_tokens=9)
    predictions = alpaca_predictions(result, generator="ours")
    assert len(predictions) == 805
    assert {row["dataset"] for row in predictions} == {example["dataset"] for example in examples}


class Stored:
    """Prefers what the stored preferences do."""

    name = "stored"

    def __init__(self, annotations):
        self.by_output = {row["output_2"]: row["preference"] for row in annotations}

    def compare(self, pairs):
        return [Preference(self.by_output[pair.output]) for pair in pairs]


def test_stored_annotations_give_references_difficulties_and_the_published_rate(shared_data, monkeypatch):
    monkeypatch.setenv("CS336_DATA", str(shared_data))
    files = catalog.files_of("alpaca-eval-preferences")
    annotations = {name: read_annotations(path) for name, path in files.items()}
    assert [len(rows) for rows in annotations.values()] == [805] * 4
    gemma = annotations["alpaca_eval_gemma-7b-it.jsonl"]
    difficulty = difficulty_of(list(annotations.values()))
    assert len(difficulty) == 805
    predictions = [
        {"instruction": row["instruction"], "output": row["output_2"], "generator": "gemma"} for row in reversed(gemma)
    ]
    result = judge_alpaca_eval(predictions, references_of(gemma), judge=Stored(gemma), difficulty=difficulty)
    assert result.metrics["win_rate"] == pytest.approx(0.0694, abs=1e-4)
    assert result.metrics["lc_win_rate"] == pytest.approx(0.104, abs=0.015)  # the public leaderboard
    assert result.rows[0]["generator_1"] == "gpt4_1106_preview"
    assert judge_agreement(gemma, judge=Stored(gemma))["agreement"] == 1.0
    rules = judge_agreement(gemma, judge=rule_pair_judge())
    assert rules["judge"].startswith("offline: ")
    assert rules["ranking"] == pytest.approx(0.75, abs=0.01)
    assert rules["agreement"] < rules["reference_share"]  # saying "the reference" always would agree more often


def test_annotations_without_a_preference_are_an_error(tmp_path):
    row = dict.fromkeys(["instruction", "output_1", "generator_1", "output_2", "generator_2"], "x")
    write_jsonl(tmp_path / "a.jsonl", [row | {"preference": 1.5}, row | {"preference": None}])
    with pytest.raises(UserError, match="record 2 lacks one of"):
        read_annotations(tmp_path / "a.jsonl")


def test_the_command_judges_a_file_offline(tmp_path, capsys, shared_data, monkeypatch):
    monkeypatch.setenv("CS336_DATA", str(shared_data))
    examples = catalog.read_alpaca_eval(catalog.require("alpaca-eval"))[:30]
    result = predict_alpaca_eval(examples, generate=answer, max_new_tokens=9)
    write_predictions(tmp_path / "in.json", alpaca_predictions(result, generator="ours"))
    arguments = ["--input-path", str(tmp_path / "in.json"), "--output-path", str(tmp_path / "out.jsonl")]
    main([*arguments, "--model-name-or-path", "offline"])
    rows = read_annotations(tmp_path / "out.jsonl")
    assert len(rows) == 30
    assert {row["generator_1"] for row in rows} == {"gpt4_1106_preview"}
    assert all(row["preference"] < 1.1 for row in rows)
    shown = capsys.readouterr().out
    assert "lc_win_rate 0.0" in shown and "judge offline: rules" in shown
    # Against itself every pair is a draw.
    main([*arguments, "--model-name-or-path", "offline", "--reference-path", str(tmp_path / "in.json")])
    assert "\nlc_win_rate 0.5000" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([*arguments[2:], "--input-path", str(tmp_path / "no.json"), "--model-name-or-path", "offline"])
