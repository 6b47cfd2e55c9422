"""The question sets written for this project: form, arithmetic, originality."""

from __future__ import annotations

import ast
import csv
import io
import re
import tarfile
from collections import Counter
from fractions import Fraction

import pytest

from cs336.evals.gsm8k import gold_answer, gsm8k_fault
from cs336.evals.mmlu import LETTERS, mmlu_fault
from cs336.evals.task import read_sample
from cs336.files import read_jsonl

MMLU = read_sample("mmlu")
GSM8K = read_sample("gsm8k")


def value_of(expression: str) -> Fraction:
    """Exact value of an expression of + - * / and brackets."""

    def value(node: ast.expr) -> Fraction:
        match node:
            case ast.Constant(value=int() | float()):
                return Fraction(str(node.value))
            case ast.UnaryOp(op=ast.USub()):
                return -value(node.operand)
            case ast.BinOp(op=ast.Add()):
                return value(node.left) + value(node.right)
            case ast.BinOp(op=ast.Sub()):
                return value(node.left) - value(node.right)
            case ast.BinOp(op=ast.Mult()):
                return value(node.left) * value(node.right)
            case ast.BinOp(op=ast.Div()):
                return value(node.left) / value(node.right)
        raise ValueError(f"not plain arithmetic: {expression}")

    return value(ast.parse(expression, mode="eval").body)


def words_of(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def ngrams_of(text: str, n: int = 13) -> set[tuple[str, ...]]:
    words = words_of(text)
    return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}


def test_mmlu_questions_are_well_formed_and_balanced():
    assert len(MMLU) >= 60
    for example in MMLU:
        assert list(example) == ["subject", "question", "options", "answer"]
        assert mmlu_fault(example) is None
        assert len({option.lower() for option in example["options"]}) == 4
    assert len({example["subject"] for example in MMLU}) >= 8
    assert Counter(example["answer"] for example in MMLU) == dict.fromkeys(LETTERS, len(MMLU) // 4)


def test_the_right_option_is_not_given_away_by_its_length():
    lengths = [[len(option) for option in example["options"]] for example in MMLU]
    right = [LETTERS.index(example["answer"]) for example in MMLU]
    longest = sum(
        row[place] == max(row) and row.count(max(row)) == 1 for row, place in zip(lengths, right, strict=True)
    )
    assert longest <= 0.4 * len(MMLU)


def test_gsm8k_problems_are_well_formed():
    assert len(GSM8K) >= 60
    for example in GSM8K:
        assert list(example) == ["question", "answer"]
        assert gsm8k_fault(example) is None
        assert example["question"].endswith("?")


@pytest.mark.parametrize("example", GSM8K, ids=lambda example: " ".join(words_of(example["question"])[:4]))
def test_every_step_is_right_and_the_last_one_is_the_answer(example):
    marks = re.findall(r"([-\d.+*/() ]+) = <<([^<>=]+)=([^<>=]+)>>(\S+)", example["answer"])
    assert len(marks) == example["answer"].count("<<") == len(example["answer"].splitlines()) - 1 >= 2
    for shown, expression, result, repeated in marks:
        assert shown.strip() == expression
        assert value_of(expression) == Fraction(result)
        assert repeated.rstrip(".,") == result
    assert Fraction(marks[-1][2]) == Fraction(gold_answer(example["answer"]))


@pytest.mark.parametrize("example", GSM8K, ids=lambda example: " ".join(words_of(example["question"])[:4]))
def test_no_step_uses_a_large_number_that_is_neither_given_nor_computed(example):
    # Small numbers may be common knowledge or number words (a dozen, 100 cents, 1,000 grams).
    known = {number.replace(",", "") for number in re.findall(r"\d[\d,]*(?:\.\d+)?", example["question"])}
    for expression, result in re.findall(r"<<([^<>=]+)=([^<>=]+)>>", example["answer"]):
        for number in re.findall(r"\d+(?:\.\d+)?", expression):
            assert float(number) <= 12 or number in {"100", "1000"} or number in known, (number, expression)
        known.add(result.removeprefix("-"))


@pytest.mark.parametrize("examples", [MMLU, GSM8K], ids=["mmlu", "gsm8k"])
def test_no_question_is_asked_twice(examples):
    assert len({" ".join(words_of(example["question"])) for example in examples}) == len(examples)
    openings = Counter(" ".join(words_of(example["question"])[:8]) for example in examples)
    assert max(openings.values()) <= 1


def test_no_13_words_in_a_row_stand_in_the_real_sets(shared_data):
    ours = set[tuple[str, ...]]()
    for example in MMLU:
        ours |= ngrams_of(" ".join([example["question"], *example["options"]]))
    for example in GSM8K:
        ours |= ngrams_of(example["question"]) | ngrams_of(example["answer"])
    real = [
        f"{row['question']} {row['answer']}"
        for split in ("train", "test")
        for row in read_jsonl(shared_data / "eval/gsm8k" / f"{split}.jsonl.gz")
    ]
    with tarfile.open(shared_data / "eval/mmlu/mmlu.tar.xz") as archive:
        for member in archive:
            if member.name.endswith(".csv"):
                text = io.TextIOWrapper(archive.extractfile(member), encoding="utf-8", newline="")
                real += [" ".join(row) for row in csv.reader(text)]
    assert len(real) > 20_000
    shared = set[tuple[str, ...]]()
    for text in real:
        shared |= ours & ngrams_of(text)
    assert not shared


def test_the_chat_samples_have_the_fields_of_their_sets_and_ask_nothing_twice():
    instructions, requests = read_sample("alpaca_eval"), read_sample("safety")
    assert all(set(row) == {"instruction", "output", "generator", "dataset"} for row in instructions)
    assert len({row["instruction"] for row in instructions}) == len(instructions) == 12
    assert {row["generator"] for row in instructions} == {"cs336 sample"}
    assert all(set(row) == {"id", "harm_area", "counter", "category", "prompt"} for row in requests)
    assert len({row["prompt"] for row in requests}) == len({row["id"] for row in requests}) == 10
    assert set(Counter(row["harm_area"] for row in requests).values()) == {2}  # of each of the five areas
