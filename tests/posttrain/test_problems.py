"""Problems and traces: generated, of GSM8K and MATH, and of files of one's own."""

from dataclasses import replace

import pytest

from cs336.evals.competition_math import MathFields, question_of
from cs336.evals.generated_tasks import GeneratedConfig, TraceConfig
from cs336.evals.rewards import r1_zero_reward_fn
from cs336.files import UserError, write_jsonl
from cs336.fingerprint import jsonable
from cs336.posttrain.problems import ProblemsConfig, make_problems, prompts_of
from cs336.posttrain.recipes import TINY_PROBLEMS

GENERATED = ProblemsConfig(num_train=40, num_valid=10, num_test=12, num_traces=30, num_valid_traces=5, first=100)


def test_a_template_that_asks_no_question_alone_is_refused():
    with pytest.raises(ValueError, match=r"asks for .*'subject'.*, the values are of .'question'"):
        replace(GENERATED, task="gsm8k", template="mmlu")


def test_generated_parts_have_their_sizes_and_share_no_question():
    made = make_problems(GENERATED, seed=0)
    assert [len(each) for each in (made.train, made.valid, made.test, made.traces, made.valid_traces)] == [
        *(40, 10, 12, 30, 5)
    ]
    questions = [{each["question"] for each in part} for part in (made.train, made.valid, made.test, made.traces)]
    assert sum(map(len, questions)) == len(set.union(*questions)) == 92
    for trace in made.traces + made.valid_traces:
        assert r1_zero_reward_fn(trace["response"], trace["ground_truth"])["reward"] == 1
        assert trace["prompt"] == prompts_of([trace], GENERATED.template)[0]


def test_few_problems_are_still_new_ones():
    """Of one-step sums up to 100 many come again: what has a trace is not rewarded."""
    level = replace(GENERATED, generated=GeneratedConfig(levels=(1,), kinds=("sums",)), num_traces=1_000, num_train=300)
    made = make_problems(level, seed=0)
    asked = [each["question"] for each in made.train]
    assert len(set(asked)) == 300 and not set(asked) & {each["question"] for each in made.traces}
    with pytest.raises(UserError, match="training problems differ"):
        make_problems(replace(level, num_train=8_000), seed=0)


def test_another_seed_other_problems_and_another_start_too():
    first, again, seeded = (make_problems(GENERATED, seed=seed) for seed in (0, 0, 1))
    later = make_problems(replace(GENERATED, first=200), seed=0)
    assert first == again
    assert first.train != seeded.train and first.test != seeded.test and first.traces != seeded.traces
    assert not {each["question"] for each in first.traces} & {each["question"] for each in later.traces}


def _gsm8k(count, start=0):
    return [
        {"question": f"What is {n}+1?", "answer": f"It is {n}+1 = <<{n}+1={n + 1}>>{n + 1}.\n#### {n + 1}"}
        for n in range(start, start + count)
    ]


def test_gsm8k_of_files_with_solutions_as_traces(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", [*_gsm8k(20), {"question": "Faulty?", "answer": "no gold"}])
    write_jsonl(tmp_path / "test.jsonl", _gsm8k(5, start=17))  # three of them stand in the training file, too
    config = ProblemsConfig(
        task="gsm8k",
        template="r1_zero",
        num_train=0,
        num_valid=4,
        num_test=0,
        num_traces=0,
        num_valid_traces=3,
        train_file=str(tmp_path / "train.jsonl"),
        test_file=str(tmp_path / "test.jsonl"),
    )
    made = make_problems(config, seed=0)
    assert [len(each) for each in (made.train, made.valid, made.test)] == [13, 4, 5]
    held_out = {each["question"] for each in made.valid + made.test}
    traced = [question_of(each["prompt"]) for each in made.traces + made.valid_traces]
    assert len(traced) == 13 and not held_out & set(traced) and len(made.valid_traces) == 3
    trace = next(each for each in made.traces + made.valid_traces if each["question"] == traced[0])
    number = int(trace["ground_truth"])
    assert trace["response"] == f" It is {number - 1}+1 = {number}. </think> <answer>{number}</answer>"
    assert r1_zero_reward_fn(trace["response"], trace["ground_truth"])["reward"] == 1
    assert make_problems(config, seed=1).valid != made.valid
    with pytest.raises(UserError, match="too few to hold 17"):
        make_problems(replace(config, num_valid=17), seed=0)


def test_math_with_names_of_ones_own(tmp_path, monkeypatch):
    monkeypatch.setenv("CS336_DATA", str(tmp_path))
    rows = [{"task": f"Solve x={n}.", "gold": str(n)} for n in range(12)]
    write_jsonl(tmp_path / "train.jsonl", rows[:8])
    write_jsonl(tmp_path / "test.jsonl", rows[8:])
    prompts = prompts_of([{"question": row["task"]} for row in rows], "r1_zero")
    write_jsonl(tmp_path / "traces.jsonl", [{"prompt": each, "response": " x </think>"} for each in prompts * 2])
    config = ProblemsConfig(
        task="math",
        template="r1_zero",
        num_train=5,
        num_valid=2,
        num_test=3,
        num_traces=4,
        num_valid_traces=1,
        train_file="$CS336_DATA/train.jsonl",
        test_file="$CS336_DATA/test.jsonl",
        trace_file="$CS336_DATA/traces.jsonl",
        fields=MathFields(question="task", answer="gold"),
    )
    made = make_problems(config, seed=0)
    assert [len(each) for each in (made.train, made.valid, made.test, made.traces, made.valid_traces)] == [
        5,
        2,
        3,
        4,
        1,
    ]
    valid = {each["question"] for each in made.valid}
    assert not valid & {question_of(each["prompt"]) for each in made.traces + made.valid_traces}
    before = jsonable(config)
    write_jsonl(tmp_path / "traces.jsonl", [{"prompt": prompts[0], "response": "other"}])
    assert jsonable(config) != before, "a file's content is part of what a preset says"
    with pytest.raises(UserError, match="not found"):
        make_problems(replace(config, test_file="$CS336_DATA/nowhere.jsonl"), seed=0)


@pytest.mark.parametrize("seed", range(4))
def test_a_question_that_a_file_has_twice_is_asked_once(seed, tmp_path):
    """Else one of the two could be held out and the other trained on; only white space may differ."""
    rows = [{"problem": f"Solve  x={n}.", "answer": str(n)} for n in range(6)]
    again = [row | {"problem": row["problem"].replace("  ", " ")} for row in rows]
    write_jsonl(tmp_path / "train.jsonl", [*rows, *again])
    write_jsonl(tmp_path / "test.jsonl", [{"problem": "2?", "answer": "2"}])
    write_jsonl(tmp_path / "traces.jsonl", [{"prompt": "Solve x=0.", "response": "x"}])
    config = ProblemsConfig(
        task="math",
        template="r1_zero",
        num_train=0,
        num_valid=3,
        num_test=0,
        num_traces=0,
        train_file=str(tmp_path / "train.jsonl"),
        test_file=str(tmp_path / "test.jsonl"),
        trace_file=str(tmp_path / "traces.jsonl"),
    )
    made = make_problems(config, seed=seed)
    asked = [" ".join(each["question"].split()) for each in made.train + made.valid]
    assert len(asked) == len(set(asked)) == 6


def test_the_real_sets_are_read(shared_data):
    small = ProblemsConfig(task="gsm8k", template="r1_zero", num_valid=100, num_test=50, traces=TraceConfig())
    made = make_problems(replace(small, num_train=0, num_traces=0), seed=0)
    assert len(made.train) + len(made.valid) == 7_473 and len(made.test) == 50
    math = make_problems(replace(small, task="math", num_train=0, num_test=0, num_traces=0), seed=0)
    assert len(math.test) == 5_000 and len(math.valid) == 100 and len(math.traces) > 1_000


@pytest.mark.parametrize("seed", range(8))
def test_preset_tiny_finds_enough_different_problems_with_any_seed(seed):
    """Sums of two steps up to 10 are few, and its numbers are close to all that there are."""
    made = make_problems(TINY_PROBLEMS, seed=seed)
    counts = [len({each["question"] for each in part}) for part in (made.train, made.valid, made.test, made.traces)]
    assert counts == [160, 130, 120, 1_500]
