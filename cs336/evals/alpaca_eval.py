"""AlpacaEval: free answers to 805 instructions, judged against a reference model's.

Source: Li et al. 2023, github.com/tatsu-lab/alpaca_eval. The prediction file is what its command-line
tool reads, so its judges can be used as well as those of `judges`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cs336.evals.judges import Pair, PairJudge, agreement
from cs336.evals.length_control import fit_difficulty, length_controlled_win_rate, win_rate
from cs336.evals.task import ZERO_SHOT, EvalResult, Example, Frame, Generate, Task, run_task
from cs336.files import UserError, read_json, read_jsonl, write_json


def predict_alpaca_eval(
    examples: Sequence[Example],
    *,
    generate: Generate,
    max_new_tokens: int,
    frame: Frame = ZERO_SHOT,
    max_examples: int = 0,
    seed: int = 0,
    name: str = "alpaca-eval",
) -> EvalResult:
    """Answer the instructions; nothing is judged yet.

    Args:
        examples: records with `instruction` and `dataset`; their outputs are an old reference's, not used.
        generate: greedy generation.
        frame: `ALPACA` for models tuned on that template.

    Returns:
        Rows and metrics of `run_task`, without marks: counts and wall time.

    Raises:
        ValueError: no usable example.
    """
    task = Task(
        name=name,
        examples=examples,
        fault=lambda example: None if example.get("instruction", "").strip() else "no instruction",
        instruction=lambda example: example["instruction"],
        grade=None,
        frame=frame,
    )
    return run_task(task, generate=generate, max_new_tokens=max_new_tokens, max_examples=max_examples, seed=seed)


def alpaca_predictions(result: EvalResult, *, generator: str) -> list[dict[str, str]]:
    """The rows of the prediction file: `instruction`, `output`, `generator`, `dataset`.

    Args:
        generator: the model's name, the same in all rows.
    """
    return [
        {
            "instruction": row["example"]["instruction"],
            "output": row["output"],
            "generator": generator,
            "dataset": row["example"]["dataset"],
        }
        for row in result.rows
    ]


def write_predictions(path: Path, predictions: Sequence[Mapping[str, str]]) -> None:
    """Write the prediction file: one JSON array."""
    write_json(path, list(predictions))


def read_predictions(path: Path) -> list[dict[str, str]]:
    """Read a prediction file.

    Raises:
        UserError: the file is missing, or no array of objects with an instruction, an output and one generator.
    """
    rows = read_json(path)
    fields = ("instruction", "output", "generator")
    if not isinstance(rows, list) or not all(
        isinstance(row, dict) and all(isinstance(row.get(field), str) for field in fields) for row in rows
    ):
        raise UserError(f"{path}: not a JSON array of objects with {', '.join(fields)}")
    if len({row["generator"] for row in rows}) != 1:
        raise UserError(f"{path}: needs rows of one generator, the same name in all")
    return rows


def read_annotations(path: Path) -> list[dict[str, Any]]:
    """Stored preferences between a reference's outputs (1) and a model's (2).

    Args:
        path: JSON Lines, gzipped or not, with the fields of `judge_alpaca_eval`'s rows.

    Raises:
        UserError: the file is missing, or a row lacks an instruction, an output or a preference.
    """
    rows = list(read_jsonl(path))
    for number, row in enumerate(rows, 1):
        texts = ("instruction", "output_1", "generator_1", "output_2", "generator_2")
        if not all(isinstance(row.get(name), str) for name in texts) or not isinstance(row["preference"], float | int):
            raise UserError(f"{path}: record {number} lacks one of {', '.join(texts)} and preference")
    return rows


def references_of(annotations: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """The reference's outputs, for `judge_alpaca_eval`: GPT-4 Turbo's, AlpacaEval's default opponent."""
    return [
        {"instruction": row["instruction"], "output": row["output_1"], "generator": row["generator_1"]}
        for row in annotations
    ]


def difficulty_of(annotations: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, float]:
    """How hard each instruction is to win, from stored preferences of several models; see `fit_difficulty`."""
    ordered = [sorted(rows, key=lambda row: row["instruction"]) for rows in annotations]
    logits = fit_difficulty(
        {
            f"{place} {rows[0]['generator_2']}": (
                [row["preference"] for row in rows],
                [len(row["output_2"]) for row in rows],
                [len(row["output_1"]) for row in rows],
            )
            for place, rows in enumerate(ordered)
        }
    )
    return {row["instruction"]: float(logit) for row, logit in zip(ordered[0], logits, strict=True)}


def judge_agreement(annotations: Sequence[Mapping[str, Any]], *, judge: PairJudge) -> dict[str, Any]:
    """How well a judge agrees with stored preferences on their own outputs; see `agreement`."""
    pairs = [Pair(row["instruction"], row["output_1"], row["output_2"]) for row in annotations]
    given = [preference.value for preference in judge.compare(pairs)]
    return {"judge": judge.name, **agreement(given, [row["preference"] for row in annotations])}


def judge_alpaca_eval(
    predictions: Sequence[Mapping[str, str]],
    references: Sequence[Mapping[str, str]],
    *,
    judge: PairJudge,
    difficulty: Mapping[str, float] | None = None,
    name: str = "alpaca-eval",
) -> EvalResult:
    """Have every answer compared with the reference's to the same instruction.

    Args:
        predictions, references: `instruction`, `output` and `generator`, in any order.
        difficulty: of each instruction, for the length-controlled rate; see `fit_difficulty`.

    Returns:
        Rows of annotations: `instruction`, `output_1` and `generator_1` of the reference, `output_2` and
        `generator_2` of the model, `preference` (1.0: the reference won; None: the judge's reply could not
        be read), `annotator`, `judge_reply`. Metrics: those of `win_rate` and `length_controlled_win_rate`
        over the pairs judged, `num_examples`, `num_unjudged`, mean `output_characters` and
        `reference_characters`, and the `judge`.

    Raises:
        ValueError: an instruction without reference, or no reply that could be read.
    """
    by_instruction = {row["instruction"]: row for row in references}
    missing = [row["instruction"] for row in predictions if row["instruction"] not in by_instruction]
    if missing:
        raise ValueError(f"no reference output for {len(missing)} instructions, such as {missing[0][:80]!r}")
    pairs = [
        Pair(row["instruction"], by_instruction[row["instruction"]]["output"], row["output"]) for row in predictions
    ]
    rows: list[dict[str, Any]] = [
        {
            "instruction": pair.instruction,
            "output_1": pair.reference,
            "generator_1": by_instruction[pair.instruction]["generator"],
            "output_2": pair.output,
            "generator_2": prediction["generator"],
            "preference": preference.value,
            "annotator": judge.name,
            "judge_reply": preference.reply,
        }
        for prediction, pair, preference in zip(predictions, pairs, judge.compare(pairs), strict=True)
    ]
    judged = [row for row in rows if row["preference"] is not None]
    if not judged:
        raise ValueError(f"{judge.name}: none of {len(rows)} replies could be read; look at judge_reply")
    output_lengths = [len(row["output_2"]) for row in judged]
    reference_lengths = [len(row["output_1"]) for row in judged]
    preferences = [row["preference"] for row in judged]
    metrics = {
        "judge": judge.name,
        "num_examples": len(judged),
        "num_unjudged": len(rows) - len(judged),
        **win_rate(preferences),
        **length_controlled_win_rate(
            preferences,
            output_lengths,
            reference_lengths,
            difficulty=None if difficulty is None else [difficulty[row["instruction"]] for row in judged],
        ),
        "output_characters": sum(output_lengths) / len(judged),
        "reference_characters": sum(reference_lengths) / len(judged),
    }
    return EvalResult(name, rows, metrics)
