"""What must not be trained on: the texts of every evaluation that the catalogue knows."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cs336 import catalog
from cs336.evals.task import read_sample
from cs336.files import UserError, read_jsonl

# Made-up sums: a table of numbers holds them all, and knowing one is no knowledge of the answer.
_NO_TEXT = ("simple_arithmetic_nospaces",)
# PIQA asks with as little as "books", which 4 % of real pages hold as a line: it counts with its options.
_MIN_WORDS = 5
# What a prompt puts around a question is no part of it.
_FRAME = re.compile(r"^\s*Question:\s*|\s*\n?(?:Choices:\n.*)?Answer:\s*$", re.DOTALL)


def eval_texts() -> dict[str, list[str]]:
    """The texts of each evaluation found on this machine, by name; always the project's own samples.

    Of questions with options, the question with its options; of tasks that continue a sentence, the
    sentence with its right end; of validation sets, the documents. Reference answers stay out: what
    a page says is no leak, that it asks the question is.
    """
    texts = {f"{name} sample": [_with_options(row) for row in read_sample(name)] for name in ("mmlu", "gsm8k")}
    for name, read in READERS.items():
        if found := catalog.find(name):
            for task, task_texts in read(found).items():
                texts[task] = task_texts
    return texts


def _with_options(row: dict[str, Any]) -> str:
    return "\n".join([row["question"], *row.get("options", [])])


def _mmlu(path: Path) -> dict[str, list[str]]:
    return {"mmlu": [_with_options(row) for row in catalog.read_mmlu(path, "test")]}


def _gsm8k(path: Path) -> dict[str, list[str]]:
    return {"gsm8k": [row["question"] for row in catalog.read_gsm8k(path, "test")]}


def _math(path: Path) -> dict[str, list[str]]:
    file = catalog.files_of("math")["test_answers.jsonl"]
    return {"math": [_field(row, "problem", file) for row in read_jsonl(file)]}


def _alpaca_eval(path: Path) -> dict[str, list[str]]:
    return {"alpaca-eval": [row["instruction"] for row in catalog.read_alpaca_eval(path)]}


def _safety(path: Path) -> dict[str, list[str]]:
    return {"simple-safety-tests": [row["prompt"] for row in catalog.read_simple_safety_tests(path)]}


def _icl_tasks(path: Path) -> dict[str, list[str]]:
    tasks = {}
    for name, file in catalog.files_of("icl-tasks").items():
        task = name.removesuffix(".jsonl")
        if task not in _NO_TEXT:
            tasks[f"icl {task}"] = [_task_text(row, file) for row in read_jsonl(file)]
    return tasks


def _task_text(row: dict[str, Any], path: Path) -> str:
    if "context_options" in row:
        return f"{row['context_options'][row['gold']]} {row['continuation']}"
    text = _FRAME.sub("", row.get("query") or row.get("context") or "")
    if not text.strip():
        raise UserError(f"{path}: a row without query or context; fetch the file again")
    if len(text.split()) < _MIN_WORDS and "choices" in row:
        text = "\n".join([text, *row["choices"]])
    # LAMBADA's last word belongs to its passage; the others' continuation is an answer.
    return f"{text} {row['continuation']}" if "continuation" in row else text


def _paloma(path: Path) -> dict[str, list[str]]:
    return {"paloma-c4-100": list(_documents(catalog.require_files("paloma-c4-100")))}


def _documents(paths: list[Path]) -> Iterator[str]:
    for path in paths:
        if ".json" in path.name:
            yield from (_field(row, "text", path) for row in read_jsonl(path))


def _field(row: Any, name: str, path: Path) -> str:
    if not isinstance(row, dict) or not isinstance(row.get(name), str):
        raise UserError(f"{path}: a row without {name}; fetch the file again")
    return row[name]


READERS: dict[str, Callable[[Path], dict[str, list[str]]]] = {
    "mmlu": _mmlu,
    "gsm8k": _gsm8k,
    "math": _math,
    "alpaca-eval": _alpaca_eval,
    "simple-safety-tests": _safety,
    "icl-tasks": _icl_tasks,
    "paloma-c4-100": _paloma,
}
