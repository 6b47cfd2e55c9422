"""The alignment supplement's benchmarks after each stage: base, instruction-tuned, and DPO models by task."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cs336.evals.alpaca_eval import alpaca_predictions, write_predictions
from cs336.evals.answerer import open_answerer
from cs336.evals.report import (
    METRIC_NAMES,
    ScoreRow,
    format_score,
    markdown_table,
    score_rows,
    wilson_interval,
)
from cs336.evals.safety import safety_predictions
from cs336.evals.suite import (
    FRAMES,
    GRADED,
    JUDGED,
    ChatEvalConfig,
    JudgeConfig,
    Opponent,
    answer,
    failures,
    judge_answers,
    opponent,
    pair_judge,
    safety_judge,
)
from cs336.evals.task import EvalResult, sample_path
from cs336.files import read_json, read_jsonl, write_json, write_jsonl
from cs336.generate.checkpoints import Checkpoint, load_checkpoint
from cs336.hardware import pick_device
from cs336.leaderboard import SCORES_FILE
from cs336.posttrain.instructions import InstructionsConfig
from cs336.presets import Preset
from cs336.store import MANIFEST
from cs336.tokens.chat import template_path
from cs336_assets import chat_plots
from cs336_assets.asset import Metadata, Step, asset, check
from cs336_assets.crawl import page_table, table
from cs336_assets.instruct import OWN_BASE, open_base

TASKS = (*GRADED, *JUDGED)
ANSWERS_FILE, SET_FILE = "generations.jsonl", "set.json"
PREDICTIONS = {"alpaca_eval": "predictions.json", "safety": "predictions.jsonl"}
BASE, TUNED = "base", "instruct"
_SETS = ("mmlu", "gsm8k", "alpaca-eval", "simple-safety-tests")
_FILES = (
    *(sample_path(name) for name in ("mmlu", "gsm8k", "alpaca_eval", "safety")),
    *(template_path(name) for name in ("mmlu", "gsm8k", "zero_shot", "alpaca")),
)
# What the alignment tax is read from: the metric of each task that also a small model moves.
TAX_METRICS = (
    ("mmlu", "accuracy"),
    ("mmlu", "choice_accuracy"),
    ("mmlu", "unparseable_share"),
    ("gsm8k", "accuracy"),
    ("gsm8k", "unparseable_share"),
    ("generated", "accuracy"),
    ("generated", "unparseable_share"),
    ("alpaca_eval", "win_rate"),
    ("alpaca_eval", "lc_win_rate"),
    ("safety", "safe"),
)


def _tasks(preset: Preset) -> dict[str, str]:
    return {task: task for task in TASKS}


def _dpo_tasks(preset: Preset) -> dict[str, tuple[str, str]]:
    return {f"{kind}-{task}": (kind, task) for kind in preset.preferences.kinds for task in TASKS}


@asset(
    group="instruct",
    kinds={"pytorch"},
    owner="team:evals",
    cells=_tasks,
    datasets=_SETS,
    files=_FILES,
    pool="gpu",
    takes=OWN_BASE,
)
def base_answers(
    step: Step,
    base_model: Path | None,
    tokenizer: Path | None,
    instructions: InstructionsConfig,
    chat_evals: ChatEvalConfig,
    cell: str,
) -> Metadata:
    """Zero-shot baselines: the base model's answers to every task in the frame of the handout's system prompt."""
    base = open_base(step, base_model, tokenizer, instructions, dtype=chat_evals.weights_dtype)
    return _answer(step, base, cell, chat_evals, model=BASE, frame="zero_shot")


@asset(group="instruct", kinds={"pytorch"}, owner="team:evals", cells=_tasks, datasets=_SETS, files=_FILES, pool="gpu")
def instruction_answers(step: Step, instruction_model: Path, chat_evals: ChatEvalConfig, cell: str) -> Metadata:
    """The instruction-tuned model's answers to every task, in the Alpaca form that it was tuned on."""
    return _answer(step, _open(step, instruction_model, chat_evals), cell, chat_evals, model=TUNED, frame="alpaca")


@asset(
    group="instruct", kinds={"pytorch"}, owner="team:evals", cells=_dpo_tasks, datasets=_SETS, files=_FILES, pool="gpu"
)
def dpo_answers(step: Step, dpo_model: list[Path], chat_evals: ChatEvalConfig, cell: tuple[str, str]) -> Metadata:
    """The DPO models' answers to every task, in the Alpaca form."""
    kind, task = cell
    folder = next(folder for folder in dpo_model if folder.name == kind)
    return _answer(step, _open(step, folder, chat_evals), task, chat_evals, model=f"dpo-{kind}", frame="alpaca")


@check(asset="dpo_answers")
def prediction_files_have_their_form(
    base_answers: list[Path], instruction_answers: list[Path], dpo_answers: list[Path]
) -> tuple[bool, Metadata]:
    """AlpacaEval's files are one array with one generator in all rows, safety's JSON Lines with the prompts."""
    faults = []
    for folder in [*base_answers, *instruction_answers, *dpo_answers]:
        task = folder.name.rpartition("-")[2]
        if task == "alpaca_eval":
            rows = read_json(folder / PREDICTIONS[task])
            names, fields = {row["generator"] for row in rows}, {"instruction", "output", "generator", "dataset"}
            right = len(names) == 1 and all(set(row) == fields for row in rows)
        elif task == "safety":
            rows = list(read_jsonl(folder / PREDICTIONS[task]))
            right = all({"prompts_final", "output"} <= set(row) for row in rows)
        else:
            continue
        if not right or not rows:
            faults.append(f"{folder.parent.name}/{folder.name}")
    return not faults, {"faults": faults}


@asset(group="instruct", kinds={"python"}, owner="team:evals", datasets=("alpaca-eval", "alpaca-eval-preferences"))
def chat_judgements(
    step: Step,
    base_answers: list[Path],
    instruction_answers: list[Path],
    dpo_answers: list[Path],
    judges: JudgeConfig,
) -> Metadata:
    """Free answers of all models, judged: win rates against GPT-4 Turbo, plain and length-controlled, and safe replies.

    Also against the base model's own answers, where the rates of small models tell more. A judge whose name begins
    with "offline" is a rule and no model's opinion.
    """
    answers = {"alpaca_eval": {}, "safety": {}}  # type: dict[str, dict[str, EvalResult]]
    for model, task, folder in answer_folders(base_answers, instruction_answers, dpo_answers):
        if task in JUDGED:
            answers[task][model] = _stored(folder)
    rows: list[ScoreRow] = []
    # One judge after the other: two models of 70 B do not stand beside each other.
    by_pairs, against = pair_judge(judges), opponent()
    of_base = alpaca_predictions(answers["alpaca_eval"][BASE], generator=BASE)
    for model, result in answers["alpaca_eval"].items():
        rows += _judged(step, "alpaca_eval", result, by_pairs, model, against)
        if model != BASE:
            rows += _judged(
                step, "alpaca_eval", result, by_pairs, model, Opponent(of_base, None), beside=" against base"
            )
    names = {"alpaca_eval": by_pairs.name}
    del by_pairs
    by_reply = safety_judge(judges)
    names["safety"] = by_reply.name
    for model, result in answers["safety"].items():
        rows += _judged(step, "safety", result, by_reply, model, None)
    write_json(step.folder / SCORES_FILE, rows)
    write_json(step.folder / "judges.json", names)
    return {
        "pair_judge": names["alpaca_eval"],
        "safety_judge": names["safety"],
        "scores": {"markdown": markdown_table(rows)},
    }


@asset(group="instruct", kinds={"matplotlib"}, owner="team:evals")
def alignment_tax(
    step: Step,
    base_answers: list[Path],
    instruction_answers: list[Path],
    dpo_answers: list[Path],
    chat_judgements: Path,
) -> Metadata:
    """Each task by model, with 95 % intervals: what tuning gave, and what it cost in knowledge and reasoning.

    A difference counts as told from chance where the intervals of both models do not overlap.
    """
    rows: list[ScoreRow] = []
    for _, task, folder in answer_folders(base_answers, instruction_answers, dpo_answers):
        rows += read_json(folder / SCORES_FILE) if task in GRADED else []
    rows += [row for row in read_json(chat_judgements / SCORES_FILE) if not row["set_name"].endswith("against base")]
    scores = _by_task(rows)
    chat_plots.scores_by_model(scores, step.folder / "tax.png")
    page = tax_page(scores)
    write_json(step.folder / "tax.json", {"scores": scores, "page": page})
    judges = read_json(chat_judgements / "judges.json")
    return {
        "table": {"markdown": page},
        "judges": "; ".join(judges.values()),
        "throughput": table(_SPEED, list(_speeds(base_answers, instruction_answers, dpo_answers))),
        "tax": {"image": "tax.png"},
    }


# ---- shared


def answer_folders(*answers: Sequence[Path]) -> Iterator[tuple[str, str, Path]]:
    """Model, task and folder of all answers, of the base model first."""
    for folder in (each for folders in answers for each in folders):
        kind, _, task = folder.name.rpartition("-")
        stage = {"base_answers": BASE, "instruction_answers": TUNED}.get(folder.parent.name, f"dpo-{kind}")
        yield stage, task, folder


_SPEED = ["task", "model", "answers", "seconds", "answers per second", "prompts cut", "outputs cut off"]


def _speeds(*answers: Sequence[Path]) -> Iterator[list[Any]]:
    """What generation took, as the runs reported it: timings are no part of an artifact's files."""
    for model, task, folder in answer_folders(*answers):
        facts = read_json(folder / MANIFEST)["metadata"]
        times = [round(facts[name], 1) for name in ("generate_seconds", "examples_per_second")]
        yield [
            task,
            model,
            facts["num_examples"],
            *times,
            facts["num_prompts_truncated"],
            facts["num_outputs_truncated"],
        ]


def _open(step: Step, folder: Path, config: ChatEvalConfig) -> Checkpoint:
    return load_checkpoint(folder, device=pick_device(step.device), dtype=config.weights_dtype)


def _answer(
    step: Step, checkpoint: Checkpoint, task: str, config: ChatEvalConfig, *, model: str, frame: str
) -> Metadata:
    with open_answerer(checkpoint, progress=step.progress) as answerer:
        result = answer(task, answerer, config, frame=FRAMES[frame])
    write_jsonl(step.folder / ANSWERS_FILE, result.rows)
    write_json(step.folder / SET_FILE, {"model": model, "task": task, "set_name": result.name})
    shown: Metadata = {"set": result.name}
    if task in GRADED:
        rows = score_rows(result.metrics, preset=step.preset, model=model, task=task, set_name=result.name)
        write_json(step.folder / SCORES_FILE, rows)
        shown |= {"scores": {"markdown": markdown_table(rows)}, "wrong_answers": _shown(failures(result.rows, count=5))}
    else:
        if task == "alpaca_eval":
            write_predictions(step.folder / PREDICTIONS[task], alpaca_predictions(result, generator=model))
        else:
            write_jsonl(step.folder / PREDICTIONS[task], safety_predictions(result))
        shown |= {"some_answers": _shown(result.rows[:5])}
    return shown | {name: value for name, value in result.metrics.items() if isinstance(value, int | float)}


def _shown(rows: Sequence[Mapping[str, Any]]) -> Metadata:
    asked = [
        row["example"].get("question") or row["example"].get("instruction") or row["example"]["prompt"] for row in rows
    ]
    return table(
        ["asked", "output"],
        [[text[:160], row["output"][:240] or "*nothing*"] for text, row in zip(asked, rows, strict=True)],
    )


def _stored(folder: Path) -> EvalResult:
    return EvalResult(read_json(folder / SET_FILE)["set_name"], list(read_jsonl(folder / ANSWERS_FILE)))


def _judged(
    step: Step,
    task: str,
    result: EvalResult,
    judge: Any,
    model: str,
    against: Opponent | None,
    *,
    beside: str = "",
) -> list[ScoreRow]:
    judged = judge_answers(task, result, judge, model=model, against=against)
    write_jsonl(step.folder / f"{task}-{model}{beside.replace(' ', '-')}.jsonl", judged.rows)
    name = f"{result.name}{beside}"
    return score_rows(judged.metrics, preset=step.preset, model=model, task=task, set_name=name)


def _by_task(rows: Sequence[ScoreRow]) -> dict[str, dict[str, tuple[float, float, float]]]:
    scores: dict[str, dict[str, tuple[float, float, float]]] = {}
    for task, metric in TAX_METRICS:
        for row in rows:
            if row["task"] == task and row["metric"] == metric:
                low, high = row["low"], row["high"]
                if low is None or high is None:
                    low, high = wilson_interval(round(row["value"] * row["num_examples"]), row["num_examples"])
                scores.setdefault(f"{row['set_name']}: {METRIC_NAMES[metric]}", {})[row["model"]] = (
                    row["value"],
                    low,
                    high,
                )
    return scores


def tax_page(scores: Mapping[str, Mapping[str, tuple[float, float, float]]]) -> str:
    """The table, and a sentence a task on what is told from chance."""
    models = list(dict.fromkeys(model for of_task in scores.values() for model in of_task))
    cells = [
        [task, *(format_score("accuracy", of[m][0], low=of[m][1], high=of[m][2]) if m in of else "" for m in models)]
        for task, of in scores.items()
    ]
    lines = [line for task, of_task in scores.items() for line in _changes(task, of_task)]
    said = lines or ["No difference between a model and the one that it was tuned from is told from chance."]
    return "\n\n".join([page_table(["task", *models], cells), *said])


def _changes(task: str, of_task: Mapping[str, tuple[float, float, float]]) -> Iterator[str]:
    for model, (value, low, high) in of_task.items():
        before = BASE if model == TUNED else TUNED
        if model == BASE or before not in of_task:
            continue
        was, was_low, was_high = of_task[before]
        if low > was_high or high < was_low:
            word = "rises" if value > was else "falls"
            yield f"{task} {word} by {100 * abs(value - was):.1f} points from {before} to {model}."
