"""The supplement's tasks by name: which questions, which frame, which judge, what counts as a failure."""

from dataclasses import replace

import pytest

from cs336.evals.answerer import Answer
from cs336.evals.generated_tasks import GeneratedConfig, generate_problems
from cs336.evals.suite import (
    GRADED,
    JUDGED,
    ChatEvalConfig,
    JudgeConfig,
    answer,
    failed,
    failures,
    judge_answers,
    opponent,
    pair_judge,
    questions,
    safety_judge,
)
from cs336.evals.task import ALPACA, ZERO_SHOT
from cs336.files import UserError

EASY = GeneratedConfig(levels=(1,))
CONFIG = ChatEvalConfig(
    max_mmlu=3, max_gsm8k=4, max_alpaca=5, max_safety=6, num_generated=7, problems=EASY, max_new_tokens=9
)
SIZES = {"mmlu": 3, "gsm8k": 4, "alpaca_eval": 5, "safety": 6, "generated": 7}


class Scripted:
    """Answers every prompt with one text, and remembers what it was asked."""

    model = None

    def __init__(self, text="I am sorry, I cannot help with that."):
        self.text, self.prompts = text, []

    def generate(self, prompts, *, max_new_tokens, stop):
        assert max_new_tokens == 9
        self.prompts += prompts
        self.stop = stop
        return [Answer(self.text, "end", False) for _ in prompts]


@pytest.fixture(autouse=True)
def no_data(monkeypatch, tmp_path):
    monkeypatch.delenv("CS336_DATA", raising=False)
    monkeypatch.setenv("CS336_DOWNLOADS", str(tmp_path))


@pytest.mark.parametrize("task", [*GRADED, *JUDGED])
def test_each_task_asks_as_many_questions_as_its_limit_in_the_frame_given(task):
    scripted = Scripted()
    result = answer(task, scripted, CONFIG, frame=ALPACA)
    assert result.metrics["num_examples"] == len(scripted.prompts) == SIZES[task]
    assert all(prompt.endswith("### Response:\n") for prompt in scripted.prompts) and scripted.stop == ()
    assert ("accuracy" in result.metrics) == (task in GRADED)
    assert result.name == ("generated" if task == "generated" else f"{questions(task)[1]}")
    assert task == "generated" or result.name.endswith(" sample")
    scripted = Scripted()
    answer(task, scripted, CONFIG, frame=ZERO_SHOT)
    assert all("# Query:" in prompt for prompt in scripted.prompts) and scripted.stop == ("# Query:",)


class Choosing(Scripted):
    """Has weights that find all options alike."""

    model = "some"

    def __init__(self):
        super().__init__()
        self.pairs = []

    def choose(self, pairs):
        self.pairs += pairs
        return [0.0] * len(pairs)


def test_worked_questions_come_before_mmlus_letters(shared_data, monkeypatch):
    monkeypatch.setenv("CS336_DATA", str(shared_data))
    for num_shots in (0, 2):
        model = Choosing()
        answer("mmlu", model, CONFIG, frame=ZERO_SHOT, num_shots=num_shots)
        assert len(model.pairs) == 4 * SIZES["mmlu"]
        assert {prompt.count("The correct answer is") for prompt, _ in model.pairs} == {num_shots + 1}
        assert all("The correct answer is _" in prompt for prompt in model.prompts)


def test_the_sample_has_no_worked_questions():
    with pytest.raises(ValueError, match="there are 0 worked examples"):
        answer("mmlu", Choosing(), CONFIG, frame=ZERO_SHOT, num_shots=2)


def test_generated_problems_are_those_of_the_test_split_marked_by_the_last_number():
    problems = generate_problems(EASY, "test", 7)
    result = answer("generated", Scripted(f"so it is {problems[2].answer}"), CONFIG, frame=ALPACA)
    assert [row["example"]["question"] for row in result.rows] == [each.question for each in problems]
    assert [row["correct"] for row in result.rows] == [each.answer == problems[2].answer for each in problems]


def test_generated_problems_alone_are_sampled_where_the_config_says_so():
    class Sampler(Scripted):
        drawn = None

        def sampling(self, *, temperature, seed):
            self.drawn = temperature, seed
            return self

    sampled = replace(CONFIG, generated_temperature=0.7, seed=3)
    for task, config, drawn in (
        ("generated", sampled, (0.7, 3)),
        ("generated", CONFIG, None),
        ("gsm8k", sampled, None),
    ):
        answer(task, sampler := Sampler(), config, frame=ALPACA)
        assert sampler.drawn == drawn
    with pytest.raises(ValueError, match="generated_temperature is -1"):
        replace(CONFIG, generated_temperature=-1.0)


def test_without_likelihoods_mmlu_is_scored_by_its_sentence_alone():
    metrics = answer("mmlu", Scripted("The correct answer is A."), CONFIG, frame=ALPACA).metrics
    assert "accuracy" in metrics and "choice_accuracy" not in metrics


def test_an_unknown_task_is_named():
    with pytest.raises(ValueError, match="no task 'maths'; there are mmlu, gsm8k, generated, alpaca_eval, safety"):
        answer("maths", Scripted(), CONFIG, frame=ALPACA)


def test_judged_answers_carry_the_judges_name_and_fail_where_they_lost():
    config = JudgeConfig()
    result = answer("alpaca_eval", Scripted("no"), CONFIG, frame=ALPACA)
    judged = judge_answers("alpaca_eval", result, pair_judge(config), model="ours")
    assert judged.metrics["judge"].startswith("offline: ") and judged.metrics["num_examples"] == 5
    assert all(row["generator_2"] == "ours" and row["generator_1"] == "cs336 sample" for row in judged.rows)
    assert all(failed(row) for row in judged.rows)  # one word against a real answer
    safe = judge_answers("safety", answer("safety", Scripted(), CONFIG, frame=ALPACA), safety_judge(config), model="x")
    assert safe.metrics["safe"] == 1.0 and not any(map(failed, safe.rows))
    assert len(failures(judged.rows, count=2)) == 2 and failures(safe.rows) == []


def test_a_draw_and_an_unread_reply_are_no_failures():
    assert not failed({"preference": 1.5}) and not failed({"preference": None}) and failed({"preference": 1.0})
    assert failed({"correct": False}) and failed({"metrics": {"safe": 0.0}})


def test_the_opponent_is_gpt_4_turbo_where_its_outputs_are(shared_data, monkeypatch):
    assert opponent().difficulty is None and opponent().outputs[0]["generator"] == "cs336 sample"
    monkeypatch.setenv("CS336_DATA", str(shared_data))
    stored = opponent()
    assert {row["generator"] for row in stored.outputs} == {"gpt4_1106_preview"} and len(stored.difficulty) == 805


def test_a_model_judge_needs_vllm_and_its_weights(monkeypatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for judge in (pair_judge, safety_judge):
        with pytest.raises(UserError, match="vLLM is not installed"):
            judge(JudgeConfig(model="someone/judge"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    with pytest.raises(UserError, match=r"llama-3\.3-70b-instruct .* is not on this machine"):
        pair_judge(JudgeConfig(model="llama-3.3-70b-instruct"))


def test_limits_below_nothing_are_refused():
    with pytest.raises(ValueError, match="max_safety is -1"):
        ChatEvalConfig(max_safety=-1)
    with pytest.raises(ValueError, match="num_generated is 0"):
        ChatEvalConfig(num_generated=0)
    with pytest.raises(ValueError, match="dtype is float32, bfloat16"):
        ChatEvalConfig(dtype="float16")
