"""Instructions and preferences by name: fields, order, what is dropped, what is held out, samples, problems."""

import gzip
import json
import re

import pytest

from cs336.evals.generated_tasks import GeneratedConfig, TraceConfig, generate_problems
from cs336.evals.graders import last_number
from cs336.files import UserError, read_jsonl, write_jsonl
from cs336.posttrain.instructions import (
    HH,
    INSTRUCTIONS_SAMPLE,
    PREFERENCES_SAMPLE,
    VERIFIED,
    InstructionsConfig,
    PreferencesConfig,
    instruction_examples,
    preference_pairs,
    problem_example,
    read_preferences,
)

EASY = GeneratedConfig(levels=(1, 2))


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """An empty folder of data sets, and none downloaded."""
    monkeypatch.setenv("CS336_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("CS336_DOWNLOADS", str(tmp_path / "downloads"))
    for folder in ("sft", "preference"):
        (tmp_path / "data" / folder).mkdir(parents=True)
    return tmp_path / "data"


def _write_t0(mirror, pairs):
    rows = [{"template": "t", "prompt": prompt, "completion": text} for prompt, text in pairs]
    write_jsonl(mirror / "sft" / "t0_sample.jsonl", rows)


def test_t0_loses_its_end_of_text_and_repeated_or_empty_examples(mirror):
    _write_t0(mirror, [("a?", "b<|endoftext|>"), ("a?", "c"), ("d?", " <|endoftext|>"), ("e? ", "f")])
    train, valid, counts = instruction_examples(InstructionsConfig(datasets=("t0-sample",), num_valid=0), seed=0)
    assert train == [
        {"prompt": "a?", "response": "b", "source": "t0-sample"},
        {"prompt": "e?", "response": "f", "source": "t0-sample"},
    ]
    assert not valid
    assert dict(counts["t0-sample"]) == {"prompt came before": 1, "empty": 1, "trained on": 2, "held out": 0}


def test_an_input_stands_below_its_instruction(mirror):
    rows = [
        {"instruction": "Add.", "input": "1 and 2", "output": "3"},
        {"instruction": "Say hi.", "input": "", "output": "hi"},
    ]
    with gzip.open(mirror / "sft" / "llamafactory_alpaca_en_demo.json.gz", "wt") as file:
        json.dump(rows, file)
    train, _, _ = instruction_examples(InstructionsConfig(datasets=("alpaca-demo",), num_valid=0), seed=0)
    assert [each["prompt"] for each in train] == ["Add.\n\n1 and 2", "Say hi."]


def test_ultrachat_keeps_its_own_split_and_a_prompt_only_where_it_came_first(mirror):
    folder = mirror / "sft" / "safety_augmented_ultrachat_200k_single_turn"
    folder.mkdir()
    write_jsonl(folder / "train.jsonl", [{"prompt": f"p{i}", "response": "r"} for i in range(20)])
    write_jsonl(folder / "test.jsonl", [{"prompt": "p3", "response": "r"}, {"prompt": "new", "response": "r"}])
    train, valid, _ = instruction_examples(InstructionsConfig(num_valid=5), seed=0)
    assert len(train) == 20 and [each["prompt"] for each in valid] == ["new"]


def test_sets_are_drawn_from_and_held_out_of_alike_by_seed(mirror):
    _write_t0(mirror, [(f"p{i}", "r") for i in range(50)])
    config = InstructionsConfig(datasets=("t0-sample",), max_examples=20, num_valid=3)
    first, again, other = (instruction_examples(config, seed=seed)[:2] for seed in (0, 0, 1))
    assert first == again != other
    assert [len(part) for part in first] == [17, 3]
    assert not {each["prompt"] for each in first[0]} & {each["prompt"] for each in first[1]}


def test_as_many_problems_are_made_as_asked_for_however_few_examples_are_drawn(mirror):
    _write_t0(mirror, [(f"p{i}", "r") for i in range(50)])
    config = InstructionsConfig(datasets=("t0-sample",), max_examples=20, num_valid=8, num_problems=60, problems=EASY)
    train, valid, counts = instruction_examples(config, seed=0)
    assert counts["generated problems"] == {"trained on": 56, "held out": 4}
    assert len(train) == 16 + 56 and len(valid) == 8


def test_a_missing_set_is_an_error_unless_the_sample_may_stand_for_it(mirror):
    with pytest.raises(UserError, match=r"^ultrachat-safety .* is not on this machine"):
        instruction_examples(InstructionsConfig(), seed=0)
    with pytest.raises(UserError, match=r"^hh-rlhf .* is not on this machine"):
        preference_pairs(HH, PreferencesConfig(), InstructionsConfig(), seed=0)
    train, valid, counts = instruction_examples(InstructionsConfig(sample_if_absent=True, num_valid=4), seed=0)
    assert list(counts) == ["instructions_sample"] and len(valid) == 4
    assert len(train) + 4 == len(list(read_jsonl(INSTRUCTIONS_SAMPLE)))
    train, valid, _ = preference_pairs(HH, PreferencesConfig(sample_if_absent=True), InstructionsConfig(), seed=0)
    assert len(train) + len(valid) == len(list(read_preferences(PREFERENCES_SAMPLE)))
    assert {pair.source for pair in [*train, *valid]} == {"helpful sample", "harmless sample"}


def test_the_samples_are_whole_and_say_nothing_twice():
    examples = list(read_jsonl(INSTRUCTIONS_SAMPLE))
    assert len({each["prompt"] for each in examples}) == len(examples) >= 25
    assert all(each["prompt"].strip() and each["response"].strip() for each in examples)
    pairs = list(read_preferences(PREFERENCES_SAMPLE))
    assert len({pair.instruction for pair in pairs}) == len(pairs) >= 20
    assert all(pair.chosen.strip() and pair.rejected.strip() and pair.chosen != pair.rejected for pair in pairs)


def test_a_record_without_its_texts_is_named(mirror):
    write_jsonl(mirror / "sft" / "t0_sample.jsonl", [{"prompt": "p", "completion": 3}])
    with pytest.raises(UserError, match=r"t0_sample.*: record 1 has no texts `prompt` and `completion`"):
        instruction_examples(InstructionsConfig(datasets=("t0-sample",)), seed=0)


def _all_in(style):
    return TraceConfig(**{"direct": 0.0, "steps": 0.0, "digits": 0.0, style: 1.0})


@pytest.mark.parametrize("style", ["direct", "steps", "digits"])
def test_a_problem_is_asked_as_gsm8k_asks_and_ends_with_its_answer(style):
    for problem in generate_problems(EASY, "train", 20):
        example = problem_example(problem, _all_in(style), "s")
        assert example["prompt"] == f"{problem.question}\nAnswer:"
        assert re.search(rf"(^|\n)#### {problem.answer}$", example["response"])


def test_styles_of_problems_are_mixed_as_the_weights_say():
    mixed = InstructionsConfig(
        datasets=(), num_problems=400, num_valid=0, problems=EASY, traces=TraceConfig(direct=0.75, steps=0.25, digits=0)
    )
    train, _, _ = instruction_examples(mixed, seed=0)
    at_once = sum(example["response"].startswith("####") for example in train)
    assert 0.68 < at_once / len(train) < 0.82


@pytest.mark.parametrize("style", ["direct", "steps"])
def test_of_verified_pairs_the_chosen_alone_is_right_and_none_was_trained_on(style):
    instructions = InstructionsConfig(datasets=(), num_problems=50, problems=EASY, traces=_all_in(style), num_valid=10)
    train, valid, _ = preference_pairs(VERIFIED, PreferencesConfig(num_problems=60, num_valid=20), instructions, seed=0)
    assert (len(train), len(valid)) == (60, 20)
    answers = {
        f"{problem.question}\nAnswer:": str(problem.answer)
        for split, count, first in (("train", 60, 1_150), ("valid", 20, 0))
        for problem in generate_problems(EASY, split, count, first=first)
    }
    for pair in [*train, *valid]:
        assert last_number(pair.chosen) == answers[pair.instruction] != last_number(pair.rejected)
    tuned_on = {each["prompt"] for each in instruction_examples(instructions, seed=0)[0]}
    held_out = {pair.instruction for pair in valid}
    assert not tuned_on & held_out


def test_settings_that_name_nothing_are_refused():
    with pytest.raises(ValueError, match="there is no 'alpaca'; there are ultrachat-safety"):
        InstructionsConfig(datasets=("alpaca",))
    with pytest.raises(ValueError, match="name something to train on"):
        InstructionsConfig(datasets=())
    with pytest.raises(ValueError, match="there is no 'best'; there are hh, verified"):
        PreferencesConfig(kinds=("best",))
    with pytest.raises(ValueError, match="1 or more, got 0"):
        PreferencesConfig(num_valid=0)
    with pytest.raises(ValueError, match="a pair needs 2 or more"):
        PreferencesConfig(num_samples=1)
