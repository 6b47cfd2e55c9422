"""MMLU: prompt, parser, both accuracies."""

from __future__ import annotations

import re
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cs336.evals.mmlu import (
    LETTERS,
    evaluate_mmlu,
    format_question,
    mmlu_choice_prompt,
    mmlu_fault,
    mmlu_instruction,
    parse_mmlu_response,
)
from cs336.evals.task import ALPACA, ZERO_SHOT, EvalConfig, read_sample

EXAMPLE = {
    "subject": "virology",
    "question": "How many legs has a spider?",
    "options": ["6", "8", "10", "none"],
    "answer": "B",
}


def parse(output):
    return parse_mmlu_response(mmlu_example=EXAMPLE, model_output=output)


@pytest.mark.parametrize(
    ("output", "letter"),
    [
        ("The correct answer is B.", "B"),
        ("The correct answer is B", "B"),
        ("The correct answer is B. A spider has eight legs, unlike C or D.", "B"),
        ("The correct answer is A because the others are wrong", "A"),
        ("The correct answer is C, and that is final", "C"),
        ("I know this. The correct answer is D!", "D"),
        ("the correct answer is: A", "A"),
        ("The correct answer is (C).", "C"),
        ("The correct answer is **D**", "D"),
        ('The correct answer is "B".', "B"),
        ("The correct answer is _B_.", "B"),
        ("The correct answer\nis\nB", "B"),
        ("The correct answer is B\n```\n# Query:", "B"),
        ("The correct answer is B. 8 legs", "B"),
        ("The correct answer is B) 8", "B"),
        ('You want "The correct answer is _". The correct answer is B.', "B"),
        ("The correct answer is A. The correct answer is B.", "A"),  # one sentence was asked for
    ],
)
def test_the_letter_that_fills_the_sentence_is_read(output, letter):
    assert parse(output) == letter


@pytest.mark.parametrize(
    "output",
    [
        "",
        "B",
        "B.",
        "(B)",
        "Answer: B",
        "8",
        "A spider has 8 legs.",
        "The correct answer is 8.",
        "The correct answer is 10000 legs.",  # holds option "10" as a substring
        "The correct answer is eight, so B",
        "The correct answer is not B",
        "The correct answer is the one with 8",
        "The correct answer is b",
        "The correct answer is a spider",
        "The correct answer is E",
        "The correct answer is Because",
        "The correct answer is BC",
        "The correct answer is B2",
        "The correct answer is B12 or A",
        "The correct answer is C-14",
        "The correct answer is D's",
        "The correct answer is A/B",
        "The correct answer is B.C. 44",
        "The correct answer is C++",
        "The correct answer is A.5",
        "The correct answer is _.",
        "The correct answer is",
        "The correct answer is eight. The correct answer is B.",  # the first filled slot counts
        "The correct answers are B",
        "The correct answer isB",
    ],
)
def test_what_is_not_the_filled_sentence_is_unparseable(output):
    assert parse(output) is None


@given(st.sampled_from(LETTERS), st.text(max_size=30), st.sampled_from([".", ". ", ", ", "\n", " "]))
def test_prose_after_the_letter_never_matters(letter, prose, gap):
    # "B.C." and "B.5" are other tokens than "B" with a full stop
    if gap == "." and re.match(r"[^\W_]", prose):
        gap = ". "
    assert parse(f"The correct answer is {letter}{gap}{prose}") == letter


@given(st.text(max_size=60))
def test_text_without_the_sentence_is_never_parsed(text):
    assert "correct" in text.lower() or parse(text) is None
    assert parse(text + " A B C D 8 10") is None or "correct" in text.lower()


@given(st.text(alphabet="abcdefghij0123456789", min_size=1, max_size=10))
def test_a_slot_with_another_word_is_unparseable_even_when_letters_follow(word):
    assert parse(f"The correct answer is {word} B. The correct answer is B.") is None


def test_the_prompt_is_the_handouts_form_by_hand():
    instruction = (
        "Below is a multiple-choice question about virology. Reply with one sentence, "
        '"The correct answer is _", in which the blank is filled with A, B, C or D.\n'
        "\n"
        "Question: How many legs has a spider?\nA. 6\nB. 8\nC. 10\nD. none\nAnswer:"
    )
    assert mmlu_instruction(EXAMPLE) == instruction
    for frame in (ZERO_SHOT, ALPACA):
        result = evaluate_mmlu([EXAMPLE], generate=always_a, choose=longest_option, config=EvalConfig(), frame=frame)
        assert result.rows[0]["prompt"] == frame.wrap(instruction)


def test_the_choice_prompt_ends_before_the_letter_and_shows_worked_examples():
    shot = EXAMPLE | {"question": "And an ant?", "answer": "A"}
    prompt = mmlu_choice_prompt(EXAMPLE, few_shot=[shot])
    assert prompt.endswith(format_question(EXAMPLE) + " The correct answer is")
    assert "And an ant?\nA. 6\nB. 8\nC. 10\nD. none\nAnswer: The correct answer is A.\n\n" in prompt


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({}, None),
        ({"question": " "}, "no subject or question"),
        ({"subject": None}, "no subject or question"),
        ({"options": ["6", "8"]}, "not four options"),
        ({"options": ["6", "8", "10", None]}, "not four options"),
        ({"answer": "E"}, "answer is not a letter from A to D"),
        ({"answer": "AB"}, "answer is not a letter from A to D"),
        ({"answer": 1}, "answer is not a letter from A to D"),
    ],
)
def test_faults_of_records_are_named(change, fault):
    assert mmlu_fault(EXAMPLE | change) == fault


@dataclass(frozen=True)
class Written:
    text: str
    finish: str = "stop"
    prompt_truncated: bool = False


def always_a(prompts, *, max_new_tokens, stop):
    return [Written("The correct answer is A.\n```")] * len(prompts)


def longest_option(pairs):
    """Log-probability of a letter grows with the length of its option."""
    return [len(re.search(rf"^{letter.strip()}\. (.*)$", prompt, re.MULTILINE)[1]) - 50.0 for prompt, letter in pairs]


def test_both_accuracies_on_the_sample_agree_with_a_count():
    sample = read_sample("mmlu")
    result = evaluate_mmlu(sample, generate=always_a, choose=longest_option, config=EvalConfig(), name="mmlu sample")
    assert result.name == "mmlu sample"
    assert result.metrics["accuracy"] == 0.25  # the letters are balanced
    assert result.metrics["num_unparseable"] == 0
    longest = [max(range(4), key=lambda i: len(example["options"][i])) for example in sample]
    right = sum(LETTERS[i] == example["answer"] for i, example in zip(longest, sample, strict=True))
    assert result.metrics["choice_num_correct"] == right
    assert result.metrics["choice_accuracy"] == pytest.approx(right / len(sample))
    assert result.metrics["choice_accuracy_low"] < right / len(sample) < result.metrics["choice_accuracy_high"]
    row = result.rows[0]
    assert row["choice"] == LETTERS[longest[0]]
    assert row["choice_logprobs"] == [len(option) - 50.0 for option in sample[0]["options"]]


def test_a_subsample_is_drawn_with_the_seed():
    config = EvalConfig(max_mmlu=12, seed=5)
    runs = [
        evaluate_mmlu(read_sample("mmlu"), generate=always_a, choose=longest_option, config=config) for _ in range(2)
    ]
    assert runs[0].rows == runs[1].rows
    assert runs[0].metrics["num_examples"] == 12


def test_worked_examples_come_from_the_same_subject_or_are_missed():
    other = EXAMPLE | {"subject": "law", "question": "What is a tort?"}
    config = EvalConfig(mmlu_few_shot=1)
    seen = []

    def choose(pairs):
        seen.extend(prompt for prompt, _ in pairs)
        return [-1.0] * len(pairs)

    shot = EXAMPLE | {"question": "And an ant?", "answer": "A"}
    evaluate_mmlu([EXAMPLE], generate=always_a, choose=choose, config=config, few_shot=[other, shot])
    assert "And an ant?" in seen[0]
    assert "tort" not in seen[0]
    with pytest.raises(ValueError, match=r"there are 0 worked examples about 'virology'"):
        evaluate_mmlu([EXAMPLE], generate=always_a, choose=choose, config=config, few_shot=[other])


def test_a_model_that_gives_nan_is_an_error_not_a_guess():
    with pytest.raises(ValueError, match="NaN"):
        evaluate_mmlu(
            [EXAMPLE], generate=always_a, choose=lambda pairs: [float("nan")] * len(pairs), config=EvalConfig()
        )
