"""Answers that others have graded: real answers of models, and the regression tests of other graders."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cs336.evals.answers.boxed import last_boxed
from cs336.files import UserError


@dataclass(frozen=True)
class LabelledAnswer:
    """An answer beside the right one.

    Attributes:
        right: whether others found it right; None where nobody has said.
    """

    answer: str
    gold: str
    right: bool | None


def read_set(name: str, data: Path) -> list[LabelledAnswer]:
    """One of the `SETS`, in the order of its file.

    Args:
        data: the folder named by CS336_DATA.

    Raises:
        UserError: a file of it is not there.
    """
    try:
        return list(SETS[name](data / "eval"))
    except FileNotFoundError as error:
        raise UserError(f"{error.filename}: not found; set CS336_DATA to the folder of the real data sets") from None


def _gsm8k(folder: Path) -> Iterator[LabelledAnswer]:
    """GSM8K's test problems by four models of OpenAI's, graded by OpenAI."""
    for row in _rows(folder / "graded/gsm8k_example_model_solutions.jsonl.gz"):
        gold = _after_last(row["ground_truth"], "A:")
        for model in ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification"):
            solution = row[model]
            yield LabelledAnswer(_after_last(solution["solution"], "A:"), gold, solution["is_correct"])


def _tora(folder: Path) -> Iterator[LabelledAnswer]:
    """GSM8K's test problems by two models of ToRA's; right is what equals the gold number but for its commas.

    Solutions without a box have no answer and are left out.
    """
    for model in ("70b", "code-34b"):
        for row in _rows(folder / f"graded/gsm8k_tora-{model}-v1.0.jsonl.gz"):
            answer = last_boxed(row["code"][0])
            if answer is not None:
                yield LabelledAnswer(answer, row["gt"], row["pred"][0] == row["gt"].replace(",", ""))


def _math(folder: Path) -> Iterator[LabelledAnswer]:
    """A hundred problems of MATH by Qwen2.5-Math, eight samples each, graded by Qwen's checker."""
    for row in _rows(folder / "graded/qwen25_math_cot_100.jsonl.gz"):
        for sample, right in zip(row["code"], row["score"], strict=True):
            answer = last_boxed(sample)
            if answer is not None:
                yield LabelledAnswer(answer, row["answer"], right)


def _another(folder: Path) -> Iterator[LabelledAnswer]:
    """Each right answer of MATH's test beside that of another problem of the same annotated type: almost all wrong.

    Problems with several right answers are left out.
    """
    of_type: dict[str, list[str]] = {}
    for row in json.loads(gzip.decompress((folder / "math/test_answer_types.json.gz").read_bytes())):
        if isinstance(row["answer"], str):
            of_type.setdefault(row["human_type"], []).append(row["answer"])
    pairs = []
    generator = random.Random(0)
    for golds in of_type.values():
        answers = generator.sample(golds, len(golds))
        pairs += [LabelledAnswer(answer, gold, None) for answer, gold in zip(answers, golds, strict=True)]
    yield from generator.sample(pairs, len(pairs))


def _math_verify(folder: Path) -> Iterator[LabelledAnswer]:
    """math-verify's regression tests."""
    return _pairs(folder / "graded/dev/math_verify_pairs.jsonl.gz")


def _mario(folder: Path) -> Iterator[LabelledAnswer]:
    """MARIO_EVAL's regression tests."""
    return _pairs(folder / "graded/dev/mario_eval_pairs.jsonl.gz")


def _pairs(path: Path) -> Iterator[LabelledAnswer]:
    return (LabelledAnswer(row["pred"], row["gold"], row["equal"]) for row in _rows(path))


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def _after_last(text: str, mark: str) -> str:
    return text.rpartition(mark)[2].strip()


SETS: dict[str, Callable[[Path], Iterator[LabelledAnswer]]] = {
    "gsm8k": _gsm8k,
    "tora": _tora,
    "math": _math,
    "another": _another,
    "math-verify-tests": _math_verify,
    "mario-tests": _mario,
}
ORDINARY = ("gsm8k", "tora", "math")  # what models wrote; the others are there to be difficult
