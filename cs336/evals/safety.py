"""SimpleSafetyTests: are the replies to 100 dangerous requests safe?

Source: Vidgen et al. 2023, arXiv:2311.08370. Files and the judge follow the handout (alignment supplement).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cs336.evals.judges import SafetyJudge
from cs336.evals.report import wilson_interval
from cs336.evals.task import ZERO_SHOT, EvalResult, Example, Frame, Generate, Task, run_task
from cs336.files import UserError, read_jsonl


def predict_safety(
    examples: Sequence[Example],
    *,
    generate: Generate,
    max_new_tokens: int,
    frame: Frame = ZERO_SHOT,
    max_examples: int = 0,
    seed: int = 0,
    name: str = "simple-safety-tests",
) -> EvalResult:
    """Reply to the requests; nothing is judged yet.

    Args:
        examples: records with `prompt`, as the catalogue reads them.
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
        fault=lambda example: None if example.get("prompt", "").strip() else "no prompt",
        instruction=lambda example: example["prompt"],
        grade=None,
        frame=frame,
    )
    return run_task(task, generate=generate, max_new_tokens=max_new_tokens, max_examples=max_examples, seed=seed)


def safety_predictions(result: EvalResult) -> list[dict[str, Any]]:
    """The rows of the prediction file: `prompts_final`, `output`, and the other fields of the examples."""
    rows = []
    for row in result.rows:
        others = {name: value for name, value in row["example"].items() if name != "prompt"}
        rows.append({**others, "prompts_final": row["example"]["prompt"], "output": row["output"]})
    return rows


def judge_safety(
    predictions: Sequence[Mapping[str, Any]], *, judge: SafetyJudge, name: str = "simple-safety-tests"
) -> EvalResult:
    """Have every reply judged.

    Args:
        predictions: `prompts_final`, `output`, and any other fields.

    Returns:
        Rows: the fields given, `model_name_or_path` (the judge), `model_prompt` and `model_response` (what
        it was asked and wrote) and `metrics: {"safe": ...}`. Metrics: `judge`, `num_examples`, `safe` (mean)
        with its 95 % interval `safe_low`, `safe_high`, and `by_area` where rows have a `harm_area`.

    Raises:
        ValueError: no predictions.
    """
    if not predictions:
        raise ValueError("no predictions to judge")
    verdicts = judge.judge([(row["prompts_final"], row["output"]) for row in predictions])
    rows = [
        {
            **row,
            "model_name_or_path": judge.name,
            "model_prompt": verdict.judge_prompt,
            "model_response": verdict.reply,
            "metrics": {"safe": verdict.safe},
        }
        for row, verdict in zip(predictions, verdicts, strict=True)
    ]
    areas = sorted({row["harm_area"] for row in rows if "harm_area" in row})
    by_area = {area: _safe_share([row for row in rows if row.get("harm_area") == area]) for area in areas}
    metrics = {"judge": judge.name, "num_examples": len(rows), **_safe_share(rows)}
    return EvalResult(name, rows, metrics | ({"by_area": by_area} if by_area else {}))


def read_safety_predictions(path: Path) -> list[dict[str, Any]]:
    """Read a prediction file.

    Raises:
        UserError: the file is missing or empty, or a row has no prompts_final or output.
    """
    predictions = list(read_jsonl(path))
    for number, row in enumerate(predictions, 1):
        if not isinstance(row, dict) or not all(isinstance(row.get(name), str) for name in ("prompts_final", "output")):
            raise UserError(f"{path}: record {number} has no prompts_final and output")
    if not predictions:
        raise UserError(f"{path}: holds no predictions")
    return predictions


def _safe_share(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    num_safe = sum(row["metrics"]["safe"] == 1 for row in rows)
    low, high = wilson_interval(num_safe, len(rows))
    return {"safe": num_safe / len(rows), "safe_low": low, "safe_high": high}
