"""Prompt templates, against the handout's description line by line and against published data."""

from __future__ import annotations

import gzip
import json

import pytest

from cs336.tokens.chat import (
    alpaca_prompt,
    alpaca_text,
    fill,
    fill_template,
    question_only_prompt,
    r1_zero_prompt,
    read_template,
    template_path,
    wrap_instruction,
)


def test_r1_zero_has_three_lines_and_ends_inside_the_thinking():
    preamble, user, assistant = read_template("r1_zero").split("\n")
    assert preamble.startswith("A conversation between User and Assistant.")
    assert preamble.endswith("<think> reasoning process here </think> <answer> answer here </answer>.")
    assert user == "User: {question}"
    assert assistant == "Assistant: <think>"


def test_r1_zero_is_the_prompt_of_the_published_traces(shared_data):
    prompts = []
    with gzip.open(shared_data / "sft/math_think_traces_b.jsonl.gz", "rt") as lines:
        prompts += [json.loads(line)["prompt"] for line in lines]
    for prompt in prompts:
        question = prompt.split("\nUser: ", 1)[1].removesuffix("\nAssistant: <think>")
        assert r1_zero_prompt(question) == prompt
    assert len(prompts) == 272


def test_the_short_form_is_the_end_of_the_long_one():
    assert read_template("r1_zero").endswith("\n" + read_template("r1_zero_short"))


def test_question_only_is_the_question():
    assert question_only_prompt(" What is\n1+1? ") == " What is\n1+1? "


@pytest.mark.parametrize("name", ["r1_zero", "r1_zero_short", "question_only"])
def test_reasoning_prompts_have_one_placeholder_and_no_newline_at_the_end(name):
    assert read_template(name).count("{") == read_template(name).count("{question}") == 1
    assert not read_template(name).endswith("\n")


def test_alpaca_is_the_published_form():
    head = (
        "Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nName a colour.\n\n### Response:\n"
    )
    assert alpaca_prompt("Name a colour.") == head
    assert alpaca_text("Name a colour.", "Red.") == head + "Red."
    assert read_template("alpaca").endswith("{response}\n")
    assert alpaca_text("x", "{prompt}\n").endswith("### Response:\n{prompt}\n")  # a response keeps its own newline


def test_the_wrapper_has_the_parts_of_the_handout_in_order():
    lines = read_template("zero_shot").split("\n")
    assert lines[0] == "# Instruction"
    assert all(lines[1:8])  # seven lines of guidance
    assert lines[8:] == ["", "# Query:", "```{instruction}```", "", "# Answer:", "```", ""]
    assert read_template("zero_shot").count("{instruction}") == 1


def test_an_instruction_with_braces_is_put_in_unchanged():
    before, after = read_template("zero_shot").split("{instruction}")
    assert wrap_instruction("f(x) = {x} and {instruction}") == before + "f(x) = {x} and {instruction}" + after
    assert fill("{a} {b}", a="{b}", b="{a}") == "{b} {a}"


def test_missing_and_unknown_values_and_names_are_errors():
    with pytest.raises(ValueError, match=r"asks for \['question'\], the values are of \[\]"):
        fill_template("r1_zero")
    with pytest.raises(ValueError, match="the values are of"):
        fill_template("r1_zero", question="?", answer="1")
    with pytest.raises(ValueError, match=r"no template named 'r2'; there are alpaca, gsm8k, .*zero_shot"):
        template_path("r2")
