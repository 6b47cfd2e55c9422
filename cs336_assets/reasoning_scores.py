"""What reasoning came to: scores by model and questions, the chain stage by stage, variants, the timed leaderboard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cs336 import catalog
from cs336.evals.competition_math import read_math
from cs336.evals.gsm8k import gsm8k_questions
from cs336.evals.reasoning import draw_of_category
from cs336.evals.report import ScoreRow, Share, difference, markdown_table, score_rows, wilson_interval
from cs336.evals.seeds import seed_in, spread_of, without_seed
from cs336.evals.task import read_sample, sample_path
from cs336.files import read_json, write_json, write_jsonl
from cs336.hardware import pick_device
from cs336.leaderboard import SCORES_FILE, collect_scores, scores_version
from cs336.posttrain.config import ScoreRun, score_runs
from cs336.posttrain.runs import Site, read_records, score_policy
from cs336.posttrain.start import PolicyConfig
from cs336.presets import Preset
from cs336.train.data_ablation import paired_difference
from cs336_assets import reasoning_plots
from cs336_assets.asset import WHOLE, Metadata, Step, Takes, asset, check
from cs336_assets.crawl import table
from cs336_assets.reasoning import of_chain

STUDY_FILE = "study.json"
GENERATIONS_FILE = "generations.jsonl"
_WANTED_GAIN, _LEAVES_ROOM = 0.15, 0.85  # of GRPO over an SFT that is right this often or less
_FILE_TASKS = ("gsm8k", "math")  # whose questions are the same with every seed


# ---- scores


def _scored(asset: str) -> Takes:
    """The cell of an asset that a cell of the scores is about."""

    def takes(preset: Preset, part: str | None) -> str | None:
        run = score_runs(preset.reasoning, preset.problems)[part or ""]
        return (run.cell or WHOLE) if run.asset == asset else None

    return takes


_MODELS = ("start_policy", "sft_model", "longer_sft_model", "expert_iteration_model", "grpo_model")


@asset(
    group="reasoning",
    kinds={"pytorch"},
    owner="team:evals",
    cells=lambda preset: score_runs(preset.reasoning, preset.problems),
    datasets=("gsm8k", "math"),
    files=(sample_path("gsm8k"),),
    pool="gpu",
    takes={name: _scored(name) for name in _MODELS},
)
def reasoning_scores(
    step: Step,
    start_policy: Path | None,
    sft_model: Path | None,
    longer_sft_model: Path | None,
    expert_iteration_model: Path | None,
    grpo_model: Path | None,
    reasoning_problems: Path,
    policy: PolicyConfig,
    seed: int,
    cell: ScoreRun,
) -> Metadata:
    """One model's sampled answers to one set of questions: the held-out problems, GSM8K, or MATH where it is found.

    The handout's zero-shot evaluation: accuracy with its interval, answers counted by format and answer, and ten of
    each failing kind at random to be read. The start policy's score is the baseline of all others.
    """
    models = (start_policy, sft_model, longer_sft_model, expert_iteration_model, grpo_model)
    (model,) = [each for each in models if each is not None]
    examples, set_name = _questions(cell, reasoning_problems)
    if not examples:
        write_json(step.folder / SCORES_FILE, [])
        return {"set": set_name, "state": f"not scored: {cell.task} is not on this machine"}
    site = Site(
        start=model,
        problems=reasoning_problems,
        folder=step.folder,
        policy=policy,
        seed=seed,
        device=pick_device(step.device),
        num_workers=step.num_workers,
        progress=step.progress,
    )
    result = score_policy(cell, examples, site)
    write_jsonl(step.folder / GENERATIONS_FILE, result.rows)
    rows = [
        row
        for row in score_rows(result.metrics, preset=step.preset, model=cell.model, task=cell.task, set_name=set_name)
        if row["metric"] == "accuracy"  # what cannot be read is counted by category
    ]
    write_json(step.folder / SCORES_FILE, rows)
    return {"set": set_name, "scores": {"markdown": markdown_table(rows)}} | _categories(result.metrics, result.rows)


def _questions(run: ScoreRun, problems: Path) -> tuple[list[dict[str, Any]], str]:
    """Questions and ground truths, and what the set is called."""
    if run.task == "reasoning":
        return read_records(problems, "test"), run.set_name
    if run.task == "gsm8k":
        found = catalog.find("gsm8k")
        records = catalog.read_gsm8k(found, "test") if found else read_sample("gsm8k")
        return list(gsm8k_questions(records)), run.set_name if found else run.set_name.replace("gsm8k", "gsm8k sample")
    file = catalog.find_file("math", "test_answers.jsonl")
    return (read_math(file) if file else []), run.set_name


def _categories(metrics: Mapping[str, Any], rows: Sequence[dict[str, Any]]) -> Metadata:
    """Counts by format and answer, accuracy by level, and answers of each failing category."""
    counts = [
        [pair, each["count"], f"{each['share']:.1%}", f"{each['low']:.1%} to {each['high']:.1%}"]
        for pair, each in metrics["categories"].items()
    ]
    shown: Metadata = {
        "accuracy": metrics["accuracy"],
        "num_examples": metrics["num_examples"],
        "num_prompts_truncated": metrics["num_prompts_truncated"],
        "num_outputs_truncated": metrics["num_outputs_truncated"],
        "num_lost": metrics["num_lost"],
        "categories": table(["(format, answer)", "answers", "share", "95 % interval"], counts),
    }
    if "by_level" in metrics:
        by_level = metrics["by_level"].items()
        levels = [[level, each["num_examples"], f"{each['accuracy']:.1%}"] for level, each in by_level]
        shown["levels"] = table(["level", "questions", "accuracy"], levels)
    for name, pair in (("wrong_answers", (1, 0)), ("not_formatted", (0, 0))):
        failing = draw_of_category(rows, *pair)
        asked = [each["example"] for each in failing]
        read = [
            [example["question"][:200], each["output"][:400], example["answer"]]
            for example, each in zip(asked, failing, strict=True)
        ]
        shown[name] = table(["question", "output", "right answer"], read)
    return shown


# ---- the chain


def chain_accuracies(rows: Sequence[ScoreRow]) -> dict[str, dict[str, Any]]:
    """Accuracy of each model on held-out problems, of one preset or pooled over several.

    Seeds of generated problems ask questions of their own, so that their right answers are added up under one Wilson
    interval. Those of GSM8K and MATH ask the same ones, which count once however many seeds there are. Either way the
    interval is that of the questions; how far runs with other seeds differ is their spread.

    Args:
        rows: of the leaderboard; those of other tasks and metrics are left out.

    Returns:
        By model: `accuracy`, `low`, `high`, `num_examples` (questions), `by_preset`, the accuracy of each, and
        `spread`, the standard deviation over these seeds (None of one).
    """
    pooled: dict[str, dict[str, Any]] = {}
    for row in rows:
        if row["task"] == "reasoning" and row["metric"] == "accuracy":
            each = pooled.setdefault(row["model"], {"num_correct": 0, "num_examples": 0, "by_preset": {}})
            each["num_correct"] += round(row["value"] * row["num_examples"])
            each["num_examples"] += row["num_examples"]
            each["by_preset"][row["preset"]] = row["value"]
            each["of_a_file"] = row["set_name"].partition(",")[0] in _FILE_TASKS
    for each in pooled.values():
        num_asked = each["num_examples"]
        each["accuracy"] = each.pop("num_correct") / num_asked
        if each.pop("of_a_file"):
            each["num_examples"] = num_asked // len(each["by_preset"])
        right = round(each["accuracy"] * each["num_examples"])
        each["low"], each["high"] = wilson_interval(right, each["num_examples"])
        each["spread"] = spread_of(list(each["by_preset"].values()))
    return pooled


def accuracies_over_seeds(scores: Path, preset: str) -> dict[str, dict[str, Any]]:
    """`chain_accuracies` of all models of a preset and of its seeds that are on this machine, made here or adopted.

    Args:
        scores: a partition of this preset's `reasoning_scores`.
    """
    stem = without_seed(preset)
    return chain_accuracies([row for row in collect_scores(scores.parents[2]) if without_seed(row["preset"]) == stem])


@asset(
    group="reasoning",
    kinds={"matplotlib"},
    owner="team:evals",
    watches=scores_version,
    takes={"reasoning_scores": of_chain("reasoning_scores")},
)
def reasoning_study(step: Step, reasoning_scores: Path) -> Metadata:
    """The chain stage by stage on held-out problems: start, SFT, SFT for longer, Expert Iteration, GRPO.

    With the seeds of this preset that are on this machine (`NAME_seed_N`), made here or adopted, pooled: each has
    weights and generated problems of its own; the text, its worked problems included, is the same for all. Beside the
    interval of the questions stands the spread over seeds.
    """
    pooled = accuracies_over_seeds(reasoning_scores, step.preset)
    models = {name: pooled[name] for name in _MODELS if name in pooled}
    write_json(step.folder / STUDY_FILE, models)
    shares = {name: (each["accuracy"], each["low"], each["high"]) for name, each in models.items()}
    reasoning_plots.shares_with_intervals(shares, step.folder / "stages.png", label="accuracy on held-out problems")
    presets = sorted({preset for each in models.values() for preset in each["by_preset"]})
    columns = ["model", "accuracy", "95 % interval", "questions", "std over seeds", "lowest", "highest", *presets]
    return {
        "num_seeds": len(presets),
        "stages": table(columns, [_stage_row(name, each, presets) for name, each in models.items()]),
        "figure": {"image": "stages.png"},
    }


@check(asset="reasoning_study")
def training_raises_the_accuracy(reasoning_study: Path) -> tuple[bool, Metadata]:
    """No stage of the chain is below the start policy on held-out problems, and the last is above it beyond chance."""
    models = read_json(reasoning_study / STUDY_FILE)
    start = models.pop("start_policy")
    below = [name for name, each in models.items() if each["accuracy"] < start["accuracy"]]
    gains = {name: each["accuracy"] - start["accuracy"] for name, each in models.items()}
    last = next((models[name] for name in reversed(_MODELS) if name in models), start)  # the file is in no order
    return not below and last["low"] > start["high"], {"gains": gains}


@check(asset="reasoning_study")
def grpo_beats_sft(reasoning_study: Path) -> tuple[bool, Metadata]:
    """GRPO is above SFT on held-out problems, and above the SFT that went on for as long: by 15 points at least where
    that is right in at most 85 %. Each difference is told with its 95 % interval.
    """
    models = read_json(reasoning_study / STUDY_FILE)
    others = {name: models[name] for name in ("sft_model", "longer_sft_model") if name in models}
    if "grpo_model" not in models or not others:
        return True, {"state": "the chain has not both"}
    grpo = models["grpo_model"]
    gains = {name: round(grpo["accuracy"] - each["accuracy"], 4) for name, each in others.items()}
    too_little = [
        name
        for name, each in others.items()
        if gains[name] <= 0 or (each["accuracy"] <= _LEAVES_ROOM and gains[name] < _WANTED_GAIN)
    ]
    told = {f"over_{name}": _gain(grpo, each) for name, each in others.items()}
    return not too_little, {"gain": min(gains.values()), "too_little_over": too_little, **told}


def _gain(model: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """A difference in points with the interval of the questions and, of several seeds, with that of the seeds."""
    first, second = (Share(each["accuracy"], each["low"], each["high"]) for each in (model, other))
    value, low, high = (100 * each for each in difference(first, second))
    text = f"{value:+.1f} points ({low:+.1f} to {high:+.1f} by the questions"
    by_seed = [
        {seed_in(preset) or 0: accuracy for preset, accuracy in each.get("by_preset", {}).items()}
        for each in (other, model)
    ]
    if len(by_seed[0].keys() & by_seed[1].keys()) < 2:
        return f"{text}; one seed)"
    mean, half_width, num_seeds = paired_difference(*by_seed)
    assert half_width is not None
    return f"{text}; {100 * (mean - half_width):+.1f} to {100 * (mean + half_width):+.1f} over {num_seeds} seeds)"


def _stage_row(name: str, each: Mapping[str, Any], presets: Sequence[str]) -> list[Any]:
    by_preset = each["by_preset"]
    spread = [_percent(value) for value in (each["spread"], min(by_preset.values()), max(by_preset.values()))]
    interval = f"{each['low']:.1%} to {each['high']:.1%}"
    of_seeds = [_percent(by_preset.get(preset)) for preset in presets]
    return [name, _percent(each["accuracy"]), interval, each["num_examples"], *spread, *of_seeds]


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
