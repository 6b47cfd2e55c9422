"""Generated problems: solved again from their English, split by their calculations, traced in three styles."""

from __future__ import annotations

import random
import re
from collections import Counter
from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cs336.evals.generated_stories import KINDS, Level, draw_problem
from cs336.evals.generated_tasks import (
    DIGITS,
    LEVELS,
    SPLITS,
    GeneratedConfig,
    TraceConfig,
    generate_drill,
    generate_problem,
    generate_problems,
    iter_problems,
    split_of,
    to_record,
    to_response,
    to_trace,
    verify,
)
from cs336.evals.generated_traces import STYLES, calculation, worked
from cs336.evals.gsm8k import grade_gsm8k, gsm8k_fault, parse_gsm8k_response
from cs336.tokenizer.bpe import Tokenizer

ALL = GeneratedConfig(levels=tuple(LEVELS))


# ---- an independent solver, which knows the English alone ----


def solve(question: str, kind: str) -> Fraction:
    return {"sums": solve_sums, "story": solve_story, "chain": solve_chain, "shop": solve_shop, "work": solve_work}[
        kind
    ](question)


def solve_sums(question):
    expression = re.fullmatch(r"(?:What is|How much is|Work out) (.*)[.?]", question)[1]
    return eval(re.sub(r"(\d+)", r"Fraction(\1)", expression))


def solve_story(question):
    first, *events, asked = re.split(r"(?<=\.) ", question)
    has = Fraction(re.search(r"has (\d+)", first)[1])
    for event in events:
        numbers = [int(number) for number in re.findall(r"\d+", event)]
        if " in each" in event:
            has += numbers[0] * numbers[1]
        elif "times as many" in event:
            has *= numbers[0]
        elif "equal parts" in event:
            has /= numbers[0]
        elif re.search(r"finds|buys|is given", event):
            has += numbers[0]
        else:
            assert re.search(r"loses|sells|gives away", event), event
            has -= numbers[0]
    assert asked.startswith("How many")
    return has


def solve_chain(question):
    *facts, asked = re.split(r"(?<=\.) ", question)
    owned = {}
    for _ in facts:  # each pass settles at least one more person
        for fact in facts:
            if plain := re.fullmatch(r"(\w+) has (\d+) \w+\.", fact):
                owned[plain[1]] = Fraction(plain[2])
            elif more := re.fullmatch(r"(\w+) has (\d+) (more|fewer) \w+ than (\w+)\.", fact):
                if more[4] in owned:
                    owned[more[1]] = owned[more[4]] + int(more[2]) * (1 if more[3] == "more" else -1)
            else:
                times = re.fullmatch(r"(\w+) has (\d+) times as many \w+ as (\w+)\.", fact)
                if times[3] in owned:
                    owned[times[1]] = owned[times[3]] * int(times[2])
                elif times[1] in owned:
                    owned[times[3]] = owned[times[1]] / int(times[2])
    if together := re.search(r"do (\w+) and (\w+) have together\?", asked):
        return owned[together[1]] + owned[together[2]]
    return owned[re.search(r"does (\w+) have\?", asked)[1]]


def solve_shop(question):
    prices = {thing: int(price) for thing, price in re.findall(r"[Aa] (\w+) costs \$(\d+)", question)}
    bought = re.search(r"buys (.*?)\.", question)[1]
    paid = sum(int(count) * prices[thing] for count, thing in re.findall(r"(\d+) (\w+)s\b", bought))
    had = re.search(r"had \$(\d+)", question)
    return Fraction(int(had[1]) - paid if had else paid)


def solve_work(question):
    hours = sum(int(number) for number in re.findall(r"(\d+) hours", question))
    broken = re.search(r"(\d+) of the", question)
    return Fraction(hours * int(re.search(r"makes (\d+)", question)[1]) - (int(broken[1]) if broken else 0))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("level", LEVELS)
def test_answers_are_what_the_english_says(kind, level):
    config = GeneratedConfig(levels=(level,), kinds=(kind,))
    for problem in generate_problems(config, "train", 40):
        assert solve(problem.question, kind) == problem.answer, problem.question
        assert len(problem.steps) == LEVELS[level].num_steps
        numbers = [n for step in problem.steps for n in (step.left, step.right, step.result)]
        assert min(numbers) >= 2 and max(numbers) <= LEVELS[level].max_value


def test_numbers_may_be_larger_than_the_level_has_them():
    problems = generate_problems(GeneratedConfig(levels=(1, 2), max_value=10_000), "train", 100)
    largest = max(step.result for problem in problems for step in problem.steps)
    assert 1_000 < largest <= 10_000
    assert {len(problem.steps) for problem in problems} == {1, 2}
    for problem in problems:
        assert solve(problem.question, problem.kind) == problem.answer


def test_with_few_numbers_every_step_is_trained_on_and_no_test_problem_is():
    few = GeneratedConfig(levels=(2,), kinds=("sums",), max_value=10)
    train, test = ([generate_problem(few, split, index) for index in range(2_500)] for split in ("train", "test"))
    assert all(2 <= step.result <= 10 and max(step.left, step.right) <= 10 for each in train for step in each.steps)

    def calculations(problems):
        return {tuple((step.left, step.operator, step.right) for step in each.steps) for each in problems}

    assert {step for steps in calculations(test) for step in steps} <= {
        step for steps in calculations(train) for step in steps
    }
    assert not calculations(test) & calculations(train)


def test_records_are_gsm8k_problems_whose_own_solution_is_right():
    for problem in generate_problems(ALL, "test", 60):
        record = to_record(problem)
        assert gsm8k_fault(record) is None
        assert grade_gsm8k(record, record["answer"]).prediction == str(problem.answer)
        assert record["level"] == problem.level


def test_a_record_by_hand():
    problem = generate_problem(GeneratedConfig(levels=(2,), kinds=("chain",)), "test", 0)
    record = to_record(problem)
    assert record == {
        "question": "Umar has 6 tickets. Noah has 3 fewer tickets than Umar. Dan has 3 times as many tickets as Noah."
        " How many tickets does Dan have?",
        "answer": "Noah has 6-3 = <<6-3=3>>3 tickets.\nDan has 3*3 = <<3*3=9>>9 tickets.\n#### 9",
        "kind": "chain", "level": 2, "split": "test", "index": 0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("#### 15", "#### 16"), "last line is '#### 16', the last result 15"),
        (lambda text: text.replace("=15>>15", "=14>>14").replace("#### 15", "#### 14"), "calculation is wrong"),
        (lambda text: text.replace("=15>>15", "=15>>14"), "annotation differ"),
        (lambda text: text.replace("<<10+5", "<<9+5"), "annotation differ"),
        (lambda text: text.replace("10+5", "9+6"), "neither given nor worked out"),
        (lambda text: text.replace("<<2*5=10>>", ""), "no calculation"),
    ],
)
def test_a_wrong_solution_is_found(change, message):
    answer = "The bags hold 2*5 = <<2*5=10>>10 nuts.\nMia has 10+5 = <<10+5=15>>15 nuts.\n#### 15"
    record = {"question": "2 bags, 5 nuts in each, and 5 more?", "answer": answer}
    verify(record)
    with pytest.raises(ValueError, match=re.escape(message)):
        verify(record | {"answer": change(answer)})


def test_a_problem_depends_on_seed_split_and_index_alone():
    stream = iter_problems(ALL, "train", first=7)
    assert [next(stream) for _ in range(3)] == [generate_problem(ALL, "train", index) for index in (7, 8, 9)]
    other = GeneratedConfig(levels=ALL.levels, seed=1)
    assert generate_problem(other, "train", 7) != generate_problem(ALL, "train", 7)
    assert generate_problem(ALL, "valid", 7) != generate_problem(ALL, "train", 7)


def calculations(problem):
    return tuple(
        (step.operator, *(sorted((step.left, step.right)) if step.operator in "+*" else (step.left, step.right)))
        for step in problem.steps
    )


def test_no_calculation_of_one_split_is_in_another_even_with_other_seeds_and_kinds():
    easy = {
        split: {
            calculations(problem)
            for seed in (0, 1)
            for problem in generate_problems(GeneratedConfig(levels=(1, 2), seed=seed), split, 700)
        }
        for split in SPLITS
    }
    assert all(len(found) > 300 for found in easy.values())
    assert not easy["train"] & easy["test"] and not easy["train"] & easy["valid"] and not easy["valid"] & easy["test"]


def test_splits_have_their_shares_and_ignore_names_and_the_order_of_addends():
    _, steps = draw_problem(random.Random(0), "story", Level(num_steps=2, max_value=100))
    assert split_of(steps) in SPLITS
    problem = generate_problem(GeneratedConfig(levels=(1,), kinds=("chain",)), "test", 3)
    assert split_of(problem.steps) == "test"
    for seed in range(200):
        (step,) = draw_problem(random.Random(seed), "sums", LEVELS[1])[1]
        if step.operator in "+*":
            assert split_of([step]) == split_of([replace(step, left=step.right, right=step.left, label="x")])
    shares = Counter(split_of(draw_problem(random.Random(seed), "work", LEVELS[4])[1]) for seed in range(2000))
    assert shares["test"] / 2000 == pytest.approx(0.10, abs=0.025)
    assert shares["valid"] / 2000 == pytest.approx(0.05, abs=0.02)


def test_questions_of_a_call_differ_and_running_out_is_an_error():
    easy = GeneratedConfig(levels=(1,), kinds=("sums",))
    questions = [problem.question for problem in generate_problems(easy, "test", 300)]
    assert len(set(questions)) == 300
    with pytest.raises(ValueError, match=r"of 3500 test problems differ; add levels or kinds"):
        generate_problems(easy, "test", 3_500)


# ---- traces ----


@given(st.integers(0, 9_999), st.integers(0, 9_999), st.integers(2, 9))
@settings(max_examples=100)
def test_every_column_is_right_and_the_columns_spell_the_result(first, second, factor):
    large, small = max(first, second), min(first, second)
    cases = [("+", first, second, first + second), ("-", large, small, large - small)]
    cases += [("*", first, factor, first * factor), ("*", factor, first, first * factor)]
    for operator, left, right, result in cases:
        text = calculation(left, operator, right, result=result, by_digits=True)
        if max(left, right) < 10:
            assert text == f"{left}{operator}{right}={result}"
            continue
        head, _, rest = text.partition(": ")
        columns = rest.removesuffix(f", so {result}").split(", ")
        assert head == f"{left}{operator}{right}"
        spelt = ""
        for place, column in enumerate(columns):
            term, _, value = column.partition("=")
            assert eval(term) == int(value)
            assert all(int(number) <= 19 for number in re.findall(r"\d+", term))
            spelt = (value if place == len(columns) - 1 else value[-1]) + spelt
        assert int(spelt) == result
    exact = first * factor
    if exact >= 10:
        rest = calculation(exact, "/", factor, result=first, by_digits=True).partition(": ")[2]
        columns = rest.removesuffix(f", so {first}").split(", ")
        parsed = [re.fullmatch(r"(\d+)/(\d+)=(\d) r (\d)", column).groups() for column in columns]
        assert all(int(a) == int(b) * int(q) + int(r) and int(r) < int(b) for a, b, q, r in parsed)
        assert int("".join(q for _, _, q, _ in parsed)) == first and parsed[-1][3] == "0"


def test_columns_by_hand():
    assert calculation(34, "+", 58, result=92, by_digits=True) == "34+58: 4+8=12, 3+5+1=9, so 92"
    assert calculation(1000, "-", 9, result=991, by_digits=True) == "1000-9: 10-9=1, 9-0=9, 9-0=9, 0-0=0, so 991"
    assert calculation(4, "*", 376, result=1504, by_digits=True) == "4*376: 6*4=24, 7*4+2=30, 3*4+3=15, so 1504"
    assert calculation(944, "/", 4, result=236, by_digits=True) == "944/4: 9/4=2 r 1, 14/4=3 r 2, 24/4=6 r 0, so 236"
    assert calculation(34, "+", 58, result=92, by_digits=False) == "34+58=92"


def test_the_three_styles_lead_to_the_same_answer_in_the_same_format():
    for problem in generate_problems(ALL, "train", 40):
        lengths = []
        for style in STYLES:
            response = to_response(problem.steps, style)
            assert "</think> <answer>" in response and response.endswith("</answer>")
            assert parse_gsm8k_response(model_output=response) == str(problem.answer)
            lengths.append(len(response))
        assert lengths[0] < lengths[1] <= lengths[2]
    with pytest.raises(ValueError, match="no style 'aloud'"):
        worked(problem.steps, "aloud")


def test_traces_mix_styles_by_weight_and_slips_by_share():
    problems = generate_problems(ALL, "train", 1_000)
    config = TraceConfig(direct=1, steps=2, digits=1, slip_share=0.2)
    traces = [to_trace(problem, config) for problem in problems]
    styles = Counter(trace["style"] for trace in traces)
    assert styles["steps"] / 1_000 == pytest.approx(0.5, abs=0.05)
    assert styles["direct"] / 1_000 == pytest.approx(0.25, abs=0.05)
    assert all(trace["correct"] for trace in traces if trace["style"] == "direct")
    wrong = [trace for trace in traces if not trace["correct"]]
    assert len(wrong) / 750 == pytest.approx(0.2, abs=0.05)
    for trace in traces:
        answer = re.search(r"<answer>(\d+)</answer>$", trace["response"])[1]
        assert (answer == trace["ground_truth"]) == trace["correct"]
        assert trace["prompt"] == f"User: {trace['question']}\nAssistant: <think>"
    assert traces == [to_trace(problem, config) for problem in problems]


def test_only_the_chosen_style_is_used():
    for style in STYLES:
        weights = dict.fromkeys(STYLES, 0.0) | {style: 1.0}
        trace = to_trace(generate_problem(ALL, "train", 0), TraceConfig(**weights))
        assert trace["style"] == style


def test_drills_are_right_calculations_in_both_styles():
    lines = [line for index in range(30) for line in generate_drill(ALL, index).split("\n")]
    assert len(lines) == 300
    assert 60 < sum(", so " in line for line in lines) < 240
    for line in lines:
        left, operator, right = re.match(r"(\d+)([-+*/])(\d+)", line).groups()
        step = replace(generate_problem(ALL, "test", 0).steps[0], left=int(left), operator=operator, right=int(right))
        assert split_of([step]) == "train"  # held-out problems of level 1 are not drilled
        head, _, result = line.partition(": ")[0].partition("=")
        assert eval(head.replace("/", "//")) == int(result or line.rpartition(" ")[2])


def test_digits_as_special_tokens_make_each_digit_a_token():
    letters = {number: bytes([number]) for number in range(256)}
    merges = [(b"1", b"2"), (b" ", b"12"), (b"a", b"t")]
    vocab = letters | {256: b"12", 257: b" 12", 258: b"at", 259: b"<|endoftext|>"}
    merged = Tokenizer(vocab, merges, ["<|endoftext|>"])
    separate = Tokenizer(vocab, merges, ["<|endoftext|>", *DIGITS])
    assert merged.encode("at 12") == [258, 257]
    assert separate.encode("at 12") == [258, 32, 49, 50]
    assert separate.decode(separate.encode("at 12, 112")) == "at 12, 112"
    assert len(separate.vocab) == 260


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GeneratedConfig(levels=(9,)), "levels are"),
        (lambda: GeneratedConfig(kinds=()), "kinds are"),
        (lambda: GeneratedConfig(max_value=9), "max_value is 9"),
        (lambda: Level(num_steps=9, max_value=100), "give 1 to 8 steps"),
        (lambda: Level(num_steps=0, max_value=100), "give 1 to 8 steps"),
        (lambda: Level(num_steps=2, max_value=100, num_distractors=9), "at most 8 distractors"),
        (lambda: TraceConfig(direct=0, steps=0, digits=0), "must not be 0"),
        (lambda: TraceConfig(direct=-1), "none may be negative"),
        (lambda: TraceConfig(slip_share=2), "slip_share is 2"),
        (lambda: TraceConfig(template="question_only"), "does not end in <think>"),
        (lambda: generate_problem(ALL, "dev", 0), "no split 'dev'"),
        (lambda: draw_problem(None, "riddle", LEVELS[1]), "no problems of kind 'riddle'"),
    ],
)
def test_impossible_settings_are_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_level_without_room_is_an_error():
    with pytest.raises(ValueError, match="raise max_value or lower num_steps"):
        draw_problem(random.Random(0), "shop", Level(num_steps=6, max_value=10))
